//! The state machine: what the members agree about.
//!
//! Pure and synchronous, with no clock, no randomness and no I/O: the same commands make the same state, byte for byte,
//! on every member. Time enters only as a number inside a command.

mod encode;
mod history;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use encode::FORMAT;
pub use history::{Compacted, EVENTS};
pub use read::Filter;

use crate::dedupe::Dedupe;
use crate::types::{
    Attach, Change, Command, Event, Lease, LeaseId, Object, ObjectKey, Op, Outcome, Put, Rejection, Require, Revision,
    That, Write,
};
use history::History;

/// The longest kind, namespace, name or lease id, in bytes. DNS names fit.
pub const NAME_MAX: usize = 253;
/// The largest spec or status, in bytes.
pub const BODY_MAX: usize = 1 << 20;
/// The most writes, or requirements, in a command.
pub const WRITES_MAX: usize = 4096;
/// The most bytes of specs and statuses in a command.
pub const COMMAND_MAX: usize = 8 << 20;

/// The longest time to live of a lease, in milliseconds: a day.
pub const TTL_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// Where in the log a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The term of the leader that wrote it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// All replicated state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    revision: Revision,
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    leases: BTreeMap<LeaseId, Lease>,
    /// How many leases were ever granted: the source of their generations.
    grants: u64,
    history: History,
    dedupe: Dedupe,
}

/// Objects as a command would leave them, until it is known that it may.
type Staged = BTreeMap<ObjectKey, Option<Object>>;

impl Machine {
    /// Applies a command, or recognises that it has been applied.
    pub fn apply(&mut self, position: Position, command: &Command) -> Outcome {
        if let Some(request) = &command.request
            && let Some(outcome) = self.dedupe.before(request)
        {
            return outcome;
        }
        let outcome = self.execute(position, command).unwrap_or_else(Outcome::Rejected);
        if let Some(request) = &command.request {
            self.dedupe.after(request, outcome.clone());
        }
        outcome
    }

    /// The same objects and leases in a cluster that follows one of which nobody knows how far it went: all of one
    /// revision that is `above` the last, with no history before it.
    pub(crate) fn restored(mut self, above: u64) -> Self {
        self.revision = Revision(self.revision.0 + above);
        self.grants += above;
        self.history = History::starting(self.revision);
        for object in self.objects.values_mut() {
            *object = Arc::new(Object { modified: self.revision, ..(**object).clone() });
        }
        self
    }

    fn execute(&mut self, position: Position, command: &Command) -> Result<Outcome, Rejection> {
        match &command.op {
            Op::Write { require, writes } => {
                check_size(require, writes)?;
                require.iter().try_for_each(|require| self.check(require))?;
                let mut staged = Staged::new();
                for write in writes {
                    self.stage(&mut staged, write)?;
                }
                Ok(self.commit(position, command, staged))
            }
            Op::Grant { lease, ttl_ms } => {
                check_name(&lease.0)?;
                if *ttl_ms > TTL_MAX_MS {
                    return Err(Rejection::TooLarge("the time to live".into()));
                }
                self.grants += 1;
                let generation = self.grants;
                let keys = self.leases.remove(lease).map(|lease| lease.keys).unwrap_or_default();
                self.leases.insert(lease.clone(), Lease { generation, ttl_ms: *ttl_ms, keys });
                Ok(Outcome::Granted { generation })
            }
            Op::Revoke { lease, generation } => {
                let current = self.leases.get(lease).ok_or_else(|| Rejection::NoLease(lease.clone()))?;
                if current.generation != *generation {
                    return Err(Rejection::StaleLease);
                }
                Ok(self.end(position, command, std::iter::once(lease)))
            }
            Op::Expire { term, leases } => {
                // Between the decision and the log there may have been an election, after which another leader has
                // promised every lease a full time to live.
                if *term != position.term {
                    return Err(Rejection::StaleTerm);
                }
                let due: Vec<_> = leases
                    .iter()
                    .filter(|(id, generation)| self.leases.get(id).is_some_and(|l| l.generation == *generation))
                    .map(|(id, _)| id)
                    .collect();
                Ok(self.end(position, command, due.into_iter()))
            }
            Op::Compact { through } => {
                self.history.compact((*through).min(self.revision));
                Ok(Outcome::Done { revision: self.revision, changed: 0 })
            }
            Op::Trim { history, clients } => {
                self.history.trim(*history);
                self.dedupe.trim(*clients);
                Ok(Outcome::Done { revision: self.revision, changed: 0 })
            }
        }
    }

    fn check(&self, require: &Require) -> Result<(), Rejection> {
        let found = self.objects.get(&require.key).map(|object| object.modified);
        let holds = match require.that {
            That::Exists => found.is_some(),
            That::Absent => found.is_none(),
            That::At(revision) => found == Some(revision),
        };
        if holds { Ok(()) } else { Err(Rejection::Conflict { key: require.key.clone(), found }) }
    }

    fn stage(&self, staged: &mut Staged, write: &Write) -> Result<(), Rejection> {
        let (key, put) = match write {
            Write::Delete(key) => {
                staged.insert(key.clone(), None);
                return Ok(());
            }
            Write::Put(put) => (&put.key, put),
        };
        let current = match staged.get(key) {
            Some(staged) => staged.as_ref(),
            None => self.objects.get(key).map(|object| &**object),
        };
        let object = self.put(current, put)?;
        staged.insert(key.clone(), Some(object));
        Ok(())
    }

    fn put(&self, current: Option<&Object>, put: &Put) -> Result<Object, Rejection> {
        let next = self.revision.next();
        let mut object = match (current, &put.spec) {
            (Some(current), _) => current.clone(),
            (None, None) => return Err(Rejection::NoObject(put.key.clone())),
            (None, Some(spec)) => Object {
                key: put.key.clone(),
                spec: spec.clone(),
                status: Default::default(),
                created: next,
                modified: next,
                generation: 1,
                lease: None,
            },
        };
        if let Some(spec) = &put.spec
            && *spec != object.spec
        {
            object.spec = spec.clone();
            // Two specs in one command are one change of the spec.
            let before = self.objects.get(&put.key).filter(|before| before.created == object.created);
            object.generation = before.map_or(1, |before| before.generation + u64::from(before.spec != *spec));
        }
        if let Some(status) = &put.status {
            object.status = status.clone();
        }
        match &put.lease {
            Attach::Keep => {}
            Attach::Detach => object.lease = None,
            Attach::To(lease) | Attach::Held { lease, .. } => {
                let known = self.leases.get(lease).ok_or_else(|| Rejection::NoLease(lease.clone()))?;
                if matches!(&put.lease, Attach::Held { generation, .. } if *generation != known.generation) {
                    return Err(Rejection::StaleLease);
                }
                object.lease = Some(lease.clone());
            }
        }
        Ok(object)
    }

    /// Ends leases with all that is attached to them.
    fn end<'a>(&mut self, position: Position, command: &Command, leases: impl Iterator<Item = &'a LeaseId>) -> Outcome {
        let ended = leases.filter_map(|id| self.leases.remove(id));
        let staged = ended.flat_map(|lease| lease.keys).map(|key| (key, None)).collect();
        self.commit(position, command, staged)
    }

    /// Makes what is staged one revision, if it changes anything.
    fn commit(&mut self, position: Position, command: &Command, staged: Staged) -> Outcome {
        let revision = self.revision.next();
        let mut changes = Vec::new();
        for (key, after) in staged {
            let before = self.objects.get(&key).cloned();
            if before.as_deref() == after.as_ref() {
                continue;
            }
            if let Some(lease) = before.as_ref().and_then(|before| before.lease.as_ref())
                && let Some(lease) = self.leases.get_mut(lease)
            {
                lease.keys.remove(&key);
            }
            let after = after.map(|object| Arc::new(Object { modified: revision, ..object }));
            match &after {
                Some(object) => {
                    if let Some(lease) = object.lease.as_ref().and_then(|lease| self.leases.get_mut(lease)) {
                        lease.keys.insert(key.clone());
                    }
                    self.objects.insert(key, object.clone());
                }
                None => {
                    self.objects.remove(&key);
                }
            }
            changes.push(Change { before, after });
        }
        let changed = changes.len() as u64;
        if changed > 0 {
            self.revision = revision;
            let (actor, at) = (command.actor.clone(), command.at);
            self.history.push(Event { revision, index: position.index, actor, at, changes });
        }
        Outcome::Done { revision: self.revision, changed }
    }
}

fn check_size(require: &[Require], writes: &[Write]) -> Result<(), Rejection> {
    if require.len() > WRITES_MAX || writes.len() > WRITES_MAX {
        return Err(Rejection::TooLarge("the number of writes".into()));
    }
    let mut total = 0;
    for write in writes {
        let (key, put) = match write {
            Write::Put(put) => (&put.key, Some(put)),
            Write::Delete(key) => (key, None),
        };
        [&key.kind, &key.namespace, &key.name].into_iter().try_for_each(|part| check_name(part))?;
        for body in put.into_iter().flat_map(|put| [&put.spec, &put.status]).flatten() {
            total += body.len();
            if body.len() > BODY_MAX {
                return Err(Rejection::TooLarge(key.to_string().into()));
            }
        }
    }
    if total > COMMAND_MAX { Err(Rejection::TooLarge("the command".into())) } else { Ok(()) }
}

fn check_name(name: &str) -> Result<(), Rejection> {
    if name.len() > NAME_MAX { Err(Rejection::TooLarge("a name".into())) } else { Ok(()) }
}
