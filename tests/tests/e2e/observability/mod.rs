//! What an operator can see: traces, metrics, access log, admin port.

mod admin;
mod log;
mod metrics;
mod traces;
