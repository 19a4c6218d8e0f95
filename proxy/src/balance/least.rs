//! Least request: of two endpoints drawn at random, the one with fewer requests in flight.
//!
//! M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (1996).

use super::ewma::Verdict;

/// Whether a rival with `rival_load` requests in flight is better than one with `load`.
#[inline]
pub(crate) fn prefers_rival(load: u32, rival_load: u32) -> Verdict {
    if rival_load >= load {
        Verdict::Keep
    } else if (u64::from(rival_load) + 1) * 2 < u64::from(load) + 1 {
        Verdict::Far
    } else {
        Verdict::Near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_in_flight_wins() {
        #[rustfmt::skip]
        let table = [
            (0, 0, Verdict::Keep),
            (0, 1, Verdict::Keep),
            (1, 0, Verdict::Near),
            (2, 0, Verdict::Far),
            (9, 8, Verdict::Near),
            (u32::MAX, u32::MAX - 1, Verdict::Near),
        ];
        for (load, rival, expect) in table {
            assert_eq!(prefers_rival(load, rival), expect, "{load} against {rival}");
        }
    }
}
