//! Weft's control plane: one port, on which members talk to each other and everybody else to them.
//!
//! ```text
//!  clients ──▶ server.rs ──▶ api/ ──┬─ objects.rs, apply/ ──▶ config.rs (the same checks as `weft validate`)
//!              │              │     ├─ registry.rs, agents.rs ─┐    │
//!              │              │     ├─ watch.rs, cluster.rs    ▼    ▼
//!              │              └─ leader.rs: writes go to    weft-store ──▶ push/: what changes, encoded once
//!              │                 the leader, once               │ ▲            ▲ envoy/: the same for standard clients
//!  members ──▶ └─ POST /raft ──▶ Store::handle    pool.rs ◀─────┘ │            │
//!  nodes ────▶    gRPC ──────────────────────────────────────────────▶ streams: cursors into what was encoded
//! ```
//!
//! `client.rs` is the other side of the API: asks one member after the other. That of the push is in weft-proxy
//! (`source/control/`), and what both write and read in weft-wire.

mod api;
pub mod client;
pub mod config;
mod envoy;
pub mod member;
mod pool;
pub mod push;
pub mod registry;
mod server;
pub mod status;

pub use client::Client;
pub use pool::Pool;
pub use server::Server;
