#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn random(seed: u64) -> impl Iterator<Item = u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || rng.u64(1..))
}

#[test]
fn what_was_noted_is_found_again() {
    let mut store = Store::default();
    // A quarter of what fits: the odds that one bucket of 16 gets 17 of them are about one in a million.
    let keys: Vec<u64> = random(7).take(CAPACITY / 4).collect();
    for (at, key) in keys.iter().enumerate() {
        store.set(*key, 1000 + at as u64, 0);
    }
    assert_eq!(store.len(), keys.len());
    for (at, key) in keys.iter().enumerate() {
        assert_eq!(store.get(*key), Some(1000 + at as u64), "{at}");
    }
    store.set(keys[0], 5, 0);
    assert_eq!((store.get(keys[0]), store.len()), (Some(5), keys.len()));
    assert_eq!(store.get(u64::MAX), None);
}

#[test]
fn a_million_keys_fill_it_and_no_more() {
    let mut store = Store::default();
    for key in random(1).take(1_000_000) {
        store.set(key, u64::MAX, 0);
    }
    assert_eq!(store.len(), CAPACITY);
    assert!(store.bytes() <= 16 * CAPACITY + 8192, "{}", store.bytes());
    // None of them means anything any more.
    for _ in 0..Store::STEPS {
        store.tidy(u64::MAX);
    }
    assert_eq!(store.len(), 0);
    assert!(store.bytes() <= 8192, "{}", store.bytes());
}

#[test]
fn what_has_passed_goes_first_and_then_what_has_least_to_lose() {
    let mut store = Store::default();
    // All of one bucket.
    let key = |n: u64| (n << 40) | 1;
    for n in 1..=WAYS as u64 {
        store.set(key(n), 100 + n, 0);
    }
    // Nothing has passed, and more buckets do not part them.
    store.set(key(50), 500, 100);
    assert_eq!(store.get(key(1)), None);
    assert_eq!(store.get(key(2)), Some(102));
    // The entry of 102 has passed.
    store.set(key(51), 101, 102);
    assert_eq!((store.get(key(2)), store.get(key(51))), (None, Some(101)));
    // That one had passed already: it goes before the others.
    store.set(key(52), 600, 102);
    assert_eq!((store.get(key(51)), store.get(key(3))), (None, Some(103)));
    assert_eq!(store.len(), WAYS);
}

#[test]
fn memory_comes_back_when_keys_have_passed() {
    let mut store = Store::default();
    for (at, key) in random(3).take(CAPACITY).enumerate() {
        store.set(key, if at % 50 == 0 { 1000 } else { 10 }, 0);
    }
    let full = store.bytes();
    for _ in 0..Store::STEPS {
        store.tidy(10);
    }
    assert!(store.len() > CAPACITY / 60 && store.len() <= CAPACITY / 50 + 1, "{}", store.len());
    assert!(store.bytes() < full / 4, "{} of {full}", store.bytes());
    let kept = random(3).take(CAPACITY).enumerate().filter(|(at, _)| at % 50 == 0);
    let found = kept.filter(|(_, key)| store.get(*key) == Some(1000)).count();
    assert_eq!(found, store.len());
}

proptest! {
    /// Against a map: whatever has not passed is found, as long as no bucket is full.
    #[test]
    fn it_is_a_map_of_what_has_not_passed(steps in prop::collection::vec((1..40_u64, 1..60_u64, 0..3_u64), 1..300)) {
        let mut store = Store::default();
        let mut model = std::collections::HashMap::new();
        let mut now = 0;
        for (key, tat, pause) in steps {
            now += pause;
            // Two segments, four buckets at most: no more than ten keys each.
            let key = ((key % 2) << 32) | (key >> 1 & 3) | (key << 50);
            store.set(key, now + tat, now);
            model.insert(key, now + tat);
            if pause == 2 {
                (0..Store::STEPS).for_each(|_| store.tidy(now));
            }
            for (key, tat) in &model {
                if *tat > now {
                    prop_assert_eq!(store.get(*key), Some(*tat));
                } else {
                    prop_assert!(store.get(*key).is_none_or(|tat| tat <= now));
                }
            }
            prop_assert!(store.len() <= model.len());
        }
    }
}
