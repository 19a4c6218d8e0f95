//! What the port answers, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod configuration;
mod members;
mod one;
mod registry;
mod three;
