//! Failure and overload, as clients and upstreams see it.

mod ratelimit;
