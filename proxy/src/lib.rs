//! weft-proxy: the data plane.
pub mod accept;
pub mod balance;
pub mod endpoint;
pub mod error;
