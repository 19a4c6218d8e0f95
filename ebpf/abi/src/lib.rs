//! What the kernel programs and the agent share: the layout of maps, and [`classify`], the decision that is made inside
//! `connect()`. `no_std`; compiled for the kernel and for the host, where it is tested.
//!
//! ```text
//!  connect() ─▶ Request ─▶ classify(&Maps) ─▶ Decision ─▶ the hook rewrites the address, sets the errno, leaves Meta
//!                              │
//!        SETTINGS · VIPS ─▶ SLOTS ─▶ ENDPOINTS · HOLD      where to
//!        WORKLOADS · POLICY ─▶ BLOCKS · NAMESPACES         who may
//!        HEARTBEAT                                         is the proxy alive
//! ```
//!
//! Services and workloads are named by a hash of their name ([`id`]), endpoints by their place in ENDPOINTS together with
//! a generation. Both stay valid across a restart of the agent, which finds its maps again.
#![no_std]
#![warn(missing_docs)]

mod addr;
mod classify;
mod layout;
#[cfg(test)]
mod tests;

pub use addr::Addr;
pub use classify::{Decision, MAX_DEPTH, MAX_SCAN, Maps, Reason, Request, Verdict, classify};
pub use layout::*;

/// Changes with every change of a map's layout or meaning. Pins stand in a directory of this name, so that programs never
/// meet a map that they do not understand.
pub const ABI: u32 = 1;

/// Names a service's port (`namespace/name:port`), a service (`namespace/name`) or a workload (`namespace/name`): 64-bit
/// FNV-1a. Never 0, which stands for "none".
pub const fn id(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    if hash == 0 { 1 } else { hash }
}
