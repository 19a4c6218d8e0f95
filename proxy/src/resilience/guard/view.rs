//! What people see of a breaker.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Guard,
    standing::{bit, state},
};
use crate::resilience::breaker::State;

/// A breaker as `/endpoints` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its state.
    pub state: State,
    /// Whether the endpoint is kept from being picked by it.
    pub ejected: bool,
    /// What opened it, unless it is Closed.
    pub evidence: Option<Arc<str>>,
    /// Until probes may go out, while it is Open.
    pub left: Option<Duration>,
    /// How often it opened in a row.
    pub openings: u32,
}

impl Guard {
    /// For `/endpoints`.
    pub fn view(&self, now: Instant) -> View {
        let guarded = self.lock();
        let word = self.standing();
        let mut view =
            View { state: state(word), ejected: word & bit::EJECTED != 0, evidence: None, left: None, openings: 0 };
        if let Some(live) = guarded.as_deref()
            && let Some(policy) = &live.policy
        {
            view.openings = live.breaker.openings(policy, now);
            if view.state != State::Closed {
                view.evidence = live.why.as_ref().map(|(evidence, _)| evidence.clone());
            }
            if view.state == State::Open {
                view.left = live.breaker.due(policy).map(|due| due.saturating_duration_since(now));
            }
        }
        view
    }
}
