//! What was changed, by whom and when: a bounded run of events without a gap up to the current revision.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::types::{Event, Revision};

/// How many changes are kept.
pub const EVENTS: usize = 100_000;
/// How many bytes of versions that they made are kept.
pub const BYTES: usize = 64 << 20;

/// What was asked for has been forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("compacted at revision {at}: what follows it is known, what leads to it is not")]
pub struct Compacted {
    /// The last revision that was forgotten: the earliest from which one can go on.
    pub at: Revision,
}

/// The events after `compacted`, in order, one per revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    pub(super) compacted: Revision,
    pub(super) events: VecDeque<Arc<Event>>,
    /// How many changes the events hold.
    pub(super) changes: usize,
    /// How many bytes of versions they made.
    bytes: usize,
}

impl History {
    /// No events yet after `compacted`.
    pub(super) fn starting(compacted: Revision) -> Self {
        Self { compacted, ..Self::default() }
    }

    /// Adds the next event. What is too much goes, the oldest first; the newest is kept whatever its size.
    pub(super) fn push(&mut self, event: Event) {
        self.changes += event.changes.len();
        self.bytes += weight(&event);
        self.events.push_back(Arc::new(event));
        while (self.changes > EVENTS || self.bytes > BYTES) && self.events.len() > 1 {
            self.pop();
        }
    }

    /// Forgets up to and including `through`.
    pub(super) fn compact(&mut self, through: Revision) {
        while self.events.front().is_some_and(|event| event.revision <= through) {
            self.pop();
        }
        self.compacted = self.compacted.max(through);
    }

    /// Forgets what happened before `time`, up to the first event that did not.
    pub(super) fn trim(&mut self, time: u64) {
        while self.events.front().is_some_and(|event| event.at < time) {
            self.pop();
        }
    }

    /// The events after `revision`.
    pub(super) fn after(&self, revision: Revision) -> Result<impl Iterator<Item = &Arc<Event>> + Clone, Compacted> {
        if revision < self.compacted {
            return Err(Compacted { at: self.compacted });
        }
        let skip = usize::try_from(revision.0 - self.compacted.0).unwrap_or(usize::MAX).min(self.events.len());
        Ok(self.events.range(skip..))
    }

    fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.changes -= event.changes.len();
            self.bytes -= weight(&event);
            self.compacted = event.revision;
        }
    }
}

fn weight(event: &Event) -> usize {
    let made = event.changes.iter().filter_map(|change| change.after.as_ref());
    made.map(|object| object.spec.len() + object.status.len()).sum()
}
