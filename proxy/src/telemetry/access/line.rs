//! How a line of the access log looks.
//!
//! Clients choose paths and headers, and operators read logs in terminals: whatever could steer one (C0, C1, DEL) or
//! reorder text (bidirectional controls) is written as an escape.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
};

use serde::Serialize;
use serde_json::ser::Formatter;

use crate::telemetry::{Finished, context::digits, metrics::Slot, names, span::header_text};

/// A line, borrowed. The order of the fields is the order in the log.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    pub(super) time: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    protocol: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Hex>,
    attempts: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
}

impl<'a> Line<'a> {
    pub(super) fn new(facts: &Finished<'a>, slot: &'a Slot) -> Self {
        let last = facts.attempts.last();
        let waited = facts.attempts.iter().map(|attempt| {
            let until = attempt.head.or(attempt.end).unwrap_or(facts.end);
            until.saturating_duration_since(attempt.start)
        });
        Self {
            time: "",
            method: facts.method.as_str(),
            path: facts.path,
            query: facts.query,
            host: facts.host,
            protocol: protocol(facts.version),
            status: facts.status,
            reason: facts.reason.map(|reason| reason.row().name),
            route: &slot.route,
            rule: facts.rule,
            service: &slot.service,
            endpoint: last.and_then(|attempt| attempt.endpoint.as_deref()).map(|endpoint| &*endpoint.label),
            duration_ms: ms(facts.duration()),
            upstream_ms: last.map(|_| ms(waited.sum())),
            bytes_in: facts.bytes_in,
            bytes_out: facts.bytes_out,
            client: facts.client,
            workload: facts.workload.map(|workload| &**workload),
            user_agent: facts.user_agent.map(header_text),
            request_id: facts.request_id.map(header_text),
            trace_id: Some(facts.trace.trace_id).filter(|&id| id != 0).map(|id| Hex(digits(id))),
            attempts: facts.attempts.len(),
            grpc_status: facts.grpc.flatten(),
        }
    }

    pub(super) fn write_json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let mut serializer = serde_json::Serializer::with_formatter(out, Printable);
        Ok(self.serialize(&mut serializer)?)
    }

    pub(super) fn write_text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        write!(out, "{} {} {}{}", self.time, Safe(self.method), Safe(self.host.unwrap_or("-")), Safe(self.path))?;
        if let Some(query) = self.query {
            write!(out, "?{}", Safe(query))?;
        }
        write!(out, " {} {} {}ms", self.protocol, self.status, self.duration_ms)?;
        let mut field = |name: &str, value: Option<&str>| match value.filter(|value| !value.is_empty()) {
            Some(value) if value.contains([' ', '"']) => write!(out, " {name}=\"{}\"", Safe(value)),
            Some(value) => write!(out, " {name}={}", Safe(value)),
            None => Ok(()),
        };
        field("reason", self.reason)?;
        field("route", Some(self.route))?;
        field("rule", self.rule)?;
        field("service", Some(self.service))?;
        field("endpoint", self.endpoint)?;
        field("upstream_ms", self.upstream_ms.map(|ms| ms.to_string()).as_deref())?;
        field("grpc_status", self.grpc_status.and_then(names::grpc_status))?;
        field("client", self.client.map(|client| client.to_string()).as_deref())?;
        field("workload", self.workload)?;
        field("user_agent", self.user_agent.as_deref())?;
        field("request_id", self.request_id.as_deref())?;
        field("trace_id", self.trace_id.as_ref().map(Hex::as_str))?;
        write!(out, " attempts={} in={} out={}", self.attempts, self.bytes_in, self.bytes_out)
    }
}

/// Milliseconds with three places.
fn ms(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_09 => "HTTP/0.9",
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        http::Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// A trace id as text.
#[derive(Debug)]
struct Hex([u8; 32]);

impl Hex {
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Whether a character could do something to a terminal or to the order of the text around it.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text in a text line: unsafe characters as `\u{1b}`, and `"` and `\` escaped.
struct Safe<'a>(&'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let special = |c: char| is_unsafe(c) || matches!(c, '"' | '\\');
        let mut rest = self.0;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| special(c)) {
            f.write_str(&rest[..at])?;
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c => write!(f, "{}", c.escape_unicode())?,
            }
            rest = &rest[at + c.len_utf8()..];
        }
        f.write_str(rest)
    }
}

/// JSON in which every unsafe character is an escape; serde_json alone escapes only those below U+0020.
struct Printable;

impl Formatter for Printable {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        if fragment.bytes().all(|b| b < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| is_unsafe(c)) {
            writer.write_all(&rest.as_bytes()[..at])?;
            write!(writer, "\\u{:04x}", u32::from(c))?;
            rest = &rest[at + c.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}
