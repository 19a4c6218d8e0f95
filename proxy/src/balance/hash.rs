//! The hash of everything that has to agree between processes: ring positions, Maglev permutations and request keys.

use twox_hash::XxHash64;

/// Hashes bytes the same way in every process, on every machine and in every version of Weft.
///
/// This is XXH64 with seed 0 (<https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>): its output is fixed by
/// a published specification, unlike the standard library's or foldhash's. Changing it moves every client to another
/// endpoint, so a test pins its values. It is not meant to resist a client who chooses keys in order to overload one
/// endpoint; limits do that.
#[inline]
pub fn hash_str(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

/// The `n`th output of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014) seeded
/// with `seed`: turns one good hash into as many as are needed.
#[inline]
pub(crate) const fn split_mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_never_change() {
        // The first is the specification's own test vector.
        assert_eq!(hash_str(b""), 0xef46_db37_51d8_e999);
        assert_eq!(hash_str(b"a"), 0xd24e_c4f1_a98c_6e5b);
        assert_eq!(hash_str(b"abc"), 0x44bc_2cf5_ad77_0999);
        // First outputs of the reference generator for seed 0.
        assert_eq!(split_mix(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(split_mix(0, 1), 0x6e78_9e6a_a1b9_65f4);
    }
}
