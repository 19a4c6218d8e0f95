//! The kernel side of a node.
//!
//! ```text
//!  Config + endpoints alive ─▶ maps ─▶ Desired ─▶ reconcile ─▶ Store: the kernel's maps
//! ```

pub mod maps;
pub mod reconcile;
#[cfg(test)]
mod testing;
