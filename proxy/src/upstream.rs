//! From a picked endpoint to an answer: connect, check a connection out of the worker's pool, send.

pub mod connect;
pub mod interim;
pub mod pool;
pub mod send;

#[cfg(test)]
mod tests;
