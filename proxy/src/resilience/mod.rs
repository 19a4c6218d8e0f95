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
pub mod signals;

use std::time::Duration;

/// A duration in nanoseconds, as atomics hold it: at most 584 years.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
