//! The steps of the pipeline, one file each.

pub mod mirror;
pub mod ratelimit;
pub mod target;
