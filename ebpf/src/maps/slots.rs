//! How many slots each endpoint gets.

/// Tables up to this length have exactly the shares that were asked for; longer ones are rounded.
const EXACT: u64 = 1024;
/// Rounded tables have at least this many slots per endpoint.
const PER_ENDPOINT: u64 = 4;

/// Slots of each endpoint, in proportion to its weight and as few as possible. No weight is 0; nobody goes without a slot.
pub(crate) fn shares(weights: &[u32]) -> Vec<u32> {
    let Some(divisor) = weights.iter().copied().reduce(gcd).filter(|&divisor| divisor > 0) else {
        return vec![0; weights.len()];
    };
    let sum: u64 = weights.iter().map(|&weight| u64::from(weight / divisor)).sum();
    let most = EXACT.max(PER_ENDPOINT * weights.len() as u64);
    if sum <= most {
        return weights.iter().map(|weight| weight / divisor).collect();
    }
    rounded(weights, most)
}

/// Largest remainder. Endpoints whose share is less than one slot get one on top, so that they do not take from the others.
fn rounded(weights: &[u32], slots: u64) -> Vec<u32> {
    let sum: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
    let quota = |weight: u32| u128::from(weight) * u128::from(slots);
    let mut shares: Vec<u32> = weights.iter().map(|&weight| (quota(weight) / sum) as u32).collect();
    let given: u64 = shares.iter().map(|&share| u64::from(share)).sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(quota(weights[i]) % sum));
    for &i in order.iter().take((slots - given) as usize) {
        shares[i] += 1;
    }
    shares.iter_mut().for_each(|share| *share = (*share).max(1));
    shares
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_slots() {
        for (weights, slots) in [
            (vec![], vec![]),
            (vec![7], vec![1]),
            (vec![3, 1], vec![3, 1]),
            (vec![300, 100], vec![3, 1]),
            (vec![2, 4, 6], vec![1, 2, 3]),
            (vec![1023, 1], vec![1023, 1]),
            (vec![u32::MAX, 1], vec![1024, 1]),
        ] {
            assert_eq!(shares(&weights), slots, "{weights:?}");
        }
        assert_eq!(shares(&[5; 5000]), [1; 5000]);
    }

    proptest! {
        #[test]
        fn in_proportion(weights in prop::collection::vec(1u32.., 2..300)) {
            let shares = shares(&weights);
            let slots: f64 = shares.iter().map(|&share| f64::from(share)).sum();
            let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let most = 1024_f64.max(4.0 * weights.len() as f64);
            prop_assert!(slots <= most + weights.len() as f64);
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert!(*share >= 1);
                let quota = f64::from(*weight) / sum * slots.min(most);
                prop_assert!((f64::from(*share) - quota).abs() <= 1.0, "{share} for {quota}");
            }
        }

        #[test]
        fn exact_when_short(weights in prop::collection::vec(1u32..30, 1..30), factor in 1u32..1000) {
            let shares = shares(&weights.iter().map(|weight| weight * factor).collect::<Vec<_>>());
            for (share, weight) in shares.iter().zip(&weights) {
                prop_assert_eq!(share * weights[0], weight * shares[0]);
            }
        }
    }
}
