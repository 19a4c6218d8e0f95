//! The states of a breaker, and how it goes from one to another.

use std::{fmt, time::Duration};

/// State of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Requests flow.
    Closed = 0,
    /// Probes are out.
    HalfOpen = 1,
    /// No request until its time is over.
    Open = 2,
}

impl State {
    /// As in `/endpoints`, spans and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What opened a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// `consecutiveFailures`.
    ConsecutiveFailures,
    /// `failureRate`.
    FailureRate,
    /// `slowCalls`.
    SlowCalls,
    /// A probe did not succeed.
    ProbeFailed,
    /// `kernelSignals`.
    Kernel,
}

impl Cause {
    /// Every cause, in the order of the declaration.
    pub const ALL: [Self; 5] =
        [Self::ConsecutiveFailures, Self::FailureRate, Self::SlowCalls, Self::ProbeFailed, Self::Kernel];

    /// As the label `reason` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::FailureRate => "failure_rate",
            Self::SlowCalls => "slow_calls",
            Self::ProbeFailed => "probe_failed",
            Self::Kernel => "kernel_signals",
        }
    }
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why, for people.
    pub evidence: String,
    /// Why, when it opened.
    pub cause: Option<Cause>,
    /// How long it stays open.
    pub lasts: Option<Duration>,
}
