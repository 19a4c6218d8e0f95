//! Deciders about failure and overload: plain synchronous structs. They have no sockets; `now` and random numbers are
//! passed in, so that each is tested with a table and a property test. What drives them is in [`crate::layer`] and
//! [`crate::pipeline`].

pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod circuit;
pub mod concurrency;
pub mod guard;
pub mod limiter;
pub mod outcome;
pub mod quantile;
pub mod retry;
pub mod shed;
