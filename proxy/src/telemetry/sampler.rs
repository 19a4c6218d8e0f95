//! Which new traces are recorded.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Randomness that decides: the low 56 bits of the trace id, as in OpenTelemetry's consistent probability sampling, so
/// that every node with the same ratio decides alike.
const SPACE: u64 = 1 << 56;

/// Samples a share of the traces. The share may change while requests are decided.
#[derive(Debug)]
pub struct Sampler {
    /// Trace ids whose low 56 bits are below this are left out.
    threshold: AtomicU64,
}

impl Sampler {
    /// A sampler that records `percent` (0–100) of the traces that start here.
    pub fn new(percent: f64) -> Self {
        let sampler = Self { threshold: AtomicU64::new(SPACE) };
        sampler.set_percent(percent);
        sampler
    }

    /// Changes the share from now on. Values outside 0–100 count as the nearest bound, NaN as 0.
    pub fn set_percent(&self, percent: f64) {
        let share = if percent.is_nan() { 0.0 } else { (percent / 100.0).clamp(0.0, 1.0) };
        let threshold = ((1.0 - share) * SPACE as f64).round() as u64;
        self.threshold.store(threshold, Relaxed);
    }

    /// Whether no new trace is recorded at all.
    pub fn is_never(&self) -> bool {
        self.threshold.load(Relaxed) >= SPACE
    }

    /// Whether the trace with this id is recorded.
    pub fn decide(&self, trace_id: u128) -> bool {
        (trace_id as u64 & (SPACE - 1)) >= self.threshold.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(percent: f64) -> f64 {
        let (sampler, mut rng) = (Sampler::new(percent), fastrand::Rng::with_seed(7));
        (0..100_000).filter(|_| sampler.decide(rng.u128(1..))).count() as f64 / 1_000.0
    }

    #[test]
    fn keeps_the_share_it_was_told() {
        for percent in [0.0, 1.0, 10.0, 50.0, 100.0] {
            assert!((share(percent) - percent).abs() < 0.5, "{percent} % became {}", share(percent));
        }
        assert_eq!((share(f64::NAN), share(-1.0), share(250.0)), (0.0, 0.0, 100.0));
    }

    #[test]
    fn what_a_small_share_keeps_a_larger_share_keeps_too() {
        let (small, large, mut rng) = (Sampler::new(5.0), Sampler::new(20.0), fastrand::Rng::with_seed(1));
        let kept = (0..50_000).map(|_| rng.u128(..)).filter(|&id| small.decide(id)).collect::<Vec<_>>();
        assert!(!kept.is_empty() && kept.iter().all(|&id| large.decide(id)));
    }

    #[test]
    fn a_change_counts_for_the_next_request() {
        let sampler = Sampler::new(0.0);
        assert!(sampler.is_never() && !sampler.decide(u128::MAX));
        sampler.set_percent(100.0);
        assert!(!sampler.is_never() && sampler.decide(1));
    }
}
