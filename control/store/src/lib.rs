//! Weft's replicated store: typed objects, revisions, watches and leases over Raft.
//!
//! ```text
//!              ┌──────────────────────── node/ : Store ────────────────────────┐
//!   write ────▶│ ops.rs ── openraft ──▶ log/ (redb, one fsync for many) ──┐    │
//!              │              ▲ │                                         │    │
//!  members ◀──▶│ network/ ────┘ └─▶ applier.rs ─▶ state.rs ─▶ machine/    │    │
//!              │                        │            │ ▲      pure, no    │    │
//!              │                        ▼            │ └─ dedupe.rs       │    │
//!              │                    snapshot/        ▼        clock       │    │
//!   read ◀─────│ ops.rs ◀───────────────────────── Machine                │    │
//!   watch ◀────│ watch.rs ◀── the history in it                           │    │
//!   keep-alive▶│ lease.rs ── expiries of the leader ──▶ write             ▼    │
//!              │ fatal.rs ◀───────────────────── what the disk cannot keep     │
//!              └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! `backup.rs` makes a file of everything, and a new cluster of the file. `types.rs` says what is kept, commanded and answered, `codec.rs` how it is written down, `raft.rs` how openraft is
//! filled in. Nothing outside this crate sees openraft.
//!
//! What it promises: a write that was answered is on the disks of a majority; a linearizable read sees every write that
//! was answered before it; a watch sees every revision after the one it names, in order, once, or is told which ones
//! were forgotten; a retried write is applied once. What it cannot promise any more, it says with [`Fatal`], and stops.

mod applier;
pub mod backup;
pub mod codec;
pub mod dedupe;
mod fatal;
pub mod lease;
mod log;
pub mod machine;
mod network;
mod node;
mod raft;
mod snapshot;
mod state;
pub mod types;
pub mod watch;

pub use fatal::Fatal;
pub use network::{Memory, Port, Transport, Unreached};
pub use node::{Consistency, Error, MemberStatus, Options, Role, Status, Store};
pub use raft::Member;
