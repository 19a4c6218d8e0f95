//! Breakers, retries, hedges, deadlines, faults and limits: what clients and upstreams see of them, and what the admin
//! port says.

mod breaker;
mod budget;
mod concurrency;
mod deadline;
mod explain;
mod fault;
mod hedge;
mod mirror;
mod pool;
mod probes;
mod ratelimit;
mod regressions;
mod reload;
mod retry;
mod retry_grpc;
mod shed;
mod twice;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use http::Request;
use weft_tests::{
    Client, Options, Reply, SOON, Unruly, Weft, client, eventually, grpc, ports, soon,
    unruly::{ID, grpc::UnrulyGrpc},
    upstream::{Body, empty, full},
    yaml,
};

use crate::local;

/// Weft in front of the service `app`, whose endpoints do as they are told. Everything is traced.
struct Scene<U> {
    weft: Weft,
    addr: SocketAddr,
    upstreams: Vec<U>,
    /// Everything but the policy of `app`.
    docs: Vec<String>,
}

impl Scene<Unruly> {
    /// `count` endpoints and a TrafficPolicy on the service. Balanced by turns unless it says otherwise.
    async fn new(count: usize, policy: &str) -> Self {
        Self::with(count, policy, Options::default()).await
    }

    async fn with(count: usize, policy: &str, options: Options) -> Self {
        Self::routed(count, policy, options, |_| vec![yaml::all_to("app")]).await
    }

    /// With documents besides gateway, service and policy; they are told the port of the gateway.
    async fn routed(count: usize, policy: &str, options: Options, more: impl FnOnce(u16) -> Vec<String>) -> Self {
        let upstreams = unruly(count).await;
        let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr).collect();
        let port = ports::free();
        let mut docs = vec![yaml::gateway(port), yaml::service("app", "http", &addrs)];
        docs.extend(more(port));
        Self::raise(upstreams, port, docs, policy, options).await
    }

    /// How often any endpoint received the request with this id.
    fn received(&self, id: &str) -> usize {
        self.upstreams.iter().map(|upstream| upstream.received(id)).sum()
    }

    fn count(&self) -> usize {
        self.upstreams.iter().map(Unruly::count).sum()
    }
}

impl Scene<UnrulyGrpc> {
    async fn grpc(count: usize, policy: &str) -> Self {
        let mut upstreams = Vec::new();
        for name in &["app0", "app1", "app2"][..count] {
            upstreams.push(UnrulyGrpc::start(name).await);
        }
        let addrs: Vec<_> = upstreams.iter().map(|server| server.upstream.addr).collect();
        let port = ports::free();
        let rule = format!("rules: [{{backendRefs: [{}]}}]", yaml::backend("app"));
        let docs = vec![yaml::gateway(port), yaml::service("app", "grpc", &addrs), yaml::grpc_route("greeter", &rule)];
        Self::raise(upstreams, port, docs, policy, Options::default()).await
    }

    async fn greeter(&self) -> grpc::GreeterClient {
        grpc::GreeterClient::connect(self.addr, "grpc.local").await
    }

    /// A call on its own connection.
    async fn call(&self) -> Result<tonic::Response<grpc::Msg>, tonic::Status> {
        let mut greeter = self.greeter().await;
        soon("an answer", greeter.unary(tonic::Request::new(grpc::Msg::new("hi", 1)))).await
    }

    fn received(&self, id: &str) -> usize {
        self.upstreams.iter().map(|server| server.received(id)).sum()
    }

    fn count(&self) -> usize {
        self.upstreams.iter().map(UnrulyGrpc::count).sum()
    }
}

impl<U> Scene<U> {
    async fn raise(upstreams: Vec<U>, port: u16, docs: Vec<String>, policy: &str, options: Options) -> Self {
        let weft = Weft::start_with(&config(&docs, policy), options).await;
        Self { weft, addr: local(port), upstreams, docs }
    }

    /// The same with another policy on the service.
    fn config(&self, policy: &str) -> String {
        config(&self.docs, policy)
    }

    async fn client(&self) -> Client {
        Client::h1(self.addr).await.unwrap()
    }

    /// A GET on its own connection.
    async fn get(&self) -> Reply {
        self.ask("GET", empty(), &[]).await.1
    }

    /// A request on its own connection, with an id of its own.
    async fn ask(&self, method: &str, body: Body, headers: &[(&str, &str)]) -> (String, Reply) {
        let (id, request) = tagged(method, body, headers);
        (id, soon("an answer", self.client().await.send(request)).await.unwrap())
    }

    async fn post(&self, headers: &[(&str, &str)]) -> (String, Reply) {
        self.ask("POST", full("pay"), headers).await
    }

    /// So many GETs at once, each on its own connection.
    async fn at_once(&self, count: usize) -> Vec<Reply> {
        soon("all answers", join_all((0..count).map(|_| self.get()))).await
    }
}

fn config(docs: &[String], policy: &str) -> String {
    let balanced = if policy.contains("loadBalancer") { "" } else { "loadBalancer: {type: RoundRobin}\n" };
    let mut docs = docs.to_vec();
    docs.push(yaml::policy("app", &format!("{balanced}{policy}")));
    docs.push(yaml::telemetry("tracing: {samplePercent: 100}"));
    yaml::docs(&docs)
}

/// Endpoints `app0`, `app1`, …
async fn unruly(count: usize) -> Vec<Unruly> {
    join_all((0..count).map(|number| async move { Unruly::start(&format!("app{number}")).await })).await
}

/// A request with an id that no other request of this process has.
fn tagged(method: &str, body: Body, headers: &[(&str, &str)]) -> (String, Request<Body>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let id = format!("id{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut request = client::request(method, "shop.local", "/buy", body);
    request.headers_mut().insert(ID, id.parse().unwrap());
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    (id, request)
}

/// A unary call of the greeter as a plain HTTP/2 request, so that no library watches its deadline.
fn grpc_request(headers: &[(&str, &str)]) -> (String, Request<Body>) {
    let mut all = vec![("content-type", "application/grpc"), ("te", "trailers")];
    all.extend(headers);
    // One uncompressed message: field 1 is "hi".
    let (id, mut request) = tagged("POST", full(&b"\0\0\0\0\x04\x0a\x02hi"[..]), &all);
    *request.uri_mut() = format!("/{}/Unary", grpc::SERVICE).parse().unwrap();
    (id, request)
}

/// The status of a gRPC reply, in its headers or trailers.
fn grpc_status(reply: &Reply) -> Option<String> {
    let trailer = || Some(reply.trailers.as_ref()?.get("grpc-status")?.to_str().unwrap().to_owned());
    reply.header("grpc-status").map(str::to_owned).or_else(trailer)
}

/// Name of the upstream that answered.
fn by(reply: &Reply) -> Option<&str> {
    reply.header("x-upstream")
}

/// A condition on upstreams that holds soon.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, SOON, async || condition()).await;
}
