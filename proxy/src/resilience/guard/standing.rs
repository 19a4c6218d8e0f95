//! The word that says whether an endpoint may be picked, and what follows from it.

use crate::resilience::{breaker::State, circuit::Counts};

/// Its bits.
pub mod bit {
    pub const HEALTHY: u32 = 1;
    pub const UNHEALTHY: u32 = 1 << 1;
    pub const EJECTED: u32 = 1 << 2;
    pub const OPEN: u32 = 1 << 3;
    pub const HALF_OPEN: u32 = 1 << 4;
    /// It has a breaker.
    pub const ENABLED: u32 = 1 << 5;
    /// It left the configuration, and no longer counts: no other bit is set.
    pub const REMOVED: u32 = 1 << 6;
    /// It has no weight: it is never picked, and does not count among those that could be.
    pub const WEIGHTLESS: u32 = 1 << 7;
}

/// Whether a picker may choose it.
pub const fn usable(word: u32) -> bool {
    word & (bit::UNHEALTHY | bit::EJECTED) == 0
}

/// Whether it is one less of those that pickers choose from.
pub const fn missing(word: u32) -> bool {
    !usable(word) && word & bit::WEIGHTLESS == 0
}

/// State of its breaker.
pub const fn state(word: u32) -> State {
    if word & bit::OPEN != 0 {
        State::Open
    } else if word & bit::HALF_OPEN != 0 {
        State::HalfOpen
    } else {
        State::Closed
    }
}

/// What it adds to its circuit.
pub fn counts(word: u32) -> Counts {
    if word & bit::ENABLED == 0 {
        return Counts::default();
    }
    Counts {
        guarded: 1,
        open: u32::from(word & (bit::OPEN | bit::HALF_OPEN) != 0),
        ejected: u32::from(word & bit::EJECTED != 0),
    }
}
