//! Zone awareness: stay in the node's zone as long as its endpoints can take the traffic.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
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

/// The local share, kept until an endpoint anywhere changes its state: the lower half of the health generation that it
/// belongs to, and the bits of the share below it. One word, so that a share is never taken for another generation's.
#[derive(Debug)]
struct CachedShare(AtomicU64);

impl CachedShare {
    /// Not a number, which no share is.
    const NONE: u64 = u64::MAX;

    fn get(&self, generation: u64) -> Option<f32> {
        let word = self.0.load(Relaxed);
        (word != Self::NONE && word >> 32 == generation & 0xffff_ffff).then(|| f32::from_bits(word as u32))
    }

    fn set(&self, generation: u64, share: f32) {
        self.0.store(generation << 32 | u64::from(share.to_bits()), Relaxed);
    }
}

impl Zones {
    /// None if a pool is empty: then there is nothing to choose between.
    pub(crate) fn new(local: Pool, remote: Pool) -> Option<Self> {
        let both = !local.is_empty() && !remote.is_empty();
        both.then_some(Self { local, remote, share: CachedShare(AtomicU64::new(CachedShare::NONE)) })
    }

    /// Which pool to ask first, and which then.
    #[inline]
    pub(crate) fn order(&self, endpoints: &[Arc<Endpoint>], rng: &mut Rng) -> [&Pool; 2] {
        let share = self.local_share(endpoints);
        if share >= 1.0 || rng.f32() < share { [&self.local, &self.remote] } else { [&self.remote, &self.local] }
    }

    fn local_share(&self, endpoints: &[Arc<Endpoint>]) -> f32 {
        // Before the endpoints are looked at: what changes meanwhile belongs to the next generation.
        let generation = health_generation();
        if let Some(share) = self.share.get(generation) {
            return share;
        }
        let members = self.local.members();
        let usable = members.iter().filter(|&&index| endpoints.get(index as usize).is_some_and(|e| e.usable())).count();
        let share = local_share(usable, members.len());
        self.share.set(generation, share);
        share
    }
}

fn local_share(usable: usize, all: usize) -> f32 {
    (OVERPROVISIONING * usable as f32 / all.max(1) as f32).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_belongs_to_its_generation() {
        let cached = CachedShare(AtomicU64::new(CachedShare::NONE));
        assert_eq!([0, 1, u64::MAX].map(|generation| cached.get(generation)), [None; 3]);
        for (generation, share) in [(0, 1.0), (1, 0.0), (2, 0.7), (1 << 32, 0.14), (u64::MAX, 1.0)] {
            cached.set(generation, share);
            assert_eq!(cached.get(generation), Some(share));
            assert_eq!(cached.get(generation.wrapping_add(1)), None);
        }
    }

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
