//! Weft's control plane: one port, on which members talk to each other and everybody else to them.
//!
//! ```text
//!  clients ──▶ server.rs ──▶ api/ ──┬─ objects.rs, apply.rs ──▶ config.rs (the same checks as `weft validate`)
//!                             │     ├─ watch.rs                     │
//!                             │     └─ cluster.rs                   ▼
//!                             └─ leader.rs: writes go to the     weft-store
//!                                leader, once                       │
//!  members ──▶ POST /raft ──▶ Store::handle        pool.rs ◀────────┘ Transport
//! ```
//!
//! `client.rs` is the other side: asks one member after the other. `envoy/` makes what standard clients of `push/` get.

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
