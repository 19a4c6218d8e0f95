//! Weft's replicated store: typed objects, revisions, watches and leases over Raft.

pub mod codec;
pub mod dedupe;
pub mod machine;
pub mod state;
pub mod types;
pub mod watch;
