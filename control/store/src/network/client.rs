//! Openraft's calls to other members, as messages.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::raft::{TransferLeaderError, TransferLeaderRequest};
use openraft::type_config::alias::SnapshotOf;

use super::{APPEND, Answer, Envelope, PRE_VOTE, Piece, READ_INDEX, SNAPSHOT, TRANSFER, Transport, VERSION, VOTE};
use crate::codec::{Wire, checksum};
use crate::raft::{Member, Types, Vote};

/// How much of a snapshot goes into one message.
const PIECE: usize = 1 << 20;
/// How long a message with entries may take: the other member syncs its disk before it answers, which may well take
/// longer than the interval of the heartbeats that openraft would allow.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes a [`Peer`] for each of the other members.
#[derive(Clone)]
pub(crate) struct Peers {
    me: u64,
    transport: Arc<dyn Transport>,
    latest: Latest,
}

/// The members of the latest membership. Openraft makes a peer once, and a member may move after that.
type Latest = Arc<RwLock<BTreeMap<u64, Member>>>;

/// Another member.
pub(crate) struct Peer {
    me: u64,
    id: u64,
    member: Member,
    transport: Arc<dyn Transport>,
    latest: Latest,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, id: u64, member: &Member) -> Peer {
        self.peer(id, member)
    }
}

impl Peers {
    /// The others, as member `me` reaches them.
    pub(crate) fn new(me: u64, transport: Arc<dyn Transport>) -> Self {
        Self { me, transport, latest: Latest::default() }
    }

    /// One of them.
    pub(crate) fn peer(&self, id: u64, member: &Member) -> Peer {
        let (transport, latest) = (self.transport.clone(), self.latest.clone());
        Peer { me: self.me, id, member: member.clone(), transport, latest }
    }

    /// Learns where they are now.
    pub(crate) fn learn<'m>(&self, members: impl Iterator<Item = (&'m u64, &'m Member)>) {
        let members = members.map(|(id, member)| (*id, member.clone())).collect();
        *self.latest.write().unwrap_or_else(PoisonError::into_inner) = members;
    }
}

impl Peer {
    /// The member, where it is now.
    fn member(&self) -> Member {
        let latest = self.latest.read().unwrap_or_else(PoisonError::into_inner);
        let same = latest.get(&self.id).filter(|latest| latest.incarnation == self.member.incarnation);
        same.unwrap_or(&self.member).clone()
    }

    async fn ask<R: Wire>(&self, ask: u32, body: &impl Wire, within: Duration) -> Result<R, RPCError<Types>> {
        let body = Bytes::from(body.encode());
        let incarnation = self.member.incarnation;
        let envelope = Envelope { version: VERSION, from: self.me, to: self.id, incarnation, ask, body };
        let member = self.member();
        let answer = self.transport.call(&member, envelope.encode().into(), within).await;
        let answer = answer.map_err(|unreached| Unreachable::new(&unreached))?;
        match Answer::decode(&answer) {
            Ok(Answer::Ok(body)) => R::decode(&body).map_err(|malformed| NetworkError::new(&malformed).into()),
            // It will not get better by asking at once again.
            Ok(refusal) => Err(Unreachable::from_string(format!("{}: {refusal:?}", member.address)).into()),
            Err(malformed) => Err(NetworkError::new(&malformed).into()),
        }
    }

    /// Up to where a linearizable read has to wait, if this member still leads: it asks a quorum.
    pub(crate) async fn read_index(&self, within: Duration) -> Option<u64> {
        self.ask(READ_INDEX, &Bytes::new(), within).await.ok().flatten()
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: &SnapshotOf<Types, Bytes>,
        within: Duration,
    ) -> Result<SnapshotResponse<Types>, RPCError<Types>> {
        let body = &snapshot.snapshot;
        let (total, sum) = (body.len() as u64, checksum(&[body]));
        let mut offset = 0;
        loop {
            let data = body.slice(offset..body.len().min(offset + PIECE));
            let next = offset + data.len();
            let piece = Piece { vote, meta: snapshot.meta.clone(), total, offset: offset as u64, sum, data };
            let answer: Option<SnapshotResponse<Types>> = self.ask(SNAPSHOT, &piece, within).await?;
            match answer {
                Some(answer) => return Ok(answer),
                None if next >= body.len() => {
                    return Err(NetworkError::from_string("the snapshot was not taken").into());
                }
                None => offset = next,
            }
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let within = if request.entries.is_empty() { option.soft_ttl() } else { option.soft_ttl().max(PATIENCE) };
        self.ask(APPEND, &request, within).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(VOTE, &request, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(PRE_VOTE, &request, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sending = std::pin::pin!(self.send_snapshot(vote, &snapshot, option.soft_ttl()));
        match select(sending, std::pin::pin!(cancel)).await {
            Either::Left((sent, _)) => sent.map_err(StreamingError::from),
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<Result<(), TransferLeaderError<Types>>, RPCError<Types>> {
        self.ask(TRANSFER, &request, option.soft_ttl()).await
    }
}
