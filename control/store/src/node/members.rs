//! Who belongs to the cluster, and how it is doing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{ChangeMembers, Instant as _, ServerState};
use tokio::time::timeout;

use super::{Error, Store};
use crate::raft::{Member, Types};
use crate::types::Revision;

/// How many entries a learner may lack when it becomes a voter.
const LAG: u64 = 1000;
/// How long a membership change may take: it is several writes.
const CHANGE: Duration = Duration::from_secs(20);

/// What a member is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Orders the writes.
    Leader,
    /// Votes, and has what the leader has.
    Follower,
    /// Wants to be leader.
    Candidate,
    /// Has what the leader has, and no vote.
    Learner,
    /// Has stopped.
    Stopped,
}

/// One member, as another sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id.
    pub id: u64,
    /// Its name, address and incarnation.
    pub member: Member,
    /// Does it vote?
    pub voter: bool,
    /// Up to which entry its log matches; only the leader knows.
    pub matched: Option<u64>,
    /// How many entries it lacks; only the leader knows.
    pub lag: Option<u64>,
    /// For how long the leader has not heard of it; only the leader knows.
    pub silent: Option<Duration>,
}

/// How a member and its cluster are doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its id.
    pub id: u64,
    /// Its name, address and incarnation.
    pub member: Member,
    /// What it is at the moment.
    pub role: Role,
    /// The term it is in.
    pub term: u64,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Every member.
    pub members: Vec<MemberStatus>,
    /// Is a membership change half done?
    pub joint: bool,
    /// The last entry in its log.
    pub last: Option<u64>,
    /// The last entry that it knows to be committed.
    pub commit: Option<u64>,
    /// The last entry that it has applied.
    pub applied: Option<u64>,
    /// The last entry in its snapshot.
    pub snapshot: Option<u64>,
    /// The revision it has reached.
    pub revision: Revision,
    /// The revision up to which history is forgotten.
    pub compacted: Revision,
    /// How many objects there are.
    pub objects: usize,
    /// How many leases there are.
    pub leases: usize,
    /// How many leases are silent but held.
    pub held: usize,
    /// How large the log's file is.
    pub log_bytes: u64,
    /// How much room the snapshots take.
    pub snapshot_bytes: u64,
}

type Changed = Result<ClientWriteResponse<Types>, RaftError<Types, ClientWriteError<Types>>>;

impl Store {
    /// Begins a cluster with this member alone. Returns false when it belongs to one already.
    pub async fn bootstrap(&self) -> Result<bool, Error> {
        self.check()?;
        let members = BTreeMap::from([(self.0.id, self.0.me.clone())]);
        match self.0.raft.initialize(members).await {
            Ok(()) => Ok(true),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(RaftError::APIError(error)) => Err(Error::Membership(error.to_string())),
            Err(RaftError::Fatal(fatal)) => Err(self.stopped(fatal)),
        }
    }

    /// Does this member belong to a cluster?
    pub async fn is_member(&self) -> Result<bool, Error> {
        self.0.raft.is_initialized().await.map_err(|fatal| self.stopped(fatal))
    }

    /// Adds a member that receives everything and has no vote.
    pub async fn add_learner(&self, id: u64, member: Member) -> Result<(), Error> {
        let known = self.metrics().membership_config.get_node(&id).cloned();
        if known.is_some_and(|known| known.incarnation != member.incarnation) {
            return Err(another_directory(id));
        }
        self.change(async |store: &Store| store.0.raft.add_learner(id, member, false).await).await
    }

    /// A member is reached at another address now, or is called otherwise. It has to be the same one, with the data
    /// directory that it had.
    pub async fn readdress(&self, id: u64, member: Member) -> Result<(), Error> {
        let known = self.metrics().membership_config.get_node(&id).cloned();
        match known {
            Some(known) if known == member => Ok(()),
            Some(known) if known.incarnation == member.incarnation => {
                let change = ChangeMembers::SetNodes(BTreeMap::from([(id, member)]));
                self.change(async |store: &Store| store.0.raft.change_membership(change, false).await).await
            }
            Some(_) => Err(another_directory(id)),
            None => Err(Error::Membership(format!("there is no member {id}"))),
        }
    }

    /// Gives a learner a vote, once it has caught up.
    pub async fn promote(&self, id: u64) -> Result<(), Error> {
        let status = self.status();
        let Some(learner) = status.members.iter().find(|member| member.id == id) else {
            return Err(Error::Membership(format!("there is no member {id}")));
        };
        if status.role == Role::Leader && !learner.voter && learner.lag.is_none_or(|lag| lag > LAG) {
            return Err(Error::Membership(format!("member {id} has not caught up yet")));
        }
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.change(async |store: &Store| store.0.raft.change_membership(voters, false).await).await
    }

    /// Removes a member. A leader that is removed finishes that and steps down.
    pub async fn remove(&self, id: u64) -> Result<(), Error> {
        let status = self.status();
        let Some(member) = status.members.iter().find(|member| member.id == id) else { return Ok(()) };
        let ids = BTreeSet::from([id]);
        let change = if member.voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change(async |store: &Store| store.0.raft.change_membership(change, false).await).await
    }

    /// Hands leadership to a voter. Returns when it leads.
    pub async fn transfer(&self, to: u64) -> Result<(), Error> {
        let status = self.status();
        if status.role != Role::Leader {
            return Err(self.not_leader());
        }
        if !status.members.iter().any(|member| member.id == to && member.voter) {
            return Err(Error::Membership(format!("there is no voter {to}")));
        }
        self.0.raft.trigger().transfer_leader(to).await.map_err(|fatal| self.stopped(fatal))?;
        let wait = self.0.raft.wait(Some(self.0.options.timeout));
        wait.current_leader(to, "leadership is transferred").await.map(drop).map_err(|_| Error::Unavailable)
    }

    /// How this member and its cluster are doing.
    pub fn status(&self) -> Status {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let index = |id: Option<crate::raft::LogId>| id.map(|id| id.index);
        let member = |(id, member): (&u64, &Member)| {
            let matched = metrics.replication.as_ref().and_then(|all| all.get(id).copied()).map(index);
            let others = metrics.heartbeat.as_ref().filter(|_| *id != self.0.id);
            let heard = others.and_then(|all| all.get(id).copied().flatten());
            let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
            MemberStatus {
                id: *id,
                member: member.clone(),
                voter: voters.contains(id),
                matched: matched.flatten(),
                lag: matched.map(|matched| next(metrics.last_log_index).saturating_sub(next(matched))),
                silent: heard.map(|heard| heard.elapsed()),
            }
        };
        let (revision, compacted, objects, leases) = {
            let machine = self.0.state.read();
            (machine.revision(), machine.compacted(), machine.len(), machine.leases().len())
        };
        let log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        Status {
            id: self.0.id,
            member: self.0.me.clone(),
            role: match metrics.state {
                _ if metrics.running_state.is_err() => Role::Stopped,
                ServerState::Leader => Role::Leader,
                ServerState::Follower => Role::Follower,
                ServerState::Candidate => Role::Candidate,
                ServerState::Learner => Role::Learner,
                ServerState::Shutdown => Role::Stopped,
            },
            term: metrics.current_term,
            leader: metrics.current_leader,
            members: membership.nodes().map(member).collect(),
            joint: membership.get_joint_config().len() > 1,
            last: metrics.last_log_index,
            commit: index(metrics.local_committed),
            applied: index(metrics.last_applied),
            snapshot: index(metrics.snapshot),
            revision,
            compacted,
            objects,
            leases,
            held: self.leases().held(),
            log_bytes: log.as_ref().map_or(0, |log| log.size()),
            snapshot_bytes: self.0.snapshots.size(),
        }
    }

    /// Changes the membership, one change at a time.
    async fn change(&self, change: impl AsyncFnOnce(&Store) -> Changed) -> Result<(), Error> {
        self.check()?;
        let _one_at_a_time = self.0.changing.lock().await;
        match timeout(CHANGE, change(self)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.write_error(error)),
            Err(_) => Err(Error::Unknown),
        }
    }
}

fn another_directory(id: u64) -> Error {
    let what = format!("member {id} is known with another data directory: remove it, and come with another id");
    Error::Membership(what)
}
