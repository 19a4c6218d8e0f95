//! The circuit breaker of one endpoint: a pure state machine. No lock and no clock; the policy comes with each call, so
//! that a change of it takes effect at once and keeps what was counted.
//!
//! - *Closed*: outcomes are counted. Too many failures in a row, too large a share of failures or of slow calls in the
//!   window open it; so does somebody who knows more ([`Breaker::trip`]).
//! - *Open*: nothing is counted. The time grows with each opening that follows soon on the one before.
//! - *HalfOpen*: a few probes are let out. All of them have to succeed; the first failure opens it again.
//!
//! Who asks whom for a probe, and whether the endpoint is *ejected* while it is not Closed, is decided in
//! [`super::circuit`].

mod state;
mod tally;
mod window;

use std::time::{Duration, Instant};

use fastrand::Rng;
use smallvec::SmallVec;
use weft_model::policy::CircuitBreaker;

pub use self::state::{Cause, State, Transition};
use self::{
    tally::Tally,
    window::{Counts, Window},
};
use super::outcome::Outcome;

/// The time that a breaker is open is spread by this share in both directions, so that nodes do not probe in step.
const JITTER: f64 = 0.1;

/// A probe that is silent for so long (a stream without a message) no longer keeps another one from going out.
pub const PROBE_LAPSE: Duration = Duration::from_secs(30);

/// Names a probe. Never used twice by one breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Counts the times that the breaker was half open.
    period: u32,
    number: u32,
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    phase: Phase,
    window: Window,
    /// Failures since the last success.
    run: Tally,
    run_length: u32,
    /// How often it opened in a row, as of the last opening.
    openings: u32,
    /// Since when it has been closed; what began before says nothing of the endpoint as it is now.
    closed_at: Option<Instant>,
    /// Whether slow calls opened it: then a slow probe is no success.
    slow: bool,
    next: Slot,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Open {
        since: Instant,
        until: Instant,
    },
    HalfOpen {
        /// Probes without a verdict, and when they went out, in this order.
        out: SmallVec<[(u32, Instant); 2]>,
        succeeded: u32,
        /// Since when there has been a probe to have.
        due: Instant,
    },
}

impl Breaker {
    /// Closed, with nothing counted.
    pub fn new(policy: &CircuitBreaker, now: Instant) -> Self {
        Self {
            phase: Phase::Closed,
            window: Window::new(policy.failure_rate.window, now),
            run: Tally::default(),
            run_length: 0,
            openings: 0,
            closed_at: None,
            slow: false,
            next: Slot { period: 0, number: 0 },
        }
    }

    /// The state.
    pub const fn state(&self) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// From when on [`Self::probe`] gives out a probe; `None` while Closed.
    pub fn due(&self, policy: &CircuitBreaker) -> Option<Instant> {
        match &self.phase {
            Phase::Closed => None,
            Phase::Open { until, .. } => Some(*until),
            Phase::HalfOpen { out, succeeded, due } => {
                // How many have to lapse; there may be more than one after a change of the policy.
                match (*succeeded as usize + out.len()).checked_sub(needed(policy) as usize) {
                    None => Some(*due),
                    Some(excess) => out.get(excess).map(|(_, at)| *at + PROBE_LAPSE),
                }
            }
        }
    }

    /// How often it has opened in a row: one less for each `baseEjectionTime` that it has been closed since.
    pub fn openings(&self, policy: &CircuitBreaker, now: Instant) -> u32 {
        let Some(closed_at) = self.closed_at.filter(|_| matches!(self.phase, Phase::Closed)) else {
            return self.openings;
        };
        let base = policy.base_ejection_time.as_nanos().max(1);
        let healed = now.saturating_duration_since(closed_at).as_nanos() / base;
        self.openings.saturating_sub(u32::try_from(healed).unwrap_or(u32::MAX))
    }

    /// Takes an outcome into account. `probe` names the probe whose outcome it is.
    #[inline]
    pub fn record(
        &mut self,
        policy: &CircuitBreaker,
        outcome: Outcome,
        probe: Option<Slot>,
        now: Instant,
        rng: &mut Rng,
    ) -> Option<Transition> {
        if !matches!(self.phase, Phase::Closed) {
            return self.record_probe(policy, outcome, probe?, now, rng);
        }
        let slow = is_slow(policy, outcome);
        if (outcome.failure.is_some() || slow) && self.is_stale(outcome, now) {
            return None;
        }
        self.window.add(outcome.failure, slow, now);
        if let Some(failure) = outcome.failure {
            self.run.add(failure, 1);
            self.run_length = self.run_length.saturating_add(1);
        } else if self.run_length > 0 {
            self.run.clear();
            self.run_length = 0;
        }
        let Counts { failed, slow, .. } = self.window.sum();
        if failed | slow == 0 && self.run_length == 0 {
            return None;
        }
        let (cause, evidence) = self.verdict(policy)?;
        self.openings = self.openings(policy, now);
        self.slow = cause == Cause::SlowCalls;
        Some(self.open(policy, cause, evidence, now, rng))
    }

    /// Opens it on evidence that is not of its own counting, unless it is open already.
    pub fn trip(
        &mut self,
        policy: &CircuitBreaker,
        cause: Cause,
        evidence: String,
        now: Instant,
        rng: &mut Rng,
    ) -> Option<Transition> {
        if !matches!(self.phase, Phase::Closed) {
            return None;
        }
        self.openings = self.openings(policy, now);
        self.slow = false;
        Some(self.open(policy, cause, evidence, now, rng))
    }

    /// Hands out a probe if one is due: the name of it, and the change of state if it is the first one.
    pub fn probe(&mut self, policy: &CircuitBreaker, now: Instant) -> Option<(Slot, Option<Transition>)> {
        let mut transition = None;
        if let Phase::Open { since, until } = self.phase {
            if now < until {
                return None;
            }
            self.next.period = self.next.period.wrapping_add(1);
            self.phase = Phase::HalfOpen { out: SmallVec::new(), succeeded: 0, due: until };
            transition = Some(Transition {
                from: State::Open,
                to: State::HalfOpen,
                evidence: format!("open for {}: time for a probe", human(now.saturating_duration_since(since))),
                cause: None,
                lasts: None,
            });
        }
        let Phase::HalfOpen { out, succeeded, .. } = &mut self.phase else { return None };
        out.retain(|(_, at)| now < *at + PROBE_LAPSE);
        if *succeeded as usize + out.len() >= needed(policy) as usize {
            return None;
        }
        self.next.number = self.next.number.wrapping_add(1);
        out.push((self.next.number, now));
        Some((self.next, transition))
    }

    /// A probe ended without saying anything about the endpoint: another one may go out.
    pub fn give_back(&mut self, probe: Slot) {
        if let Phase::HalfOpen { out, .. } = &mut self.phase {
            out.retain(|(number, _)| *number != probe.number);
        }
    }

    /// Another policy from now on. Counts and state are kept; a time that is longer than the new `maxEjectionTime`
    /// becomes shorter, and a breaker whose probes are enough for the new `halfOpenRequests` closes.
    pub fn configure(&mut self, policy: &CircuitBreaker, now: Instant) -> Option<Transition> {
        self.window.set_length(policy.failure_rate.window, now);
        match &mut self.phase {
            Phase::Closed => None,
            Phase::Open { since, until } => {
                *until = (*until).min(*since + policy.max_ejection_time.mul_f64(1.0 + JITTER));
                None
            }
            Phase::HalfOpen { succeeded, .. } => (*succeeded >= needed(policy)).then(|| self.close(now)),
        }
    }

    /// Back to Closed with nothing counted, because there is no policy any more.
    pub fn reset(&mut self, now: Instant) -> Option<Transition> {
        let was_closed = matches!(self.phase, Phase::Closed);
        let mut transition = self.close(now);
        self.openings = 0;
        "the circuitBreaker policy is gone".clone_into(&mut transition.evidence);
        (!was_closed).then_some(transition)
    }

    /// It began before the breaker closed.
    fn is_stale(&self, outcome: Outcome, now: Instant) -> bool {
        self.closed_at.is_some_and(|closed| now.checked_sub(outcome.took).is_some_and(|began| began < closed))
    }

    #[cold]
    fn record_probe(
        &mut self,
        policy: &CircuitBreaker,
        outcome: Outcome,
        probe: Slot,
        now: Instant,
        rng: &mut Rng,
    ) -> Option<Transition> {
        let Phase::HalfOpen { out, succeeded, .. } = &mut self.phase else { return None };
        // A probe of an earlier period: what it says has been decided already.
        if probe.period != self.next.period {
            return None;
        }
        out.retain(|(number, _)| *number != probe.number);
        if let Some(failure) = outcome.failure {
            let evidence = format!("a probe failed: {}", failure.name());
            return Some(self.open(policy, Cause::ProbeFailed, evidence, now, rng));
        }
        if self.slow && is_slow(policy, outcome) {
            let evidence = format!("a probe was slow: it took {}", human(outcome.took));
            return Some(self.open(policy, Cause::ProbeFailed, evidence, now, rng));
        }
        *succeeded += 1;
        (*succeeded >= needed(policy)).then(|| self.close(now))
    }

    /// What is wrong with the endpoint, if anything is.
    fn verdict(&self, policy: &CircuitBreaker) -> Option<(Cause, String)> {
        let Counts { requests, failed, slow } = self.window.sum();
        let run = self.run_length;
        if run > 0 && run >= policy.consecutive_failures {
            return Some((Cause::ConsecutiveFailures, format!("{run} of {run} failed: {}", self.run)));
        }
        let reached = |count: u64, percent: f64, minimum: u32| {
            count > 0 && requests >= u64::from(minimum) && count as f64 * 100.0 >= percent * requests as f64
        };
        let rate = &policy.failure_rate;
        if reached(failed, rate.percent, rate.minimum_requests) {
            let mut failures = self.window.failures();
            failures.complete(failed);
            let share = share(failed, requests, rate.percent);
            let within = human(rate.window);
            return Some((
                Cause::FailureRate,
                format!("{failed} of {requests} failed in {within} ({share}): {failures}"),
            ));
        }
        let calls = policy.slow_calls.as_ref()?;
        if reached(slow, calls.percent, calls.minimum_requests) {
            let share = share(slow, requests, calls.percent);
            let limit = human(calls.threshold);
            return Some((Cause::SlowCalls, format!("{slow} of {requests} took {limit} or longer ({share})")));
        }
        None
    }

    #[cold]
    fn open(
        &mut self,
        policy: &CircuitBreaker,
        cause: Cause,
        evidence: String,
        now: Instant,
        rng: &mut Rng,
    ) -> Transition {
        let from = self.state();
        self.openings = self.openings.saturating_add(1);
        let time = policy.base_ejection_time.saturating_mul(self.openings).min(policy.max_ejection_time);
        let lasts = time.mul_f64(1.0 - JITTER + 2.0 * JITTER * rng.f64());
        self.phase = Phase::Open { since: now, until: now + lasts };
        Transition { from, to: State::Open, evidence, cause: Some(cause), lasts: Some(lasts) }
    }

    fn close(&mut self, now: Instant) -> Transition {
        let from = self.state();
        let evidence = match &self.phase {
            Phase::HalfOpen { succeeded: 1, .. } => "a probe succeeded".to_owned(),
            Phase::HalfOpen { succeeded, .. } => format!("{succeeded} probes succeeded"),
            _ => String::new(),
        };
        self.phase = Phase::Closed;
        self.window.clear();
        self.run.clear();
        self.run_length = 0;
        self.slow = false;
        self.closed_at = Some(now);
        Transition { from, to: State::Closed, evidence, cause: None, lasts: None }
    }
}

/// Probes that have to succeed.
fn needed(policy: &CircuitBreaker) -> u32 {
    policy.half_open_requests.max(1)
}

fn is_slow(policy: &CircuitBreaker, outcome: Outcome) -> bool {
    policy.slow_calls.as_ref().is_some_and(|slow| outcome.took >= slow.threshold)
}

/// `64 % ≥ 50 %`
fn share(count: u64, of: u64, limit: f64) -> String {
    let percent = count as f64 * 100.0 / of as f64;
    // Rounded as finely as the limit is written: otherwise it might seem to be below.
    let digits = if limit.fract() == 0.0 { 0 } else { 2 };
    format!("{percent:.digits$} % ≥ {limit} %")
}

/// A duration without more digits than a person reads.
pub(super) fn human(duration: Duration) -> String {
    let step = match duration {
        long if long >= Duration::from_secs(10) => 1_000_000_000,
        some if some >= Duration::from_secs(1) => 100_000_000,
        short if short >= Duration::from_millis(1) => 1_000_000,
        _ => return format!("{duration:?}"),
    };
    let nanos = (duration.as_nanos() + step / 2) / step * step;
    format!("{:?}", Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests;
