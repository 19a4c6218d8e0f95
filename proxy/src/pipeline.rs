//! The life of a request. Read `prepare` from top to bottom, then [`crate::forward`].
//!
//! The steps are plain functions around one `async fn`, and not a stack of tower services: the code stands in the order
//! in which things happen, and what a route does not use is a branch not taken. tower stays the place where users extend.

use std::{convert::Infallible, future::Future, rc::Rc};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery};
use hyper::body::Incoming;

use crate::{
    balance::hash_str,
    body::{ReplyBody, RequestBody},
    conn::Conn,
    error::{Reason, Refusal},
    exchange::Exchange,
    forward::{Prepared, forward},
    headers::{self, Seen},
    layer::{access, mirror, ratelimit, target},
    reply::{self, Answer, Manner},
    snapshot::{Rule, Target, Upstream},
    upgrade::Client,
    upstream::send::{self, Keep, Slot},
};

/// Answers one request. Never fails: what goes wrong becomes a reply with its reason.
///
/// Everything up to the first wait is done by `prepare`, outside of the future: what a future holds across a wait is
/// paid for by every connection, and what is moved into it is copied.
pub fn handle(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ReplyBody>, Infallible>> {
    let mut seen = headers::scan(request.headers());
    // RFC 9110 §7.8: an HTTP/1.0 client cannot ask for another protocol.
    seen.upgrade &= request.version() != Version::HTTP_10;
    let mut exchange = Exchange::begin(&conn, &request, seen.grpc);
    let manner = Manner::of(&request, seen.grpc);
    let mut prepared = prepare(&conn, request, seen, &mut exchange);
    async move {
        let answered = match &mut prepared {
            Ok(prepared) => forward(&mut exchange, prepared).await,
            // The answer is there already; nothing waits for its place to be used again.
            Err(answer) => Err(std::mem::take(answer)),
        };
        let standing = exchange.standing.take();
        let mut response = match answered {
            Ok((response, lease)) => {
                exchange.answered(response.status().as_u16());
                response.map(|body| ReplyBody::upstream(body, lease, exchange))
            }
            Err(answer) => reply::reply(answer, &manner, exchange),
        };
        if let Some(standing) = standing {
            standing.apply(response.headers_mut());
        }
        if conn.worker.draining.get() && !manner.h2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Everything before the first wait: which rule, which backend, and what the upstream will see.
fn prepare(
    conn: &Rc<Conn>,
    mut request: Request<Incoming>,
    seen: Seen,
    exchange: &mut Exchange,
) -> Result<Prepared, Answer> {
    let worker = &conn.worker;
    let snapshot = worker.snapshot();

    // Which rule: by host, path, method, headers and query, in the form that will be forwarded.
    let source = target::Source::of(&request)?;
    let asked = source.asked(request.method())?;
    let found = target::route(&snapshot, conn, &request, &asked)?;
    exchange.routed(&snapshot, found.rule);
    let rule = &snapshot.rules[found.rule as usize];
    if let Some(redirect) = &rule.redirect {
        return Err(target::redirect(redirect, conn, &asked, found.matched)?);
    }

    // Which backend of the rule.
    let picked = rule.backends.pick_position(worker.random()).and_then(|at| Some((at, rule.backends.get(at)?)));
    let (position, target) = picked.ok_or_else(|| nowhere("the rule has no backend with a weight"))?;
    exchange.targeted(position, target);
    let upstream = target.upstream.as_ref().ok_or_else(|| nowhere("the service or its port does not exist"))?;
    access::check(&upstream.service, conn.peer.ip(), conn.captured.as_deref())?;
    worker.shared.shed.check(request.headers(), upstream.policy.priority)?;
    if let Some(limits) = &target.limits {
        ratelimit::charge(limits, &upstream.service.circuit, exchange, request.headers(), asked.path())?;
    }
    let deadline = headers::deadline(request.headers(), seen);
    if let Some(deadline) = deadline {
        exchange.limit(deadline);
    }
    headers::check_length(request.headers(), worker.shared.options.limits.body_bytes)?;
    let fault = match &upstream.fault {
        None => None,
        Some(fault) => match fault.decide(request.headers(), &mut worker.rng.borrow_mut()) {
            (None, Some(abort)) => return Err(abort.into()),
            (Some(delay), abort) => Some(Box::new((delay, abort))),
            (None, None) => None,
        },
    };
    // A request that is made to wait takes its place afterwards.
    if fault.is_none() {
        exchange.occupy(upstream)?;
    }

    // What the upstream sees.
    let from_http11 = request.version() == Version::HTTP_11;
    let hash = hash_of(upstream, conn, &request, asked.path());
    let repeatable = target.retry.as_ref().filter(|plan| {
        let method = plan.allows_method(request.method(), request.headers(), seen.grpc);
        method && !headers::wants_tunnel(request.method(), seen)
    });
    if *request.method() == Method::CONNECT && upstream.is_h2() {
        let detail = "CONNECT is passed on to HTTP/1.1 services only (appProtocol: http)";
        return Err(Refusal::new(Reason::BadRequest, detail).into());
    }
    let tunnel = headers::wants_tunnel(request.method(), seen) && !upstream.is_h2();
    let client = tunnel.then(|| match request.version() {
        Version::HTTP_2 => Client::Http2(hyper::upgrade::on(&mut request)),
        _ => Client::Http1,
    });
    let uri = target::forwarded_uri(rule, upstream, request.method(), &asked, found.matched)?;
    let mut host = target::forwarded_host(rule, &asked)?;
    if host.is_none() && asked.authority().is_none() {
        // HTTP/1.0 without Host goes on as HTTP/1.1, which needs one (RFC 9112 §3.2).
        host = HeaderValue::from_str(&upstream.service.name).ok();
    }
    headers::prepare_request(request.headers_mut(), seen, tunnel && seen.upgrade, asked.authority(), conn)?;
    apply(&mut request, uri, host, rule, target, upstream);
    exchange.record.forwarded(request.headers());

    // The body begins to flow when the upstream asks for it.
    let (mut parts, body) = request.into_parts();
    parts.extensions.clear();
    let (mut body, progress) = RequestBody::from_client(body, worker.shared.options.limits.body_bytes, conn);
    exchange.progress = progress;
    if !upstream.is_h2() && !body.is_empty() && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        // Said in so many words: hyper takes a GET of unknown length for one without a body.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    mirror::copies(conn, rule, &parts, &mut body);
    if let Some(plan) = repeatable {
        body = body.keep(plan.max_body_bytes);
    }
    let hedgeable = body.is_empty() && client.is_none() && send::is_idempotent(&parts.method);
    let hedge = if hedgeable { upstream.hedge(exchange.start) } else { None };
    let keep = if repeatable.is_some() || hedge.is_some() { Keep::ForRetry } else { Keep::ForReuse };
    // An HTTP/1.0 client does not know interim responses, and hyper cannot send them over HTTP/2. Of two attempts at a
    // time nobody could tell whose they are.
    let interim = from_http11 && conn.guard.get().is_some() && !upstream.is_h2() && hedge.is_none();
    Ok(Prepared {
        request: Slot::new(Request::from_parts(parts, body), keep),
        client,
        hash,
        deadline: deadline.is_some(),
        interim,
        repeatable: repeatable.is_some(),
        hedge,
        fault,
    })
}

/// Request and fields as the upstream gets them.
fn apply(
    request: &mut Request<Incoming>,
    uri: Option<Uri>,
    host: Option<HeaderValue>,
    rule: &Rule,
    target: &Target,
    upstream: &Upstream,
) {
    if let Some(uri) = uri {
        *request.uri_mut() = uri;
    }
    if request.version() == Version::HTTP_2 && !upstream.is_h2() {
        headers::join_cookies(request.headers_mut());
    }
    let h2 = upstream.is_h2();
    *request.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
    if h2 {
        request.headers_mut().remove(header::HOST);
    } else if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    for modifier in [&rule.request_headers, &target.request_headers].into_iter().flatten() {
        modifier.apply(request.headers_mut());
        // HTTP/2 says it as :authority, and the two must not differ (RFC 9113 §8.3.1).
        if h2 && let Some(host) = request.headers_mut().remove(header::HOST) {
            let mut parts = request.uri().clone().into_parts();
            parts.authority = host.as_bytes().try_into().ok().or(parts.authority);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
}

/// There is no endpoint that the request could go to.
pub fn nowhere(detail: &'static str) -> Refusal {
    Refusal::new(Reason::NoEndpoint, detail)
}

/// What RingHash and Maglev hash; 0 for the others, which ignore it.
fn hash_of(upstream: &Upstream, conn: &Conn, request: &Request<Incoming>, path: &str) -> u64 {
    if !upstream.balancer.needs_hash() {
        return 0;
    }
    let key = &upstream.policy.load_balancer.hash;
    hash_str(target::hash_key(key, request.headers(), path, conn.forwarded_for.as_bytes()))
}

/// Keeps the request's own target unless something changes it.
pub fn with_path(path: PathAndQuery) -> Result<Uri, Refusal> {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| Refusal::new(Reason::BadRequest, "the request target cannot be forwarded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// hyper keeps room for this in every connection, idle ones too, and moving it about costs time.
    #[test]
    fn the_future_of_a_request_stays_small() {
        fn size<F: Future>(_: impl FnOnce(Rc<Conn>, Request<Incoming>) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(handle);
        assert!(size <= 2560, "{size} bytes");
    }
}
