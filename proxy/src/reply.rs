//! Replies that Weft makes itself: refusals, redirects. Each says why.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};

use crate::{
    body::ReplyBody,
    error::{Reason, Refusal},
    exchange::Exchange,
};

static REASON: HeaderName = HeaderName::from_static("x-weft-reason");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const WEFT: HeaderValue = HeaderValue::from_static("weft");
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// An answer without an upstream.
#[derive(Debug)]
pub enum Answer {
    /// A refusal by name.
    Refused(Refusal),
    /// A refusal by method: the methods that would do.
    MethodNotAllowed(String),
    /// RequestRedirect.
    Redirect(StatusCode, HeaderValue),
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Default for Answer {
    /// What is left when the answer has been taken.
    fn default() -> Self {
        Self::Refused(Refusal::new(Reason::Internal, "answered twice"))
    }
}

impl Manner {
    /// How `request` wants to be answered.
    pub fn of<B>(request: &Request<B>, grpc: bool) -> Self {
        Self { grpc, method: request.method().clone(), h2: request.version() == Version::HTTP_2 }
    }
}

/// How the client wants to be answered.
#[derive(Debug, Clone)]
pub struct Manner {
    /// gRPC: trailers only.
    pub grpc: bool,
    /// HEAD gets no body; a refused CONNECT ends the connection.
    pub method: Method,
    /// HTTP/2 has no `Connection`.
    pub h2: bool,
}

/// Turns an answer into a response, and remembers it.
pub fn reply(answer: Answer, manner: &Manner, mut exchange: Box<Exchange>) -> Response<ReplyBody> {
    let (response, refusal) = response(answer, manner);
    match refusal {
        Some(refusal) => exchange.record.refused(refusal),
        None => exchange.record.status = response.status().as_u16(),
    }
    response.map(|text| ReplyBody::local(text, exchange))
}

/// The response, and the refusal that it tells of.
fn response(answer: Answer, manner: &Manner) -> (Response<Bytes>, Option<Refusal>) {
    let (refusal, allow) = match answer {
        Answer::Redirect(status, location) => {
            let mut response = Response::new(Bytes::new());
            *response.status_mut() = status;
            response.headers_mut().insert(header::LOCATION, location);
            response.headers_mut().insert(header::SERVER, WEFT);
            if refuses_tunnel(manner) {
                response.headers_mut().insert(header::CONNECTION, CLOSE);
            }
            return (response, None);
        }
        Answer::MethodNotAllowed(methods) => {
            (Refusal::new(Reason::MethodNotAllowed, "the route knows this path with other methods"), Some(methods))
        }
        Answer::Refused(refusal) => (refusal, None),
    };
    let row = refusal.reason.row();
    let status = if manner.grpc { StatusCode::OK } else { refusal.http_status() };
    let closes = refuses_tunnel(manner) || (!manner.h2 && closes_connection(refusal.reason));
    let text = if manner.grpc || manner.method == Method::HEAD { Bytes::new() } else { body(&refusal) };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(REASON.clone(), HeaderValue::from_static(row.name));
    headers.insert(header::SERVER, WEFT);
    if manner.grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS.clone(), HeaderValue::from(u16::from(refusal.grpc_status())));
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&refusal)) {
            headers.insert(GRPC_MESSAGE.clone(), message);
        }
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    if let Some(allow) = allow.and_then(|methods| HeaderValue::try_from(methods).ok()) {
        headers.insert(header::ALLOW, allow);
    }
    if let Some(after) = refusal.retry_after {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if closes {
        headers.insert(header::CONNECTION, CLOSE);
    }
    (response, Some(refusal))
}

/// HTTP/1.1: what follows a CONNECT may be meant for the tunnel that there is not.
fn refuses_tunnel(manner: &Manner) -> bool {
    !manner.h2 && manner.method == Method::CONNECT
}

/// After a malformed or unfinished request nobody knows where the next one begins.
const fn closes_connection(reason: Reason) -> bool {
    matches!(reason, Reason::BadRequest | Reason::RequestTimeout | Reason::RequestTooLarge | Reason::Draining)
}

/// What a person reads: reason, detail, advice.
pub fn body(refusal: &Refusal) -> Bytes {
    let row = refusal.reason.row();
    Bytes::from(format!("{}: {}\n({})\n", row.name, refusal.detail, row.advice))
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2, "Responses").
fn percent_encoded(refusal: &Refusal) -> String {
    use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
    const SET: &AsciiSet = &CONTROLS.add(b'%');
    utf8_percent_encode(&format!("{}: {}", refusal.reason, refusal.detail), SET).to_string()
}

#[cfg(test)]
mod tests;
