//! The push, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod asked;
mod client;
#[path = "../api/common.rs"]
#[allow(dead_code, reason = "the tests of the API use more of it")]
mod common;
mod one;
mod three;
