//! Harness of the end-to-end tests: the `weft` binary as a child process, peers on both sides of it, and waiting.
//!
//! Read [`weft`] first (start, edit, drain, stop; [`endpoints`]: what the node says of its peers), then the upstreams
//! ([`upstream`], [`tool`], [`unruly`], [`wire`], [`grpc`], [`websocket`], [`nginx`], [`otlp`]) and the clients ([`client`], [`wire`], [`frames`], [`load`], [`curl`]).
//! [`mesh`]: processes whose connections are captured. [`plane`]: members of a control plane, [`cut`] off from each other,
//! and whether what their clients saw makes a [`history`].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, clippy::print_stderr)]

pub mod client;
pub mod curl;
pub mod cut;
pub mod endpoints;
pub mod frames;
pub mod grpc;
pub mod history;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod nginx;
pub mod otlp;
pub mod pki;
pub mod plane;
pub mod ports;
pub mod tool;
pub mod unruly;
pub mod upstream;
pub mod websocket;
pub mod weft;
pub mod wire;
pub mod yaml;

use std::time::Duration;

use tokio::time::Instant;

pub use client::{Client, Reply};
pub use unruly::Unruly;
pub use upstream::Upstream;
pub use weft::{Options, Weft};
pub use wire::{RawUpstream, Response, Wire};

/// What a test waits for something that ought to happen at once. Generous: the machine is shared.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits until `condition` holds; fails the test, naming `what`, when `deadline` passes first.
pub async fn eventually(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    while !condition().await {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Runs `future`; fails the test, naming `what`, when it takes longer than [`SOON`].
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    within(SOON, what, future).await
}

/// Runs `future`; fails the test, naming `what`, when it takes longer than `limit`.
pub async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match tokio::time::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Says loudly that a test did not test anything, and why.
pub fn skip(test: &str, why: &str) {
    static SKIPPED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let count = SKIPPED.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
    eprintln!("SKIPPED ({count} in this process): {test}: {why}");
}
