//! The thread that writes the log.
//!
//! It takes whatever has queued up while the last fsync was under way, writes it in order in one transaction, and
//! answers everybody after that transaction's one fsync. So the log keeps up with any number of writers at the pace of
//! the disk, and nothing is acknowledged that a power cut could take back.

use std::sync::Arc;

use openraft::storage::IOFlushed;
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use crate::fatal::Fatal;
use crate::raft::{Entry, LogId, Types, Vote};

/// How many jobs may wait, and the most that share an fsync.
pub(super) const JOBS: usize = 512;

/// Something to write.
pub(super) enum Job {
    Append(Arc<[Entry]>, IOFlushed<Types>),
    Vote(Vote, Done),
    /// Goes with the next of the others: an older value only means that more is applied again.
    Committed(LogId),
    /// Removes every entry from this index on.
    Truncate(u64, Done),
    /// Removes every entry up to and including this one.
    Purge(LogId, Done),
}

pub(super) type Done = oneshot::Sender<Result<(), Fatal>>;

/// Writes until every sender is gone.
pub(super) fn run(shared: &Shared, mut jobs: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(JOBS);
    let mut committed = None;
    while jobs.blocking_recv_many(&mut batch, JOBS) > 0 {
        serve(shared, &mut batch, &mut committed);
    }
    if let Some(committed) = committed
        && shared.failure.get().is_none()
        && let Err(fatal) = finish(shared, &committed)
    {
        shared.failure.report(fatal);
    }
}

fn finish(shared: &Shared, committed: &LogId) -> Result<(), Fatal> {
    let batch = shared.disk.begin()?;
    batch.set_committed(committed)?;
    batch.commit()
}

/// Writes one batch and answers it. `committed` is what was not written yet for want of something that has to be.
pub(super) fn serve(shared: &Shared, batch: &mut Vec<Job>, committed: &mut Option<LogId>) {
    // After the first failure nothing is written any more: what reached the disk is not known.
    let result = match shared.failure.get() {
        Some(fatal) => Err(fatal),
        None => write(shared, batch, committed).map_err(|fatal| shared.failure.report(fatal)),
    };
    for job in batch.drain(..) {
        match job {
            Job::Append(entries, flushed) => {
                if result.is_ok() {
                    shared.flushed(&entries);
                }
                flushed.io_completed(result.clone().map_err(Into::into));
            }
            Job::Vote(_, done) | Job::Truncate(_, done) | Job::Purge(_, done) => {
                let _ = done.send(result.clone());
            }
            Job::Committed(_) => {}
        }
    }
}

fn write(shared: &Shared, jobs: &[Job], committed: &mut Option<LogId>) -> Result<(), Fatal> {
    for job in jobs {
        if let Job::Committed(latest) = job {
            *committed = Some(*latest);
        }
    }
    if jobs.iter().all(|job| matches!(job, Job::Committed(_))) {
        return Ok(());
    }
    let batch = shared.disk.begin()?;
    for job in jobs {
        match job {
            Job::Append(entries, _) => batch.append(entries.iter())?,
            Job::Vote(vote, _) => batch.set_vote(vote)?,
            Job::Committed(_) => {}
            Job::Truncate(from, _) => batch.remove(*from, u64::MAX)?,
            Job::Purge(through, _) => {
                batch.remove(0, through.index + 1)?;
                batch.set_purged(through)?;
            }
        }
    }
    if let Some(committed) = committed.take() {
        batch.set_committed(&committed)?;
    }
    batch.commit()
}
