//! What has been used of the limits of one policy target, by all workers.

use std::{
    hash::RandomState,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::store::Store;
use crate::resilience::nanos;

/// What has been used. One lock for all limits of a list, because they are charged together or not at all.
#[derive(Debug)]
pub struct Ledger {
    /// TATs count from here, whatever happens to the quotas.
    start: Instant,
    state: Mutex<State>,
}

/// What the lock guards.
#[derive(Debug, Default)]
pub struct State {
    /// Latest time that anybody asked at. Workers read their clocks at different moments, and time must not go back.
    latest: u64,
    /// Questions so far, to tidy up now and then.
    asked: u64,
    /// Those of all limits, by position.
    pub budgets: Vec<Budgets>,
}

/// The budgets of one limit, by key.
#[derive(Debug)]
pub struct Budgets {
    /// Limits that use it, in all snapshots that are alive. Nobody: the place is free.
    pub users: usize,
    /// For hashing keys.
    pub seed: RandomState,
    /// What the keys have used.
    pub store: Store,
    /// Requests refused.
    pub refused: u64,
}

impl Ledger {
    /// An empty one, whose clock starts now.
    pub fn new(now: Instant) -> Self {
        Self { start: now, state: Mutex::default() }
    }

    /// Nobody else counts meanwhile.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the ledger's clock, in nanoseconds.
    pub fn nanos(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }
}

impl State {
    /// A free place for budgets.
    pub fn place(&mut self) -> usize {
        self.budgets.iter().position(|budgets| budgets.users == 0).unwrap_or_else(|| {
            self.budgets.push(Budgets::default());
            self.budgets.len() - 1
        })
    }

    /// The time of a question, and a little housekeeping.
    pub fn advance(&mut self, now: u64) -> u64 {
        /// A store of the largest size costs a microsecond per step; spread over so many, it is lost in the noise.
        const EVERY: u64 = 64;
        self.latest = self.latest.max(now);
        self.asked += 1;
        if self.asked.is_multiple_of(EVERY) {
            let at = (self.asked / EVERY) as usize % self.budgets.len().max(1);
            if let Some(budgets) = self.budgets.get_mut(at) {
                budgets.store.tidy(self.latest);
            }
        }
        self.latest
    }
}

impl Default for Budgets {
    fn default() -> Self {
        Self { users: 0, seed: RandomState::new(), store: Store::default(), refused: 0 }
    }
}
