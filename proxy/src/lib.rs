//! weft-proxy: the data plane.
pub mod admin;
pub mod balance;
pub mod endpoint;
pub mod error;
pub mod identity;
pub mod source;
