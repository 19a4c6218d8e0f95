//! What people are told about a change of state.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use crate::resilience::breaker::{Cause, State, human};

/// An endpoint's breaker changed its state, or the endpoint was ejected after all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// The endpoint's address.
    pub endpoint: Arc<str>,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why.
    pub evidence: Arc<str>,
    /// Why, when it opened.
    pub cause: Option<Cause>,
    /// Whether the endpoint is ejected, and not only Open but kept in rotation.
    pub ejected: bool,
    /// How long it stays open.
    pub lasts: Option<Duration>,
}

impl Event {
    /// A line in the log: a warning when a breaker opened.
    pub(in crate::resilience) fn log(&self, service: &str) {
        let (endpoint, from, to) = (&*self.endpoint, self.from.as_str(), self.to.as_str());
        let evidence = &*self.evidence;
        match self.lasts {
            Some(lasts) if self.to == State::Open => {
                let (lasts, ejected) = (human(lasts), self.ejected);
                tracing::warn!(service, endpoint, from, to, evidence, ejected, r#for = lasts, "circuit breaker");
            }
            _ => tracing::info!(service, endpoint, from, to, evidence, "circuit breaker"),
        }
    }
}

/// Ejections since the start of the node, by cause.
#[derive(Debug, Default)]
pub struct Ejections([AtomicU64; Cause::ALL.len()]);

impl Ejections {
    pub(super) fn count(&self, cause: Cause) {
        self.0[cause as usize].fetch_add(1, Relaxed);
    }

    /// How many there were, by cause.
    pub fn read(&self) -> impl Iterator<Item = (Cause, u64)> {
        Cause::ALL.into_iter().map(|cause| (cause, self.0[cause as usize].load(Relaxed)))
    }
}
