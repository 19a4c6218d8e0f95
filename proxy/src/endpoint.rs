//! Live state of one endpoint: shared by all workers, and kept across configurations as long as the endpoint exists.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

use crate::balance::ewma::PeakEwma;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static HEALTH_GENERATION: AtomicU64 = AtomicU64::new(0);

/// Changes whenever an endpoint of this process becomes usable or unusable: what was counted before may be kept as
/// long as this stays the same.
pub fn health_generation() -> u64 {
    HEALTH_GENERATION.load(Relaxed)
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
    idle_millis: AtomicU64,
    health: AtomicU8,
    /// Nanoseconds after `epoch` at which it last became usable: start of its slow start.
    usable_since: AtomicU64,
    epoch: Instant,
    /// Counts the unusable endpoints of the service, so that a picker knows the share without looking at all.
    unusable: Arc<AtomicU32>,
    removed: AtomicBool,
}

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
    /// A new endpoint, usable from `now` on. `unusable` is the counter shared by the endpoints of its service.
    pub fn new(
        address: SocketAddr,
        hostname: Option<Arc<str>>,
        zone: Option<Arc<str>>,
        weight: u32,
        unusable: Arc<AtomicU32>,
        now: Instant,
    ) -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            address,
            label: address.to_string().into(),
            hostname,
            zone,
            in_flight: InFlight::default(),
            latency: PeakEwma::new(now),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            weight: AtomicU32::new(weight),
            idle_millis: AtomicU64::new(60_000),
            health: AtomicU8::new(Health::Unknown as u8),
            usable_since: AtomicU64::new(0),
            epoch: now,
            unusable,
            removed: AtomicBool::new(false),
        }
    }

    /// Relative share; 0 gets nothing.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Takes effect with the next snapshot's pickers.
    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight, Relaxed);
    }

    /// What health checks last said.
    pub fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Unknown,
            1 => Health::Healthy,
            _ => Health::Unhealthy,
        }
    }

    /// Records a verdict of the health checker. A recovered endpoint starts slowly again; one that was removed keeps no
    /// verdict, because it no longer counts.
    pub fn set_health(&self, health: Health, now: Instant) {
        if self.is_removed() {
            return;
        }
        self.swap_health(health, now);
        // Removed by another thread in between: whoever swaps last takes it out of the count.
        if self.removed.load(SeqCst) {
            self.swap_health(Health::Unknown, now);
        }
    }

    fn swap_health(&self, health: Health, now: Instant) {
        let was = self.health.swap(health as u8, SeqCst) == Health::Unhealthy as u8;
        match (was, health == Health::Unhealthy) {
            (false, true) => {
                self.unusable.fetch_add(1, Relaxed);
            }
            (true, false) => {
                let since = now.saturating_duration_since(self.epoch);
                self.usable_since.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Relaxed);
                self.unusable.fetch_sub(1, Relaxed);
            }
            _ => return,
        }
        HEALTH_GENERATION.fetch_add(1, Relaxed);
    }

    /// Whether a picker may choose it outside of panic.
    pub fn usable(&self) -> bool {
        self.health.load(Relaxed) != Health::Unhealthy as u8
    }

    /// How long it has been usable.
    pub fn usable_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch + Duration::from_nanos(self.usable_since.load(Relaxed)))
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
        self.removed.load(Relaxed)
    }

    /// Called when no configuration names it any more. It stops counting as unusable.
    pub fn mark_removed(&self) {
        if !self.removed.swap(true, SeqCst) {
            self.swap_health(Health::Unknown, self.epoch);
        }
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
pub struct Ticket(Arc<Endpoint>);

impl Ticket {
    /// Counts a request sent to `endpoint`.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.in_flight.enter();
        endpoint.requests.fetch_add(1, Relaxed);
        Self(endpoint)
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.in_flight.leave();
    }
}
