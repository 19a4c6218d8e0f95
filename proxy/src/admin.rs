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

pub use crate::{explain::Question, telemetry::store::TraceQuery};
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

    /// What would happen to a request, and why.
    fn explain(&self, _question: &Question) -> Value {
        Value::Null
    }

    /// Every rule of every route.
    fn routes(&self) -> Value {
        Value::Array(Vec::new())
    }

    /// State of the rate limiters.
    fn limits(&self) -> Value {
        Value::Array(Vec::new())
    }

    /// Live captured connections with their verdicts.
    fn connections(&self) -> Value {
        Value::Array(Vec::new())
    }

    /// Verdicts of the kernel as they are made: those after number `after`, oldest first.
    fn flows(&self, _after: u64) -> Value {
        Value::Array(Vec::new())
    }

    /// The kernel programs: whether they run, where, how full their maps are.
    fn ebpf(&self) -> Value {
        serde_json::json!({ "enabled": false })
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

#[cfg(test)]
mod tests;
