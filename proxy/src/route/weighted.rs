//! One of several, in proportion to their weights.

/// A choice among values by weight. Values of weight 0 are left out from the start.
#[derive(Debug, Clone)]
pub struct Weighted<T> {
    /// Each with the sum of the weights up to and including its own.
    entries: Vec<(u64, T)>,
}

impl<T> Weighted<T> {
    /// Weights are relative to their sum.
    pub fn new(entries: impl IntoIterator<Item = (u32, T)>) -> Self {
        let mut sum = 0;
        let entries = entries
            .into_iter()
            .filter(|(weight, _)| *weight > 0)
            .map(|(weight, value)| {
                sum += u64::from(weight);
                (sum, value)
            })
            .collect();
        Self { entries }
    }

    /// The sum of all weights.
    pub fn total(&self) -> u64 {
        self.entries.last().map_or(0, |(sum, _)| *sum)
    }

    /// The values that can be picked.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &T> {
        self.entries.iter().map(|(_, value)| value)
    }

    /// The values that can be picked, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().map(|(_, value)| value)
    }

    /// The value that `random`, which is uniform over all of `u64`, stands for. `None` when nothing has a weight.
    #[inline]
    pub fn pick(&self, random: u64) -> Option<&T> {
        self.get(self.pick_position(random)?)
    }

    /// The value at a position that [`Self::pick_position`] gave.
    pub fn get(&self, position: usize) -> Option<&T> {
        self.entries.get(position).map(|(_, value)| value)
    }

    /// As [`Self::pick`]: the position of the value, for callers that cannot keep the reference.
    #[inline]
    pub fn pick_position(&self, random: u64) -> Option<usize> {
        if self.entries.len() == 1 {
            return Some(0);
        }
        // The high half of the product is uniform over 0..total; the bias, total / 2^64, is too small to see.
        let point = ((u128::from(random) * u128::from(self.total())) >> 64) as u64;
        self.entries.iter().position(|(sum, _)| point < *sum)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_has_a_weight() {
        assert_eq!(Weighted::<u8>::new([]).pick(7), None);
        assert_eq!(Weighted::new([(0, 'a')]).pick(7), None);
        let none = Weighted::new([(0, 'a'), (0, 'b')]);
        assert_eq!((none.pick(0), none.pick(u64::MAX), none.total()), (None, None, 0));
    }

    #[test]
    fn a_single_value_is_always_picked() {
        let one = Weighted::new([(0, 'a'), (3, 'b')]);
        assert_eq!((one.pick(0), one.pick(u64::MAX)), (Some(&'b'), Some(&'b')));
    }

    #[test]
    fn the_extremes_of_random_are_the_first_and_the_last() {
        let both = Weighted::new([(u32::MAX, 'a'), (0, 'x'), (u32::MAX, 'b')]);
        assert_eq!((both.pick(0), both.pick(u64::MAX)), (Some(&'a'), Some(&'b')));
        assert_eq!((both.pick(u64::MAX / 2), both.pick(u64::MAX / 2 + 2)), (Some(&'a'), Some(&'b')));
    }

    proptest! {
        /// Evenly spaced points hit each value as often as its weight says, to within one.
        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(0u32..50, 1..8)) {
            let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
            prop_assume!(total > 0);
            let weighted = Weighted::new(weights.iter().copied().zip(0usize..));
            let mut hits = vec![0u32; weights.len()];
            for nth in 0..total {
                let middle = (u128::from(2 * nth + 1) << 64) / u128::from(2 * total);
                hits[*weighted.pick(middle as u64).unwrap()] += 1;
            }
            prop_assert_eq!(hits, weights);
        }
    }
}
