//! Where the configuration comes from.
//!
//! | file | |
//! |---|---|
//! | `file.rs` | YAML files, hot-reloaded |
//! | `control/` | a control plane, over a stream of changes |
//! | `dirs.rs` | "something happened to these files", settled; also used for certificates |

pub mod control;
pub mod dirs;
pub mod file;

pub use file::{FileSource, Reloader, Update};
