//! A quantile of a service's latency, for `hedge.after: p95`.
//!
//! Latencies are counted in buckets of which twelve make an octave, so the middle of a bucket is off by at most 1/24 of
//! the value. Two sets of buckets take turns every ten seconds: what is asked for is the quantile of the last 10 to 20 s.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::nanos;

/// Buckets per octave.
const PARTS: u64 = 12;
/// Shorter latencies, in microseconds, share the first octave: 64 µs.
const FIRST: u32 = 6;
/// Octaves up to 2²⁷ µs; longer latencies share the last bucket.
const OCTAVES: u32 = 21;
const BUCKETS: usize = PARTS as usize * OCTAVES as usize;
/// A set of buckets is filled for this time.
const TURN: Duration = Duration::from_secs(10);
/// Fewer samples say nothing about a tail.
const LEAST: u32 = 50;

/// Counts the latencies of a service. All workers write to it; a few counts may get lost while the sets are exchanged.
#[derive(Debug)]
pub struct Latencies {
    epoch: Instant,
    /// Nanoseconds after `epoch` at which the sets are exchanged.
    turn_end: AtomicU64,
    /// Turns since `epoch`; its last bit says which set is filled.
    turn: AtomicU64,
    sets: [Box<[AtomicU32; BUCKETS]>; 2],
}

impl Latencies {
    /// Has seen nothing at `now`.
    pub fn new(now: Instant) -> Self {
        let set = || Box::new([const { AtomicU32::new(0) }; BUCKETS]);
        Self { epoch: now, turn_end: AtomicU64::new(nanos(TURN)), turn: AtomicU64::new(0), sets: [set(), set()] }
    }

    /// Counts one.
    pub fn record(&self, latency: Duration, now: Instant) {
        self.advance(now);
        let set = &self.sets[(self.turn.load(Relaxed) & 1) as usize];
        set[bucket(latency)].fetch_add(1, Relaxed);
    }

    /// The latency below which a share `q` (0–1) of the recent ones are; `None` as long as they are fewer than 50.
    ///
    /// Looks at every bucket: see [`HedgeDelay`] for who asks often.
    pub fn quantile(&self, q: f64, now: Instant) -> Option<Duration> {
        self.advance(now);
        let [one, other] = &self.sets;
        let counts = || {
            one.iter()
                .zip(other.iter())
                .map(|(one, other)| u64::from(one.load(Relaxed)) + u64::from(other.load(Relaxed)))
        };
        let total: u64 = counts().sum();
        if total < u64::from(LEAST) {
            return None;
        }
        let rank = ((total as f64 * q).ceil() as u64).clamp(1, total);
        let mut below = 0;
        let found = counts().position(|count| {
            below += count;
            below >= rank
        });
        // A count that changed in between: the rest is longer.
        Some(middle(found.unwrap_or(BUCKETS - 1)))
    }

    fn advance(&self, now: Instant) {
        let at = nanos(now.saturating_duration_since(self.epoch));
        let end = self.turn_end.load(Relaxed);
        if at < end {
            return;
        }
        // The turn that `at` falls into may be several later: then both sets are old.
        let passed = (at - end) / nanos(TURN) + 1;
        let next = end + passed * nanos(TURN);
        if self.turn_end.compare_exchange(end, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let turn = self.turn.load(Relaxed) + 1;
        let (filled, rested) = ((turn & 1) as usize, (turn & 1 ^ 1) as usize);
        self.sets[filled].iter().for_each(|count| count.store(0, Relaxed));
        if passed > 1 {
            self.sets[rested].iter().for_each(|count| count.store(0, Relaxed));
        }
        self.turn.store(turn, Relaxed);
    }
}

/// When a hedge is sent: a fixed time, or a quantile that is looked up five times a second at most.
#[derive(Debug)]
pub struct HedgeDelay {
    after: weft_model::config::HedgeAfter,
    epoch: Instant,
    /// Nanoseconds after `epoch` until which `value` holds.
    until: AtomicU64,
    /// Nanoseconds; 0 is unknown.
    value: AtomicU64,
}

impl HedgeDelay {
    const FRESH: Duration = Duration::from_millis(200);

    /// As `hedge.after` says.
    pub const fn new(after: weft_model::config::HedgeAfter, now: Instant) -> Self {
        Self { after, epoch: now, until: AtomicU64::new(0), value: AtomicU64::new(0) }
    }

    /// From the start of an attempt to its hedge; `None` while too little is known.
    pub fn get(&self, latencies: Option<&Latencies>, now: Instant) -> Option<Duration> {
        let q = match self.after {
            weft_model::config::HedgeAfter::Duration(after) => return Some(after),
            weft_model::config::HedgeAfter::Quantile(q) => q,
        };
        let at = nanos(now.saturating_duration_since(self.epoch));
        if at >= self.until.load(Relaxed) {
            self.until.store(at.saturating_add(nanos(Self::FRESH)), Relaxed);
            self.value.store(latencies.and_then(|known| known.quantile(q, now)).map_or(0, nanos), Relaxed);
        }
        let value = self.value.load(Relaxed);
        (value > 0).then(|| Duration::from_nanos(value))
    }
}

/// The bucket of a latency: its octave, and the twelfth of it.
fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1 << FIRST);
    let octave = micros.ilog2();
    if octave >= FIRST + OCTAVES {
        return BUCKETS - 1;
    }
    let part = ((micros - (1 << octave)) * PARTS) >> octave;
    ((u64::from(octave - FIRST)) * PARTS + part) as usize
}

/// The middle of a bucket.
fn middle(bucket: usize) -> Duration {
    let (octave, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    let octave = 1u64 << (octave + u64::from(FIRST));
    // In half twelfths of the octave.
    Duration::from_nanos(octave * 1_000 + octave * 1_000 * (2 * part + 1) / (2 * PARTS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weft_model::config::HedgeAfter;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_tail_is_found() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        for index in 1..=49 {
            latencies.record(ms(index), start);
        }
        assert_eq!(latencies.quantile(0.95, start), None, "too few");
        for index in 50..=1_000 {
            latencies.record(ms(index), start);
        }
        for (q, expected) in [(0.0, 1.0), (0.5, 500.0), (0.95, 950.0), (0.999, 999.0), (1.0, 1_000.0)] {
            let found = latencies.quantile(q, start).unwrap().as_secs_f64() * 1e3;
            assert!((found / expected - 1.0).abs() <= 0.05, "{q}: {found} instead of {expected}");
        }
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        (0..100).for_each(|_| latencies.record(ms(10), start + ms(9_000)));
        (0..100).for_each(|_| latencies.record(ms(1_000), start + ms(11_000)));
        assert!(latencies.quantile(0.5, start + ms(19_999)).unwrap() < ms(11), "both turns count");
        assert!(latencies.quantile(0.5, start + ms(20_000)).unwrap() > ms(950), "the older turn is gone");
        assert_eq!(latencies.quantile(0.5, start + ms(30_000)), None);
        (0..100).for_each(|_| latencies.record(ms(10), start + ms(31_000)));
        assert_eq!(latencies.quantile(0.5, start + ms(900_000)), None, "after a long pause both turns are old");
    }

    #[test]
    fn a_hedge_is_delayed_by_what_is_known() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        let fixed = HedgeDelay::new(HedgeAfter::Duration(ms(50)), start);
        assert_eq!(fixed.get(None, start), Some(ms(50)));
        let tail = HedgeDelay::new(HedgeAfter::Quantile(0.95), start);
        assert_eq!(tail.get(Some(&latencies), start), None);
        (0..100).for_each(|_| latencies.record(ms(100), start));
        assert_eq!(tail.get(Some(&latencies), start + ms(199)), None, "asked again in 200 ms");
        let found = tail.get(Some(&latencies), start + ms(200)).unwrap();
        assert!(found > ms(95) && found < ms(105), "{found:?}");
    }

    proptest! {
        #[test]
        fn no_quantile_is_off_by_more_than_five_percent(
            mut micros in proptest::collection::vec(100u64..100_000_000, 50..300), q in 0.01f64..=1.0
        ) {
            let start = Instant::now();
            let latencies = Latencies::new(start);
            micros.iter().for_each(|micros| latencies.record(Duration::from_micros(*micros), start));
            micros.sort_unstable();
            let rank = ((micros.len() as f64 * q).ceil() as usize).clamp(1, micros.len());
            let exact = micros[rank - 1] as f64;
            let found = latencies.quantile(q, start).unwrap().as_secs_f64() * 1e6;
            prop_assert!((found / exact - 1.0).abs() <= 0.05, "{found} instead of {exact}");
        }

        #[test]
        fn every_latency_has_a_bucket(nanos: u64) {
            prop_assert!(bucket(Duration::from_nanos(nanos)) < BUCKETS);
        }
    }
}
