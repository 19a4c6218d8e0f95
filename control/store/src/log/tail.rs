//! The end of the log, in memory.

use std::collections::BTreeMap;

use openraft::EntryPayload;

use crate::raft::{Entry, LogId, Vote};

/// How many entries that are on the disk are kept in memory too, for the members that lag a little.
pub(super) const ENTRIES: usize = 2048;
/// How many bytes of them, about.
const BYTES: usize = 32 << 20;

/// What is known of the log without looking at the disk.
#[derive(Default)]
pub(super) struct Tail {
    /// The last entries, without a gap; at least all that are not on the disk yet.
    pub(super) entries: BTreeMap<u64, Entry>,
    /// About how much they weigh.
    pub(super) bytes: usize,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
}

/// About how many bytes an entry takes.
pub(super) fn weight(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(command) => command.weight(),
        _ => 64,
    }
}

impl Tail {
    pub(super) fn push(&mut self, entry: &Entry) {
        self.bytes += weight(entry);
        self.entries.insert(entry.log_id.index, entry.clone());
        self.last = Some(entry.log_id);
    }

    /// Forgets every entry from `from` on; `last` is the one before it.
    pub(super) fn truncate(&mut self, from: u64, last: Option<LogId>) {
        let removed = self.entries.split_off(&from);
        self.bytes -= removed.values().map(weight).sum::<usize>();
        if self.last.is_some_and(|end| end.index >= from) {
            self.last = last;
        }
    }

    /// Forgets every entry up to and including this one.
    pub(super) fn purge(&mut self, through: LogId) {
        let kept = self.entries.split_off(&(through.index + 1));
        let removed = std::mem::replace(&mut self.entries, kept);
        self.bytes -= removed.values().map(weight).sum::<usize>();
        self.purged = self.purged.max(Some(through));
        self.last = self.last.max(Some(through));
    }

    /// The entries up to and including `durable` are on the disk: as many of the oldest as are too many may leave.
    pub(super) fn evict(&mut self, durable: u64) {
        while (self.entries.len() > ENTRIES || self.bytes > BYTES)
            && let Some(oldest) = self.entries.first_entry()
            && *oldest.key() <= durable
        {
            self.bytes -= weight(&oldest.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::BODY_MAX;
    use crate::types::{Command, ObjectKey, Op, Put};

    fn entry(index: u64, size: usize) -> Entry {
        let put = Put::spec(ObjectKey::new("Service", "default", "a"), vec![b'x'; size]);
        let payload = EntryPayload::Normal(Command::new("test", 1, Op::put(put)));
        Entry { log_id: LogId::new_term_index(1, index), payload }
    }

    #[test]
    fn large_entries_leave_memory_sooner_but_not_before_they_are_on_the_disk() {
        let mut tail = Tail::default();
        for index in 0..100 {
            tail.push(&entry(index, BODY_MAX));
        }
        tail.evict(49);
        assert_eq!(tail.entries.keys().next(), Some(&50));
        tail.evict(99);
        assert_eq!(tail.entries.len(), BYTES / BODY_MAX - 1);
        tail.truncate(95, Some(LogId::new_term_index(1, 94)));
        tail.push(&entry(95, 10));
        tail.purge(LogId::new_term_index(1, 95));
        assert_eq!((tail.entries.len(), tail.bytes), (0, 0));
        assert_eq!((tail.purged, tail.last), (tail.last, tail.purged));
    }
}
