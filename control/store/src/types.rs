//! What the store keeps, what it is told, and what it answers.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::wire;

/// Counts the changes to objects: +1 per command that changes at least one, whatever the number of objects.
///
/// It is not the index in the Raft log, which also counts elections, memberships and commands that change nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names an object. Ordered by kind, then namespace, then name, so that what is listed together lies together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind, such as `Service`.
    pub kind: Arc<str>,
    /// The namespace; `default` is one like any other here.
    pub namespace: Arc<str>,
    /// The name, unique per kind and namespace.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
    }
}

/// One version of an object. Spec and status are opaque here, JSON by agreement of those who read and write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name.
    pub key: ObjectKey,
    /// What its owner wants.
    pub spec: Bytes,
    /// What the mesh reports about it.
    pub status: Bytes,
    /// The revision that made it.
    pub created: Revision,
    /// The revision that made this version.
    pub modified: Revision,
    /// Counts the versions of the spec, from 1.
    pub generation: u64,
    /// The lease it dies with.
    pub lease: Option<LeaseId>,
}

/// Names a lease: the node agent that holds it, since an agent has one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub Arc<str>);

impl LeaseId {
    /// The lease of `agent`.
    pub fn new(agent: &str) -> Self {
        Self(agent.into())
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A promise of an agent to report at least every `ttl_ms`, and what goes when it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Which grant this is. Never given twice, so an expiry that was decided about an earlier grant does nothing.
    pub generation: u64,
    /// How long it lives after a keep-alive, in milliseconds.
    pub ttl_ms: u64,
    /// The objects attached to it.
    pub keys: BTreeSet<ObjectKey>,
}

/// Names a client across its retries. Random, chosen by the client, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u128);

/// Names a request, so that its retries are recognised. A retry repeats it unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    /// Who asks.
    pub client: ClientId,
    /// The client's own count of its requests.
    pub sequence: u64,
    /// Every sequence below this one has been answered and will not be retried.
    pub settled: u64,
    /// The client's clock when it *first* sent the request, in milliseconds since 1970. See [`crate::dedupe`].
    pub issued: u64,
}

/// A command, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// For recognising a retry; without it, a retry applies again.
    pub request: Option<RequestId>,
    /// Who asked, for the history.
    pub actor: Arc<str>,
    /// The proposer's clock in milliseconds since 1970, for the history. Nothing is decided by it.
    pub at: u64,
    /// What to do.
    pub op: Op,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// If every requirement holds, does every write, in order, in one revision. Otherwise nothing.
    Write {
        /// What must hold.
        require: Vec<Require>,
        /// What to do then.
        writes: Vec<Write>,
    },
    /// Grants a lease, or grants it anew: same objects, new generation, new time to live.
    Grant {
        /// Which.
        lease: LeaseId,
        /// How long it lives after a keep-alive, in milliseconds.
        ttl_ms: u64,
    },
    /// Gives a lease up, with everything attached to it, in one revision.
    Revoke {
        /// Which.
        lease: LeaseId,
        /// Of which grant.
        generation: u64,
    },
    /// Ends leases that were not kept alive, with everything attached to them, in one revision.
    Expire {
        /// The term of the leader that saw no keep-alive. In any other term this does nothing.
        term: u64,
        /// Which, of which grant.
        leases: Vec<(LeaseId, u64)>,
    },
    /// Forgets history up to and including this revision.
    Compact {
        /// The last to forget.
        through: Revision,
    },
    /// Forgets history, and outcomes kept for retries, from before a point in time.
    Trim {
        /// Events before this are forgotten, in milliseconds since 1970.
        history: u64,
        /// Clients that issued nothing since then are forgotten.
        clients: u64,
    },
}

/// What a write requires of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Require {
    /// Which object.
    pub key: ObjectKey,
    /// What about it.
    pub that: That,
}

/// A requirement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum That {
    /// It exists.
    Exists,
    /// It does not exist.
    Absent,
    /// This is its latest version.
    At(Revision),
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Makes an object, or changes it.
    Put(Put),
    /// Removes an object, if there is one.
    Delete(ObjectKey),
}

/// Makes an object or changes it; what is `None` stays as it is, so whoever reports status cannot undo a new spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// Which object.
    pub key: ObjectKey,
    /// The new spec. An object is made only with one.
    pub spec: Option<Bytes>,
    /// The new status.
    pub status: Option<Bytes>,
    /// What becomes of its lease.
    pub lease: Attach,
}

impl Put {
    /// Puts a spec and leaves the rest.
    pub fn spec(key: ObjectKey, spec: impl Into<Bytes>) -> Self {
        Self { key, spec: Some(spec.into()), status: None, lease: Attach::Keep }
    }

    /// Attached to `lease`.
    pub fn attached(mut self, lease: LeaseId) -> Self {
        self.lease = Attach::To(lease);
        self
    }
}

/// What a put does about the object's lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attach {
    /// Leaves it.
    Keep,
    /// The object outlives whatever lease it had.
    Detach,
    /// The object dies with this lease.
    To(LeaseId),
    /// As [`Self::To`], if the lease is still of this grant.
    Held {
        /// Which.
        lease: LeaseId,
        /// Of which grant.
        generation: u64,
    },
}

/// What became of a command. The same on every member, and the same for every retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to do: an entry of Raft's own.
    Blank,
    /// Done.
    Done {
        /// The store's revision after it.
        revision: Revision,
        /// How many objects it changed; with 0, no revision was made.
        changed: u64,
    },
    /// A lease was granted.
    Granted {
        /// Which grant this is.
        generation: u64,
    },
    /// Nothing was done.
    Rejected(Rejection),
}

impl Outcome {
    /// The revision, unless it was rejected.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Done { revision, .. } => Some(*revision),
            _ => None,
        }
    }
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A requirement does not hold.
    #[error("{key} is at {found:?}")]
    Conflict {
        /// Of which object.
        key: ObjectKey,
        /// The revision it is at, or `None` when it does not exist.
        found: Option<Revision>,
    },
    /// There is no object to change, and no spec to make one with.
    #[error("there is no {0}")]
    NoObject(ObjectKey),
    /// There is no such lease.
    #[error("there is no lease {0}")]
    NoLease(LeaseId),
    /// The lease has been granted anew since.
    #[error("the lease has been granted anew")]
    StaleLease,
    /// The leader that decided this is no longer the one that wrote it.
    #[error("decided in another term")]
    StaleTerm,
    /// Larger than the store takes.
    #[error("too large: {0}")]
    TooLarge(Arc<str>),
    /// The client said that it knows the outcome, and asks again.
    #[error("this request was settled")]
    Settled,
    /// It may have been done before: what became of the client's requests has been forgotten.
    #[error("the outcome of this request may have been forgotten")]
    Forgotten,
    /// The client has too many requests whose outcome it has not confirmed.
    #[error("too many requests of this client are not settled")]
    TooManyOutstanding,
    /// Too many clients are active.
    #[error("too many clients")]
    TooManyClients,
}

/// A change to one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The version before, if it existed.
    pub before: Option<Arc<Object>>,
    /// The version after, if it still exists.
    pub after: Option<Arc<Object>>,
}

/// What one revision changed, and who did it when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which revision.
    pub revision: Revision,
    /// Where in the Raft log.
    pub index: u64,
    /// Who.
    pub actor: Arc<str>,
    /// When, by the proposer's clock, in milliseconds since 1970.
    pub at: u64,
    /// What: at most one change per object.
    pub changes: Vec<Change>,
}

impl Change {
    /// Which object.
    pub fn key(&self) -> Option<&ObjectKey> {
        self.after.as_ref().or(self.before.as_ref()).map(|object| &object.key)
    }
}

impl Command {
    /// A command without a request id.
    pub fn new(actor: &str, at: u64, op: Op) -> Self {
        Self { request: None, actor: actor.into(), at, op }
    }

    /// About how many bytes it takes.
    pub fn weight(&self) -> usize {
        let writes = match &self.op {
            Op::Write { require, writes } => {
                let body = |body: &Option<Bytes>| body.as_ref().map_or(0, Bytes::len);
                let write = |write: &Write| match write {
                    Write::Put(put) => 64 + body(&put.spec) + body(&put.status),
                    Write::Delete(_) => 64,
                };
                require.len() * 64 + writes.iter().map(write).sum::<usize>()
            }
            Op::Expire { leases, .. } => leases.len() * 32,
            _ => 0,
        };
        128 + writes
    }

    /// With the id by which its retries are recognised.
    pub fn identified(mut self, request: RequestId) -> Self {
        self.request = Some(request);
        self
    }
}

impl Op {
    /// Puts one object.
    pub fn put(put: Put) -> Self {
        Self::Write { require: Vec::new(), writes: vec![Write::Put(put)] }
    }

    /// Deletes one object.
    pub fn delete(key: ObjectKey) -> Self {
        Self::Write { require: Vec::new(), writes: vec![Write::Delete(key)] }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.op {
            Op::Write { require, writes } => write!(f, "write({} require, {} writes)", require.len(), writes.len()),
            Op::Grant { lease, .. } => write!(f, "grant({lease})"),
            Op::Revoke { lease, .. } => write!(f, "revoke({lease})"),
            Op::Expire { leases, .. } => write!(f, "expire({})", leases.len()),
            Op::Compact { through } => write!(f, "compact({through})"),
            Op::Trim { .. } => f.write_str("trim"),
        }
    }
}

wire!(newtype Revision);
wire!(newtype LeaseId);
wire!(newtype ClientId);
wire!(struct ObjectKey { kind, namespace, name });
wire!(struct Object { key, spec, status, created, modified, generation, lease });
wire!(struct Lease { generation, ttl_ms, keys });
wire!(struct RequestId { client, sequence, settled, issued });
wire!(struct Command { request, actor, at, op });
wire!(enum Op {
    1 => Write { require, writes },
    2 => Grant { lease, ttl_ms },
    3 => Revoke { lease, generation },
    4 => Expire { term, leases },
    5 => Compact { through },
    6 => Trim { history, clients },
});
wire!(struct Require { key, that });
wire!(enum That { 1 => Exists, 2 => Absent, 3 => At(revision) });
wire!(enum Write { 1 => Put(put), 2 => Delete(key) });
wire!(struct Put { key, spec, status, lease });
wire!(enum Attach { 1 => Keep, 2 => Detach, 3 => To(lease), 4 => Held { lease, generation } });
wire!(enum Outcome { 0 => Blank, 1 => Done { revision, changed }, 2 => Granted { generation }, 3 => Rejected(why) });
wire!(enum Rejection {
    1 => Conflict { key, found },
    2 => NoObject(key),
    3 => NoLease(lease),
    4 => StaleLease,
    5 => StaleTerm,
    6 => TooLarge(what),
    7 => Settled,
    8 => Forgotten,
    9 => TooManyOutstanding,
    10 => TooManyClients,
});
