//! Counters of the push. Histograms are beside what they measure, gauges are counted when somebody asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of one type.
#[derive(Debug, Default)]
pub(super) struct TypeCounters {
    pub responses: AtomicU64,
    pub resources: AtomicU64,
    pub acks: AtomicU64,
    pub nacks: AtomicU64,
}

/// Of a member.
#[derive(Debug)]
pub(super) struct Counters {
    pub types: Vec<TypeCounters>,
    pub bytes: AtomicU64,
}

impl Counters {
    pub(super) fn new(types: usize) -> Self {
        Self { types: (0..types).map(|_| TypeCounters::default()).collect(), bytes: AtomicU64::new(0) }
    }
}

/// One more.
pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(u64::try_from(by).unwrap_or(u64::MAX), Ordering::Relaxed);
}
