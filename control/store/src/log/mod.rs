//! The Raft log on disk.
//!
//! ```text
//! openraft ─ append, vote, purge … ─▶ mod.rs ─ jobs ─▶ writer.rs ─ one transaction, one fsync ─▶ disk.rs ─▶ redb
//!          ◀──── read ─────────────── tail (memory) ◀────────────────────────────── older entries ┘
//! ```
//!
//! An entry can be read as soon as it is appended, from the tail in memory; it is acknowledged when it is on the disk.

mod disk;
mod tail;
#[cfg(test)]
pub(crate) mod tests;
mod writer;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, RaftTypeConfig};
use tokio::sync::{mpsc, oneshot, watch};

use crate::fatal::{Failure, Fatal};
use crate::raft::{Entry, LogId, Types, Vote};
use disk::{Disk, Found};
use tail::{Tail, weight};
use writer::{Done, JOBS, Job};

/// How many bytes of entries go into one message, unless it is one entry.
const MESSAGE: usize = 2 << 20;
/// How long to wait for raft's tasks to let go of the log.
const CLOSING: Duration = Duration::from_secs(5);

/// The log. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

struct Shared {
    disk: Disk,
    tail: Mutex<Tail>,
    failure: Failure,
    /// Dropped last, once the file is closed.
    open: watch::Sender<()>,
}

impl Log {
    /// Opens the log and verifies it, or makes an empty one.
    pub(crate) fn open(path: &Path, failure: Failure) -> Result<Self, Fatal> {
        let (disk, found) = Disk::open(path)?;
        Self::start(disk, found, failure)
    }

    fn start(disk: Disk, found: Found, failure: Failure) -> Result<Self, Fatal> {
        let (log, queue) = Self::new(disk, found, failure);
        let writer = log.shared.clone();
        std::thread::Builder::new()
            .name("weft-log".into())
            .spawn(move || writer::run(&writer, queue))
            .map_err(|error| Fatal::disk("start the writer of", &log.shared.disk.path, error))?;
        Ok(log)
    }

    fn new(disk: Disk, found: Found, failure: Failure) -> (Self, mpsc::Receiver<Job>) {
        let Found { vote, committed, purged, last } = found;
        let tail = Mutex::new(Tail { vote, committed, purged, last, ..Tail::default() });
        let shared = Arc::new(Shared { disk, tail, failure, open: watch::Sender::new(()) });
        let (jobs, queue) = mpsc::channel(JOBS);
        (Self { shared, jobs }, queue)
    }

    /// How large the file is.
    pub(crate) fn size(&self) -> u64 {
        std::fs::metadata(&self.shared.disk.path).map_or(0, |meta| meta.len())
    }

    /// The last entry that was purged.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.shared.tail().purged
    }

    /// Is there nothing in it?
    pub(crate) fn is_empty(&self) -> bool {
        let tail = self.shared.tail();
        (tail.vote, tail.committed, tail.purged, tail.last) == (None, None, None, None)
    }

    /// Waits until nobody has the file open any more. This must be the last handle that is kept.
    pub(crate) async fn closed(self) {
        let mut open = self.shared.open.subscribe();
        drop(self);
        if tokio::time::timeout(CLOSING, open.changed()).await.is_err() {
            tracing::warn!("raft still uses the log");
        }
    }

    async fn submit(&self, job: Job) -> Result<(), io::Error> {
        self.jobs.send(job).await.map_err(|_| io::Error::other("the log's writer has stopped"))
    }

    async fn wait(&self, job: impl FnOnce(Done) -> Job) -> Result<(), io::Error> {
        let (done, result) = oneshot::channel();
        self.submit(job(done)).await?;
        let result = result.await.map_err(|_| io::Error::other("the log's writer has stopped"))?;
        result.map_err(Into::into)
    }
}

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These entries are on the disk: as many of the oldest may leave memory.
    fn flushed(&self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        self.tail().evict(last.log_id.index);
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        if start >= end {
            return Ok(Vec::new());
        }
        let (recent, older) = {
            let tail = self.shared.tail();
            let recent: Vec<Entry> = tail.entries.range(start..end).map(|(_, entry)| entry.clone()).collect();
            let first = tail.entries.keys().next().copied().unwrap_or(u64::MAX);
            let begin = start.max(tail.purged.map_or(0, |purged| purged.index + 1));
            let stop = end.min(first).min(tail.last.map_or(0, |last| last.index + 1));
            (recent, (begin < stop).then_some(begin..stop))
        };
        let Some(older) = older else { return Ok(recent) };
        let (shared, stop) = (self.shared.clone(), older.end);
        let read = move || shared.disk.read(older.start, older.end).map_err(|fatal| shared.failure.report(fatal));
        let mut entries = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        // Purging takes from the front, which is fine; truncation from the back, where it would leave a hole.
        if !recent.is_empty() && entries.last().is_some_and(|last| last.log_id.index + 1 != stop) {
            return Err(io::Error::other("the log was truncated while it was read"));
        }
        entries.extend(recent);
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut size = 0;
        let fits = entries.iter().take_while(|entry| {
            size += weight(entry);
            size <= MESSAGE
        });
        let fits = fits.count().max(1);
        entries.truncate(fits);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.tail().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let tail = self.shared.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.wait(|done| Job::Vote(*vote, done)).await?;
        self.shared.tail().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.shared.tail().committed = Some(committed);
        self.submit(Job::Committed(committed)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = <Types as RaftTypeConfig>::Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Arc<[Entry]> = entries.into_iter().collect();
        {
            let mut tail = self.shared.tail();
            entries.iter().for_each(|entry| tail.push(entry));
        }
        self.submit(Job::Append(entries, callback)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |last| last.index + 1);
        self.shared.tail().truncate(from, last);
        self.wait(|done| Job::Truncate(from, done)).await
    }

    async fn purge(&mut self, through: LogId) -> Result<(), io::Error> {
        self.shared.tail().purge(through);
        self.wait(|done| Job::Purge(through, done)).await
    }
}
