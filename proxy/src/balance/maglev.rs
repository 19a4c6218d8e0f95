//! Maglev hashing: as even as possible, and few keys move.
//!
//! D. E. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4.

use super::hash::{hash_str, split_mix};

/// Slots of the table: a prime. The paper wants at least a hundred per endpoint for shares within 1 %, that is, up to
/// 655 endpoints; with 10,000 everyone still has six or seven.
const SLOTS: u32 = 65_537;

/// The look-up table: each slot names its owner.
#[derive(Debug)]
pub(crate) struct Maglev {
    /// Position in the pool. Empty if there is nobody.
    slots: Box<[u16]>,
}

impl Maglev {
    /// `members` are names and positive weights. The names decide alone; the order does not matter. More than 65,535
    /// members do not fit: the others get nothing.
    pub(crate) fn new(members: &[(&str, u32)]) -> Self {
        struct Row {
            position: u16,
            next: u32,
            skip: u32,
            weight: u64,
            credit: u64,
        }
        let most = members.iter().map(|m| u64::from(m.1)).max().unwrap_or(0);
        if most == 0 {
            return Self { slots: Box::default() };
        }
        let mut order: Vec<(u16, &(&str, u32))> = (0..u16::MAX).zip(members).collect();
        order.sort_unstable_by_key(|(_, member)| member.0);
        let mut rows: Vec<Row> = order
            .into_iter()
            .map(|(position, (name, weight))| {
                let seed = hash_str(name.as_bytes());
                Row {
                    position,
                    next: (split_mix(seed, 0) % u64::from(SLOTS)) as u32,
                    skip: (split_mix(seed, 1) % u64::from(SLOTS - 1)) as u32 + 1,
                    weight: u64::from(*weight),
                    credit: 0,
                }
            })
            .collect();
        let mut slots = vec![None; SLOTS as usize];
        let mut free = SLOTS;
        while free > 0 {
            for row in &mut rows {
                // The heaviest have a turn in every round, the others in proportion.
                row.credit += row.weight;
                if row.credit < most || free == 0 {
                    continue;
                }
                row.credit -= most;
                // Each endpoint prefers the slots in an order of its own, and takes the first that is free.
                while slots[row.next as usize].is_some() {
                    row.next = (row.next + row.skip) % SLOTS;
                }
                slots[row.next as usize] = Some(row.position);
                free -= 1;
            }
        }
        Self { slots: slots.into_iter().flatten().collect() }
    }

    /// The owner of `hash`, and then whom it would rather have (with repetitions, without end). Each choice is a slot of
    /// its own, so that the keys of an unusable endpoint are spread over all others.
    #[inline]
    pub(crate) fn owners(&self, hash: u64) -> impl Iterator<Item = u32> {
        let slot = move |choice| split_mix(hash, choice) % u64::from(SLOTS);
        (0..).map_while(move |choice| self.slots.get(slot(choice) as usize).map(|&position| u32::from(position)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn table(names: &[String]) -> Maglev {
        Maglev::new(&names.iter().map(|name| (name.as_str(), 1)).collect::<Vec<_>>())
    }

    #[test]
    fn the_slots_are_shared_evenly() {
        for count in [1, 2, 3, 100, 655] {
            let names: Vec<String> = (0..count).map(|n| format!("10.0.{}.{}:80", n / 250, n % 250)).collect();
            let mut counts = vec![0_u32; count];
            for slot in &table(&names).slots {
                counts[usize::from(*slot)] += 1;
            }
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{count} endpoints: {least} to {most} slots");
        }
    }

    #[test]
    fn weights_set_the_share() {
        let maglev = Maglev::new(&[("a", 1), ("b", 3), ("c", 6)]);
        let count = |position| maglev.slots.iter().filter(|&&slot| slot == position).count() as f64 / f64::from(SLOTS);
        for (position, share) in [(0, 0.1), (1, 0.3), (2, 0.6)] {
            assert!((count(position) - share).abs() < 0.001, "{} instead of {share}", count(position));
        }
    }

    #[test]
    fn the_order_of_the_configuration_does_not_matter() {
        let names: Vec<String> = (0..10).map(|n| format!("10.0.0.{n}:80")).collect();
        let turned: Vec<String> = names.iter().rev().cloned().collect();
        let (one, other) = (table(&names), table(&turned));
        assert!(one.slots.iter().zip(&other.slots).all(|(a, b)| names[usize::from(*a)] == turned[usize::from(*b)]));
    }

    #[test]
    fn few_keys_move_when_one_leaves() {
        let names: Vec<String> = (0..10).map(|n| format!("10.0.0.{n}:80")).collect();
        let mut rest = names.clone();
        let gone = rest.remove(4);
        rest.reverse();
        let (before, after) = (table(&names), table(&rest));
        let mut moved = 0;
        for (was, is) in before.slots.iter().zip(&after.slots) {
            let (was, is) = (&names[usize::from(*was)], &rest[usize::from(*is)]);
            assert_ne!(is, &gone);
            moved += u32::from(*was != gone && was != is);
        }
        // The paper's figure 12 shows about 2 % for tables of this size; plain modulo hashing moves 90 %.
        let share = f64::from(moved) / f64::from(SLOTS);
        assert!(share < 0.03, "{share}");
    }

    #[test]
    fn the_place_of_a_key_never_changes() {
        let names: Vec<String> = (0..5).map(|n| format!("10.0.0.{n}:80")).collect();
        let table = table(&names);
        let places: Vec<u32> = (0..16).map(|key| table.owners(key).next().unwrap()).collect();
        assert_eq!(places, [3, 4, 2, 1, 3, 2, 3, 1, 1, 4, 2, 2, 2, 0, 4, 3]);
    }

    #[test]
    fn an_empty_table_has_no_owner() {
        assert_eq!(Maglev::new(&[]).owners(1).next(), None);
        assert_eq!(Maglev::new(&[("only", 1)]).owners(u64::MAX).next(), Some(0));
    }
}
