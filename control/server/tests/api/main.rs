//! What the port answers, over real sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
mod one;
mod registry;
mod three;
