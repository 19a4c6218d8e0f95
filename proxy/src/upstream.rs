//! From a picked endpoint to an answer: connect, check a connection out of the worker's pool, send.

pub mod connect;
mod handover;
pub mod interim;
pub mod obtain;
pub mod places;
pub mod pool;
pub mod send;

#[cfg(test)]
mod tests;
