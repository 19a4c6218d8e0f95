//! Open connections, by side and by whether they work.

use std::rc::Rc;

use super::{Samples, WorkerMetrics, histogram::Count};

/// Which side of the proxy a connection is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionSide {
    /// From a client.
    Downstream,
    /// To an endpoint.
    Upstream,
}

const SIDES: [&str; 2] = ["downstream", "upstream"];

/// Whether a connection works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// A request is on it.
    Active,
    /// Kept alive.
    Idle,
}

const STATES: [&str; 2] = ["active", "idle"];

/// The counts of one worker.
#[derive(Debug, Default)]
pub(super) struct Shared([[Count; STATES.len()]; SIDES.len()]);

impl Shared {
    pub(super) fn collect(&self, samples: &mut Samples) {
        for (side, states) in SIDES.iter().zip(&self.0) {
            for (state, count) in STATES.iter().zip(states) {
                samples.add("weft_connections", &[("side", side), ("state", state)], count.get() as f64);
            }
        }
    }
}

impl WorkerMetrics {
    /// Counts a connection until the guard is dropped.
    pub fn connection(self: &Rc<Self>, side: ConnectionSide, state: ConnectionState) -> ConnectionGuard {
        self.shared.connections.0[side as usize][state as usize].add(1);
        ConnectionGuard { worker: Rc::clone(self), side, state }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct ConnectionGuard {
    worker: Rc<WorkerMetrics>,
    side: ConnectionSide,
    state: ConnectionState,
}

impl ConnectionGuard {
    /// The connection starts or stops to work.
    pub fn set(&mut self, state: ConnectionState) {
        let states = &self.worker.shared.connections.0[self.side as usize];
        states[self.state as usize].sub(1);
        states[state as usize].add(1);
        self.state = state;
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.worker.shared.connections.0[self.side as usize][self.state as usize].sub(1);
    }
}
