//! Weft's resources: as written, validated, and the errors between.
pub mod config;
pub mod policy;
pub use config::Config;
