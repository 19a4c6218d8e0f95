//! Picking an endpoint: pure deciders, one algorithm per file. No sockets; the clock and the random numbers are the
//! caller's.
//!
//! A [`Balancer`] belongs to one snapshot and is shared by all workers. What has to outlive it (requests in flight,
//! latency, health) is in the [`Endpoint`]s; the turn of round robin and the hash tables are handed over by
//! [`Balancer::new`].
//!
//! A request gets its endpoint by [`crate::snapshot::Upstream::pick`] (in `admit.rs`), which asks the circuit first.
//!
//! Every pick goes the same way: *panic?* → zone → draw one (→ draw a rival and compare), leaving out what is unusable
//! or has been tried. Hashing goes by the key alone: neither zones nor slow start nor a weight that is lowered for a time
//! ([`Endpoint::weight_percent`]) apply to it.

mod admit;
pub mod ewma;
mod hash;
mod least;
mod maglev;
mod random;
mod ring;
mod round_robin;
#[cfg(test)]
mod tests;
mod weights;
mod zone;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use weft_model::policy::{BalancerKind, LoadBalancer};

use self::{ewma::Verdict, maglev::Maglev, ring::Ring, round_robin::Sequence, weights::Sampler, zone::Zones};
use crate::{
    endpoint::{Endpoint, FULL_WEIGHT},
    resilience::circuit::Circuit,
};

pub use self::{
    admit::{Pick, Unpicked},
    hash::hash_str,
};

/// The share of a new or recovered endpoint at the start of its slow start.
const SLOW_START_FLOOR: f32 = 0.1;

/// How many draws may fail to find a rival.
const RIVAL_TRIES: u32 = 4;

/// How many points after a key's own are asked before all endpoints are.
const MAX_WALK: usize = 128;

/// The endpoints of one service in one snapshot.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Vec<Arc<Endpoint>>,
    /// One for each endpoint.
    weights: Vec<u32>,
    circuit: Arc<Circuit>,
    zone: Option<Arc<str>>,
}

impl EndpointSet {
    /// Endpoints with their weights in this snapshot. `circuit` is what they share; `zone` is where this node is, if
    /// known.
    pub fn new(weighted: Vec<(Arc<Endpoint>, u32)>, circuit: Arc<Circuit>, zone: Option<Arc<str>>) -> Self {
        let (endpoints, weights) = weighted.into_iter().unzip();
        Self { endpoints, weights, circuit, zone }
    }

    /// All endpoints, those of weight 0 included, in the order of the configuration.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    /// The endpoints, each with its weight.
    pub fn weighted(&self) -> impl Iterator<Item = (&Arc<Endpoint>, u32)> {
        self.endpoints.iter().zip(self.weights.iter().copied())
    }
}

/// Decides which endpoint gets a request.
#[derive(Debug)]
pub struct Balancer {
    set: Arc<EndpointSet>,
    all: Pool,
    algorithm: Algorithm,
    /// Only when there are usable choices on both sides of the border.
    zones: Option<Zones>,
    slow_start: Duration,
    /// 0–100.
    panic_threshold: f64,
}

#[derive(Debug, Clone)]
enum Algorithm {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    RingHash(Arc<Ring>),
    Maglev(Arc<Maglev>),
}

impl Balancer {
    /// A balancer over `set`. `previous` is what served the same service until now: its turn goes
    /// on, and its hash table is kept if addresses and weights are the same.
    pub fn new(policy: &LoadBalancer, set: Arc<EndpointSet>, previous: Option<&Self>) -> Self {
        let turns = policy.kind == BalancerKind::RoundRobin;
        let pool = |keep: &dyn Fn(&Endpoint) -> bool, previous: Option<&Pool>| Pool::new(&set, keep, turns, previous);
        let all = pool(&|_| true, previous.map(|p| &p.all));
        let hashes = matches!(policy.kind, BalancerKind::RingHash | BalancerKind::Maglev);
        let zones = set.zone.as_deref().filter(|_| policy.zone_aware && !hashes).and_then(|zone| {
            let previous = previous.and_then(|p| p.zones.as_ref());
            Zones::new(
                pool(&|endpoint| endpoint.zone.as_deref() == Some(zone), previous.map(|p| &p.local)),
                pool(&|endpoint| endpoint.zone.as_deref() != Some(zone), previous.map(|p| &p.remote)),
            )
        });
        let same = previous.filter(|p| p.all.same_addresses(&p.set, &all, &set)).map(|p| &p.algorithm);
        let algorithm = match (policy.kind, same) {
            (BalancerKind::RingHash, Some(Algorithm::RingHash(ring))) => Algorithm::RingHash(ring.clone()),
            (BalancerKind::Maglev, Some(Algorithm::Maglev(table))) => Algorithm::Maglev(table.clone()),
            (BalancerKind::RingHash, _) => Algorithm::RingHash(Arc::new(Ring::new(&all.names(&set)))),
            (BalancerKind::Maglev, _) => Algorithm::Maglev(Arc::new(Maglev::new(&all.names(&set)))),
            (BalancerKind::PeakEwma, _) => Algorithm::PeakEwma,
            (BalancerKind::LeastRequest, _) => Algorithm::LeastRequest,
            (BalancerKind::RoundRobin, _) => Algorithm::RoundRobin,
            (BalancerKind::Random, _) => Algorithm::Random,
        };
        let (slow_start, panic_threshold) = (policy.slow_start, policy.panic_threshold_percent);
        Self { set, all, algorithm, zones, slow_start, panic_threshold }
    }

    /// What it picks from.
    pub fn set(&self) -> &Arc<EndpointSet> {
        &self.set
    }

    /// Whether [`Self::pick`] looks at its `hash`: nobody else needs to compute one.
    pub fn needs_hash(&self) -> bool {
        matches!(self.algorithm, Algorithm::RingHash(_) | Algorithm::Maglev(_))
    }

    /// Whether health ever gives way to [`Self::panicking`].
    pub fn may_panic(&self) -> bool {
        self.panic_threshold > 0.0
    }

    /// Whether so few endpoints are usable that health and ejection are ignored: the survivors would not stand the whole
    /// load. Those without a weight take none of it, and do not count.
    pub fn panicking(&self) -> bool {
        let all = self.all.members.len();
        let unusable = self.set.circuit.unusable().min(all);
        unusable > 0 && ((all - unusable) as f64) * 100.0 < self.panic_threshold * all as f64
    }

    /// Picks an endpoint, or None if none may be used.
    ///
    /// `hash` comes from [`hash_str`] over the request's key. `tried` are the ids of the endpoints that this request has
    /// tried before: they are avoided as long as another one may be used.
    pub fn pick(&self, hash: u64, tried: &[u64], now: Instant, rng: &mut Rng) -> Option<&Arc<Endpoint>> {
        let any_health = self.panicking();
        let mut query = Query {
            set: &self.set,
            tried,
            first_attempt: tried.is_empty(),
            any_health,
            slow_start: self.slow_start,
            now,
        };
        let index = match &self.algorithm {
            Algorithm::RingHash(ring) => self.by_key(ring.owners(hash), &query, hash),
            Algorithm::Maglev(table) => self.by_key(table.owners(hash), &query, hash),
            _ => {
                let pools = match &self.zones {
                    Some(zones) if !any_health => zones.order(&self.set.endpoints, rng).map(Some),
                    _ => [Some(&self.all), None],
                };
                let mut ask =
                    |query: &Query<'_>| pools.iter().flatten().find_map(|pool| self.in_pool(pool, query, rng));
                match ask(&query) {
                    None if !tried.is_empty() => {
                        query.tried = &[];
                        ask(&query)
                    }
                    found => found,
                }
            }
        }?;
        self.set.endpoints.get(index as usize)
    }

    /// Whether [`Self::pick`] would find anything.
    #[cold]
    pub fn is_usable(&self) -> bool {
        let any_health = self.panicking();
        self.set.endpoints.iter().any(|endpoint| endpoint.weight() > 0 && (any_health || endpoint.usable()))
    }

    /// The endpoint that a key leads to now, for whoever explains: nothing is picked. `None` when the algorithm does not
    /// hash, or no endpoint may be used.
    #[cold]
    pub fn owner(&self, hash: u64, now: Instant) -> Option<&Arc<Endpoint>> {
        let query = Query {
            set: &self.set,
            tried: &[],
            first_attempt: true,
            any_health: self.panicking(),
            slow_start: self.slow_start,
            now,
        };
        let index = match &self.algorithm {
            Algorithm::RingHash(ring) => self.by_key(ring.owners(hash), &query, hash),
            Algorithm::Maglev(table) => self.by_key(table.owners(hash), &query, hash),
            _ => None,
        }?;
        self.set.endpoints.get(index as usize)
    }

    /// Draws one, and where the algorithm compares, a rival. The result is an index into the set.
    #[inline]
    fn in_pool(&self, pool: &Pool, query: &Query<'_>, rng: &mut Rng) -> Option<u32> {
        let mine = match &pool.sequence {
            // A second attempt is not part of the turn.
            Some(sequence) if query.first_attempt => {
                let next = sequence.next(rng);
                match pool.endpoint(query, next) {
                    Some(endpoint) if query.wants(endpoint) && query.warm(endpoint, rng) => Some(next),
                    // Not simply the one after: it would get a double share.
                    _ => random::draw(pool, query, rng),
                }
            }
            _ => random::draw(pool, query, rng),
        }?;
        let winner = match &self.algorithm {
            Algorithm::PeakEwma | Algorithm::LeastRequest => self.better_of_two(mine, pool, query, rng),
            _ => mine,
        };
        pool.members.get(winner as usize).copied()
    }

    #[inline]
    fn better_of_two(&self, mine: u32, pool: &Pool, query: &Query<'_>, rng: &mut Rng) -> u32 {
        for _ in 0..RIVAL_TRIES {
            let Some(rival) = pool.sampler.draw_other(mine, rng) else { continue };
            let (Some(a), Some(b)) = (pool.endpoint(query, mine), pool.endpoint(query, rival)) else { break };
            if !query.wants(b) || !query.warm(b, rng) {
                continue;
            }
            let mut load = pool.sampler.unit_load(mine, a.in_flight.get(), rng);
            let mut rival_load = pool.sampler.unit_load(rival, b.in_flight.get(), rng);
            let percents = (a.weight_percent(), b.weight_percent());
            if percents.0 != percents.1 {
                (load, rival_load) = weights::lowered_loads((load, rival_load), percents, rng);
            }
            let verdict = match &self.algorithm {
                Algorithm::PeakEwma => ewma::prefers_rival(&a.latency, load, &b.latency, rival_load, query.now),
                _ => least::prefers_rival(load, rival_load),
            };
            return match verdict {
                Verdict::Keep => mine,
                Verdict::Far => rival,
                Verdict::Near if pool.sampler.yields((mine, rival), percents, rng) => rival,
                Verdict::Near => mine,
            };
        }
        mine
    }

    /// The first of `owners` that may be used: they are the key's own, in the order of its preference.
    fn by_key(&self, owners: impl Iterator<Item = u32>, query: &Query<'_>, hash: u64) -> Option<u32> {
        let members = &self.all.members;
        let start = (hash % (members.len() as u64).max(1)) as usize;
        let (before, after) = members.split_at(start);
        let nearby = owners.take(MAX_WALK).filter_map(|position| members.get(position as usize));
        let mut spare = None;
        for &index in nearby.chain(after).chain(before) {
            let endpoint = query.set.endpoints.get(index as usize)?;
            if query.wants(endpoint) {
                return Some(index);
            }
            if spare.is_none() && query.healthy(endpoint) {
                spare = Some(index);
            }
        }
        spare
    }
}

/// What one pick wants.
pub(crate) struct Query<'a> {
    set: &'a EndpointSet,
    tried: &'a [u64],
    first_attempt: bool,
    any_health: bool,
    slow_start: Duration,
    now: Instant,
}

impl Query<'_> {
    #[inline]
    fn healthy(&self, endpoint: &Endpoint) -> bool {
        self.any_health || endpoint.usable()
    }

    /// Usable and not tried yet.
    #[inline]
    pub(crate) fn wants(&self, endpoint: &Endpoint) -> bool {
        self.healthy(endpoint) && !self.tried.contains(&endpoint.id)
    }

    /// Whether its slow start, and what the kernel has seen of it, let it have this request.
    #[inline]
    pub(crate) fn warm(&self, endpoint: &Endpoint, rng: &mut Rng) -> bool {
        let percent = endpoint.weight_percent();
        if percent < FULL_WEIGHT && rng.u32(..FULL_WEIGHT) >= percent {
            return false;
        }
        if self.slow_start.is_zero() {
            return true;
        }
        let age = endpoint.usable_for(self.now);
        age >= self.slow_start || rng.f32() < (age.as_secs_f32() / self.slow_start.as_secs_f32()).max(SLOW_START_FLOOR)
    }
}

/// Endpoints of positive weight, and the means to draw from them.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Indices into the set. Position means the place in here.
    members: Box<[u32]>,
    sampler: Sampler,
    /// Only for round robin.
    sequence: Option<Sequence>,
}

impl Pool {
    fn new(set: &EndpointSet, keep: &dyn Fn(&Endpoint) -> bool, turns: bool, previous: Option<&Self>) -> Self {
        let (members, weights): (Vec<u32>, Vec<u32>) = (0_u32..)
            .zip(set.weighted())
            .filter(|(_, (endpoint, weight))| *weight > 0 && keep(endpoint))
            .map(|(index, (_, weight))| (index, weight))
            .unzip();
        let sequence = turns.then(|| Sequence::new(&weights, previous.and_then(|p| p.sequence.as_ref())));
        Self { members: members.into(), sampler: Sampler::new(&weights), sequence }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn members(&self) -> &[u32] {
        &self.members
    }

    #[inline]
    pub(crate) fn endpoint<'a>(&self, query: &Query<'a>, position: u32) -> Option<&'a Endpoint> {
        let index = *self.members.get(position as usize)?;
        query.set.endpoints.get(index as usize).map(|endpoint| &**endpoint)
    }

    /// What hashing goes by.
    fn names<'a>(&self, set: &'a EndpointSet) -> Vec<(&'a str, u32)> {
        let named = |(position, &index): (u32, &u32)| {
            set.endpoints.get(index as usize).map(|endpoint| (&*endpoint.label, self.sampler.weight(position)))
        };
        (0..).zip(&self.members).filter_map(named).collect()
    }

    fn same_addresses(&self, set: &EndpointSet, other: &Self, other_set: &EndpointSet) -> bool {
        self.members.len() == other.members.len() && self.names(set) == other.names(other_set)
    }
}
