//! How long it takes from a revision's being applied on this member to the last answer of the streams that had to take
//! it. Decides and measures; `now` is passed in.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// A revision that takes longer counts as this long: a client that hangs must not hide how the others are.
const LIMIT: Duration = Duration::from_secs(60);
/// Revisions followed at once.
const WAITING: usize = 100_000;

/// Upper bounds of the histogram, in seconds.
pub(super) const BOUNDS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.417, 1.0, 2.0, 5.0, 10.0, 30.0];

/// Durations in classes.
#[derive(Debug, Clone, Default)]
pub(super) struct Histogram {
    /// One more than there are bounds: the last is for what is above them all.
    pub counts: [u64; BOUNDS.len() + 1],
    pub sum: f64,
}

impl Histogram {
    /// Both together.
    pub(super) fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
        self.sum += other.sum;
    }

    fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let class = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[class] += 1;
        self.sum += seconds;
    }
}

#[derive(Debug)]
struct Waiting {
    revision: u64,
    since: Instant,
    /// At least one stream has sent something of it.
    taken: bool,
}

/// The streams of one type, and the revisions that they have not all answered.
#[derive(Debug, Default)]
pub(super) struct Convergence {
    waiting: VecDeque<Waiting>,
    /// How many streams have answered everything up to which revision.
    positions: BTreeMap<u64, usize>,
    pub histogram: Histogram,
}

impl Convergence {
    /// A revision changed something of the type.
    pub(super) fn published(&mut self, revision: u64, now: Instant) {
        self.expire(now);
        if self.positions.is_empty() || self.waiting.back().is_some_and(|last| last.revision >= revision) {
            return;
        }
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting { revision, since: now, taken: false });
    }

    /// A stream came; what there is already does not count for it.
    pub(super) fn joined(&mut self, position: u64) {
        *self.positions.entry(position).or_default() += 1;
    }

    /// A stream went.
    pub(super) fn left(&mut self, position: u64, now: Instant) {
        self.leave(position);
        self.settle(now);
    }

    /// A stream sends what came after `from`, up to `to`.
    pub(super) fn sends(&mut self, from: u64, to: u64) {
        let start = self.waiting.partition_point(|waiting| waiting.revision <= from);
        for waiting in self.waiting.range_mut(start..).take_while(|waiting| waiting.revision <= to) {
            waiting.taken = true;
        }
    }

    /// A stream has answered everything up to `to`, or had nothing to take.
    pub(super) fn moved(&mut self, from: u64, to: u64, now: Instant) {
        self.leave(from);
        self.joined(to);
        self.settle(now);
    }

    fn leave(&mut self, position: u64) {
        if let Some(count) = self.positions.get_mut(&position) {
            *count -= 1;
            if *count == 0 {
                self.positions.remove(&position);
            }
        }
    }

    fn settle(&mut self, now: Instant) {
        let Some((least, _)) = self.positions.first_key_value() else {
            // Nobody is left who could take them.
            self.waiting.clear();
            return;
        };
        while let Some(waiting) = self.waiting.front().filter(|waiting| waiting.revision <= *least) {
            // What nobody had to take has not converged either.
            if waiting.taken {
                self.histogram.observe(now.duration_since(waiting.since));
            }
            self.waiting.pop_front();
        }
    }

    /// Gives up on what takes too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(waiting) = self.waiting.front().filter(|waiting| now.duration_since(waiting.since) >= LIMIT) {
            if waiting.taken {
                self.histogram.observe(now.duration_since(waiting.since));
            }
            self.waiting.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// One count for each duration, in milliseconds.
    fn seen(convergence: &Convergence) -> (u64, u64) {
        (convergence.histogram.counts.iter().sum(), (convergence.histogram.sum * 1e3).round() as u64)
    }

    #[test]
    fn the_last_answer_counts() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut streams = Convergence::default();
        streams.published(1, at(0));
        streams.joined(1);
        streams.joined(1);
        streams.published(2, at(0));
        streams.published(3, at(10));
        streams.sends(1, 3);
        streams.moved(1, 3, at(20));
        assert_eq!(seen(&streams), (0, 0), "the other has not answered");
        streams.sends(1, 2);
        streams.moved(1, 2, at(30));
        assert_eq!(seen(&streams), (1, 30));
        streams.moved(2, 3, at(50));
        assert_eq!(seen(&streams), (2, 70), "revision 1 was there before they came");
    }

    #[test]
    fn who_leaves_or_had_nothing_to_take_does_not_count() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut streams = Convergence::default();
        streams.joined(0);
        streams.joined(0);
        streams.published(1, at(0));
        streams.sends(0, 1);
        streams.moved(0, 1, at(5));
        streams.left(0, at(7));
        assert_eq!(seen(&streams), (1, 7));
        // Nobody was subscribed to what it changed.
        streams.published(2, at(10));
        streams.moved(1, 2, at(11));
        assert_eq!(seen(&streams), (1, 7));
        streams.published(3, at(20));
        streams.left(2, at(21));
        streams.published(4, at(22));
        assert!(streams.waiting.is_empty() && seen(&streams).0 == 1);
    }

    #[test]
    fn one_that_hangs_is_given_up() {
        let begin = Instant::now();
        let mut streams = Convergence::default();
        streams.joined(0);
        streams.published(1, begin);
        streams.sends(0, 1);
        streams.published(2, begin + LIMIT);
        assert_eq!(*streams.histogram.counts.last().unwrap(), 1);
        assert_eq!(streams.waiting.len(), 1);
    }
}
