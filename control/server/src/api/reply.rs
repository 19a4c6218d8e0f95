//! Answers, and refusals with a name.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::{Map, Value};
use weft_model::Problems;
use weft_store::{Error, lease::Lost, machine::Compacted, types::Rejection};

/// The body of an answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Why something was not done: a status, and a body with `code`, `message`, perhaps `hint`, and what belongs to it.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: Map<String, Value>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let body = [("code", Value::from(code)), ("message", Value::from(message.into()))];
        Self { status, body: body.map(|(name, value)| (name.to_owned(), value)).into_iter().collect() }
    }

    /// What it is called.
    #[cfg(test)]
    pub(super) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// Nothing was done, and nobody is known who could.
    pub(super) fn no_leader(leader: Option<&str>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_leader", "there is no leader at the moment; nothing was done")
            .with("leader", leader)
            .hint("try again: an election takes about a second, if a majority of the members is up")
    }

    /// It may have been done.
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        let hint = "ask again with the same weft-client and weft-sequence: it is done once";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "unknown", message).hint(hint)
    }

    /// It is Weft's mistake.
    pub(super) fn defect(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "defect", message)
    }

    /// The configuration would not be valid.
    pub(super) fn invalid(problems: &Problems) -> Self {
        let count = problems.len();
        let message = format!("the configuration would not be valid: {count} mistake{}", plural(count));
        let list: Vec<Value> = problems.iter().filter_map(|problem| serde_json::to_value(problem).ok()).collect();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message).with("problems", list)
    }

    /// The lease is not the agent's any more.
    pub(super) fn lost(lost: Lost) -> Self {
        let (reason, hint) = match lost {
            Lost::Gone => ("gone", "ask for another with PUT /v1/agents/AGENT, and register again"),
            Lost::Superseded => ("superseded", "another process took it over under the same name: give each its own"),
        };
        Self::new(StatusCode::CONFLICT, "lost", lost.to_string()).with("reason", reason).hint(hint)
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        self.with("hint", hint.into())
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.body.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let (status, mut response) = (self.status, json(&Value::Object(self.body)));
        *response.status_mut() = status;
        response
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotLeader { leader } => Self::no_leader(leader.as_ref().map(|(_, member)| &*member.name)),
            Error::Unknown => Self::unknown("the outcome is not known"),
            Error::Unavailable => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message),
            Error::Behind { at } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "behind", message).with("revision", at.0)
            }
            Error::Lost(lost) => Self::lost(lost),
            Error::ClockAhead => Self::bad(message),
            Error::Membership(_) => Self::new(StatusCode::CONFLICT, "membership", message),
            Error::Stopped(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", message),
        }
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        match &rejection {
            Rejection::Conflict { key, found } => {
                let message = match found {
                    Some(found) => format!("{key} is at revision {found}"),
                    None => format!("{key} does not exist"),
                };
                Self::new(StatusCode::CONFLICT, "conflict", message)
                    .with("revision", found.map(|found| found.0))
                    .hint("get it again, and decide anew")
            }
            Rejection::NoLease(_) => Self::lost(Lost::Gone),
            Rejection::StaleLease => Self::lost(Lost::Superseded),
            Rejection::NoObject(_) => Self::not_found(rejection.to_string()),
            Rejection::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", rejection.to_string()),
            Rejection::TooManyClients | Rejection::TooManyOutstanding => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", rejection.to_string())
            }
            _ => Self::new(StatusCode::CONFLICT, "rejected", rejection.to_string()),
        }
    }
}

impl From<Compacted> for Refusal {
    fn from(compacted: Compacted) -> Self {
        Self::new(StatusCode::GONE, "compacted", format!("compacted at {}", compacted.at))
            .with("revision", compacted.at.0)
            .hint("list again, and go on from the list's revision")
    }
}

/// JSON.
pub(super) fn json(value: &Value) -> Response<Body> {
    text("application/json", format!("{value}\n"))
}

/// Text of a content type.
pub(super) fn text(content_type: &'static str, text: String) -> Response<Body> {
    let mut response = bytes(text.into());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// Bytes.
pub(super) fn bytes(bytes: Bytes) -> Response<Body> {
    Response::new(Full::new(bytes).boxed_unsync())
}
