//! The log's file: a redb database with two tables, and a checksum of ours on everything in them.
//!
//! redb checks its pages when it opens after a crash; our checksums say of each entry that it is the one that was
//! appended at this index, whatever path it took. All of it is verified at every start: the log is short, since
//! snapshots purge it.

use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, TableError, WriteTransaction,
};

use crate::codec::{Wire, checksum};
use crate::fatal::Fatal;
use crate::raft::{Entry, LogId, Vote};

const ENTRIES: TableDefinition<u64, &[u8]> = TableDefinition::new("entries");
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

/// What the file says of itself: whose it is and in which version.
const FORMAT: &[u8] = b"weft log 1";

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// The open file.
pub(super) struct Disk {
    db: Database,
    pub(super) path: PathBuf,
}

/// What was found in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    pub(super) last: Option<LogId>,
}

/// Changes that reach the disk together or not at all.
pub(super) struct Batch<'a> {
    disk: &'a Disk,
    transaction: WriteTransaction,
}

impl Disk {
    /// Opens the log, or makes an empty one.
    ///
    /// redb does not survive a power cut while it makes a file, so a new one gets its name when it is complete.
    pub(super) fn open(path: &Path) -> Result<(Self, Found), Fatal> {
        if !path.exists() {
            let new = path.with_added_extension("new");
            drop(Self::open_with(&new, Self::file(&new, true)?)?);
            let directory = path.parent().unwrap_or(Path::new("."));
            std::fs::rename(&new, path)
                .and_then(|()| std::fs::File::open(directory)?.sync_all())
                .map_err(|error| Fatal::disk("create", path, error))?;
        }
        Self::open_with(path, Self::file(path, false)?)
    }

    fn file(path: &Path, empty: bool) -> Result<FileBackend, Fatal> {
        let mut options = std::fs::OpenOptions::new();
        let file = options.read(true).write(true).create(empty).truncate(empty).mode(0o600).open(path);
        let file = file.map_err(|error| Fatal::disk("open", path, error))?;
        // redb would make a new log of it, and this member would forget what it has promised.
        if !empty && file.metadata().is_ok_and(|meta| meta.len() == 0) {
            return Err(Fatal::corrupt(path, "it is empty"));
        }
        FileBackend::new(file).map_err(|error| Fatal::corrupt(path, error))
    }

    /// Opens what `backend` holds, makes it when it is empty, and verifies all of it.
    pub(super) fn open_with(path: &Path, backend: impl StorageBackend) -> Result<(Self, Found), Fatal> {
        // redb returns an error for most damage, but not for all: some it meets in the middle of a lookup.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let db = Builder::new()
                .set_check_integrity_on_open(true)
                .create_with_backend(backend)
                .map_err(|error| unopened(path, error))?;
            let disk = Self { db, path: path.into() };
            let found = disk.verify()?;
            Ok((disk, found))
        }));
        opened.unwrap_or_else(|_| Err(Fatal::corrupt(path, "its pages are not what redb wrote")))
    }

    fn verify(&self) -> Result<Found, Fatal> {
        let read = self.db.begin_read().map_err(|error| self.corrupt(error))?;
        let meta = match read.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) => return self.format(),
            Err(error) => return Err(self.corrupt(error)),
        };
        let format = meta.get("format").map_err(|error| self.corrupt(error))?;
        if format.as_ref().map(|format| format.value()) != Some(FORMAT) {
            return Err(self.corrupt("it is not a log of a version that this build reads"));
        }
        let purged: Option<LogId> = self.get(&meta, PURGED)?;
        let entries = read.open_table(ENTRIES).map_err(|error| self.corrupt(error))?;
        let mut last = purged;
        for row in entries.iter().map_err(|error| self.corrupt(error))? {
            let (index, bytes) = row.map_err(|error| self.corrupt(error))?;
            let entry = self.decode(index.value(), bytes.value())?;
            let expected = last.map_or(0, |last| last.index + 1);
            if index.value() != expected {
                return Err(self.corrupt(format!("entry {expected} is missing before {}", index.value())));
            }
            last = Some(entry.log_id);
        }
        Ok(Found { vote: self.get(&meta, VOTE)?, committed: self.get(&meta, COMMITTED)?, purged, last })
    }

    /// Makes the tables of a new file.
    fn format(&self) -> Result<Found, Fatal> {
        let batch = self.begin()?;
        batch.transaction.open_table(ENTRIES).map_err(|error| self.failed(error))?;
        let mut meta = batch.transaction.open_table(META).map_err(|error| self.failed(error))?;
        meta.insert("format", FORMAT).map_err(|error| self.failed(error))?;
        drop(meta);
        batch.commit()?;
        Ok(Found::default())
    }

    /// The entries from `start` on and before `end`, as far as there are any.
    pub(super) fn read(&self, start: u64, end: u64) -> Result<Vec<Entry>, Fatal> {
        let read = self.db.begin_read().map_err(|error| self.failed(error))?;
        let entries = read.open_table(ENTRIES).map_err(|error| self.failed(error))?;
        let rows = entries.range(start..end).map_err(|error| self.failed(error))?;
        rows.map(|row| {
            let (index, bytes) = row.map_err(|error| self.failed(error))?;
            self.decode(index.value(), bytes.value())
        })
        .collect()
    }

    pub(super) fn begin(&self) -> Result<Batch<'_>, Fatal> {
        let transaction = self.db.begin_write().map_err(|error| self.failed(error))?;
        Ok(Batch { disk: self, transaction })
    }

    fn decode(&self, index: u64, bytes: &[u8]) -> Result<Entry, Fatal> {
        let wrong = || self.corrupt(format!("entry {index} is not what was written"));
        let (sum, body) = bytes.split_first_chunk::<8>().ok_or_else(wrong)?;
        if u64::from_le_bytes(*sum) != checksum(&[&index.to_le_bytes(), body]) {
            return Err(wrong());
        }
        let entry = Entry::decode(body).map_err(|_| wrong())?;
        if entry.log_id.index == index { Ok(entry) } else { Err(wrong()) }
    }

    fn get<T: Wire>(
        &self,
        meta: &impl ReadableTable<&'static str, &'static [u8]>,
        name: &str,
    ) -> Result<Option<T>, Fatal> {
        let wrong = || self.corrupt(format!("its {name} is not what was written"));
        let Some(row) = meta.get(name).map_err(|error| self.corrupt(error))? else { return Ok(None) };
        let (sum, body) = row.value().split_first_chunk::<8>().ok_or_else(wrong)?;
        if u64::from_le_bytes(*sum) != checksum(&[name.as_bytes(), body]) {
            return Err(wrong());
        }
        T::decode(body).map(Some).map_err(|_| wrong())
    }

    fn corrupt(&self, what: impl std::fmt::Display) -> Fatal {
        Fatal::corrupt(&self.path, what)
    }

    /// An error of redb while it is in use: of the disk, if redb says so, or else damage.
    fn failed(&self, error: impl Into<redb::Error>) -> Fatal {
        match error.into() {
            redb::Error::Io(error) => Fatal::disk("use", &self.path, error),
            error => self.corrupt(error),
        }
    }
}

fn unopened(path: &Path, error: DatabaseError) -> Fatal {
    let damage = [ErrorKind::InvalidData, ErrorKind::UnexpectedEof];
    match error {
        DatabaseError::Storage(StorageError::Io(error)) if !damage.contains(&error.kind()) => {
            Fatal::disk("open", path, error)
        }
        DatabaseError::DatabaseAlreadyOpen => {
            Fatal::Mismatch { path: path.into(), what: "another process uses it".into() }
        }
        error => Fatal::corrupt(path, error),
    }
}

impl Batch<'_> {
    pub(super) fn append<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>) -> Result<(), Fatal> {
        let mut table = self.transaction.open_table(ENTRIES).map_err(|error| self.disk.failed(error))?;
        let mut row = Vec::new();
        for entry in entries {
            let index = entry.log_id.index;
            row.clear();
            row.extend_from_slice(&[0; 8]);
            entry.write_to(&mut row);
            let sum = checksum(&[&index.to_le_bytes(), &row[8..]]);
            row[..8].copy_from_slice(&sum.to_le_bytes());
            table.insert(index, &row[..]).map_err(|error| self.disk.failed(error))?;
        }
        Ok(())
    }

    /// Removes the entries from `start` on and before `end`.
    pub(super) fn remove(&self, start: u64, end: u64) -> Result<(), Fatal> {
        let mut table = self.transaction.open_table(ENTRIES).map_err(|error| self.disk.failed(error))?;
        table.retain_in(start..end, |_, _| false).map_err(|error| self.disk.failed(error))
    }

    pub(super) fn set_vote(&self, vote: &Vote) -> Result<(), Fatal> {
        self.set(VOTE, vote)
    }

    pub(super) fn set_committed(&self, committed: &LogId) -> Result<(), Fatal> {
        self.set(COMMITTED, committed)
    }

    pub(super) fn set_purged(&self, purged: &LogId) -> Result<(), Fatal> {
        self.set(PURGED, purged)
    }

    fn set(&self, name: &'static str, value: &impl Wire) -> Result<(), Fatal> {
        let body = value.encode();
        let mut row = checksum(&[name.as_bytes(), &body]).to_le_bytes().to_vec();
        row.extend_from_slice(&body);
        let mut table = self.transaction.open_table(META).map_err(|error| self.disk.failed(error))?;
        table.insert(name, &row[..]).map_err(|error| self.disk.failed(error))?;
        Ok(())
    }

    /// Returns once everything is on the disk: one fsync.
    pub(super) fn commit(mut self) -> Result<(), Fatal> {
        self.transaction.set_durability(Durability::Immediate).map_err(|error| self.disk.corrupt(error))?;
        self.transaction.commit().map_err(|error| self.disk.failed(error))
    }
}

/// Damages what a batch is about to write, as no honest writer would.
#[cfg(test)]
pub(super) fn damage(batch: &Batch<'_>, how: &str) {
    let mut entries = batch.transaction.open_table(ENTRIES).unwrap();
    let mut meta = batch.transaction.open_table(META).unwrap();
    match how {
        "swap" => {
            let other = entries.get(2).unwrap().unwrap().value().to_vec();
            entries.insert(1, &other[..]).unwrap();
        }
        "gap" => drop(entries.remove(1).unwrap()),
        "vote" => drop(meta.insert(VOTE, &[0; 12][..]).unwrap()),
        _ => drop(meta.insert("format", &b"weft log 2"[..]).unwrap()),
    }
}
