//! Hands committed entries to the state machine, and its state to snapshots and back.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EntryPayload, OptionalSend};

use crate::codec::Wire;
use crate::fatal::{Failure, Fatal};
use crate::machine::{Machine, Position};
use crate::raft::{LogId, SnapshotMeta, StoredMembership, Types};
use crate::snapshot::Snapshots;
use crate::state::State;
use crate::types::Outcome;

/// The state machine as openraft drives it.
pub(crate) struct Applier {
    state: Arc<State>,
    snapshots: Arc<Snapshots>,
    failure: Failure,
    applied: Option<LogId>,
    membership: StoredMembership,
}

/// A state to be written down, while the next entries are applied.
pub(crate) struct Builder {
    machine: Machine,
    meta: SnapshotMeta,
    snapshots: Arc<Snapshots>,
    failure: Failure,
}

impl Applier {
    pub(crate) fn new(state: Arc<State>, snapshots: Arc<Snapshots>, failure: Failure) -> Self {
        Self { state, snapshots, failure, applied: None, membership: StoredMembership::default() }
    }
}

impl RaftStateMachine<Types> for Applier {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let outcome = match &entry.payload {
                EntryPayload::Blank => Outcome::Blank,
                EntryPayload::Normal(command) => {
                    let position = Position { term: entry.log_id.leader_id.term, index: entry.log_id.index };
                    self.state.apply(position, command)
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                    Outcome::Blank
                }
            };
            self.applied = Some(entry.log_id);
            // Before the answer: who is told of a revision finds it.
            self.state.announce();
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            machine: self.state.read().clone(),
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() },
            snapshots: self.snapshots.clone(),
            failure: self.failure.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, body: Bytes) -> Result<(), io::Error> {
        let (snapshots, covers) = (self.snapshots.clone(), meta.clone());
        let install = move || {
            // First, so that what cannot be read is never kept.
            let machine = Machine::decode(&body).map_err(|why| snapshots.unreadable(why))?;
            snapshots.save(&covers, &body).map(|()| machine)
        };
        let machine = tokio::task::spawn_blocking(install).await.map_err(io::Error::other)?;
        let machine = machine.map_err(|fatal| self.failure.report(fatal))?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state.replace(machine);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, Bytes>>, io::Error> {
        let snapshots = self.snapshots.clone();
        let read = tokio::task::spawn_blocking(move || snapshots.read()).await.map_err(io::Error::other)?;
        let found = read.map_err(|fatal| self.failure.report(fatal))?;
        Ok(found.map(|(meta, snapshot)| SnapshotOf::<Types, Bytes> { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, Bytes>, io::Error> {
        let (machine, meta, snapshots) = (std::mem::take(&mut self.machine), self.meta.clone(), self.snapshots.clone());
        let build = move || {
            let body = Bytes::from(machine.encode());
            snapshots.save(&meta, &body)?;
            Ok(SnapshotOf::<Types, Bytes> { meta, snapshot: body })
        };
        let built = tokio::task::spawn_blocking(build).await.map_err(io::Error::other)?;
        built.map_err(|fatal: Fatal| self.failure.report(fatal).into())
    }
}

#[cfg(test)]
mod tests {
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;
    use crate::log::Log;
    use crate::snapshot::Disk;

    struct Fresh;

    impl StoreBuilder<Types, Log, Applier, TempDir> for Fresh {
        async fn build(&self) -> Result<(TempDir, Log, Applier), openraft::StorageError<Types>> {
            let dir = TempDir::new().unwrap();
            let log = Log::open(&dir.path().join("log.redb"), Failure::default()).unwrap();
            let snapshots = Arc::new(Snapshots::open(dir.path(), Disk).unwrap());
            Ok((dir, log, Applier::new(Arc::default(), snapshots, Failure::default())))
        }
    }

    /// Openraft's own suite for whoever stores its log and state.
    #[tokio::test(flavor = "multi_thread")]
    async fn openraft_accepts_the_storage() {
        Suite::test_all(Fresh).await.unwrap();
    }
}
