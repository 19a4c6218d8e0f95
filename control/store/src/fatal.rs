//! What a member cannot go on from.
//!
//! After a failed write or fsync nobody knows what the disk holds, and what is corrupt must not be served. So there is
//! no recovery here: the first [`Fatal`] stops the member, and the binary says it in its last line and exits.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

/// Why the member stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fatal {
    /// A file does not hold what was written to it.
    #[error("{} is corrupt: {what}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk failed, or is full.
    #[error("cannot {doing} {}: {source}", path.display())]
    Disk {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// The data directory does not fit the member.
    #[error("{}: {what}", path.display())]
    Mismatch {
        /// Which file says so.
        path: PathBuf,
        /// What it says.
        what: String,
    },
    /// Raft itself stopped.
    #[error("raft stopped: {0}")]
    Raft(String),
}

impl Fatal {
    pub(crate) fn corrupt(path: &Path, what: impl fmt::Display) -> Self {
        Self::Corrupt { path: path.into(), what: what.to_string() }
    }

    pub(crate) fn disk(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Disk { doing, path: path.into(), source: Arc::new(source) }
    }
}

impl From<Fatal> for io::Error {
    fn from(fatal: Fatal) -> Self {
        io::Error::other(fatal)
    }
}

/// The first fatal error of a member, for everybody who has to stop because of it.
#[derive(Debug, Clone)]
pub(crate) struct Failure(watch::Sender<Option<Fatal>>);

impl Default for Failure {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Failure {
    /// Reports it, unless another came first, and hands it back.
    pub(crate) fn report(&self, fatal: Fatal) -> Fatal {
        tracing::error!(%fatal, "the store stops");
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(fatal.clone());
            }
            is_first
        });
        fatal
    }

    /// The first one, if there was one.
    pub(crate) fn get(&self) -> Option<Fatal> {
        self.0.borrow().clone()
    }

    /// Waits for the first one.
    pub(crate) async fn wait(&self) -> Fatal {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(fatal) = receiver.borrow_and_update().clone() {
                return fatal;
            }
            // We hold a sender: it cannot close.
            let _ = receiver.changed().await;
        }
    }
}
