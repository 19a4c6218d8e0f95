//! How long to wait before an attempt is repeated: exponential, and spread so that clients that failed together do not
//! come back together ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).

use std::time::Duration;

use fastrand::Rng;
use weft_model::config::{Backoff, Jitter};

use super::nanos;

/// The wait before a retry. `retry` counts from 0; `previous` is the wait before the retry that came before, or zero.
///
/// Never longer than `policy.max`. Full and Equal draw below the exponential bound `base × 2^retry`, Decorrelated below
/// three times the wait before, None waits for the bound itself.
pub fn wait(policy: &Backoff, retry: u32, previous: Duration, rng: &mut Rng) -> Duration {
    let (base, max) = (nanos(policy.base), nanos(policy.max));
    let bound = base.saturating_mul(1u64.checked_shl(retry).unwrap_or(u64::MAX)).min(max);
    let wait = match policy.jitter {
        Jitter::Full => rng.u64(..=bound),
        Jitter::Equal => bound / 2 + rng.u64(..=bound - bound / 2),
        // The first wait is drawn as if the one before had been `base`.
        Jitter::Decorrelated => rng.u64(base..=nanos(previous).max(base).saturating_mul(3)).min(max),
        Jitter::None => bound,
    };
    Duration::from_nanos(wait)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const fn policy(jitter: Jitter) -> Backoff {
        Backoff { base: ms(25), max: ms(250), jitter }
    }

    #[test]
    fn every_jitter_stays_between_its_bounds_with_its_mean() {
        // Jitter, number of the retry, wait before, least, longest, mean; in milliseconds.
        let table = [
            (Jitter::None, 0, 0, 25, 25, 25.0),
            (Jitter::None, 3, 0, 200, 200, 200.0),
            (Jitter::None, 4, 0, 250, 250, 250.0),
            (Jitter::None, 4_000_000_000, 0, 250, 250, 250.0),
            (Jitter::Full, 0, 0, 0, 25, 12.5),
            (Jitter::Full, 2, 50, 0, 100, 50.0),
            (Jitter::Full, 9, 50, 0, 250, 125.0),
            (Jitter::Equal, 0, 0, 12, 25, 18.75),
            (Jitter::Equal, 2, 50, 50, 100, 75.0),
            (Jitter::Equal, 63, 50, 125, 250, 187.5),
            (Jitter::Decorrelated, 0, 0, 25, 75, 50.0),
            (Jitter::Decorrelated, 1, 60, 25, 180, 102.5),
            // Half of what is drawn from 25 to 475 is above 250.
            (Jitter::Decorrelated, 5, 475 / 3, 25, 250, 193.75),
        ];
        let mut rng = Rng::with_seed(7);
        for (jitter, retry, previous, least, longest, mean) in table {
            let waits: Vec<Duration> =
                (0..20_000).map(|_| wait(&policy(jitter), retry, ms(previous), &mut rng)).collect();
            assert!(waits.iter().all(|wait| *wait >= ms(least) && *wait <= ms(longest)), "{jitter:?} {retry}");
            let measured = waits.iter().sum::<Duration>().as_secs_f64() * 1e3 / waits.len() as f64;
            assert!((measured - mean).abs() <= mean * 0.02, "{jitter:?} {retry}: {measured} instead of {mean}");
        }
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_max(
            base in 1u64..10_000_000, more in 0u64..10_000_000, retry: u32, previous: u64, seed: u64, kind in 0usize..4
        ) {
            let jitter = [Jitter::Full, Jitter::Equal, Jitter::Decorrelated, Jitter::None][kind];
            let policy = Backoff { base: ms(base), max: ms(base + more), jitter };
            let waited = wait(&policy, retry, Duration::from_nanos(previous), &mut Rng::with_seed(seed));
            prop_assert!(waited <= policy.max);
            let least = match jitter {
                Jitter::Full => Duration::ZERO,
                Jitter::Equal => policy.base / 2,
                Jitter::Decorrelated | Jitter::None => policy.base,
            };
            prop_assert!(waited >= least);
        }
    }
}
