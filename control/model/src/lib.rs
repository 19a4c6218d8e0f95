//! Weft's resources: as written, validated, and the errors between.
//!
//! ```text
//! text ── tree ──────── schema ────────────── written ──── validate ──── config
//!         (where it     (unknown fields,      (serde)      (values,      (what Weft
//!         was written)  types, required)                   references)   sees)
//! ```
//!
//! Each step reports every problem that it finds, at its line and column, and hands on what is sound, so that one
//! mistake does not hide the next.

mod absolute;
pub mod condition;
pub mod config;
pub mod duration;
mod effective;
mod load;
pub mod not_yet;
pub mod policy;
mod problem;
pub mod registry;
mod schema;
mod suggest;
mod tree;
mod unsupported;
mod validate;
pub mod written;

pub use absolute::with_absolute_paths;
pub use condition::{Condition, Facts};
pub use config::Config;
pub use load::{Checked, Document, Options, documents, load_objects, load_paths, load_str, load_texts, read_texts};
pub use problem::{Diagnostic, Problems};
pub use registry::Registered;
pub use schema::json_schema;
