//! What a member does for its users.

use std::collections::HashMap;
use std::time::Duration;

use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{Instant as _, ReadPolicy};
use tokio::time::{Instant, timeout};

use super::Store;
use crate::fatal::Fatal;
use crate::lease::Lost;
use crate::machine::{Filter, Machine};
use crate::raft::{Member, Types};
use crate::types::{Command, LeaseId, Outcome, Revision};
use crate::watch::Watcher;

/// How far a client's clock may be ahead of ours, in milliseconds.
const SKEW_MS: u64 = 60_000;

/// How fresh a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was answered before the read was asked for. The leader asks a quorum whether it still
    /// leads; any other member asks the leader.
    Linearizable,
    /// Whatever this member has: consistent in itself, of some moment in the past, and after a restart perhaps of an
    /// earlier moment than before.
    Serializable,
    /// Waits until this member has this revision.
    AtLeast(Revision),
}

/// Why something was not done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Another member has to be asked. Nothing was done.
    #[error("not the leader")]
    NotLeader {
        /// Which, if it is known.
        leader: Option<(u64, Member)>,
    },
    /// It may have been done, or may yet be. Ask again with the same request id.
    #[error("the outcome is not known")]
    Unknown,
    /// There is no quorum, or not in time. Nothing was done.
    #[error("no quorum answered in time")]
    Unavailable,
    /// This member is not that far yet.
    #[error("only at revision {at}")]
    Behind {
        /// How far it is.
        at: Revision,
    },
    /// The lease is not this agent's any more.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The client's clock is ahead of this member's. Nothing was done: it would be remembered long after it is gone.
    #[error("the request was issued in the future, by this member's clock")]
    ClockAhead,
    /// The membership cannot be changed like this.
    #[error("{0}")]
    Membership(String),
    /// This member has stopped.
    #[error(transparent)]
    Stopped(#[from] Fatal),
}

impl Store {
    /// Writes, and returns what became of it once it is committed and applied here.
    pub async fn write(&self, command: Command) -> Result<Outcome, Error> {
        self.check()?;
        let latest = (self.0.options.clock)().saturating_add(SKEW_MS);
        if command.request.is_some_and(|request| request.issued > latest) {
            return Err(Error::ClockAhead);
        }
        match timeout(self.0.options.timeout, self.0.raft.client_write(command)).await {
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(error)) => Err(self.write_error(error)),
            Err(_) => Err(Error::Unknown),
        }
    }

    /// Looks at the state. What `look` returns is one moment's; it should be quick, since writes wait for it.
    pub async fn read<T>(&self, consistency: Consistency, look: impl FnOnce(&Machine) -> T) -> Result<T, Error> {
        match consistency {
            Consistency::Serializable => {}
            Consistency::Linearizable => self.confirm().await?,
            Consistency::AtLeast(revision) => self.reach(revision).await?,
        }
        Ok(look(&self.0.state.read()))
    }

    /// Follows every change after `after` that matches.
    pub fn watch(&self, after: Revision, filter: Filter) -> Watcher {
        Watcher::new(self.0.state.clone(), after, filter)
    }

    /// An agent reports that it is alive. Returns until when it has to report again.
    pub fn keep_alive(&self, lease: &LeaseId, generation: u64) -> Result<Duration, Error> {
        // A leader that has lost the others may have been replaced: what it promises would bind nobody.
        if !self.hears_quorum() {
            return Err(self.not_leader());
        }
        let mut leases = self.leases();
        if !leases.leads() {
            drop(leases);
            return Err(self.not_leader());
        }
        // It may have been granted since the keeper last looked.
        let now = Instant::now().into_std();
        leases.sync_one(now, lease, self.0.state.read().lease(lease));
        Ok(leases.keep_alive(now, lease, generation)?)
    }

    /// How long each of these leases lives without another keep-alive. Only the leader knows.
    pub fn lease_left<'l>(&self, leases: impl IntoIterator<Item = &'l LeaseId>) -> HashMap<LeaseId, Duration> {
        let (mut kept, now) = (self.leases(), Instant::now().into_std());
        if !kept.leads() {
            return HashMap::new();
        }
        let machine = self.0.state.read();
        let left = leases.into_iter().filter_map(|lease| {
            // It may have been granted since the keeper last looked.
            kept.sync_one(now, lease, machine.lease(lease));
            Some((lease.clone(), kept.left(now, lease)?))
        });
        left.collect()
    }

    /// ReadIndex: asks a quorum whether we still lead, and waits until what was committed is applied.
    async fn confirm(&self) -> Result<(), Error> {
        self.check()?;
        match timeout(self.0.options.timeout, self.0.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                match forward.leader_id.zip(forward.leader_node.as_ref()) {
                    Some((leader, member)) if leader != self.0.id => self.follow(leader, member).await,
                    _ => Err(forward.into()),
                }
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => Err(Error::Unavailable),
            Ok(Err(RaftError::Fatal(fatal))) => Err(self.stopped(fatal)),
        }
    }

    /// As [`Self::confirm`], through the leader.
    async fn follow(&self, leader: u64, member: &Member) -> Result<(), Error> {
        let within = self.0.options.timeout;
        let index = self.0.peers.peer(leader, member).read_index(within).await.ok_or(Error::Unavailable)?;
        let applied = self.0.raft.wait(Some(within)).applied_index_at_least(Some(index), "a read").await;
        applied.map(drop).map_err(|_| Error::Unavailable)
    }

    async fn reach(&self, revision: Revision) -> Result<(), Error> {
        let mut signal = self.0.state.subscribe();
        let reached = signal.wait_for(|signal| signal.revision >= revision || signal.closed);
        match timeout(self.0.options.timeout, reached).await {
            Ok(Ok(signal)) if signal.revision >= revision => Ok(()),
            _ => Err(Error::Behind { at: self.0.state.read().revision() }),
        }
    }

    /// Has a quorum answered us, as leader, for less time ago than it takes to elect another?
    pub(super) fn hears_quorum(&self) -> bool {
        let metrics = self.metrics();
        let alone = metrics.membership_config.voter_ids().eq([self.0.id]);
        metrics.state.is_leader()
            && (alone || metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < self.0.options.election.0))
    }

    pub(super) fn not_leader(&self) -> Error {
        let metrics = self.metrics();
        let leader = metrics.current_leader.filter(|leader| *leader != self.0.id).and_then(|leader| {
            let member = metrics.membership_config.membership().get_node(&leader)?;
            Some((leader, member.clone()))
        });
        Error::NotLeader { leader }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        self.0.failure.get().map_or(Ok(()), |fatal| Err(fatal.into()))
    }

    pub(super) fn stopped(&self, fatal: openraft::errors::Fatal<Types>) -> Error {
        Error::Stopped(self.0.failure.get().unwrap_or_else(|| Fatal::Raft(fatal.to_string())))
    }

    pub(super) fn write_error(&self, error: RaftError<Types, ClientWriteError<Types>>) -> Error {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => forward.into(),
            RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => Error::Unknown,
            RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => Error::Membership(error.to_string()),
            RaftError::APIError(ClientWriteError::PreconditionFailed(error)) => Error::Membership(error.to_string()),
            // It may have reached the log before raft stopped.
            RaftError::Fatal(fatal) => match self.0.failure.get() {
                Some(fatal) => Error::Stopped(fatal),
                None => self.stopped(fatal),
            },
        }
    }
}

impl From<ForwardToLeader<Types>> for Error {
    fn from(forward: ForwardToLeader<Types>) -> Self {
        Self::NotLeader { leader: forward.leader_id.zip(forward.leader_node) }
    }
}
