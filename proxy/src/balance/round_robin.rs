//! Round robin: everyone in turn, as often as the weights say, and as evenly spread as possible.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use fastrand::Rng;

/// Unequal weights are rounded so that one round is not longer than this, or eight times the number of endpoints.
const MAX_ROUND: u64 = 1 << 16;

const NOT_STARTED: u64 = u64::MAX;

/// The order of one round, and where it is.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Positions in the pool; empty when all weights are equal, because the order is 0, 1, 2, … then.
    order: Box<[u32]>,
    len: u64,
    turn: AtomicU64,
}

impl Sequence {
    /// `previous` hands over its turn, so that a new snapshot does not start again with the first endpoint.
    pub(crate) fn new(weights: &[u32], previous: Option<&Self>) -> Self {
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let order: Box<[u32]> = if equal { Box::default() } else { smooth(weights) };
        let len = if equal { weights.len() as u64 } else { order.len() as u64 };
        let turn = previous.map_or(NOT_STARTED, |previous| previous.turn.load(Relaxed));
        Self { order, len, turn: AtomicU64::new(turn) }
    }

    /// The next position; 0 when there is none. The very first one is drawn, so that the nodes of a mesh do not all
    /// begin with the same endpoint.
    #[inline]
    pub(crate) fn next(&self, rng: &mut Rng) -> u32 {
        if self.turn.load(Relaxed) == NOT_STARTED {
            let _ = self.turn.compare_exchange(NOT_STARTED, rng.u64(..self.len.max(1)), Relaxed, Relaxed);
        }
        let slot = self.turn.fetch_add(1, Relaxed) % self.len.max(1);
        self.order.get(slot as usize).copied().unwrap_or(slot as u32)
    }
}

/// One round: a position of weight *w* stands at the middles of *w* equal parts of the round, like the stride scheduler
/// of Waldspurger and Weihl (1995). nginx's smooth weighted round robin gives the same spread.
fn smooth(weights: &[u32]) -> Box<[u32]> {
    let divisor = weights.iter().fold(0, |a, &b| gcd(a, b)).max(1);
    let total: u64 = weights.iter().map(|&w| u64::from(w / divisor)).sum();
    let longest = MAX_ROUND.max(weights.len() as u64 * 8);
    let count = |weight: u32| {
        let units = u64::from(weight / divisor);
        if total <= longest { units } else { ((units * longest + total / 2) / total).max(1) }
    };
    let mut slots: Vec<(u64, u32)> = Vec::new();
    for (position, &weight) in weights.iter().enumerate() {
        let count = count(weight);
        slots.extend((0..count).map(|nth| (((2 * nth + 1) << 32) / count, position as u32)));
    }
    slots.sort_unstable();
    slots.into_iter().map(|(_, position)| position).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Rng;
    use super::*;

    #[test]
    fn the_order_is_smooth() {
        #[rustfmt::skip]
        let table: [(&[u32], &[u32]); 4] = [
            (&[1, 2], &[1, 0, 1]),
            (&[10, 30], &[1, 0, 1, 1]),
            (&[5, 1, 1], &[0, 0, 0, 1, 2, 0, 0]),
            (&[2, 4, 2], &[1, 0, 2, 1]),
        ];
        for (weights, expect) in table {
            assert_eq!(&*smooth(weights), expect, "{weights:?}");
        }
    }

    #[test]
    fn a_new_snapshot_continues_the_turn() {
        let mut rng = Rng::with_seed(1);
        let old = Sequence::new(&[1, 1, 1], None);
        let last = old.next(&mut rng);
        let new = Sequence::new(&[1, 1, 1], Some(&old));
        assert_eq!(new.next(&mut rng), (last + 1) % 3);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn a_round_gives_everyone_the_exact_share(weights in prop::collection::vec(1_u32..200, 1..30)) {
            let mut rng = Rng::with_seed(1);
            let sequence = Sequence::new(&weights, None);
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..sequence.len {
                counts[sequence.next(&mut rng) as usize] += 1;
            }
            let divisor = weights.iter().fold(0, |a, &b| gcd(a, b));
            for (weight, count) in weights.iter().zip(counts) {
                prop_assert_eq!(weight / divisor, count);
            }
        }

        #[test]
        fn long_rounds_are_rounded(weights in prop::collection::vec(1_u32..=u32::MAX, 2..50)) {
            let sequence = Sequence::new(&weights, None);
            prop_assert!(sequence.len <= MAX_ROUND + 2 * weights.len() as u64);
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            let mut counts = vec![0_u32; weights.len()];
            sequence.order.iter().for_each(|&position| counts[position as usize] += 1);
            for (weight, count) in weights.iter().zip(counts) {
                let got = f64::from(count) / sequence.len as f64;
                let expect = f64::from(*weight) / total as f64;
                prop_assert!((got - expect).abs() < 0.01, "{} instead of {}", got, expect);
            }
        }
    }
}
