//! The state machine as readers share it: a lock that is held for as long as a lookup takes, and a signal when the
//! revision moves.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;

use crate::machine::{Machine, Position};
use crate::types::{Command, Outcome, Revision};

/// What waiters are told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Signal {
    /// How far it is.
    pub(crate) revision: Revision,
    /// Nothing more will come.
    pub(crate) closed: bool,
}

/// A member's copy of the replicated state.
#[derive(Debug)]
pub(crate) struct State {
    machine: RwLock<Machine>,
    signal: watch::Sender<Signal>,
}

impl Default for State {
    fn default() -> Self {
        Self { machine: RwLock::default(), signal: watch::Sender::new(Signal::default()) }
    }
}

impl State {
    /// The state, for a short look. Applying waits for it.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Machine> {
        self.machine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a command. Who waits is told by [`Self::announce`], once for a batch of commands.
    pub(crate) fn apply(&self, position: Position, command: &Command) -> Outcome {
        self.machine.write().unwrap_or_else(PoisonError::into_inner).apply(position, command)
    }

    /// Takes over the state of a snapshot.
    pub(crate) fn replace(&self, machine: Machine) {
        *self.machine.write().unwrap_or_else(PoisonError::into_inner) = machine;
        self.announce();
    }

    /// Tells who waits that the revision has moved.
    pub(crate) fn announce(&self) {
        let revision = self.read().revision();
        self.signal.send_if_modified(|signal| std::mem::replace(&mut signal.revision, revision) != revision);
    }

    /// Tells who waits that nothing more will come.
    pub(crate) fn close(&self) {
        self.signal.send_modify(|signal| signal.closed = true);
    }

    /// Hears of new revisions.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }
}
