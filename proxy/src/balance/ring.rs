//! Ring hash: a key stays with its endpoint, and only the keys of an endpoint that leaves move.
//!
//! D. Karger et al., "Consistent Hashing and Random Trees" (1997): every endpoint owns many points on a circle, and a
//! key belongs to the owner of the next point.

use super::hash::{hash_str, split_mix};

/// Points of an endpoint whose weight is a power of two and not smaller than any other: up to this many endpoints get
/// this many points each. The share of an endpoint then varies by about 1 % of itself (1 / √points).
///
/// The number must not depend on *which* endpoints there are, or keys would move when one leaves. It depends on how many
/// there are only at these two borders (memory: 12 bytes per point), where all keys move once.
const POINTS: [(usize, u32); 3] = [(128, 8192), (1024, 1024), (usize::MAX, 128)];

/// The circle, cut into 2^32 steps.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Sorted.
    points: Box<[u32]>,
    /// Who owns the point: position in the pool.
    owners: Box<[u32]>,
    /// For each 2^-`bits` of the circle, the first point in it or after it: a look-up takes constant time.
    starts: Box<[u32]>,
    bits: u32,
}

impl Ring {
    /// `members` are names and positive weights. The names decide alone; the order does not matter.
    pub(crate) fn new(members: &[(&str, u32)]) -> Self {
        let most = members.iter().map(|m| u64::from(m.1)).max().unwrap_or(1).next_power_of_two();
        let full = POINTS.iter().find(|tier| members.len() <= tier.0).map_or(128, |tier| tier.1);
        let mut ring: Vec<(u32, u32)> = Vec::new();
        for (position, (name, weight)) in members.iter().enumerate() {
            let seed = hash_str(name.as_bytes());
            let points = (u64::from(full) * u64::from(*weight)).div_ceil(most);
            ring.extend((0..points).map(|nth| ((split_mix(seed, nth) >> 32) as u32, position as u32)));
        }
        // Two endpoints on one point: the name decides, not the order of the configuration.
        ring.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| members[a.1 as usize].0.cmp(members[b.1 as usize].0)));
        let bits = ring.len().max(2).ilog2();
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        let mut index = 0;
        for bucket in 0..1_u64 << bits {
            while ring.get(index).is_some_and(|(point, _)| u64::from(*point) < bucket << (32 - bits)) {
                index += 1;
            }
            starts.push(index as u32);
        }
        Self {
            points: ring.iter().map(|entry| entry.0).collect(),
            owners: ring.iter().map(|entry| entry.1).collect(),
            starts: starts.into(),
            bits,
        }
    }

    /// The owner of `hash`, and then the owners of the points after it (with repetitions, without end).
    #[inline]
    pub(crate) fn owners(&self, hash: u64) -> impl Iterator<Item = u32> {
        // Mixed once more, so that a caller's plain integer is spread over the circle too.
        let key = (split_mix(hash, 0) >> 32) as u32;
        let bucket = (u64::from(key) >> (32 - self.bits)) as usize;
        let mut index = self.starts.get(bucket).map_or(0, |&start| start as usize);
        while self.points.get(index).is_some_and(|&point| point < key) {
            index += 1;
        }
        let (before, after) = self.owners.split_at(index.min(self.owners.len()));
        after.iter().chain(before).copied().cycle()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn owner<'a>(ring: &Ring, members: &[(&'a str, u32)], key: u64) -> &'a str {
        members[ring.owners(hash_str(&key.to_le_bytes())).next().unwrap() as usize].0
    }

    #[test]
    fn three_equal_nodes_share_100_000_keys_evenly() {
        // Not one lucky set of names: twenty.
        for set in 0..20 {
            let names: Vec<String> = (1..=3).map(|n| format!("10.0.{set}.{n}:8080")).collect();
            let members: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), 1)).collect();
            let ring = Ring::new(&members);
            let mut counts = [0_u32; 3];
            for key in 0..100_000_u64 {
                counts[ring.owners(hash_str(&key.to_le_bytes())).next().unwrap() as usize] += 1;
            }
            let shares = counts.map(|count| f64::from(count) / 1000.0);
            let busiest = shares.iter().copied().fold(0.0, f64::max);
            let sigma = (shares.iter().map(|share| (share - 100.0 / 3.0).powi(2)).sum::<f64>() / 3.0).sqrt();
            assert!(busiest <= 34.6, "set {set}: {shares:?}");
            assert!(sigma <= 4.8, "set {set}: {shares:?}");
        }
    }

    #[test]
    fn only_the_keys_of_the_leaver_move() {
        let members = [("10.0.0.1:80", 2), ("10.0.0.2:80", 2), ("10.0.0.3:80", 1), ("10.0.0.4:80", 2)];
        // In another order, too: only names matter.
        let rest = [("10.0.0.4:80", 2), ("10.0.0.3:80", 1), ("10.0.0.1:80", 2)];
        let (before, after) = (Ring::new(&members), Ring::new(&rest));
        let mut moved = 0;
        for key in 0..100_000_u64 {
            let was = owner(&before, &members, key);
            let is = owner(&after, &rest, key);
            if was == "10.0.0.2:80" {
                moved += 1;
            } else {
                assert_eq!(was, is, "key {key}");
            }
        }
        assert!((27_000..30_500).contains(&moved), "{moved}");
    }

    #[test]
    fn the_place_of_a_key_never_changes() {
        // What other processes and versions have computed.
        let members = [("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.3:80", 1)];
        let ring = Ring::new(&members);
        let places: String = (0..32_u64).map(|key| owner(&ring, &members, key).chars().nth(7).unwrap()).collect();
        assert_eq!(places, "13113222312223121311332132213233");
    }

    #[test]
    fn weights_set_the_share() {
        let members = [("a", 1), ("b", 3), ("c", 100)];
        let ring = Ring::new(&members);
        let mut counts = [0_u32; 3];
        for key in 0..104_000_u64 {
            counts[ring.owners(key).next().unwrap() as usize] += 1;
        }
        for ((_, weight), count) in members.iter().zip(counts) {
            assert!((f64::from(count) / 104_000.0 - f64::from(*weight) / 104.0).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn an_empty_ring_has_no_owner() {
        assert_eq!(Ring::new(&[]).owners(1).next(), None);
        assert_eq!(Ring::new(&[("only", 1)]).owners(u64::MAX).next(), Some(0));
    }
}
