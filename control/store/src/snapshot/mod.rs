//! Snapshots on disk.
//!
//! A snapshot is written beside its name, synced, renamed, and the directory synced, so that under its name it is
//! always whole. The last two are kept: if the newest turns out to be damaged, the one before it still serves, provided
//! that the log reaches back to it.

mod files;
#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::codec::{Malformed, Reader, Wire, checksum};
use crate::fatal::Fatal;
use crate::raft::SnapshotMeta;
pub(crate) use files::{Disk, Files, make_dir};

const MAGIC: &[u8; 16] = b"weft snapshot 1\n";
const PREFIX: &str = "snapshot-";
const UNFINISHED: &str = "snapshot.new";
const KEPT: usize = 2;

/// The snapshots in a directory.
#[derive(Debug)]
pub(crate) struct Snapshots {
    directory: PathBuf,
    files: Box<dyn Files>,
    current: Mutex<Option<(SnapshotMeta, PathBuf)>>,
}

impl Snapshots {
    /// Finds the newest snapshot that is whole.
    pub(crate) fn open(directory: &Path, files: impl Files) -> Result<Self, Fatal> {
        let snapshots = Self { directory: directory.into(), files: Box::new(files), current: Mutex::new(None) };
        let mut damage = None;
        for name in snapshots.names()?.iter().rev() {
            let path = snapshots.directory.join(name);
            match snapshots.load(&path) {
                Ok((meta, _)) => {
                    *snapshots.current() = Some((meta, path));
                    break;
                }
                Err(fatal @ Fatal::Corrupt { .. }) => {
                    tracing::error!(%fatal, "trying the snapshot before it");
                    damage.get_or_insert(fatal);
                }
                Err(fatal) => return Err(fatal),
            }
        }
        match damage {
            Some(damage) if snapshots.current().is_none() => Err(damage),
            _ => Ok(snapshots),
        }
    }

    /// What the current snapshot covers.
    pub(crate) fn meta(&self) -> Option<SnapshotMeta> {
        self.current().as_ref().map(|(meta, _)| meta.clone())
    }

    /// The current snapshot.
    pub(crate) fn read(&self) -> Result<Option<(SnapshotMeta, Bytes)>, Fatal> {
        // Under the lock, so that no newer snapshot has it deleted meanwhile.
        let current = self.current();
        current.as_ref().map(|(_, path)| self.load(path)).transpose()
    }

    /// Writes a snapshot and makes it the current one, unless there is one of a later state. Returns once it is safe.
    pub(crate) fn save(&self, meta: &SnapshotMeta, body: &[u8]) -> Result<(), Fatal> {
        let mut current = self.current();
        if current.as_ref().is_some_and(|(newest, _)| newest.last_log_id >= meta.last_log_id) {
            return Ok(());
        }
        let (index, term) = meta.last_log_id.map_or((0, 0), |id| (id.index, id.leader_id.term));
        // Names sort as the states they hold follow each other.
        let path = self.directory.join(format!("{PREFIX}{index:020}-{term:020}"));
        let unfinished = self.directory.join(UNFINISHED);

        let meta_bytes = meta.encode();
        let sum = checksum(&[&meta_bytes, body]).to_le_bytes();
        let file = [&MAGIC[..], &sum, &meta_bytes, body].concat();
        self.files.write(&unfinished, &file).map_err(|error| Fatal::disk("write", &unfinished, error))?;
        self.files.sync(&unfinished).map_err(|error| Fatal::disk("sync", &unfinished, error))?;
        self.files.rename(&unfinished, &path).map_err(|error| Fatal::disk("name", &path, error))?;
        self.files.sync(&self.directory).map_err(|error| Fatal::disk("sync", &self.directory, error))?;
        *current = Some((meta.clone(), path));

        let names = self.names()?;
        for name in names.iter().rev().skip(KEPT) {
            let path = self.directory.join(name);
            self.files.remove(&path).map_err(|error| Fatal::disk("remove", &path, error))?;
        }
        Ok(())
    }

    /// The current snapshot, or one that arrived, is whole but cannot be read.
    pub(crate) fn unreadable(&self, why: Malformed) -> Fatal {
        let path = self.current().as_ref().map_or_else(|| self.directory.clone(), |(_, path)| path.clone());
        Fatal::corrupt(&path, why)
    }

    /// How much room the snapshots take.
    pub(crate) fn size(&self) -> u64 {
        let names = self.names().unwrap_or_default();
        names.iter().map(|name| self.files.size(&self.directory.join(name))).sum()
    }

    fn load(&self, path: &Path) -> Result<(SnapshotMeta, Bytes), Fatal> {
        let file = self.files.read(path).map_err(|error| Fatal::disk("read", path, error))?;
        let file = Bytes::from(file);
        let Some(rest) = file.strip_prefix(MAGIC) else {
            return Err(Fatal::corrupt(path, "it is not a snapshot of a version that this build reads"));
        };
        let wrong = || Fatal::corrupt(path, "it is not what was written");
        let (sum, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong)?;
        if u64::from_le_bytes(*sum) != checksum(&[rest]) {
            return Err(wrong());
        }
        let mut reader = Reader::new(rest);
        let meta = SnapshotMeta::read_from(&mut reader).map_err(|_| wrong())?;
        Ok((meta, file.slice(file.len() - reader.left()..)))
    }

    /// The snapshots' names, oldest first.
    fn names(&self) -> Result<Vec<String>, Fatal> {
        let all = self.files.list(&self.directory).map_err(|error| Fatal::disk("list", &self.directory, error))?;
        let mut names: Vec<_> = all.into_iter().filter(|name| name.starts_with(PREFIX)).collect();
        names.sort();
        Ok(names)
    }

    fn current(&self) -> MutexGuard<'_, Option<(SnapshotMeta, PathBuf)>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
