//! Messages of other members, as openraft's calls.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use openraft::ReadPolicy;
use openraft::raft::{AppendEntriesRequest, SnapshotResponse, TransferLeaderRequest, VoteRequest};
use openraft::type_config::alias::SnapshotOf;

use super::{APPEND, Answer, Envelope, PRE_VOTE, Piece, READ_INDEX, SNAPSHOT, TRANSFER, VERSION, VOTE};
use crate::applier::Applier;
use crate::codec::{Reader, Wire, checksum};
use crate::machine::FORMAT;
use crate::raft::Types;

/// The largest snapshot that is taken.
const SNAPSHOT_MAX: u64 = 4 << 30;

type Raft = openraft::Raft<Types, Applier>;

/// Answers other members.
pub(crate) struct Server {
    pub(crate) id: u64,
    pub(crate) incarnation: u64,
    pub(crate) raft: Raft,
    /// The snapshot that is arriving: its first piece, without the data, and what has arrived.
    pub(crate) arriving: Arc<Mutex<Option<(Piece, BytesMut)>>>,
}

impl Server {
    pub(crate) async fn handle(&self, message: &[u8]) -> Bytes {
        let answer = match Envelope::decode(message) {
            Ok(envelope) if envelope.version != VERSION => Answer::Malformed,
            Ok(envelope) if (envelope.to, envelope.incarnation) != (self.id, self.incarnation) => {
                tracing::warn!(from = envelope.from, to = envelope.to, "a message for another member");
                Answer::NotMe
            }
            Ok(envelope) => self.answer(&envelope).await.unwrap_or_else(|refusal| refusal),
            Err(_) => Answer::Malformed,
        };
        answer.encode().into()
    }

    async fn answer(&self, envelope: &Envelope) -> Result<Answer, Answer> {
        let body = match envelope.ask {
            APPEND => {
                let request: AppendEntriesRequest<Types> = decode(&envelope.body)?;
                // openraft takes consecutive entries for granted.
                let first = request.prev_log_id.map_or(0, |id| id.index + 1);
                if request.entries.iter().zip(first..).any(|(entry, index)| entry.log_id.index != index) {
                    return Err(Answer::Malformed);
                }
                self.raft.append_entries(request).await.map_err(stopped)?.encode()
            }
            VOTE => self.raft.vote(decode::<VoteRequest<Types>>(&envelope.body)?).await.map_err(stopped)?.encode(),
            PRE_VOTE => {
                self.raft.pre_vote(decode::<VoteRequest<Types>>(&envelope.body)?).await.map_err(stopped)?.encode()
            }
            SNAPSHOT => self.take(decode(&envelope.body)?).await?.encode(),
            TRANSFER => {
                let request: TransferLeaderRequest<Types> = decode(&envelope.body)?;
                self.raft.handle_transfer_leader(request).await.map_err(stopped)?.encode()
            }
            READ_INDEX => {
                let read = self.raft.get_read_log_id(ReadPolicy::ReadIndex).await;
                read.ok().map(|(id, _)| id.log_id().index).encode()
            }
            _ => return Err(Answer::Malformed),
        };
        Ok(Answer::Ok(body.into()))
    }

    /// Takes a piece of a snapshot, and installs the snapshot with the last one.
    async fn take(&self, piece: Piece) -> Result<Option<SnapshotResponse<Types>>, Answer> {
        let Some((piece, body)) = self.collect(piece)? else { return Ok(None) };
        // A member of another version is refused here; once raft has it, what cannot be read stops the member.
        if u32::read_from(&mut Reader::new(&body)) != Ok(FORMAT) {
            return Err(Answer::Malformed);
        }
        let snapshot = SnapshotOf::<Types, Bytes> { meta: piece.meta, snapshot: body };
        self.raft.install_full_snapshot(piece.vote, snapshot).await.map(Some).map_err(stopped)
    }

    fn collect(&self, mut piece: Piece) -> Result<Option<(Piece, Bytes)>, Answer> {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        let data = std::mem::take(&mut piece.data);
        let offset = std::mem::take(&mut piece.offset);
        if piece.total > SNAPSHOT_MAX {
            return Err(Answer::Malformed);
        }
        if offset == 0 {
            *arriving = Some((piece.clone(), BytesMut::new()));
        }
        let Some((first, body)) = arriving.as_mut() else { return Err(Answer::OutOfOrder) };
        if *first != piece || offset != body.len() as u64 || offset + data.len() as u64 > piece.total {
            *arriving = None;
            return Err(Answer::OutOfOrder);
        }
        body.extend_from_slice(&data);
        if (body.len() as u64) < piece.total {
            return Ok(None);
        }
        let body = arriving.take().map(|(_, body)| body.freeze()).unwrap_or_default();
        if checksum(&[&body]) != piece.sum {
            return Err(Answer::Malformed);
        }
        Ok(Some((piece, body)))
    }
}

fn decode<T: Wire>(body: &[u8]) -> Result<T, Answer> {
    T::decode(body).map_err(|_| Answer::Malformed)
}

fn stopped<E: std::fmt::Display>(error: E) -> Answer {
    tracing::debug!(%error, "a message that raft did not answer");
    Answer::Stopped
}
