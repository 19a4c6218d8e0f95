//! Zone awareness: stay in the node's zone as long as its endpoints can take the traffic.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use fastrand::Rng;

use super::Pool;
use crate::endpoint::{Endpoint, health_generation};

/// The zone keeps all its traffic as long as this many times its usable share is at least 1, i.e. up to 28 % down:
/// Envoy's default overprovisioning factor.
const OVERPROVISIONING: f32 = 1.4;

/// The endpoints in the node's zone, and the others.
#[derive(Debug)]
pub(crate) struct Zones {
    pub(crate) local: Pool,
    pub(crate) remote: Pool,
    share: CachedShare,
}

/// The local share, kept until an endpoint anywhere changes its state.
#[derive(Debug)]
struct CachedShare {
    generation: AtomicU64,
    /// `f32` bits.
    share: AtomicU32,
}

impl Zones {
    /// None if a pool is empty: then there is nothing to choose between.
    pub(crate) fn new(local: Pool, remote: Pool) -> Option<Self> {
        let both = !local.is_empty() && !remote.is_empty();
        let share = CachedShare { generation: AtomicU64::new(u64::MAX), share: AtomicU32::new(0) };
        both.then_some(Self { local, remote, share })
    }

    /// Which pool to ask first, and which then.
    #[inline]
    pub(crate) fn order(&self, endpoints: &[Arc<Endpoint>], rng: &mut Rng) -> [&Pool; 2] {
        let share = self.local_share(endpoints);
        if share >= 1.0 || rng.f32() < share { [&self.local, &self.remote] } else { [&self.remote, &self.local] }
    }

    fn local_share(&self, endpoints: &[Arc<Endpoint>]) -> f32 {
        let generation = health_generation();
        if self.share.generation.load(Relaxed) == generation {
            return f32::from_bits(self.share.share.load(Relaxed));
        }
        let members = self.local.members();
        let usable = members.iter().filter(|&&index| endpoints.get(index as usize).is_some_and(|e| e.usable())).count();
        let share = local_share(usable, members.len());
        self.share.share.store(share.to_bits(), Relaxed);
        self.share.generation.store(generation, Relaxed);
        share
    }
}

fn local_share(usable: usize, all: usize) -> f32 {
    (OVERPROVISIONING * usable as f32 / all.max(1) as f32).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::local_share;

    #[test]
    fn the_zone_keeps_what_it_can_take() {
        for (usable, all, expect) in
            [(10, 10, 1.0), (8, 10, 1.0), (5, 10, 0.7), (1, 10, 0.14), (0, 10, 0.0), (0, 0, 0.0)]
        {
            let got = local_share(usable, all);
            assert!((got - expect).abs() < 1e-6, "{usable} of {all}: {got}");
        }
    }
}
