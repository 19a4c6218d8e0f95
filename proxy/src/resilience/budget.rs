//! The retry budget of a service: retries may add a share to the load and no more, however many requests fail.
//!
//! Whenever a retry is granted, the retries of the last `ttl` are at most `percent` of the requests of the same time plus
//! `minPerSecond × ttl`. The window slides in steps of `ttl / 20`. What is partly outside of it counts fully when it is
//! a retry and not at all when it is a request, so that no position of the window lets more through; the price is that
//! up to 5 % of a budget may lie idle.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use weft_model::config::RetryBudget;

use super::nanos;

/// Steps in a window.
const STEPS: u64 = 20;
/// One more: the step that is partly outside.
const SLOTS: usize = STEPS as usize + 1;

/// The counts of a window. Plain: one thread's, `now` is passed in.
#[derive(Debug, Clone)]
pub struct Budget {
    percent: f64,
    /// `minPerSecond × ttl`.
    reserve: f64,
    /// Nanoseconds of one step.
    width: u64,
    epoch: Instant,
    /// Steps since `epoch`.
    step: u64,
    /// By step modulo its length.
    slots: [Slot; SLOTS],
    /// Of the newest `STEPS` slots.
    requests: u64,
    /// Of all slots.
    retries: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    requests: u32,
    retries: u32,
}

impl Budget {
    /// An empty window that begins at `now`.
    pub fn new(policy: &RetryBudget, now: Instant) -> Self {
        let mut budget = Self {
            percent: 0.0,
            reserve: 0.0,
            width: 1,
            epoch: now,
            step: 0,
            slots: [Slot::default(); SLOTS],
            requests: 0,
            retries: 0,
        };
        budget.limits(policy);
        budget
    }

    fn limits(&mut self, policy: &RetryBudget) {
        self.percent = policy.percent;
        self.reserve = f64::from(policy.min_per_second) * policy.ttl.as_secs_f64();
        self.width = (nanos(policy.ttl) / STEPS).max(1);
    }

    /// Puts other limits in force and keeps what has been counted. A window of another length takes over each count at
    /// its age: a step that falls into two counts as newer for retries and as older for requests.
    pub fn configure(&mut self, policy: &RetryBudget, now: Instant) {
        self.advance(now);
        let before = self.clone();
        self.limits(policy);
        if self.width == before.width {
            return;
        }
        self.epoch = now;
        self.step = 0;
        self.slots = [Slot::default(); SLOTS];
        for age in 0..SLOTS as u64 {
            let slot = before.slots[before.place(age)];
            let newest = age.saturating_sub(1).saturating_mul(before.width) / self.width;
            if newest <= STEPS {
                let place = self.place(newest);
                let retries = &mut self.slots[place].retries;
                *retries = retries.saturating_add(slot.retries);
            }
            let oldest = (age + 1).saturating_mul(before.width).div_ceil(self.width);
            if oldest <= STEPS {
                let place = self.place(oldest);
                let requests = &mut self.slots[place].requests;
                *requests = requests.saturating_add(slot.requests);
            }
        }
        self.retries = self.slots.iter().map(|slot| u64::from(slot.retries)).sum();
        let oldest = self.slots[self.place(STEPS)].requests;
        self.requests = self.slots.iter().map(|slot| u64::from(slot.requests)).sum::<u64>() - u64::from(oldest);
    }

    /// The slot of the step `age` steps ago.
    const fn place(&self, age: u64) -> usize {
        ((self.step + SLOTS as u64 - age) % SLOTS as u64) as usize
    }

    /// Moves the window up to `now`.
    fn advance(&mut self, now: Instant) {
        let step = nanos(now.saturating_duration_since(self.epoch)) / self.width;
        if step <= self.step {
            return;
        }
        if step - self.step >= SLOTS as u64 {
            self.slots = [Slot::default(); SLOTS];
            (self.requests, self.retries, self.step) = (0, 0, step);
            return;
        }
        while self.step < step {
            self.requests -= u64::from(self.slots[self.place(STEPS - 1)].requests);
            self.step += 1;
            let leaving = std::mem::take(&mut self.slots[(self.step % SLOTS as u64) as usize]);
            self.retries -= u64::from(leaving.retries);
        }
    }

    /// Counts requests into the step that was current last.
    fn add(&mut self, requests: u32) {
        let slot = &mut self.slots[(self.step % SLOTS as u64) as usize];
        let sum = slot.requests.saturating_add(requests);
        self.requests += u64::from(sum - slot.requests);
        slot.requests = sum;
    }

    /// Counts a request.
    pub fn deposit(&mut self, now: Instant) {
        self.advance(now);
        self.add(1);
    }

    /// Takes one retry, or says that there is none left.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let granted = self.remaining(now) > 0;
        if granted {
            self.slots[(self.step % SLOTS as u64) as usize].retries += 1;
            self.retries += 1;
        }
        granted
    }

    /// Retries that it would grant now.
    pub fn remaining(&mut self, now: Instant) -> u32 {
        self.advance(now);
        let allowed = self.requests as f64 * self.percent / 100.0 + self.reserve;
        // Rounded before it is cut off: 5 % of 20 requests are one retry, whatever binary fractions make of it.
        let whole = (allowed + 1e-6).floor();
        (whole - self.retries as f64).clamp(0.0, f64::from(u32::MAX)) as u32
    }

    /// When the current step ends, in nanoseconds after `epoch`.
    const fn step_end(&self) -> u64 {
        (self.step + 1).saturating_mul(self.width)
    }
}

/// A [`Budget`] that all workers use. A request costs one comparison and one addition; the window is locked once per
/// step and for each retry.
#[derive(Debug)]
pub struct SharedBudget {
    epoch: Instant,
    /// Nanoseconds after `epoch` at which the current step is over.
    step_end: AtomicU64,
    /// Requests of the current step that are not in the window yet.
    fresh: AtomicU32,
    window: Mutex<Budget>,
}

impl SharedBudget {
    /// An empty window that begins at `now`.
    pub fn new(policy: &RetryBudget, now: Instant) -> Self {
        let budget = Budget::new(policy, now);
        Self {
            epoch: now,
            step_end: AtomicU64::new(budget.step_end()),
            fresh: AtomicU32::new(0),
            window: Mutex::new(budget),
        }
    }

    /// Puts other limits in force and keeps what has been counted.
    pub fn configure(&self, policy: &RetryBudget, now: Instant) {
        let mut window = self.settled(now);
        window.configure(policy, now);
        self.publish_end(&window);
    }

    /// Counts a request.
    pub fn deposit(&self, now: Instant) {
        if nanos(now.saturating_duration_since(self.epoch)) >= self.step_end.load(Relaxed) {
            drop(self.settled(now));
        }
        self.fresh.fetch_add(1, Relaxed);
    }

    /// Takes one retry, or says that there is none left.
    pub fn withdraw(&self, now: Instant) -> bool {
        self.settled(now).withdraw(now)
    }

    /// Retries that it would grant now.
    pub fn remaining(&self, now: Instant) -> u32 {
        self.settled(now).remaining(now)
    }

    /// The window with everything counted in. Whoever deposits after the end of a step settles first, so what is fresh
    /// here was deposited in the step that the window stands at.
    fn settled(&self, now: Instant) -> MutexGuard<'_, Budget> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        window.add(self.fresh.swap(0, Relaxed));
        window.advance(now);
        self.publish_end(&window);
        window
    }

    fn publish_end(&self, window: &Budget) {
        let moved = nanos(window.epoch.saturating_duration_since(self.epoch));
        self.step_end.store(moved.saturating_add(window.step_end()), Relaxed);
    }
}

#[cfg(test)]
mod tests;
