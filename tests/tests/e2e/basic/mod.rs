//! Correct proxying of ordinary requests (RFC 9110, 9112, 9113).

mod bodies;
mod forwarding;
mod interim;
mod requests;
mod trailers;
