//! weft-proxy: the data plane.
pub mod balance;
pub mod endpoint;
pub mod error;
pub mod telemetry;
