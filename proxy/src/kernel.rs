//! What the kernel programs tell the proxy, and what it tells them. Implemented outside of this crate: the proxy works
//! without a kernel program, and its tests with one that they made up.
//!
//! ```text
//!  accept ──origin(socket)──▶ the address that was asked for ──▶ a port of the snapshot, as if Weft had listened there
//!  connect ─attribute(socket, endpoint)──▶ the kernel counts what happens to the connection
//!  once a second ◀──signals()── what happened to connections, per endpoint: the breaker's evidence
//! ```

use std::{collections::HashMap, fmt::Debug, net::SocketAddr, os::fd::BorrowedFd, sync::Arc};

use serde_json::Value;

/// Where a captured connection was to go, and whence it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The address that the application connected to; IPv4 also if it was asked for as v4-mapped.
    pub destination: SocketAddr,
    /// Workload (as [`weft_model::config::Key`] shows it); `None` for a process that no Workload names.
    pub workload: Option<Arc<str>>,
}

/// What the kernel has seen of connections to one endpoint. Counters only grow, whoever made the connections: this
/// proxy, or applications whose connections go there directly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// Connections begun.
    pub attempts: u64,
    /// Connections established.
    pub established: u64,
    /// Connections that the endpoint refused.
    pub refused: u64,
    /// Connections that the endpoint did not answer.
    pub timed_out: u64,
    /// Connections that were given up before they stood, or that the network refused.
    pub aborted: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Retransmission time-outs.
    pub rto: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Smoothed round-trip time in microseconds; 0: not known.
    pub srtt_us: u32,
}

impl Signals {
    /// Connections that exist.
    pub const fn active(&self) -> u64 {
        self.established.saturating_sub(self.closed)
    }
}

/// The kernel programs of this node.
pub trait Kernel: Debug + Send + Sync {
    /// Whence an accepted connection comes; `None`: the kernel did not lead it here. Cheap: one system call.
    fn origin(&self, accepted: BorrowedFd<'_>) -> Option<Origin>;

    /// `socket` is about to be connected to this endpoint (its [`crate::endpoint::Endpoint::id`]).
    fn attribute(&self, socket: BorrowedFd<'_>, endpoint: u64);

    /// By endpoint (its [`crate::endpoint::Endpoint::id`]), for those that the kernel knows.
    fn signals(&self) -> HashMap<u64, Signals>;

    /// The endpoint took a connection that was made to find out: whoever passes it over may stop.
    fn recovered(&self, endpoint: u64);

    /// Verdicts so far, by verdict (`pass`, `direct`, `proxy`, `deny`) and reason (snake case).
    fn verdicts(&self) -> Vec<(&'static str, &'static str, u64)>;

    /// Connections that are alive, with their verdicts: for `/connections`.
    fn connections(&self) -> Value;

    /// Verdicts as they are made: those after number `after`, oldest first. For `/flows`.
    fn flows(&self, after: u64) -> Value;

    /// Programs, attach points, how full the maps are: for `/ebpf`.
    fn status(&self) -> Value;
}
