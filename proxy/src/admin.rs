//! The node's admin port: what the node is doing, over plain HTTP.
//!
//! It runs on the control runtime and never touches the workers' hot path. What it shows comes from an [`Admin`], so
//! that this module knows HTTP and nothing else. It listens on loopback unless told otherwise, and believes neither web
//! pages (`Host` and `Origin` are checked) nor slow or large requests.

mod heap;
mod reply;
mod server;

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;

pub use reply::{Hosts, answer};
pub use server::serve;

/// What the admin port shows. Called on the control runtime: quick, no blocking.
pub trait Admin: Send + Sync + 'static {
    /// Whether traffic should come here.
    fn ready(&self) -> Readiness;

    /// The metrics for an `Accept` header (empty when there is none): the text and its content type.
    fn metrics(&self, accept: &str) -> (String, String);

    /// The loaded configuration with its revision.
    fn config_dump(&self) -> Value;

    /// Per service and endpoint: address, weight, health, breaker, in flight, EWMA, requests, failures.
    fn endpoints(&self) -> Value;

    /// Recent traces kept in memory, newest first.
    fn traces(&self, query: &TraceQuery) -> Value;

    /// State of the rate limiters.
    fn limits(&self) -> Value {
        Value::Array(Vec::new())
    }

    /// Live captured connections with their verdicts.
    fn connections(&self) -> Value {
        Value::Array(Vec::new())
    }

    /// Per worker: connections, requests in flight.
    fn tasks(&self) -> Value {
        Value::Array(Vec::new())
    }

    /// Begins to drain; returns at once. Called again it changes nothing.
    fn drain(&self);
}

/// A shared [`Admin`].
pub type SharedAdmin = Arc<dyn Admin>;

/// Answer of `/ready`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why not; empty when ready.
    pub reasons: Vec<Cow<'static, str>>,
}

impl Readiness {
    /// Ready.
    pub const READY: Self = Self { reasons: Vec::new() };

    /// Not ready for one reason.
    pub fn not_yet(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { reasons: vec![reason.into()] }
    }

    /// Whether there is nothing against it.
    pub const fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Query of `/traces`: everything given must match.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TraceQuery {
    /// Shortest duration, in milliseconds.
    pub min_ms: Option<f64>,
    /// Status of the reply.
    pub status: Option<StatusFilter>,
    /// Name of the route.
    pub route: Option<String>,
}

/// `status=503` or `status=5xx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusFilter {
    /// This one.
    Exact(u16),
    /// First digit.
    Class(u16),
}

impl StatusFilter {
    /// Whether `status` is meant.
    pub const fn matches(self, status: u16) -> bool {
        match self {
            Self::Exact(wanted) => status == wanted,
            Self::Class(digit) => status / 100 == digit,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(digit) = text.to_ascii_lowercase().strip_suffix("xx") {
            return digit.parse().ok().filter(|digit| (1..=5).contains(digit)).map(Self::Class);
        }
        text.parse().ok().filter(|status| (100..=599).contains(status)).map(Self::Exact)
    }
}

impl TraceQuery {
    /// From the query of a URL; the error says what is wrong with it.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace('+', " ");
            let value = percent_encoding::percent_decode_str(&value).decode_utf8_lossy();
            if value.is_empty() {
                continue;
            }
            match name {
                "min_ms" => {
                    let number = value.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms >= 0.0);
                    parsed.min_ms = Some(number.ok_or("min_ms has to be a number of milliseconds")?);
                }
                "status" => {
                    let filter = StatusFilter::parse(&value);
                    parsed.status = Some(filter.ok_or("status has to be like 503 or 5xx")?);
                }
                "route" => parsed.route = Some(value.into_owned()),
                _ => return Err("unknown parameter; known are min_ms, status and route".into()),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests;
