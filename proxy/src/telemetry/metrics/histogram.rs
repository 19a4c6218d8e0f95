//! Durations in fixed buckets, written by one thread and read by others.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds in nanoseconds: OpenTelemetry's for HTTP durations, and four finer ones below 5 ms, where a proxy lives.
#[rustfmt::skip]
const BOUNDS_NS: [u64; 18] = [
    250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000, 75_000_000, 100_000_000,
    250_000_000, 500_000_000, 750_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000, 7_500_000_000, 10_000_000_000,
];

/// The same in seconds, as the `le` label shows them.
#[rustfmt::skip]
pub const BOUNDS: [f64; 18] = [
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];

/// Number of buckets, the one above every bound included.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// For each power of two: how many bounds lie below it. No octave holds more than two bounds, so that two comparisons
/// settle the rest.
const FIRST: [u8; 64] = {
    let mut first = [0; 64];
    let mut bit = 0;
    while bit < 64 {
        let mut below = 0;
        while below < BOUNDS_NS.len() && BOUNDS_NS[below] < 1 << bit {
            below += 1;
        }
        first[bit] = below as u8;
        bit += 1;
    }
    first
};

/// The bucket of a duration in nanoseconds: the first whose bound is not below it.
fn bucket(ns: u64) -> usize {
    let first = usize::from(FIRST[(63 - (ns | 1).leading_zeros()) as usize]);
    let above = |index: usize| usize::from(BOUNDS_NS.get(index).is_some_and(|&bound| ns > bound));
    first + above(first) + above(first + 1)
}

/// A counter with one writer: a plain load and store, no locked instruction.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. Only the thread that owns the cell may call this.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Takes away; the same rule holds.
    pub(super) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(n), Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A histogram with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Count; BUCKETS],
    sum_ns: Count,
}

impl Histogram {
    /// Records one duration.
    pub fn observe(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(bucket(ns)) {
            count.add(1);
        }
        self.sum_ns.add(ns);
    }

    /// What is in it now.
    pub fn read(&self) -> Distribution {
        Distribution {
            counts: std::array::from_fn(|index| self.counts[index].get()),
            sum: self.sum_ns.get() as f64 / 1e9,
        }
    }
}

/// A histogram as read: may be added to others.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Distribution {
    /// How many fell into each bucket (not cumulative).
    pub counts: [u64; BUCKETS],
    /// Seconds, all together.
    pub sum: f64,
}

impl Distribution {
    /// Adds the other's numbers.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// How many durations it holds.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The duration in seconds below which the share `q` (0–1) lies, interpolated within a bucket as Prometheus does;
    /// `None` when it is empty.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q.clamp(0.0, 1.0) * self.count() as f64;
        let (mut seen, mut lower) = (0.0, 0.0);
        for (index, &count) in self.counts.iter().enumerate().filter(|_| self.count() > 0) {
            let upper = BOUNDS.get(index).copied();
            let in_bucket = count as f64;
            if count > 0 && seen + in_bucket >= rank {
                return Some(upper.map_or(lower, |upper| lower + (upper - lower) * ((rank - seen) / in_bucket)));
            }
            seen += in_bucket;
            lower = upper.unwrap_or(lower);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_falls_where_a_linear_search_puts_it() {
        let linear = |ns: u64| BOUNDS_NS.iter().position(|&bound| ns <= bound).unwrap_or(BOUNDS_NS.len());
        let mut rng = fastrand::Rng::with_seed(3);
        let around = BOUNDS_NS.iter().flat_map(|&bound| [bound - 1, bound, bound + 1]);
        let powers = (0..64).flat_map(|bit| [1u64 << bit, (1u64 << bit) - 1]);
        let random = (0..100_000).map(|_| rng.u64(..) >> rng.u32(0..64)).collect::<Vec<_>>();
        for ns in around.chain(powers).chain([0, u64::MAX]).chain(random) {
            assert_eq!(bucket(ns), linear(ns), "{ns} ns");
        }
        for (ns, seconds) in BOUNDS_NS.iter().zip(BOUNDS) {
            assert_eq!(*ns as f64 / 1e9, seconds);
        }
    }

    #[test]
    fn quantiles_are_interpolated() {
        let histogram = Histogram::default();
        for ms in [3, 3, 3, 30] {
            histogram.observe(Duration::from_millis(ms));
        }
        let read = histogram.read();
        assert_eq!(read.count(), 4);
        assert!((read.sum - 0.039).abs() < 1e-9);
        let (p50, p99) = (read.quantile(0.5), read.quantile(0.99));
        assert!(p50.is_some_and(|s| (0.0025..0.005).contains(&s)), "{p50:?}");
        assert!(p99.is_some_and(|s| (0.025..0.05).contains(&s)), "{p99:?}");
        assert_eq!(Distribution::default().quantile(0.5), None);
    }
}
