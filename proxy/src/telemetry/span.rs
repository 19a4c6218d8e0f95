//! Span records of sampled requests, made by hand: one SERVER span, one CLIENT span per attempt.
//!
//! Names follow OpenTelemetry's semantic conventions 1.44. Nothing here runs for a request that is not sampled.

use std::{
    borrow::Cow,
    num::NonZeroU64,
    sync::Arc,
    time::{Instant, SystemTime},
};

use http::HeaderValue;

use super::{
    Attempt, Finished,
    metrics::Slot,
    names::{self, Side},
};

/// Longest text of an attribute, in bytes; the rest is cut off.
const MAX_TEXT: usize = 2048;

/// Query parameters whose values are replaced, as the conventions for `url.query` and `url.full` ask.
const SECRET_PARAMETERS: [&str; 4] = ["AWSAccessKeyId", "Signature", "sig", "X-Goog-Signature"];

/// SERVER or CLIENT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The exchange with the client.
    Server,
    /// An attempt at an endpoint.
    Client,
}

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A fixed text.
    Static(&'static str),
    /// A text shared with the configuration.
    Shared(Arc<str>),
    /// A text of this request.
    Text(Box<str>),
    /// A number.
    Int(i64),
}

impl Value {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Static(text) => Some(text),
            Self::Shared(text) => Some(text),
            Self::Text(text) => Some(text),
            Self::Int(_) => None,
        }
    }
}

/// A finished span.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanRecord {
    /// Trace.
    pub trace_id: u128,
    /// Span, unique in the trace.
    pub span_id: u64,
    /// The span above it.
    pub parent: Option<NonZeroU64>,
    /// Whether the span above came in a header.
    pub parent_is_remote: bool,
    /// Kind.
    pub kind: Kind,
    /// `{method} {http.route}` or `{method}`.
    pub name: Box<str>,
    /// Start.
    pub start: SystemTime,
    /// End.
    pub end: SystemTime,
    /// `Some` makes the status Error; the description may be empty.
    pub error: Option<&'static str>,
    /// In the order of the conventions.
    pub attributes: Vec<(&'static str, Value)>,
}

impl SpanRecord {
    /// An attribute by name.
    pub fn attribute(&self, name: &str) -> Option<&Value> {
        self.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

/// The spans of an exchange: SERVER first, then its attempts. `wall` gives the time of day.
pub fn spans(facts: &Finished<'_>, slot: &Slot, wall: impl Fn(Instant) -> SystemTime) -> Vec<SpanRecord> {
    let mut spans = Vec::with_capacity(1 + facts.attempts.len());
    spans.push(server(facts, slot, &wall));
    spans.extend(facts.attempts.iter().zip(0..).map(|(attempt, resends)| client(facts, slot, attempt, resends, &wall)));
    spans
}

fn server(facts: &Finished<'_>, slot: &Slot, wall: &impl Fn(Instant) -> SystemTime) -> SpanRecord {
    let mut attributes = Attributes(Vec::with_capacity(24));
    let method = attributes.method(facts);
    attributes.text("url.path", facts.path);
    attributes.maybe("url.query", facts.query.map(redacted));
    attributes.fixed("url.scheme", facts.scheme);
    if !slot.http_route.is_empty() {
        attributes.shared("http.route", &slot.http_route);
    }
    attributes.result(Side::Server, facts.status, facts.grpc_status(), facts.reason);
    if let Some(host) = facts.host {
        let (address, port) = split_host(host);
        attributes.text("server.address", address);
        attributes.int("server.port", port.unwrap_or(if facts.scheme == "https" { 443 } else { 80 }).into());
    }
    if let Some(client) = facts.client {
        attributes.text("client.address", client.ip().to_string());
        attributes.int("client.port", client.port().into());
    }
    attributes.fixed("network.protocol.version", names::protocol_version(facts.version));
    attributes.maybe("user_agent.original", facts.user_agent.map(header_text));
    attributes.int("http.request.body.size", i64::try_from(facts.bytes_in).unwrap_or(i64::MAX));
    attributes.int("http.response.body.size", i64::try_from(facts.bytes_out).unwrap_or(i64::MAX));
    attributes.rpc(facts, facts.grpc_status());
    attributes.weft(facts, slot);
    let error = names::is_error(Side::Server, facts.status, facts.grpc_status());
    SpanRecord {
        trace_id: facts.trace.trace_id,
        span_id: facts.trace.span_id,
        parent: facts.trace.parent_span,
        parent_is_remote: facts.trace.parent_span.is_some(),
        kind: Kind::Server,
        name: match &*slot.http_route {
            "" => method.into(),
            route => format!("{method} {route}").into(),
        },
        start: wall(facts.start),
        end: wall(facts.end),
        error: error.then(|| facts.reason.map_or("", |reason| reason.row().name)),
        attributes: attributes.0,
    }
}

fn client(
    facts: &Finished<'_>,
    slot: &Slot,
    attempt: &Attempt,
    resends: i64,
    wall: &impl Fn(Instant) -> SystemTime,
) -> SpanRecord {
    let mut attributes = Attributes(Vec::with_capacity(16));
    let method = attributes.method(facts);
    if let Some(endpoint) = &attempt.endpoint {
        let ip = endpoint.address.ip().to_string();
        let address = endpoint.hostname.as_deref().unwrap_or(&ip);
        let scheme = if attempt.tls { "https" } else { "http" };
        let authority = if endpoint.hostname.is_some() {
            format!("{address}:{}", endpoint.address.port())
        } else {
            endpoint.address.to_string()
        };
        let query = facts.query.map(redacted);
        let (mark, query) = query.as_ref().map_or(("", ""), |query| ("?", &**query));
        attributes.text("server.address", address);
        attributes.int("server.port", endpoint.address.port().into());
        attributes.text("url.full", format!("{scheme}://{authority}{}{mark}{query}", facts.path));
    }
    attributes.result(Side::Client, attempt.status, attempt.grpc_status, attempt.reason);
    if resends > 0 {
        attributes.int("http.request.resend_count", resends);
    }
    attributes.rpc(facts, attempt.grpc_status);
    if !slot.service.is_empty() {
        attributes.shared("weft.service", &slot.service);
    }
    if let Some(reason) = attempt.reason {
        attributes.fixed("weft.reason", reason.row().name);
    }
    if let Some(event) = &attempt.breaker {
        attributes.fixed("weft.breaker.state", event.to.as_str());
        attributes.shared("weft.breaker.evidence", &event.evidence);
    }
    let failed = attempt.reason.is_some() || names::is_error(Side::Client, attempt.status, attempt.grpc_status);
    SpanRecord {
        trace_id: facts.trace.trace_id,
        span_id: attempt.span_id,
        parent: NonZeroU64::new(facts.trace.span_id),
        parent_is_remote: false,
        kind: Kind::Client,
        name: method.into(),
        start: wall(attempt.start),
        end: wall(attempt.end.unwrap_or(facts.end)),
        error: failed.then(|| attempt.reason.map_or("", |reason| reason.row().name)),
        attributes: attributes.0,
    }
}

struct Attributes(Vec<(&'static str, Value)>);

impl Attributes {
    fn fixed(&mut self, key: &'static str, value: &'static str) {
        self.0.push((key, Value::Static(value)));
    }

    fn int(&mut self, key: &'static str, value: i64) {
        self.0.push((key, Value::Int(value)));
    }

    fn shared(&mut self, key: &'static str, value: &Arc<str>) {
        self.0.push((key, Value::Shared(Arc::clone(value))));
    }

    fn text<'a>(&mut self, key: &'static str, value: impl Into<Cow<'a, str>>) {
        let mut value = value.into();
        if value.len() > MAX_TEXT {
            let end = value.floor_char_boundary(MAX_TEXT);
            value = value[..end].to_owned().into();
        }
        self.0.push((key, Value::Text(value.into())));
    }

    fn maybe(&mut self, key: &'static str, value: Option<Cow<'_, str>>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    /// Adds the method, and returns what it is called in the span's name: `HTTP` for an unknown one.
    fn method(&mut self, facts: &Finished<'_>) -> &'static str {
        let method = names::method(facts.method);
        self.fixed("http.request.method", method);
        if method == names::OTHER_METHOD {
            self.text("http.request.method_original", facts.method.as_str());
            return "HTTP";
        }
        method
    }

    fn result(&mut self, side: Side, status: u16, grpc: Option<u8>, reason: Option<crate::error::Reason>) {
        if status != 0 {
            self.int("http.response.status_code", status.into());
        }
        match names::error_type(side, status, grpc, reason) {
            Some(Cow::Borrowed(name)) => self.fixed("error.type", name),
            Some(Cow::Owned(name)) => self.text("error.type", name),
            None => {}
        }
    }

    fn rpc(&mut self, facts: &Finished<'_>, status: Option<u8>) {
        if facts.grpc.is_none() {
            return;
        }
        self.fixed("rpc.system.name", "grpc");
        self.text("rpc.method", facts.path.trim_start_matches('/'));
        if let Some(code) = status {
            match names::grpc_status(code) {
                Some(name) => self.fixed("rpc.response.status_code", name),
                None => self.text("rpc.response.status_code", code.to_string()),
            }
        }
    }

    fn weft(&mut self, facts: &Finished<'_>, slot: &Slot) {
        if !slot.route.is_empty() {
            self.shared("weft.route", &slot.route);
        }
        if !slot.service.is_empty() {
            self.shared("weft.service", &slot.service);
        }
        self.maybe("weft.rule", facts.rule.map(Cow::Borrowed));
        if let Some(workload) = facts.workload {
            self.shared("weft.source.workload", workload);
        }
        if let Some(reason) = facts.reason {
            self.fixed("weft.reason", reason.row().name);
        }
    }
}

/// Text of a header; bytes that are no UTF-8 become replacement characters.
pub(super) fn header_text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// `host[:port]`, also `[::1]:80`.
fn split_host(host: &str) -> (&str, Option<u16>) {
    let (address, port) = match host.rsplit_once(':') {
        Some((address, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (address, port.parse().ok()),
        _ => (host, None),
    };
    match address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => (v6, port),
        None if address.contains(':') => (host, None),
        None => (address, port),
    }
}

/// The query without the values of well-known secrets.
fn redacted(query: &str) -> Cow<'_, str> {
    let is_secret = |pair: &str| pair.split_once('=').is_some_and(|(name, _)| SECRET_PARAMETERS.contains(&name));
    if !query.split('&').any(is_secret) {
        return Cow::Borrowed(query);
    }
    let hide = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if is_secret(pair) => format!("{name}=REDACTED"),
        _ => pair.to_owned(),
    };
    query.split('&').map(hide).collect::<Vec<_>>().join("&").into()
}

#[cfg(test)]
mod tests;
