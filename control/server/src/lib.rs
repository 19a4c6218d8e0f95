//! Weft's control plane: one port, on which members talk to each other and everybody else to them.
//!
//! ```text
//!                        ┌─▶ api/        objects, apply, registry, agents, watch, history, members
//!  people, agents ─HTTP──┤     config.rs   the checks behind `weft validate`, over all that would be stored
//!                        │     leader.rs   writes go to the leader, once ───────────────────┐
//!  nodes, Envoys ──gRPC──┼─▶ push/       streams: cursors into what was encoded once        ▼
//!                        │     envoy/      the same for standard clients ◀── watch ─── weft-store
//!  members ──POST /raft──┴─▶ Store::handle                                                  │
//!                            pool.rs       the way to the other members ◀─── Transport ─────┘
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
