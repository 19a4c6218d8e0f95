//! Free space of SLOTS.

use std::collections::{BTreeMap, BTreeSet};

/// Ranges of numbers that nobody has. Neighbours grow together. Takes the smallest that is long enough, the first of equal
/// ones: long ranges stay whole for long tables, and finding one is quick however many there are.
#[derive(Debug)]
pub(super) struct Ranges {
    /// Start → length.
    by_start: BTreeMap<u32, u32>,
    /// Length and start.
    by_length: BTreeSet<(u32, u32)>,
}

impl Ranges {
    /// Everything below `size` is free.
    pub(super) fn new(size: u32) -> Self {
        let mut ranges = Self { by_start: BTreeMap::new(), by_length: BTreeSet::new() };
        ranges.insert(0, size);
        ranges
    }

    /// Takes a range of this length, if one is left.
    pub(super) fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let &(found, start) = self.by_length.range((length, 0)..).next()?;
        self.remove(start, found);
        self.insert(start + length, found - length);
        Some(start)
    }

    /// Takes this range, if all of it is free.
    pub(super) fn reserve(&mut self, start: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((&free, &found)) = self.by_start.range(..=start).next_back() else { return false };
        let Some(end) = start.checked_add(length).filter(|&end| end <= free + found) else { return false };
        self.remove(free, found);
        self.insert(free, start - free);
        self.insert(end, free + found - end);
        true
    }

    /// Gives a range back that was taken.
    pub(super) fn give(&mut self, mut start: u32, mut length: u32) {
        if length == 0 {
            return;
        }
        if let Some((&before, &found)) = self.by_start.range(..start).next_back()
            && before + found == start
        {
            self.remove(before, found);
            start = before;
            length += found;
        }
        if let Some(&found) = self.by_start.get(&(start + length)) {
            self.remove(start + length, found);
            length += found;
        }
        self.insert(start, length);
    }

    fn insert(&mut self, start: u32, length: u32) {
        if length > 0 {
            self.by_start.insert(start, length);
            self.by_length.insert((length, start));
        }
    }

    fn remove(&mut self, start: u32, length: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_what_fits_best() {
        let mut ranges = Ranges::new(100);
        assert_eq!(
            (ranges.take(10), ranges.take(20), ranges.take(10), ranges.take(60)),
            (Some(0), Some(10), Some(30), Some(40))
        );
        assert_eq!(ranges.take(1), None);
        ranges.give(10, 20);
        ranges.give(40, 60);
        assert_eq!(ranges.take(15), Some(10));
        assert_eq!(ranges.take(6), Some(40));
        assert_eq!(ranges.take(5), Some(25));
        assert_eq!(ranges.take(0), Some(0));
    }

    #[test]
    fn reserves_only_what_is_free() {
        let mut ranges = Ranges::new(100);
        assert!(ranges.reserve(10, 5));
        assert!(
            !ranges.reserve(14, 1) && !ranges.reserve(5, 6) && !ranges.reserve(99, 2) && !ranges.reserve(u32::MAX, 2)
        );
        assert!(ranges.reserve(15, 85) && ranges.reserve(0, 10) && !ranges.reserve(0, 1));
    }

    proptest! {
        #[test]
        fn nobody_shares(steps in prop::collection::vec((0u32..40, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            const SIZE: u32 = 256;
            let mut ranges = Ranges::new(SIZE);
            let mut owned: Vec<(u32, u32)> = Vec::new();
            for (length, index, take) in steps {
                if take || owned.is_empty() {
                    let free = SIZE - owned.iter().map(|(_, length)| length).sum::<u32>();
                    match ranges.take(length) {
                        Some(start) if length > 0 => {
                            prop_assert!(start + length <= SIZE);
                            prop_assert!(owned.iter().all(|&(s, l)| start + length <= s || s + l <= start));
                            owned.push((start, length));
                        }
                        Some(_) => {}
                        None => prop_assert!(free < length || ranges.by_start.len() > 1),
                    }
                } else {
                    let (start, length) = owned.swap_remove(index.index(owned.len()));
                    ranges.give(start, length);
                }
                prop_assert_eq!(ranges.by_start.len(), ranges.by_length.len());
            }
            // A process that comes later finds the same space.
            let mut later = Ranges::new(SIZE);
            for &(start, length) in &owned {
                prop_assert!(later.reserve(start, length));
            }
            prop_assert_eq!(&later.by_start, &ranges.by_start);
            for (start, length) in owned {
                ranges.give(start, length);
            }
            prop_assert_eq!(ranges.take(SIZE), Some(0));
        }
    }
}
