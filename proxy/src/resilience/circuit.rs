//! The circuit of one service port: what the breakers of its endpoints come to. No second state machine; everything
//! here is counted from the endpoints' own states ([`super::guard`]).
//!
//! Requests ask [`Circuit::quiet`] first, which is one load: as long as every breaker is Closed, nothing else here runs.
//! Only transitions take the lock.

mod event;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use smallvec::SmallVec;

pub use self::event::{Ejections, Event};
use super::{breaker::State, limiter::CircuitView, nanos};
use crate::endpoint::Endpoint;

/// Events that are kept for `/endpoints`.
const MAX_EVENTS: usize = 16;

/// No probe is due, ever.
const NEVER: u64 = u64::MAX;

/// The circuit of a service port. Shared by its endpoints and all workers; survives configurations as they do.
#[derive(Debug)]
pub struct Circuit {
    service: Arc<str>,
    epoch: Instant,
    /// [`Counts`], in one word, so that they always belong together.
    counts: AtomicU64,
    /// Endpoints with a weight that health checks or ejection keep from being picked. Signed: two threads may add in any
    /// order.
    unusable: AtomicI32,
    /// Nanoseconds after `epoch` from which on a probe may be had, [`NEVER`] if none.
    due: AtomicU64,
    /// A place among the ejected ones may have become free.
    vacancy: AtomicBool,
    /// Nanoseconds after `epoch`, plus one, at which the circuit was last open; 0: never.
    last_open: AtomicU64,
    inner: Mutex<Inner>,
    ejections: Arc<Ejections>,
}

#[derive(Debug, Default)]
struct Inner {
    max_ejection_percent: f64,
    events: VecDeque<Arc<Event>>,
    /// Endpoints that are Open or HalfOpen.
    waiting: Vec<Waiting>,
}

/// An endpoint that is not Closed.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    id: u64,
    /// When its next probe may go out, in nanoseconds after the epoch.
    due: u64,
    half_open: bool,
    unhealthy: bool,
}

/// What an endpoint's standing is made of, or the endpoints of a circuit together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Endpoints that have a breaker.
    pub guarded: u32,
    /// Of these, Open or HalfOpen.
    pub open: u32,
    /// Of these, kept from being picked.
    pub ejected: u32,
}

/// A count has so many bits.
const BITS: u32 = 20;
const MASK: u64 = (1 << BITS) - 1;
const ONE_EJECTED: u64 = 1 << (2 * BITS);

impl Counts {
    pub(super) const fn pack(self) -> u64 {
        self.guarded as u64 | (self.open as u64) << BITS | (self.ejected as u64) << (2 * BITS)
    }

    const fn unpack(word: u64) -> Self {
        Self {
            guarded: (word & MASK) as u32,
            open: (word >> BITS & MASK) as u32,
            ejected: (word >> (2 * BITS) & MASK) as u32,
        }
    }

    /// Whether no endpoint is left that is Closed.
    const fn all_open(self) -> bool {
        self.open > 0 && self.open >= self.guarded
    }
}

impl Circuit {
    /// Of the service of this name, without endpoints. `ejections` counts for the whole node.
    pub fn new(service: Arc<str>, ejections: Arc<Ejections>, now: Instant) -> Self {
        Self {
            service,
            epoch: now,
            counts: AtomicU64::new(0),
            unusable: AtomicI32::new(0),
            due: AtomicU64::new(NEVER),
            vacancy: AtomicBool::new(false),
            last_open: AtomicU64::new(0),
            inner: Mutex::default(),
            ejections,
        }
    }

    /// Whether every breaker is Closed. One load.
    #[inline]
    pub fn quiet(&self) -> bool {
        self.counts.load(Relaxed) & MASK << BITS == 0
    }

    /// Whether every endpoint is Open or HalfOpen: no request but a probe may go to the service.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.counts().all_open()
    }

    /// How many endpoints are in which state.
    pub fn counts(&self) -> Counts {
        Counts::unpack(self.counts.load(Relaxed))
    }

    /// How many endpoints with a weight may not be picked, because of their health or because they are ejected.
    #[inline]
    pub fn unusable(&self) -> usize {
        usize::try_from(self.unusable.load(Relaxed)).unwrap_or(0)
    }

    /// Whether and when it was open, for those who let a service recover slowly.
    pub fn view(&self, now: Instant) -> CircuitView {
        let last = self.last_open.load(Relaxed);
        if self.is_open() {
            CircuitView::Open
        } else if last == 0 {
            CircuitView::Steady
        } else {
            CircuitView::Recovering(Duration::from_nanos(self.nanos(now).saturating_sub(last - 1)))
        }
    }

    /// For `/endpoints`: open, half open (some probe is out or may go out), or closed.
    pub fn state(&self) -> State {
        if !self.is_open() {
            return State::Closed;
        }
        let half_open = lock(&self.inner).waiting.iter().any(|waiting| waiting.half_open);
        if half_open { State::HalfOpen } else { State::Open }
    }

    /// The last transitions, oldest first.
    pub fn events(&self) -> Vec<Arc<Event>> {
        lock(&self.inner).events.iter().cloned().collect()
    }

    /// How long until the next probe, and what opened an endpoint last. Zero if a probe is out: its verdict may come at
    /// any time.
    pub fn outlook(&self, now: Instant) -> (Duration, Option<Arc<Event>>) {
        let inner = lock(&self.inner);
        let last = inner.events.iter().rev().find(|event| event.to == State::Open).cloned();
        if self.candidates(&inner, true).any(|waiting| waiting.half_open) {
            return (Duration::ZERO, last);
        }
        let next = self.candidates(&inner, true).map(|waiting| waiting.due).min().unwrap_or(0);
        (Duration::from_nanos(next.saturating_sub(self.nanos(now))), last)
    }

    /// Whether somebody should look for an endpoint that is due for a probe. One load.
    #[inline]
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.load(Relaxed) <= self.nanos(now)
    }

    /// The endpoints that are due for a probe, by id, the earliest first. Those that fail their health checks are left
    /// out, unless all do and `even_unhealthy`.
    pub fn due(&self, even_unhealthy: bool, now: Instant) -> SmallVec<[u64; 8]> {
        let now = self.nanos(now);
        let inner = lock(&self.inner);
        let due = self.candidates(&inner, even_unhealthy).filter(|waiting| waiting.due <= now);
        let mut due: SmallVec<[(u64, u64); 8]> = due.map(|waiting| (waiting.due, waiting.id)).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    /// Puts a policy in force: at most floor(n × `max_ejection_percent` / 100) of the endpoints may be ejected. Of those
    /// that are beyond that now, some become usable again (but stay Open). `endpoints` are those of the configuration.
    pub fn configure(&self, max_ejection_percent: f64, endpoints: &[Arc<Endpoint>], now: Instant) {
        let mut inner = lock(&self.inner);
        inner.max_ejection_percent = max_ejection_percent;
        for endpoint in endpoints.iter().rev() {
            let Counts { guarded, ejected, .. } = self.counts();
            if ejected <= limit(guarded, max_ejection_percent) {
                break;
            }
            endpoint.guard().keep(now);
        }
        self.vacancy.store(true, Relaxed);
        // The number of endpoints may be another one.
        self.find_due(&inner);
    }

    /// Whether a place among the ejected ones may have become free since somebody asked. Whoever gets `true` should offer
    /// it to the endpoints that are Open and kept in rotation.
    #[inline]
    pub fn take_vacancy(&self) -> bool {
        self.vacancy.load(Relaxed) && self.vacancy.swap(false, Relaxed)
    }

    /// Reserves a place among the ejected ones and lets `mark` eject the endpoint; false if there is none, or if `mark`
    /// says that it may not be.
    pub(super) fn eject(&self, mark: impl FnOnce() -> bool) -> bool {
        // Under the lock, so that `configure` does not change the limit in between.
        let inner = lock(&self.inner);
        let reserved = self.counts.fetch_update(Relaxed, Relaxed, |word| {
            let Counts { guarded, ejected, .. } = Counts::unpack(word);
            (ejected < limit(guarded, inner.max_ejection_percent)).then(|| word.wrapping_add(ONE_EJECTED))
        });
        if reserved.is_err() {
            return false;
        }
        let marked = mark();
        if !marked {
            self.counts.fetch_sub(ONE_EJECTED, Relaxed);
        }
        marked
    }

    /// One endpoint counted as `before` and counts as `after`.
    pub(super) fn account(&self, before: Counts, after: Counts, now: Instant) {
        let change = after.pack().wrapping_sub(before.pack());
        if change == 0 {
            return;
        }
        let old = self.counts.fetch_add(change, Relaxed);
        let (was, is) = (Counts::unpack(old), Counts::unpack(old.wrapping_add(change)));
        if after.ejected < before.ejected {
            self.vacancy.store(true, Relaxed);
        }
        if was.all_open() && !is.all_open() {
            self.last_open.fetch_max(self.nanos(now) + 1, Relaxed);
        }
    }

    /// One endpoint more or less is unusable.
    pub(super) fn count_unusable(&self, change: i32) {
        self.unusable.fetch_add(change, Relaxed);
    }

    /// An endpoint is not Closed: its next probe is due at `due`. Or it is: `None`. `unhealthy` is asked under the lock.
    pub(super) fn wait(&self, id: u64, due: Option<(Instant, State)>, unhealthy: impl FnOnce() -> bool) {
        let mut inner = lock(&self.inner);
        inner.waiting.retain(|waiting| waiting.id != id);
        if let Some((due, state)) = due {
            let half_open = state == State::HalfOpen;
            inner.waiting.push(Waiting { id, due: self.nanos(due), half_open, unhealthy: unhealthy() });
        }
        self.find_due(&inner);
    }

    /// The health of an endpoint has changed. `unhealthy` is asked under the lock.
    pub(super) fn health_changed(&self, id: u64, unhealthy: impl FnOnce() -> bool) {
        let mut inner = lock(&self.inner);
        if let Some(waiting) = inner.waiting.iter_mut().find(|waiting| waiting.id == id) {
            waiting.unhealthy = unhealthy();
        }
        self.find_due(&inner);
    }

    /// Keeps an event for `/endpoints`.
    pub(super) fn remember(&self, event: &Arc<Event>) {
        if let Some(cause) = event.cause.filter(|_| event.ejected) {
            self.ejections.count(cause);
        }
        let mut inner = lock(&self.inner);
        if inner.events.len() == MAX_EVENTS {
            inner.events.pop_front();
        }
        inner.events.push_back(event.clone());
    }

    /// Name of the service.
    pub fn service(&self) -> &Arc<str> {
        &self.service
    }

    /// What is due is found again whenever something that it depends on has changed, and only under the lock.
    fn find_due(&self, inner: &Inner) {
        let due = self.candidates(inner, true).map(|waiting| waiting.due).min();
        self.due.store(due.unwrap_or(NEVER), Relaxed);
    }

    /// The endpoints that a probe may go to some time. Those that fail their health checks are left out, unless all do
    /// and `even_unhealthy`.
    fn candidates<'i>(&self, inner: &'i Inner, even_unhealthy: bool) -> impl Iterator<Item = &'i Waiting> + use<'i> {
        let health_counts = !(even_unhealthy && self.nobody_is_healthy(&inner.waiting));
        inner.waiting.iter().filter(move |waiting| !(health_counts && waiting.unhealthy))
    }

    /// Every endpoint waits for a probe and fails its health checks: then those checks are no guide, as in panic.
    fn nobody_is_healthy(&self, waiting: &[Waiting]) -> bool {
        waiting.len() >= self.counts().guarded as usize && waiting.iter().all(|waiting| waiting.unhealthy)
    }

    fn nanos(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.epoch)).min(NEVER - 1)
    }
}

/// How many of `guarded` endpoints may be ejected.
fn limit(guarded: u32, percent: f64) -> u32 {
    (f64::from(guarded) * percent / 100.0) as u32
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
