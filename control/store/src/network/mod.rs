//! How members talk to each other.
//!
//! A [`Transport`] carries bytes to an address and an answer back; what the bytes say is decided here. Every message
//! names the member it is meant for, with its incarnation, so that one that reaches somebody else (an address given to
//! another machine, a member whose disk was wiped) is refused and not taken for its own.

mod client;
mod memory;
mod server;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::codec::wire;
use crate::raft::{Member, SnapshotMeta, Vote};

pub(crate) use client::Peers;
pub use memory::{Memory, Port};
pub(crate) use server::Server;

/// Carries a message to a member and its answer back.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends `message` to where `to` is reached; gives up after `within`.
    fn call(&self, to: &Member, message: Bytes, within: Duration) -> BoxFuture<'static, Result<Bytes, Unreached>>;
}

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn call(&self, to: &Member, message: Bytes, within: Duration) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        (**self).call(to, message, within)
    }
}

/// The message was not answered.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no answer: {0}")]
pub struct Unreached(pub String);

/// The version of the messages.
const VERSION: u32 = 1;

/// Whom a message is for, and what it asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    version: u32,
    from: u64,
    to: u64,
    incarnation: u64,
    ask: u32,
    body: Bytes,
}

wire!(struct Envelope { version, from, to, incarnation, ask, body });

const APPEND: u32 = 1;
const VOTE: u32 = 2;
const PRE_VOTE: u32 = 3;
const SNAPSHOT: u32 = 4;
const TRANSFER: u32 = 5;
const READ_INDEX: u32 = 6;

/// A piece of a snapshot. The answer to the last one comes after the snapshot is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    vote: Vote,
    meta: SnapshotMeta,
    total: u64,
    offset: u64,
    sum: u64,
    data: Bytes,
}

wire!(struct Piece { vote, meta, total, offset, sum, data });

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// The answer to what was asked.
    Ok(Bytes),
    /// It is not the member that was meant.
    NotMe,
    /// It does not understand the message.
    Malformed,
    /// It has stopped.
    Stopped,
    /// The piece does not follow the one before it.
    OutOfOrder,
}

wire!(enum Answer { 0 => Ok(body), 1 => NotMe, 2 => Malformed, 3 => Stopped, 4 => OutOfOrder });
