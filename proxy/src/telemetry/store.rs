//! The last sampled traces of this node, in memory, for `/traces`.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use serde_json::{Map, Value as Json, json};

use super::{
    access::rfc3339,
    context::digits,
    span::{Kind, SpanRecord, Value},
};

/// How many exchanges are kept.
const CAPACITY: usize = 1_000;

/// How many traces a query returns unless it says otherwise.
const DEFAULT_LIMIT: usize = 100;

/// A ring of exchanges, each with its spans.
#[derive(Debug, Default)]
pub struct TraceStore(Mutex<VecDeque<Vec<SpanRecord>>>);

/// What `/traces` is asked for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TraceQuery {
    /// At least this long.
    pub min: Duration,
    /// Status, exact (`503`) or by class (`5xx`).
    pub status: Option<StatusFilter>,
    /// Name of the route.
    pub route: Option<String>,
    /// At most so many traces, newest first.
    pub limit: Option<usize>,
}

/// `status=` of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFilter {
    /// `503`
    Exact(i64),
    /// `5xx`
    Class(i64),
}

impl StatusFilter {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix("xx") {
            Some(class) => class.parse().ok().filter(|class| (1..=5).contains(class)).map(Self::Class),
            None => text.parse().ok().filter(|status| (100..=999).contains(status)).map(Self::Exact),
        }
    }

    /// Whether a status passes.
    pub fn matches(self, status: i64) -> bool {
        match self {
            Self::Exact(wanted) => status == wanted,
            Self::Class(class) => status / 100 == class,
        }
    }
}

impl TraceQuery {
    /// Reads `min_ms=&status=&route=&limit=`; empty values count as absent. The error is for the person who asked.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')).filter(|(_, v)| !v.is_empty()) {
            let value = value.replace('+', " ");
            let value = percent_encoding::percent_decode_str(&value).decode_utf8_lossy();
            let bad = |expected: &str| format!("{name}={value}: expected {expected}");
            match name {
                "min_ms" => {
                    let ms = value.parse::<f64>().map_err(|_| bad("milliseconds"))?;
                    parsed.min = Duration::try_from_secs_f64(ms / 1e3).map_err(|_| bad("milliseconds"))?;
                }
                "status" => {
                    let filter = StatusFilter::parse(&value).ok_or_else(|| bad("a status such as 503 or 5xx"))?;
                    parsed.status = Some(filter);
                }
                "route" => parsed.route = Some(value.into_owned()),
                "limit" => parsed.limit = Some(value.parse().map_err(|_| bad("a number"))?),
                _ => return Err(format!("unknown parameter {name}: known are min_ms, status, route, limit")),
            }
        }
        Ok(parsed)
    }

    fn matches(&self, server: &SpanRecord) -> bool {
        let status = match server.attribute("http.response.status_code") {
            Some(Value::Int(status)) => *status,
            _ => 0,
        };
        let route = || server.attribute("weft.route").and_then(Value::as_str);
        duration(server) >= self.min
            && self.status.is_none_or(|filter| filter.matches(status))
            && self.route.as_deref().is_none_or(|wanted| route() == Some(wanted))
    }
}

impl TraceStore {
    /// Keeps the spans of an exchange, SERVER span first; the oldest exchange goes when there are 1,000.
    pub fn push(&self, spans: Vec<SpanRecord>) {
        let mut ring = self.lock();
        if ring.len() == CAPACITY {
            ring.pop_front();
        }
        ring.push_back(spans);
    }

    /// Traces with an exchange that matches, newest first, each with all its spans on this node.
    pub fn query(&self, query: &TraceQuery) -> Json {
        let ring = self.lock();
        let mut seen = HashSet::new();
        let traces = ring
            .iter()
            .rev()
            .filter_map(|spans| spans.first())
            .filter(|server| query.matches(server) && seen.insert(server.trace_id))
            .take(query.limit.unwrap_or(DEFAULT_LIMIT))
            .map(|server| trace(server, ring.iter().flatten().filter(|span| span.trace_id == server.trace_id)))
            .collect::<Vec<_>>();
        json!({ "kept": ring.len(), "traces": traces })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Vec<SpanRecord>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trace<'a>(server: &SpanRecord, spans: impl Iterator<Item = &'a SpanRecord>) -> Json {
    let of_server = |name: &str| server.attribute(name).map_or(Json::Null, attribute);
    json!({
        "trace_id": hex::<32>(server.trace_id),
        "name": server.name,
        "start": rfc3339(server.start),
        "duration_ms": ms(duration(server)),
        "status": of_server("http.response.status_code"),
        "reason": of_server("weft.reason"),
        "route": of_server("weft.route"),
        "service": of_server("weft.service"),
        "spans": spans.map(span).collect::<Vec<_>>(),
    })
}

fn span(span: &SpanRecord) -> Json {
    let attributes = span.attributes.iter().map(|(name, value)| ((*name).to_owned(), attribute(value)));
    let start_us = span.start.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    json!({
        "span_id": hex::<16>(u128::from(span.span_id)),
        "parent_span_id": span.parent.map(|parent| hex::<16>(u128::from(parent.get()))),
        "name": span.name,
        "kind": match span.kind { Kind::Server => "server", Kind::Client => "client" },
        "start_unix_us": u64::try_from(start_us).unwrap_or(u64::MAX),
        "duration_ms": ms(duration(span)),
        "error": span.error.is_some(),
        "attributes": attributes.collect::<Map<_, _>>(),
    })
}

fn attribute(value: &Value) -> Json {
    match value {
        Value::Int(number) => json!(number),
        text => json!(text.as_str()),
    }
}

fn duration(span: &SpanRecord) -> Duration {
    span.end.duration_since(span.start).unwrap_or(Duration::ZERO)
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn hex<const N: usize>(id: u128) -> String {
    digits::<N>(id).iter().map(|&digit| char::from(digit)).collect()
}

#[cfg(test)]
mod tests;
