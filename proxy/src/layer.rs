//! The steps of the pipeline, one file each.

pub mod fault;
pub mod mirror;
pub mod shed;
pub mod target;
