//! Gateway API's rules: which route takes a request, and what its filters do.

mod contract;
mod filters;
mod matching;
mod refusals;

use std::net::SocketAddr;

use weft_tests::{Reply, Upstream, Weft, client, ports, yaml};

use crate::local;

/// Weft with some services, named as their upstreams, and routes given as documents.
struct Routes {
    weft: Weft,
    addr: SocketAddr,
    upstreams: Vec<Upstream>,
}

impl Routes {
    async fn new(services: &[&str], routes: &[String]) -> Self {
        let port = ports::free();
        let mut docs = vec![yaml::gateway(port)];
        docs.extend_from_slice(routes);
        let mut upstreams = Vec::new();
        for name in services {
            let upstream = Upstream::h1(name).await;
            docs.push(yaml::service(name, "http", &[upstream.addr]));
            upstreams.push(upstream);
        }
        Self { weft: Weft::start(&yaml::docs(&docs)).await, addr: local(port), upstreams }
    }

    async fn get(&self, host: &str, path: &str) -> Reply {
        client::get_once(self.addr, host, path).await.unwrap()
    }

    async fn get_with(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut client = weft_tests::Client::h1(self.addr).await.unwrap();
        client.send(client::get_with(host, path, headers)).await.unwrap()
    }

    /// How many requests each upstream saw, in the order of the services.
    fn counts(&self) -> Vec<usize> {
        self.upstreams.iter().map(|upstream| upstream.seen.count()).collect()
    }
}

/// A rule in flow style: a match and the service for it.
fn rule(matching: &str, service: &str) -> String {
    format!("- {{matches: [{matching}], backendRefs: [{}]}}\n", yaml::backend(service))
}
