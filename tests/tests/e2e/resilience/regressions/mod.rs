//! What broke once, and must not break again. Each test is named after that.

mod answers;
mod blame;
mod endings;
mod leftovers;
mod picks;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use weft_tests::{Options, RawUpstream, Weft, ports, yaml};

use super::{Scene, by, grpc_request, tagged, until};

/// Two more attempts with hardly any wait, and as many as it takes.
const TWICE: &str = "retry: {attempts: 2, backoff: {base: 5ms, max: 20ms}}\nretryBudget: {minPerSecond: 1000}";

/// Weft in front of peers of the test's own.
async fn stage<U>(upstreams: Vec<U>, protocol: &str, addr: fn(&U) -> SocketAddr, policy: &str) -> Scene<U> {
    let addrs: Vec<_> = upstreams.iter().map(addr).collect();
    let port = ports::free();
    let docs = vec![yaml::gateway(port), yaml::service("app", protocol, &addrs), yaml::all_to("app")];
    Scene::raise(upstreams, port, docs, policy, Options::default()).await
}

/// Weft in front of one raw upstream.
async fn raw(upstream: RawUpstream, policy: &str) -> Scene<RawUpstream> {
    stage(vec![upstream], "http", |upstream| upstream.addr, policy).await
}

/// The state of an endpoint's breaker, and how many attempts failed there.
async fn blamed(weft: &Weft, addr: SocketAddr) -> (String, u64) {
    let endpoint = weft.endpoint(addr).await;
    (endpoint["breaker"].as_str().unwrap().to_owned(), endpoint["failures"].as_u64().unwrap())
}

/// Nobody holds the endpoint responsible for anything.
fn nobody() -> (String, u64) {
    ("closed".to_owned(), 0)
}

/// A number in what the node says of an endpoint.
async fn number(weft: &Weft, addr: SocketAddr, field: &str) -> f64 {
    let endpoint = weft.endpoint(addr).await;
    endpoint[field].as_f64().unwrap_or_else(|| panic!("no {field}: {endpoint}"))
}

/// Numbers the requests that an upstream has received on all of its connections.
#[derive(Default)]
struct Turns(AtomicUsize);

impl Turns {
    /// From 0.
    fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}
