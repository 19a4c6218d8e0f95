//! The steps of the pipeline, one file each.

pub mod access;
pub mod fault;
pub mod hedge;
pub mod mirror;
pub mod ratelimit;
pub mod retry;
pub mod shed;
pub mod target;
