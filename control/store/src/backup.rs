//! A copy of everything that is kept, in one file, and a new cluster from it.
//!
//! A cluster that is restored must never say again what the old one said. It goes on [`ABOVE`] the backup's revision,
//! which is more than the old one can have reached since; every object is of that revision, so that whoever knew a
//! version takes the restored one; history begins there; and leases that are granted from now on are of generations that
//! no agent has seen.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::codec::{Malformed, Reader, Wire, checksum};
use crate::fatal::{Failure, Fatal};
use crate::log::Log;
use crate::machine::Machine;
use crate::node::Identity;
use crate::raft::{LogId, Member, Membership, SnapshotMeta, StoredMembership};
use crate::snapshot::{Disk, Snapshots, make_dir};
use crate::types::Revision;

const MAGIC: &[u8; 16] = b"weft backup v1 \n";

/// By how much a restored revision is above the backup's: ten thousand writes a second for three years. JSON's numbers
/// have room for thousands of restorations.
pub const ABOVE: u64 = 1 << 40;

/// Why nothing is restored.
#[derive(Debug, thiserror::Error)]
pub enum NotRestored {
    /// The file is not a backup, or not any more.
    #[error("it is not what was written: {0}")]
    Damaged(&'static str),
    /// Nothing is overwritten.
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] Fatal),
}

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The revision it is of.
    pub revision: Revision,
    /// How many objects there are, with the control plane's own.
    pub objects: usize,
    /// How many leases there are.
    pub leases: usize,
    machine: Machine,
}

/// Everything that is kept, as a file.
pub fn write(machine: &Machine) -> Bytes {
    let body = machine.encode();
    [&MAGIC[..], &checksum(&[&body]).to_le_bytes(), &body].concat().into()
}

/// What is in the file.
///
/// # Errors
/// When it is damaged, or of a version that this build does not read.
pub fn read(file: &[u8]) -> Result<Contents, NotRestored> {
    let rest = file.strip_prefix(MAGIC).ok_or(NotRestored::Damaged("it does not begin as a backup does"))?;
    let (sum, body) = rest.split_first_chunk::<8>().ok_or(NotRestored::Damaged("it ends early"))?;
    if u64::from_le_bytes(*sum) != checksum(&[body]) {
        return Err(NotRestored::Damaged("its checksum is another"));
    }
    let mut reader = Reader::new(body);
    let machine = Machine::read_from(&mut reader).map_err(|Malformed(what)| NotRestored::Damaged(what))?;
    if reader.left() > 0 {
        return Err(NotRestored::Damaged("bytes are left over"));
    }
    let (revision, objects, leases) = (machine.revision(), machine.len(), machine.leases().len());
    Ok(Contents { revision, objects, leases, machine })
}

/// Makes the data directory of a member that is a cluster by itself, and keeps what the backup kept. Returns the revision
/// at which it goes on. The others join it as new members.
///
/// # Errors
/// When there is something in the directory already, or the disk fails.
pub async fn restore(contents: Contents, dir: &Path, name: &str, address: &str) -> Result<Revision, NotRestored> {
    let disk = |doing, error| Fatal::disk(doing, dir, error);
    make_dir(dir).map_err(|error| disk("make", error))?;
    if std::fs::read_dir(dir).map_err(|error| disk("list", error))?.next().is_some() {
        return Err(NotRestored::NotEmpty(dir.display().to_string()));
    }
    let machine = contents.machine.restored(ABOVE);
    let revision = machine.revision();
    let log = Log::open(&dir.join("log.redb"), Failure::default())?;
    log.closed().await;
    let identity = Identity::drawn(None);
    let member = Member { name: name.into(), address: address.into(), incarnation: identity.incarnation };
    let membership = Membership::new(vec![[identity.id].into()], BTreeMap::from([(identity.id, member)]));
    let membership = membership.map_err(|_| NotRestored::Damaged("a member by itself is no cluster"))?;
    let first = Some(LogId::new_term_index(0, 1));
    let meta = SnapshotMeta { last_log_id: first, last_membership: StoredMembership::new(first, membership) };
    Snapshots::open(dir, Disk)?.save(&meta, &machine.encode())?;
    // Last: without it, what is there is nobody's, and no member starts on it.
    identity.save(&dir.join("member"))?;
    Ok(revision)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Compacted, Filter, Position};
    use crate::node::{Consistency, Options, Store};
    use crate::types::{Command, LeaseId, ObjectKey, Op, Put};
    use crate::{Memory, watch::WatchEnd};

    fn kept() -> Machine {
        let mut machine = Machine::default();
        let mut run = |op| machine.apply(Position { term: 1, index: 1 }, &Command::new("test", 7, op));
        run(Op::Grant { lease: LeaseId::new("n"), ttl_ms: 60_000 });
        for body in ["1", "2"] {
            run(Op::put(Put::spec(ObjectKey::new("Service", "default", "a"), body)));
        }
        run(Op::put(Put::spec(ObjectKey::new("Endpoint", "default", "a/1:1"), "{}").attached(LeaseId::new("n"))));
        machine
    }

    #[tokio::test]
    async fn a_restored_cluster_goes_on_above_what_was() {
        let machine = kept();
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("restored");
        let contents = read(&write(&machine)).unwrap();
        assert_eq!((contents.revision, contents.objects, contents.leases), (Revision(3), 2, 1));
        let revision = restore(contents.clone(), &into, "a", "a:1").await.unwrap();
        assert_eq!(revision, Revision(3 + ABOVE));
        let again = restore(contents, &into, "a", "a:1").await.unwrap_err();
        assert!(matches!(again, NotRestored::NotEmpty(_)), "{again}");

        let network = Memory::default();
        let open = async || Store::open(Options::new("a", "a:1", &into), network.port("a:1")).await.unwrap();
        let store = open().await;
        assert!(store.is_member().await.unwrap() && !store.bootstrap().await.unwrap());
        let leads = async |store: &Store| {
            while store.read(Consistency::Linearizable, |_| ()).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), leads(&store)).await.unwrap();
        let look = |machine: &Machine| (machine.revision(), machine.list(&Filter::default()), machine.leases().clone());
        let (at, objects, leases) = store.read(Consistency::Linearizable, look).await.unwrap();
        assert_eq!(at, revision);
        assert!(objects.iter().all(|object| object.modified == revision), "{objects:?}");
        assert_eq!(objects[1].spec, "2");
        let lease = &leases[&LeaseId::new("n")];
        assert_eq!((lease.generation, lease.keys.len()), (1, 1));
        // The agent of the lease that was granted after the backup asks with a generation that this store never gave.
        let lost = loop {
            match store.keep_alive(&LeaseId::new("n"), 2) {
                Err(crate::Error::NotLeader { .. }) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                lost => break lost,
            }
        };
        assert!(matches!(lost, Err(crate::Error::Lost(crate::lease::Lost::Gone))), "{lost:?}");

        let end = store.watch(Revision(2), Filter::default()).next().await.unwrap_err();
        assert_eq!(end, WatchEnd::Compacted(Compacted { at: revision }));
        let written =
            store.write(Command::new("test", 8, Op::put(Put::spec(ObjectKey::new("Service", "default", "b"), "1"))));
        assert_eq!(written.await.unwrap().revision(), Some(revision.next()));
        let granted =
            store.write(Command::new("test", 8, Op::Grant { lease: LeaseId::new("m"), ttl_ms: 60_000 })).await;
        assert_eq!(granted.unwrap(), crate::types::Outcome::Granted { generation: 2 + ABOVE });
        store.shutdown().await;
        // And it survives a restart.
        let store = open().await;
        tokio::time::timeout(std::time::Duration::from_secs(20), leads(&store)).await.unwrap();
        assert_eq!(store.status().revision, revision.next());
        store.shutdown().await;
    }

    #[test]
    fn a_damaged_backup_is_refused_wherever_it_is_damaged() {
        let file = write(&kept());
        for at in 0..file.len() {
            let mut damaged = file.to_vec();
            damaged[at] ^= 1;
            assert!(read(&damaged).is_err(), "byte {at}");
            assert!(read(&file[..at]).is_err(), "cut at {at}");
        }
        assert!(read(&[&file[..], b"x"].concat()).is_err());
        assert!(read(&file).is_ok());
    }
}
