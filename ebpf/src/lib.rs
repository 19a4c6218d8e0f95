//! The kernel side of a node.
//!
//! ```text
//!  Config + endpoints alive ─▶ maps ─▶ Desired ─▶ reconcile ─▶ Store: the kernel's maps
//! ```

pub mod agent;
pub mod cgroup;
pub mod destroy;
pub mod features;
pub mod flows;
pub mod maps;
pub mod names;
pub mod netns;
pub mod pins;
pub mod programs;
pub mod reconcile;
pub mod status;
pub mod store;
mod sys;
#[cfg(test)]
mod testing;
