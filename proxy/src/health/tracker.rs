//! When successes and failures become a verdict.

use crate::endpoint::Health;

/// Counts successes or failures in a row.
///
/// An endpoint that has not been checked yet is used. Its first success confirms that at once; failures need the full
/// threshold, as later: one lost probe must not take a new endpoint away.
#[derive(Debug)]
pub struct Tracker {
    healthy: u32,
    unhealthy: u32,
    verdict: Health,
    /// Results in a row that contradict the verdict.
    contradictions: u32,
}

impl Tracker {
    /// `healthy` successes in a row make an endpoint healthy, `unhealthy` failures unhealthy; 0 counts as 1. `verdict` is
    /// what is known so far.
    pub fn new(healthy: u32, unhealthy: u32, verdict: Health) -> Self {
        Self { healthy: healthy.max(1), unhealthy: unhealthy.max(1), verdict, contradictions: 0 }
    }

    /// The verdict so far.
    pub fn verdict(&self) -> Health {
        self.verdict
    }

    /// Takes the result of a probe into account. Some if the verdict changes.
    pub fn record(&mut self, success: bool) -> Option<Health> {
        let (next, threshold) = match (self.verdict, success) {
            (Health::Unknown, true) => (Health::Healthy, 1),
            (Health::Unhealthy, true) => (Health::Healthy, self.healthy),
            (Health::Unknown | Health::Healthy, false) => (Health::Unhealthy, self.unhealthy),
            (Health::Healthy, true) | (Health::Unhealthy, false) => {
                self.contradictions = 0;
                return None;
            }
        };
        self.contradictions += 1;
        if self.contradictions < threshold {
            return None;
        }
        self.contradictions = 0;
        self.verdict = next;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn verdicts_need_a_row() {
        // + success, - failure; H and U: the verdict becomes healthy or unhealthy with this probe.
        #[rustfmt::skip]
        let table = [
            (Health::Unknown,   2, 3, "+",         "H"),
            (Health::Unknown,   2, 3, "--+",       "..H"),
            (Health::Unknown,   2, 3, "---",       "..U"),
            (Health::Healthy,   2, 3, "--+---",    ".....U"),
            (Health::Unhealthy, 2, 3, "+-++",      "...H"),
            (Health::Healthy,   2, 3, "---++---",  "..U.H..U"),
            (Health::Healthy,   1, 1, "-+-+",      "UHUH"),
            (Health::Healthy,   0, 0, "-+",        "UH"),
            (Health::Unhealthy, 3, 1, "++",        ".."),
        ];
        for (start, healthy, unhealthy, probes, expect) in table {
            let mut tracker = Tracker::new(healthy, unhealthy, start);
            let letter = |probe| match tracker.record(probe == '+') {
                None => '.',
                Some(Health::Healthy) => 'H',
                Some(Health::Unhealthy) => 'U',
                Some(Health::Unknown) => '?',
            };
            let got: String = probes.chars().map(letter).collect();
            assert_eq!(got, expect, "{start:?}, {healthy}/{unhealthy}: {probes}");
        }
    }

    proptest! {
        #[test]
        fn a_verdict_follows_a_full_row(
            healthy in 1_u32..5,
            unhealthy in 1_u32..5,
            probes in prop::collection::vec(any::<bool>(), 0..60),
        ) {
            let mut tracker = Tracker::new(healthy, unhealthy, Health::Unhealthy);
            let mut verdict = Health::Unhealthy;
            for (end, probe) in probes.iter().enumerate() {
                let row = probes[..=end].iter().rev().take_while(|p| *p == probe).count() as u32;
                let threshold = if *probe { healthy } else { unhealthy };
                let confirms = (verdict == Health::Healthy) == *probe;
                match tracker.record(*probe) {
                    Some(next) => {
                        prop_assert!(!confirms && row == threshold);
                        prop_assert_eq!(next == Health::Healthy, *probe);
                        verdict = next;
                    }
                    None => prop_assert!(confirms || row < threshold),
                }
            }
        }
    }
}
