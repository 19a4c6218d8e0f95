//! End-to-end tests: the `weft` binary over real sockets, with real peers on both sides.
//!
//! Every test starts its own Weft and its own peers on ports of its own, so that all of them run side by side. Each
//! asserts what the client sees and what the upstream saw.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, clippy::print_stderr)]

mod balancing;
mod basic;
mod breaker;
mod control_plane;
mod faults;
mod harness;
mod hostile;
mod mesh;
mod observability;
mod operation;
mod protocols;
mod resilience;
mod routing;
mod tls;

use std::net::SocketAddr;

use weft_tests::{Client, RawUpstream, Upstream, Weft, Wire, ports, yaml};

/// Where a test's listener is.
fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Weft with one listener, everything to one upstream.
struct Stage<U> {
    weft: Weft,
    upstream: U,
    addr: SocketAddr,
}

impl Stage<Upstream> {
    /// In front of the toolbox over HTTP/1.1.
    async fn h1() -> Self {
        Self::new(Upstream::h1("app").await, "http", |upstream| upstream.addr).await
    }

    /// In front of the toolbox over HTTP/2 with prior knowledge.
    async fn h2() -> Self {
        Self::new(Upstream::h2("app").await, "h2c", |upstream| upstream.addr).await
    }
}

impl Stage<RawUpstream> {
    async fn raw(upstream: RawUpstream) -> Self {
        Self::new(upstream, "http", |upstream| upstream.addr).await
    }
}

impl<U> Stage<U> {
    async fn new(upstream: U, protocol: &str, addr: fn(&U) -> SocketAddr) -> Self {
        let port = ports::free();
        let weft = Weft::start(&yaml::simple(port, protocol, addr(&upstream))).await;
        Self { weft, upstream, addr: local(port) }
    }

    /// With a TrafficPolicy on the service.
    async fn with_policy(upstream: U, protocol: &str, addr: fn(&U) -> SocketAddr, spec: &str) -> Self {
        let port = ports::free();
        let config = yaml::docs(&[yaml::simple(port, protocol, addr(&upstream)), yaml::policy("app", spec)]);
        let weft = Weft::start(&config).await;
        Self { weft, upstream, addr: local(port) }
    }

    async fn wire(&self) -> Wire {
        Wire::connect(self.addr).await
    }

    async fn client_h1(&self) -> Client {
        Client::h1(self.addr).await.unwrap()
    }

    async fn client_h2(&self) -> Client {
        Client::h2(self.addr).await.unwrap()
    }
}

/// A header of an echo, which must not be repeated.
fn echoed<'a>(echo: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    let all = all_echoed(echo, name);
    assert!(all.len() <= 1, "{name} is repeated: {echo}");
    all.first().copied()
}

fn all_echoed<'a>(echo: &'a serde_json::Value, name: &str) -> Vec<&'a str> {
    let headers = echo["headers"].as_array().unwrap();
    headers.iter().filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap()).collect()
}
