//! Which member is asked next, and when. Decides; does nothing else.

use std::time::Duration;

use fastrand::Rng;

/// Within a round through the members: one that is away costs little.
const STEP: Duration = Duration::from_millis(50);
/// After the first round in which nobody was there.
const FIRST: Duration = Duration::from_millis(100);
/// After many.
const MOST: Duration = Duration::from_secs(2);
/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(2);

/// The members of a control plane, as a client goes through them.
#[derive(Debug)]
pub struct Addresses {
    all: Vec<String>,
    next: usize,
    /// Since there was a good connection.
    failed: usize,
}

impl Addresses {
    /// Begins anywhere, so that clients do not all go to the first.
    pub fn new(all: Vec<String>, rng: &mut Rng) -> Self {
        let next = if all.is_empty() { 0 } else { rng.usize(..all.len()) };
        Self { all, next, failed: 0 }
    }

    /// All of them, in the order given.
    pub fn all(&self) -> &[String] {
        &self.all
    }

    /// The member to ask next.
    pub fn next(&mut self) -> String {
        let address = self.all.get(self.next).cloned().unwrap_or_default();
        self.next = (self.next + 1) % self.all.len().max(1);
        address
    }

    /// A connection ended, or could not be made, after so long. How long to wait before the next.
    pub fn lost(&mut self, lasted: Duration, rng: &mut Rng) -> Duration {
        if lasted >= GOOD {
            self.failed = 0;
        }
        self.failed += 1;
        let rounds = self.failed / self.all.len().max(1);
        let wait = if self.failed.is_multiple_of(self.all.len().max(1)) {
            let doubled = u32::try_from(rounds - 1).ok().and_then(|rounds| 2_u32.checked_pow(rounds));
            doubled.map_or(MOST, |factor| FIRST.saturating_mul(factor)).min(MOST)
        } else {
            STEP
        };
        wait.mul_f64(0.5 + rng.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use fastrand::Rng;

    use proptest::prelude::*;

    use super::*;

    fn addresses(count: usize, rng: &mut Rng) -> Addresses {
        Addresses::new((0..count).map(|n| n.to_string()).collect(), rng)
    }

    #[test]
    fn clients_begin_anywhere_and_ask_everybody() {
        let starts: HashSet<String> = (0..100).map(|seed| addresses(3, &mut Rng::with_seed(seed)).next()).collect();
        assert_eq!(starts.len(), 3);
        let mut all = addresses(3, &mut Rng::with_seed(1));
        assert_eq!((0..3).map(|_| all.next()).collect::<HashSet<_>>().len(), 3);
    }

    #[test]
    fn rounds_get_slower_until_a_connection_is_good() {
        let rng = &mut Rng::with_seed(1);
        let mut all = addresses(2, rng);
        let mut waits = |lasted: u64| all.lost(Duration::from_millis(lasted), rng).as_millis();
        let bounds = [(25, 50), (50, 100), (25, 50), (100, 200), (25, 50), (200, 400)];
        for (least, most) in bounds {
            let wait = waits(0);
            assert!((least..=most).contains(&wait), "{wait} is not in {least}..={most}");
        }
        assert!(waits(5_000) <= 50, "somebody else may be there");
        assert!((50..=100).contains(&waits(0)));
    }

    proptest! {
        #[test]
        fn waits_are_bounded(count in 1..6_usize, seed: u64, losses in 1..200_usize) {
            let rng = &mut Rng::with_seed(seed);
            let mut all = addresses(count, rng);
            for _ in 0..losses {
                let wait = all.lost(Duration::ZERO, rng);
                prop_assert!(wait >= STEP / 2 && wait <= MOST, "{wait:?}");
            }
        }
    }
}
