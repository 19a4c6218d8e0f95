//! Peak EWMA.
use std::{sync::atomic::AtomicU64, time::Instant};
/// Peak-sensitive exponentially weighted moving average of latency.
#[derive(Debug)]
pub struct PeakEwma { cost: AtomicU64, stamp: AtomicU64, epoch: Instant }
impl PeakEwma {
    /// Starts at the default.
    pub fn new(now: Instant) -> Self { Self { cost: AtomicU64::new(0), stamp: AtomicU64::new(0), epoch: now } }
}
