//! What happened lately: counts over a sliding window.

use std::time::{Duration, Instant};

use super::tally::Tally;
use crate::resilience::outcome::Failure;

/// The window slides by a tenth of its length.
pub const BUCKETS: usize = 10;

/// Kinds of failure that are told apart; further ones count without a name.
const MAX_KINDS: usize = 8;

/// What was recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Everything.
    pub requests: u64,
    /// Of these, what failed.
    pub failed: u64,
    /// Of these, what was slow.
    pub slow: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.slow += other.slow;
    }

    fn sub(&mut self, other: Self) {
        self.requests -= other.requests;
        self.failed -= other.failed;
        self.slow -= other.slow;
    }
}

/// How often a kind of failure happened, by bucket.
#[derive(Debug)]
struct Kind {
    failure: Failure,
    counts: [u64; BUCKETS],
}

/// Ten buckets. The newest one is not full yet, so that the window covers between 90 % and 100 % of its length.
#[derive(Debug)]
pub struct Window {
    /// Of one bucket; never zero.
    width: Duration,
    /// End of the newest bucket.
    end: Instant,
    newest: usize,
    buckets: [Counts; BUCKETS],
    /// Over all buckets.
    sum: Counts,
    kinds: Vec<Kind>,
}

impl Window {
    /// An empty window of this length.
    pub fn new(length: Duration, now: Instant) -> Self {
        let width = width(length);
        Self {
            width,
            end: now + width,
            newest: 0,
            buckets: [Counts::default(); BUCKETS],
            sum: Counts::default(),
            kinds: Vec::new(),
        }
    }

    /// Counts one request. Allocates at most when a kind of failure appears for the first time.
    #[inline]
    pub fn add(&mut self, failure: Option<Failure>, slow: bool, now: Instant) {
        self.advance(now);
        let one = Counts { requests: 1, failed: u64::from(failure.is_some()), slow: u64::from(slow) };
        self.buckets[self.newest].add(one);
        self.sum.add(one);
        if let Some(failure) = failure {
            self.count_kind(failure);
        }
    }

    /// What the window holds, as of the last [`Self::add`].
    pub const fn sum(&self) -> Counts {
        self.sum
    }

    /// The failures in it, by kind.
    pub fn failures(&self) -> Tally {
        let mut tally = Tally::default();
        for kind in &self.kinds {
            tally.add(kind.failure, kind.counts.iter().sum());
        }
        tally
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [Counts::default(); BUCKETS];
        self.sum = Counts::default();
        self.kinds.clear();
    }

    /// Another length from now on. What was recorded keeps its age; what is too old for the new length is forgotten.
    pub fn set_length(&mut self, length: Duration, now: Instant) {
        let new = width(length);
        if new == self.width {
            return;
        }
        self.advance(now);
        // Bucket of the new window (0 is the newest) for one of the old; by the younger edge, so that nothing is
        // forgotten before its time.
        let place = |age: usize| {
            let age = self.width.as_nanos() * age as u128 / new.as_nanos();
            usize::try_from(age).ok().filter(|place| *place < BUCKETS)
        };
        let mut buckets = [Counts::default(); BUCKETS];
        let mut sum = Counts::default();
        let mut kinds: Vec<Kind> =
            self.kinds.iter().map(|kind| Kind { failure: kind.failure, counts: [0; BUCKETS] }).collect();
        for age in 0..BUCKETS {
            let from = (self.newest + BUCKETS - age) % BUCKETS;
            let Some(place) = place(age) else { continue };
            let to = (BUCKETS - place) % BUCKETS;
            buckets[to].add(self.buckets[from]);
            sum.add(self.buckets[from]);
            for (kind, old) in kinds.iter_mut().zip(&self.kinds) {
                kind.counts[to] += old.counts[from];
            }
        }
        self.end = self.end.min(now + new);
        (self.width, self.newest, self.buckets, self.sum, self.kinds) = (new, 0, buckets, sum, kinds);
    }

    #[inline]
    fn advance(&mut self, now: Instant) {
        if now >= self.end {
            self.turn(now);
        }
    }

    #[cold]
    fn turn(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.end).as_nanos() / self.width.as_nanos();
        let Some(steps) = u32::try_from(late).ok().filter(|late| *late < BUCKETS as u32).map(|late| late + 1) else {
            self.clear();
            self.end = now + self.width;
            return;
        };
        for _ in 0..steps {
            self.newest = (self.newest + 1) % BUCKETS;
            self.sum.sub(std::mem::take(&mut self.buckets[self.newest]));
            for kind in &mut self.kinds {
                kind.counts[self.newest] = 0;
            }
        }
        self.end += self.width * steps;
    }

    fn count_kind(&mut self, failure: Failure) {
        let place = self.kinds.iter().position(|kind| kind.failure == failure).or_else(|| {
            // One that has not been seen for a whole window makes room.
            let free = self.kinds.iter().position(|kind| kind.counts.iter().all(|count| *count == 0));
            match free {
                Some(place) => self.kinds[place].failure = failure,
                None if self.kinds.len() < MAX_KINDS => self.kinds.push(Kind { failure, counts: [0; BUCKETS] }),
                None => return None,
            }
            Some(free.unwrap_or(self.kinds.len() - 1))
        });
        if let Some(place) = place {
            self.kinds[place].counts[self.newest] += 1;
        }
    }
}

fn width(length: Duration) -> Duration {
    (length / BUCKETS as u32).max(Duration::from_nanos(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn counts(requests: u64, failed: u64, slow: u64) -> Counts {
        Counts { requests, failed, slow }
    }

    #[test]
    fn slides_by_a_tenth() {
        let start = Instant::now();
        let mut window = Window::new(1000 * MS, start);
        window.add(Some(Failure::Reset), false, start);
        window.add(None, true, start + 150 * MS);
        window.add(Some(Failure::Status(503)), true, start + 999 * MS);
        assert_eq!(window.sum(), counts(3, 2, 2));
        window.add(None, false, start + 1000 * MS);
        assert_eq!(window.sum(), counts(3, 1, 2), "the first tenth has left");
        assert_eq!(window.failures().to_string(), "503 ×1");
        window.add(None, false, start + 1899 * MS);
        assert_eq!(window.sum(), counts(3, 1, 1));
        window.add(None, false, start + 9000 * MS);
        assert_eq!(window.sum(), counts(1, 0, 0), "everything has left");
        // Workers' clocks differ by a little.
        window.add(None, false, start + 8000 * MS);
        assert_eq!(window.sum(), counts(2, 0, 0));
    }

    #[test]
    fn another_length_keeps_what_is_young_enough() {
        let start = Instant::now();
        let mut window = Window::new(10_000 * MS, start);
        for second in 0..10 {
            window.add(Some(Failure::Status(500 + second)), false, start + 1000 * MS * u32::from(second));
        }
        let now = start + 9500 * MS;
        window.set_length(60_000 * MS, now);
        assert_eq!(window.sum(), counts(10, 10, 0), "longer: all of it");
        window.set_length(10_000 * MS, now);
        assert_eq!(window.sum().requests, 10);
        window.set_length(1000 * MS, now);
        let left = window.sum().requests;
        assert!(left < 10, "shorter: {left}");
        window.add(None, false, now + 2000 * MS);
        assert_eq!(window.sum(), counts(1, 0, 0));
    }

    #[test]
    fn random_kinds_of_failure_do_not_fill_the_memory() {
        let start = Instant::now();
        let mut window = Window::new(1000 * MS, start);
        for status in 500..600 {
            window.add(Some(Failure::Status(status)), false, start);
        }
        assert_eq!((window.kinds.len(), window.sum().failed), (MAX_KINDS, 100));
        window.add(Some(Failure::Timeout), false, start + 5000 * MS);
        assert_eq!(window.failures().to_string(), "upstream_timeout ×1");
    }

    proptest! {
        /// Against a list of everything: nothing younger than nine tenths is missing, nothing older than the window
        /// is there, also when the length changes.
        #[test]
        fn holds_what_is_young(steps in prop::collection::vec((0_u64..400, any::<bool>(), any::<bool>(), 0_u8..40), 1..200)) {
            let start = Instant::now();
            let (mut now, mut length) = (start, 1000_u64);
            let mut window = Window::new(MS * length as u32, now);
            let mut seen: Vec<(Instant, bool, bool)> = Vec::new();
            let mut changed = start;
            for (pause, failed, slow, change) in steps {
                now += Duration::from_millis(pause);
                if change == 0 {
                    length = if length == 1000 { 3000 } else { 1000 };
                    window.set_length(Duration::from_millis(length), now);
                    changed = now;
                }
                window.add(failed.then_some(Failure::Reset), slow, now);
                seen.push((now, failed, slow));
                let within = |age: Duration| {
                    let young = seen.iter().filter(|(at, ..)| now.duration_since(*at) < age);
                    young.fold(Counts::default(), |mut sum, (_, failed, slow)| {
                        sum.add(counts(1, u64::from(*failed), u64::from(*slow)));
                        sum
                    })
                };
                let sum = window.sum();
                prop_assert_eq!(sum, window.buckets.iter().fold(Counts::default(), |mut all, one| { all.add(*one); all }));
                let length = Duration::from_millis(length);
                // What was recorded before a change is known less exactly.
                let (least, most) = match now.duration_since(changed) < length {
                    true => (now.duration_since(changed).min(length * 9 / 10), length + 300 * MS + 3000 * MS),
                    false => (length * 9 / 10, length),
                };
                let (least, most) = (within(least), within(most));
                prop_assert!(sum.requests >= least.requests && sum.failed >= least.failed && sum.slow >= least.slow);
                prop_assert!(sum.requests <= most.requests && sum.failed <= most.failed && sum.slow <= most.slow);
                prop_assert_eq!(window.failures().total(), sum.failed);
            }
        }
    }
}
