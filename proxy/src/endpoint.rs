//! Live state of one endpoint: shared by all workers, and kept across configurations as long as the endpoint exists.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::sync::Notify;

use crate::{
    balance::ewma::PeakEwma,
    kernel::Signals,
    resilience::{
        breaker::State,
        circuit::{Circuit, Event},
        guard::{Guard, Probe},
        outcome::Outcome,
    },
};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static HEALTH_GENERATION: AtomicU64 = AtomicU64::new(0);
static HEALTH_CHANGES: Notify = Notify::const_new();

/// Changes whenever an endpoint of this process becomes usable or unusable: what was counted before may be kept as
/// long as this stays the same. Whoever sees a generation sees the changes that led to it.
pub fn health_generation() -> u64 {
    HEALTH_GENERATION.load(Acquire)
}

/// Tells one waiter that [`health_generation`] or some [`Endpoint::weight_percent`] has changed: whoever keeps tables of
/// its own by them (the kernel's) looks again at once. A change while nobody waits is kept, once, for the next to wait.
pub fn health_changes() -> &'static Notify {
    &HEALTH_CHANGES
}

/// An endpoint became usable or unusable.
pub(crate) fn health_changed() {
    HEALTH_GENERATION.fetch_add(1, Release);
    HEALTH_CHANGES.notify_one();
}

/// One address behind a service.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process; never reused. Keys the workers' connection pools.
    pub id: u64,
    /// Where to connect.
    pub address: SocketAddr,
    /// `address` as text: label in metrics, spans and `/endpoints`.
    pub label: Arc<str>,
    /// The name that was resolved to `address`, if it was written as a name.
    pub hostname: Option<Arc<str>>,
    /// Zone, if known.
    pub zone: Option<Arc<str>>,
    /// Requests in flight, all workers.
    pub in_flight: InFlight,
    /// Peak EWMA of the time to the response head.
    pub latency: PeakEwma,
    /// Requests sent.
    pub requests: AtomicU64,
    /// Requests that ended in a connect failure, a reset, a time-out or a 5xx.
    pub failures: AtomicU64,
    weight: AtomicU32,
    /// See [`Self::weight_percent`].
    weight_percent: AtomicU32,
    idle_millis: AtomicU64,
    guard: Guard,
    /// The last attempt to connect succeeded, or none has been made.
    reachable: AtomicBool,
    /// What the kernel last told of it.
    signals: Mutex<Option<Signals>>,
}

/// [`Endpoint::weight_percent`] of an endpoint with nothing against it.
pub const FULL_WEIGHT: u32 = 100;

/// What active health checks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Not checked, or not yet: used.
    Unknown,
    /// Used.
    Healthy,
    /// Not used, unless the service is in panic.
    Unhealthy,
}

impl Health {
    /// For `/endpoints`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Endpoint {
    /// A new endpoint, usable from `now` on. `circuit` is shared by the endpoints of its service.
    pub fn new(
        address: SocketAddr,
        hostname: Option<Arc<str>>,
        zone: Option<Arc<str>>,
        weight: u32,
        circuit: Arc<Circuit>,
        now: Instant,
    ) -> Self {
        let id = NEXT_ID.fetch_add(1, Relaxed);
        let label: Arc<str> = address.to_string().into();
        let guard = Guard::new(id, label.clone(), circuit, now);
        guard.set_weighted(weight > 0, now);
        Self {
            id,
            address,
            label,
            hostname,
            zone,
            in_flight: InFlight::default(),
            latency: PeakEwma::new(now),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            weight: AtomicU32::new(weight),
            weight_percent: AtomicU32::new(FULL_WEIGHT),
            idle_millis: AtomicU64::new(60_000),
            guard,
            reachable: AtomicBool::new(true),
            signals: Mutex::default(),
        }
    }

    /// Relative share in the configuration in force; 0 gets nothing. Pickers go by their own snapshot's.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Another configuration is in force.
    pub fn set_weight(&self, weight: u32, now: Instant) {
        self.weight.store(weight, Relaxed);
        self.guard.set_weighted(weight > 0, now);
    }

    /// How much of its weight counts now, in percent: [`FULL_WEIGHT`], or less while the kernel sees it lose segments.
    /// Algorithms that hash do not go by it: keys would move. One load.
    #[inline]
    pub fn weight_percent(&self) -> u32 {
        self.weight_percent.load(Relaxed)
    }

    /// Lets only `percent` of its weight count, between 1 and [`FULL_WEIGHT`]; tells [`health_changes`] if that is new.
    pub fn set_weight_percent(&self, percent: u32) {
        let percent = percent.clamp(1, FULL_WEIGHT);
        if self.weight_percent.swap(percent, Relaxed) != percent {
            HEALTH_CHANGES.notify_one();
        }
    }

    /// What the kernel last told of connections to it; `None`: nothing yet, or there is no kernel program.
    pub fn signals(&self) -> Option<Signals> {
        *self.signals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the kernel tells now.
    pub fn set_signals(&self, signals: Option<Signals>) {
        *self.signals.lock().unwrap_or_else(PoisonError::into_inner) = signals;
    }

    /// Its breaker, and everything else that says whether it may be picked.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// What health checks last said.
    pub fn health(&self) -> Health {
        self.guard.health()
    }

    /// Records a verdict of the health checker. A recovered endpoint starts slowly again; one that was removed keeps no
    /// verdict, because it no longer counts.
    pub fn set_health(&self, health: Health, now: Instant) {
        self.guard.set_health(health, now);
    }

    /// Whether a picker may choose it outside of panic: neither unhealthy nor ejected. One load.
    #[inline]
    pub fn usable(&self) -> bool {
        self.guard.usable()
    }

    /// How long it has been usable.
    pub fn usable_for(&self, now: Instant) -> Duration {
        self.guard.usable_for(now)
    }

    /// Tells the breaker how an attempt ended; returns what changed by it. `probe` is the attempt's, if it was one.
    ///
    /// An endpoint whose breaker closes is as good as new: what was slow before does not keep it from its share.
    #[inline]
    pub fn record(&self, outcome: Outcome, probe: Option<Probe>, now: Instant, rng: &mut Rng) -> Option<Arc<Event>> {
        if !self.guard.enabled() {
            return None;
        }
        let event = self.guard.record(outcome, probe, now, rng)?;
        if event.to == State::Closed {
            self.latency.forget();
        }
        Some(event)
    }

    /// Tells the balancer how long the endpoint took. What began before it was last out of use says nothing of it now.
    #[inline]
    pub fn observe(&self, start: Instant, took: Duration, now: Instant) {
        if start >= self.guard.usable_since() {
            self.latency.observe(took, now);
        }
    }

    /// Opens its breaker on the kernel's `evidence`; see [`Guard::trip`].
    pub fn trip(&self, evidence: String, now: Instant, rng: &mut Rng) -> Option<Arc<Event>> {
        self.guard.trip(evidence, now, rng)
    }

    /// A probe, if its breaker lets one out now.
    pub fn probe(self: &Arc<Self>, now: Instant) -> Option<Probe> {
        self.guard.probe(self, now)
    }

    /// Whether, as far as the last attempt showed, it accepts connections.
    pub fn reachable(&self) -> bool {
        self.reachable.load(Relaxed)
    }

    /// Notes whether it accepted a connection.
    pub fn set_reachable(&self, reachable: bool) {
        // Most of the time this is known, and the line stays shared between the cores.
        if self.reachable() != reachable {
            self.reachable.store(reachable, Relaxed);
        }
    }

    /// How long an idle connection to it is kept.
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_millis.load(Relaxed))
    }

    /// From `connectionPool.idleTimeout` of its service.
    pub fn set_idle_timeout(&self, timeout: Duration) {
        self.idle_millis.store(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether it left the configuration: pooled connections to it are closed instead of kept.
    pub fn is_removed(&self) -> bool {
        self.guard.is_removed()
    }

    /// Called when no configuration names it any more. It stops counting as unusable, open or ejected.
    pub fn mark_removed(&self, now: Instant) {
        self.guard.remove(now);
    }
}

/// Counter of requests in flight; one guard per request, so that it cannot drift.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

impl InFlight {
    /// How many there are.
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Counts one more and says how many there were before.
    pub fn enter(&self) -> u32 {
        self.0.fetch_add(1, Relaxed)
    }

    /// Counts one less.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// A request in flight at an endpoint: counted from [`Ticket::new`] until it is dropped.
#[derive(Debug)]
pub struct Ticket {
    endpoint: Arc<Endpoint>,
    probe: Option<Probe>,
}

impl Ticket {
    /// Counts a request sent to `endpoint`. `probe` is its slot, if it is one: it is given back with the ticket, unless
    /// there is a verdict before.
    pub fn new(endpoint: Arc<Endpoint>, probe: Option<Probe>) -> Self {
        endpoint.in_flight.enter();
        endpoint.requests.fetch_add(1, Relaxed);
        Self { endpoint, probe }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The slot, for the one who has the verdict.
    pub fn take_probe(&mut self) -> Option<Probe> {
        self.probe.take()
    }

    /// The endpoint never got it: there was no connection for it.
    pub fn unsent(&self) {
        self.endpoint.requests.fetch_sub(1, Relaxed);
    }

    /// Whether it finds out if the endpoint works again.
    pub const fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Says how the attempt went; what changed by it at the endpoint's breaker.
    #[inline]
    pub fn judge(&mut self, outcome: Outcome, now: Instant, rng: &mut Rng) -> Option<Arc<Event>> {
        if outcome.failure.is_some() {
            self.endpoint.failures.fetch_add(1, Relaxed);
        }
        self.endpoint.record(outcome, self.probe.take(), now, rng)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.endpoint.in_flight.leave();
    }
}
