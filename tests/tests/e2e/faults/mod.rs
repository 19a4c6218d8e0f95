//! Upstreams and clients that fail, in every way.

mod clients;
mod limits;
mod reuse;
mod upstreams;
