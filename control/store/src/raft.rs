//! Openraft's types, filled in with ours, and how they are written down.
//!
//! Standard Raft's leader ids (one leader per term), so that a term alone says which leader decided something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::EntryPayload;
use openraft::impls::leader_id_std;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use openraft::type_config::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};

use crate::codec::{Malformed, Reader, Wire, wire};
use crate::types::{Command, Outcome};

openraft::declare_raft_types!(
    /// What Weft's Raft is made of.
    pub Types:
        D = Command,
        R = Outcome,
        Node = Member,
        LeaderId = leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub type LogId = LogIdOf<Types>;
pub type Vote = VoteOf<Types>;
pub type Entry = EntryOf<Types>;
pub type Membership = openraft::Membership<u64, Member>;
pub type StoredMembership = StoredMembershipOf<Types>;
pub type SnapshotMeta = SnapshotMetaOf<Types>;

/// A member of the cluster, as the others know it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// What people call it.
    pub name: Arc<str>,
    /// Where it is reached.
    pub address: Arc<str>,
    /// Drawn when its data directory was made. A member whose disk was wiped is another member: it has forgotten what
    /// it acknowledged and whom it voted for, so under its old id it could help to elect a leader without them.
    pub incarnation: u64,
}

wire!(struct Member { name, address, incarnation });

impl Wire for LogId {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.leader_id.term.write_to(to);
        self.index.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(LogId::new_term_index(Wire::read_from(from)?, Wire::read_from(from)?))
    }
}

impl Wire for Vote {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.leader_id.term.write_to(to);
        self.leader_id.voted_for.write_to(to);
        self.committed.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let leader_id = leader_id_std::LeaderId { term: Wire::read_from(from)?, voted_for: Wire::read_from(from)? };
        Ok(Self { leader_id, committed: Wire::read_from(from)? })
    }
}

impl Wire for Membership {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.get_joint_config().write_to(to);
        let nodes: BTreeMap<u64, Member> = self.nodes().map(|(id, node)| (*id, node.clone())).collect();
        nodes.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let configs = Vec::<BTreeSet<u64>>::read_from(from)?;
        let nodes = BTreeMap::<u64, Member>::read_from(from)?;
        // The membership of a cluster that has not begun is empty, which `new` refuses.
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Self::default());
        }
        Self::new(configs, nodes).map_err(|_| Malformed("membership"))
    }
}

impl Wire for StoredMembership {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.log_id().write_to(to);
        self.membership().write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self::new(Wire::read_from(from)?, Wire::read_from(from)?))
    }
}

impl Wire for SnapshotMeta {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.last_log_id.write_to(to);
        self.last_membership.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { last_log_id: Wire::read_from(from)?, last_membership: Wire::read_from(from)? })
    }
}

impl Wire for Entry {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.log_id.write_to(to);
        match &self.payload {
            EntryPayload::Blank => to.push(0),
            EntryPayload::Normal(command) => {
                to.push(1);
                command.write_to(to);
            }
            EntryPayload::Membership(membership) => {
                to.push(2);
                membership.write_to(to);
            }
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let log_id = Wire::read_from(from)?;
        let payload = match from.byte()? {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Wire::read_from(from)?),
            2 => EntryPayload::Membership(Wire::read_from(from)?),
            _ => return Err(Malformed("log entry")),
        };
        Ok(Self { log_id, payload })
    }
}

impl Wire for AppendEntriesRequest<Types> {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.vote.write_to(to);
        self.prev_log_id.write_to(to);
        self.entries.write_to(to);
        self.leader_commit.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            vote: Wire::read_from(from)?,
            prev_log_id: Wire::read_from(from)?,
            entries: Wire::read_from(from)?,
            leader_commit: Wire::read_from(from)?,
        })
    }
}

impl Wire for AppendEntriesResponse<Types> {
    fn write_to(&self, to: &mut Vec<u8>) {
        match self {
            Self::Success => to.push(0),
            Self::PartialSuccess(matching) => {
                to.push(1);
                matching.write_to(to);
            }
            Self::Conflict => to.push(2),
            Self::HigherVote(vote) => {
                to.push(3);
                vote.write_to(to);
            }
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        match from.byte()? {
            0 => Ok(Self::Success),
            1 => Wire::read_from(from).map(Self::PartialSuccess),
            2 => Ok(Self::Conflict),
            3 => Wire::read_from(from).map(Self::HigherVote),
            _ => Err(Malformed("answer to an append")),
        }
    }
}

impl Wire for VoteRequest<Types> {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.vote.write_to(to);
        self.last_log_id.write_to(to);
        self.leadership_transfer.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut request = Self::new(Wire::read_from(from)?, Wire::read_from(from)?);
        request.leadership_transfer = Wire::read_from(from)?;
        Ok(request)
    }
}

impl Wire for VoteResponse<Types> {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.vote.write_to(to);
        self.last_log_id.write_to(to);
        self.vote_granted.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self::new(Vote::read_from(from)?, Wire::read_from(from)?, Wire::read_from(from)?))
    }
}

impl Wire for SnapshotResponse<Types> {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.vote.write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Wire::read_from(from).map(Self::new)
    }
}

impl Wire for TransferLeaderRequest<Types> {
    fn write_to(&self, to: &mut Vec<u8>) {
        self.from_leader().write_to(to);
        self.to_node_id().write_to(to);
        self.last_log_id().copied().write_to(to);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self::new(Wire::read_from(from)?, Wire::read_from(from)?, Wire::read_from(from)?))
    }
}

impl Wire for Result<(), TransferLeaderError<Types>> {
    fn write_to(&self, to: &mut Vec<u8>) {
        match self {
            Ok(()) => to.push(0),
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                to.push(1);
                expected.write_to(to);
                actual.write_to(to);
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                to.push(2);
                expected.write_to(to);
                actual.write_to(to);
            }
        }
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (expected, actual);
        match from.byte()? {
            0 => Ok(Ok(())),
            1 => {
                (expected, actual) = Wire::read_from(from)?;
                Ok(Err(TransferLeaderError::VoteChanged { expected, actual }))
            }
            2 => {
                let (expected, actual) = Wire::read_from(from)?;
                Ok(Err(TransferLeaderError::LogNotFlushed { expected, actual }))
            }
            _ => Err(Malformed("answer to a transfer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> Member {
        Member { name: name.into(), address: "10.0.0.1:15010".into(), incarnation: 7 }
    }

    #[test]
    fn what_members_tell_each_other_is_read_as_it_was_written() {
        let log_id = LogId::new_term_index(3, 9);
        let vote = Vote { leader_id: leader_id_std::LeaderId { term: 3, voted_for: 1 }, committed: true };
        let nodes = BTreeMap::from([(1, member("a")), (2, member("b")), (3, member("c"))]);
        let joint = Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes).unwrap();
        let entries = vec![
            Entry { log_id, payload: EntryPayload::Blank },
            Entry { log_id, payload: EntryPayload::Membership(joint.clone()) },
        ];
        let append = AppendEntriesRequest::<Types> { vote, prev_log_id: None, entries, leader_commit: Some(log_id) };
        let decoded = AppendEntriesRequest::<Types>::decode(&append.encode()).unwrap();
        assert_eq!((decoded.vote, decoded.entries), (append.vote, append.entries));

        let meta = SnapshotMeta { last_log_id: Some(log_id), last_membership: StoredMembership::new(None, joint) };
        assert_eq!(SnapshotMeta::decode(&meta.encode()), Ok(meta));
        assert_eq!(SnapshotMeta::decode(&SnapshotMeta::default().encode()), Ok(SnapshotMeta::default()));

        for answer in [
            AppendEntriesResponse::<Types>::Success,
            AppendEntriesResponse::PartialSuccess(Some(log_id)),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote),
        ] {
            assert_eq!(AppendEntriesResponse::decode(&answer.encode()), Ok(answer));
        }
        let refused: Result<(), TransferLeaderError<Types>> =
            Err(TransferLeaderError::LogNotFlushed { expected: Some(log_id), actual: None });
        assert_eq!(Wire::decode(&refused.encode()), Ok(refused));
    }
}
