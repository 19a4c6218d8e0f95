//! The kernel side of a node.
//!
//! ```text
//!  Config + endpoints alive ─▶ maps ─▶ Desired ─▶ reconcile ─▶ Store: the kernel's maps
//! ```

pub mod cgroup;
pub mod maps;
pub mod pins;
pub mod programs;
pub mod reconcile;
mod sys;
