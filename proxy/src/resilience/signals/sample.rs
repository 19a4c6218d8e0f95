//! What happened between two samples, and at all endpoints together.

use std::time::Duration;

use crate::{endpoint::FULL_WEIGHT, kernel::Signals};

/// What happened at one endpoint, without what probes caused.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) took: Duration,
    pub(super) established: u64,
    pub(super) refused: u64,
    /// Timed out, or given up after the first packet had to be sent again.
    pub(super) unanswered: u64,
    /// Connections that exist.
    pub(super) active: u64,
    /// Retransmission time-outs.
    pub(super) rto_seen: u64,
    /// Segments sent again.
    retransmits: u64,
    /// What is lost, as it would be with the full weight: segments sent again a second.
    pub(super) loss: f64,
    /// The same, for each connection.
    pub(super) loss_each: f64,
    /// Retransmission time-outs a second, as they would be with the full weight.
    pub(super) rto: f64,
    /// Whether there is anything that could have been lost.
    traffic: bool,
}

impl Sample {
    /// From one set of counters to the next; `None` if they have begun anew. `probes` attempts are left out: each of them
    /// adds at most one to a counter within a second, the first packet sent again included. `percent` of the endpoint's
    /// weight counted.
    pub(super) fn between(old: &Signals, new: &Signals, probes: u32, took: Duration, percent: u32) -> Option<Self> {
        let grown =
            |of: fn(&Signals) -> u64| of(new).checked_sub(of(old)).map(|all| all.saturating_sub(u64::from(probes)));
        let (attempts, established) = (grown(|s| s.attempts)?, grown(|s| s.established)?);
        let (refused, timed_out, aborted) = (grown(|s| s.refused)?, grown(|s| s.timed_out)?, grown(|s| s.aborted)?);
        let (rto_seen, retransmits) = (grown(|s| s.rto)?, grown(|s| s.retransmits)?);
        grown(|s| s.closed)?;
        let active = new.active();
        let connections = active.max(attempts).max(1);
        let full = f64::from(FULL_WEIGHT) / f64::from(percent.max(1)) / took.as_secs_f64();
        // What the kernel cannot even send (an unresolved neighbour) is no retransmission, but it is lost all the same.
        let loss = retransmits.max(rto_seen) as f64 * full;
        Some(Self {
            took,
            established,
            refused,
            unanswered: timed_out + aborted.min(rto_seen),
            active,
            rto_seen,
            retransmits,
            loss,
            loss_each: loss / connections as f64,
            rto: rto_seen as f64 * full,
            traffic: attempts > 0 || active > 0 || loss > 0.0,
        })
    }

    /// Connections that did not come about.
    pub(super) const fn failed(&self) -> u64 {
        self.refused + self.unanswered
    }

    /// Connections were wanted, and none came about.
    pub(super) const fn refuses(&self) -> bool {
        self.failed() > 0 && self.established == 0
    }

    /// Segments sent again a second, as it was.
    pub(super) fn retransmits_rate(&self) -> f64 {
        self.retransmits as f64 / self.took.as_secs_f64()
    }
}

/// The endpoints that can be compared with each other.
#[derive(Debug)]
pub(super) struct Fleet {
    loss: Sorted,
    loss_each: Sorted,
    rto: Sorted,
    retransmits: Sorted,
    failed: u64,
}

/// What is usual.
#[derive(Debug, Clone, Default)]
pub(super) struct Medians {
    pub(super) loss: f64,
    pub(super) loss_each: f64,
    pub(super) rto: f64,
    /// Segments sent again a second, as it was.
    pub(super) retransmits: f64,
}

impl Fleet {
    pub(super) fn new<'s>(samples: impl Iterator<Item = &'s Sample> + Clone) -> Self {
        let of = |value: fn(&Sample) -> f64| Sorted::new(samples.clone().filter(|sample| sample.traffic).map(value));
        Self {
            loss: of(|sample| sample.loss),
            loss_each: of(|sample| sample.loss_each),
            rto: of(|sample| sample.rto),
            retransmits: of(Sample::retransmits_rate),
            failed: samples.clone().map(Sample::failed).sum(),
        }
    }

    /// Medians of all but this one; `None` if there is nobody else with traffic.
    pub(super) fn medians_without(&self, own: &Sample) -> Option<Medians> {
        let median = |of: &Sorted, value: f64| of.median(own.traffic.then_some(value));
        Some(Medians {
            loss: median(&self.loss, own.loss)?,
            loss_each: median(&self.loss_each, own.loss_each)?,
            rto: median(&self.rto, own.rto)?,
            retransmits: median(&self.retransmits, own.retransmits_rate())?,
        })
    }

    /// Connections that did not come about, anywhere.
    pub(super) const fn failed(&self) -> u64 {
        self.failed
    }
}

/// Sorted once, so that everybody's peers have a median in logarithmic time.
#[derive(Debug)]
struct Sorted(Vec<f64>);

impl Sorted {
    fn new(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// The median of all values but one that is among them, if there is one to leave out.
    fn median(&self, without: Option<f64>) -> Option<f64> {
        let gap = without.map_or(self.0.len(), |out| self.0.partition_point(|value| *value < out));
        let count = self.0.len() - usize::from(without.is_some());
        let nth = |nth: usize| self.0.get(nth + usize::from(nth >= gap)).copied();
        let upper = nth(count / 2).filter(|_| count > 0)?;
        if count % 2 == 1 { Some(upper) } else { Some((nth(count / 2 - 1)? + upper) / 2.0) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_median_of_the_others(values in prop::collection::vec(0_u32..20, 1..12), pick in any::<prop::sample::Index>()) {
            let own = pick.index(values.len());
            let sorted = Sorted::new(values.iter().map(|&value| f64::from(value)));
            let mut others = values.clone();
            others.remove(own);
            others.sort_unstable();
            let half = others.len() / 2;
            let expect = match others.len() {
                0 => None,
                odd if odd % 2 == 1 => Some(f64::from(others[half])),
                _ => Some((f64::from(others[half - 1]) + f64::from(others[half])) / 2.0),
            };
            prop_assert_eq!(sorted.median(Some(f64::from(values[own]))), expect);
        }
    }

    #[test]
    fn what_probes_cause_is_left_out() {
        let old = Signals { attempts: 10, established: 10, ..Signals::default() };
        let new = Signals { attempts: 12, refused: 2, rto: 1, retransmits: 1, ..old };
        let between = |probes| Sample::between(&old, &new, probes, Duration::from_secs(1), FULL_WEIGHT).unwrap();
        assert_eq!((between(0).failed(), between(1).failed(), between(2).failed()), (2, 1, 0));
        assert!(between(0).loss > 0.0 && between(1).loss == 0.0);
        assert!(Sample::between(&new, &old, 0, Duration::from_secs(1), FULL_WEIGHT).is_none());
    }

    #[test]
    fn whoever_gives_up_after_a_time_out_got_no_answer() {
        let took = Duration::from_secs(1);
        for (aborted, rto, unanswered) in [(1, 0, 0), (1, 1, 1), (3, 2, 2), (0, 5, 0)] {
            let new = Signals { aborted, rto, ..Signals::default() };
            assert_eq!(Sample::between(&Signals::default(), &new, 0, took, 100).unwrap().unanswered, unanswered);
        }
    }
}
