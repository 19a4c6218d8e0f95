//! Failures by kind, as evidence tells of them.

use std::fmt;

use smallvec::SmallVec;

use crate::resilience::outcome::Failure;

/// Kinds that evidence names; the rest is summed up.
const MAX_KINDS: usize = 8;

/// How often each kind of failure happened: `503 ×9, upstream_reset ×5`.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    kinds: SmallVec<[(Failure, u64); 2]>,
    others: u64,
}

impl Tally {
    /// Counts `count` failures of a kind.
    pub fn add(&mut self, failure: Failure, count: u64) {
        if count == 0 {
            return;
        }
        if let Some((_, sum)) = self.kinds.iter_mut().find(|(kind, _)| *kind == failure) {
            *sum += count;
        } else if self.kinds.len() < MAX_KINDS {
            self.kinds.push((failure, count));
        } else {
            self.others += count;
        }
    }

    /// Over all kinds.
    pub fn total(&self) -> u64 {
        self.kinds.iter().map(|(_, count)| count).sum::<u64>() + self.others
    }

    /// Fills up with failures whose kind is not known.
    pub fn complete(&mut self, total: u64) {
        self.others += total.saturating_sub(self.total());
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.kinds.clear();
        self.others = 0;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds = self.kinds.clone();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (place, (failure, count)) in kinds.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            write!(f, "{comma}{} ×{count}", failure.name())?;
        }
        if self.others > 0 {
            let comma = if kinds.is_empty() { "" } else { ", " };
            write!(f, "{comma}others ×{}", self.others)?;
        }
        Ok(())
    }
}
