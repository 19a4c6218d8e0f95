//! A whole node, with a kernel that these tests made up.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::HashMap,
    future::Future,
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};
use weft_model::{Options as ModelOptions, load_str};

use super::{App, admin::NodeAdmin};
use crate::{
    admin::Admin,
    kernel::{Kernel, Origin, Signals},
    options::Options,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Knows what tests told it: connections by the client's address.
#[derive(Debug, Default)]
struct Fake {
    origins: Mutex<HashMap<SocketAddr, Origin>>,
    attributed: Mutex<Vec<u64>>,
}

impl Kernel for Fake {
    fn origin(&self, accepted: BorrowedFd<'_>) -> Option<Origin> {
        let peer = SockRef::from(&accepted).peer_addr().unwrap().as_socket().unwrap();
        self.origins.lock().unwrap().get(&peer).cloned()
    }

    fn attribute(&self, socket: BorrowedFd<'_>, endpoint: u64) {
        let socket = SockRef::from(&socket);
        assert!(socket.peer_addr().is_err(), "it is told before it is connected");
        self.attributed.lock().unwrap().push(endpoint);
    }

    fn signals(&self) -> HashMap<u64, Signals> {
        HashMap::new()
    }

    fn recovered(&self, _: u64) {}

    fn verdicts(&self) -> Vec<(&'static str, &'static str, u64)> {
        Vec::new()
    }

    fn connections(&self) -> Value {
        json!([{"destination": "10.96.0.1:80"}])
    }

    fn flows(&self, after: u64) -> Value {
        json!([{ "after": after }])
    }

    fn status(&self) -> Value {
        json!({ "enabled": true })
    }
}

/// A node that listens for captured connections.
struct Node {
    app: App,
    kernel: Arc<Fake>,
}

impl Node {
    async fn start(config: &str) -> Self {
        let kernel = Arc::new(Fake::default());
        let options = Options {
            workers: 2,
            pin_workers: false,
            captured: vec!["127.0.0.1:0".parse().unwrap()],
            drain_timeout: PATIENCE,
            ..Options::default()
        };
        let mut app = App::start(options, Some(kernel.clone())).unwrap();
        let checked = load_str("test.yaml", config, ModelOptions::default());
        app.apply(Arc::new(checked.unwrap_or_else(|problems| panic!("{problems}")).config)).await.unwrap();
        Self { app, kernel }
    }

    /// What an application gets that connects to `destination`.
    async fn connect(&self, destination: &str, workload: Option<&str>) -> TcpStream {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let origin = Origin { destination: destination.parse().unwrap(), workload: workload.map(Into::into) };
        self.kernel.origins.lock().unwrap().insert(socket.local_addr().unwrap(), origin);
        socket.connect(self.app.captured()[0]).await.unwrap()
    }

    /// Status and body of a reply to a GET.
    async fn get(&self, destination: &str, workload: Option<&str>, path: &str) -> String {
        let mut client = self.connect(destination, workload).await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        rest(&mut client).await
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("it takes too long"))
}

/// Everything until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    // A reset is an end, too.
    let _ = within(stream.read_to_end(&mut all)).await;
    String::from_utf8(all).unwrap()
}

async fn some(stream: &mut TcpStream, expected: &str) {
    let mut got = vec![0; expected.len()];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(String::from_utf8(got).unwrap(), expected);
}

/// A server whose connections are handled one after the other by `serve`.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Answers one request with the head that it got.
async fn http(mut stream: TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let reply = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", head.len());
    stream.write_all(reply.as_bytes()).await.unwrap();
    stream.write_all(&head).await.unwrap();
}

/// Sends everything back, after `! `.
async fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        stream.write_all(b"! ").await.unwrap();
        stream.write_all(&buffer[..n]).await.unwrap();
    }
}

/// Speaks first.
async fn greeter(mut stream: TcpStream) {
    stream.write_all(b"220 ready\n").await.unwrap();
    echo(stream).await;
}

fn service(name: &str, ip: &str, spec: &str, endpoint: SocketAddr) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIPs: [{ip}], {spec}, endpoints: [{{address: {}, port: {}}}]}}\n",
        endpoint.ip(),
        endpoint.port()
    )
}

fn workload(name: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{cgroup: {name}}}, serviceAccount: {name}}}\n"
    )
}

/// A route bound to `service` that leads `/db` to the service `db`, which only `web` may use.
fn guarded() -> String {
    "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\n\
     spec:\n  parentRefs: [{group: weft.dev, kind: Service, name: shop}]\n  rules:\n\
     \x20 - {matches: [{path: {value: /db}}], backendRefs: [{group: weft.dev, kind: Service, name: db, port: 80}]}\n\
     \x20 - {matches: [{path: {value: /shop}}], backendRefs: [{group: weft.dev, kind: Service, name: shop, port: 80}]}\n\
     ---\napiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: only-web}\n\
     spec: {targetRefs: [{group: weft.dev, kind: Service, name: db}], action: Allow, rules: [{from: [{workloads: [web]}]}]}\n"
        .to_owned()
}

const HTTP: &str = "ports: [{port: 80, appProtocol: http}]";
const UNKNOWN: &str = "ports: [{port: 80}]";

#[tokio::test]
async fn requests_are_served_at_the_address_that_was_asked_for() {
    let endpoint = server(http).await;
    let node = Node::start(&service("cart", "10.96.0.1", HTTP, endpoint)).await;
    let reply = node.get("10.96.0.1:80", Some("web"), "/x").await;
    assert!(reply.starts_with("HTTP/1.1 200 OK") && reply.contains("GET /x HTTP/1.1"), "{reply}");
    assert!(!reply.contains("x-forwarded-for"), "loopback is nobody's address: {reply}");
    assert_eq!(node.kernel.attributed.lock().unwrap().len(), 1, "the kernel was told of the connection");
    let admin = NodeAdmin::new(node.app.shared().clone(), node.app.state().clone());
    assert_eq!(admin.connections()[0]["destination"], "10.96.0.1:80");
    assert_eq!((admin.flows(7)[0]["after"].as_u64(), admin.ebpf()["enabled"].as_bool()), (Some(7), Some(true)));
    let dump = admin.config_dump();
    assert_eq!(
        dump["virtual_ports"],
        json!([{"address": "10.96.0.1:80", "service": "cart", "protocol": "HTTP", "routed": false}])
    );
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn what_was_not_captured_or_is_no_service_any_more_is_closed() {
    let endpoint = server(http).await;
    let node = Node::start(&service("cart", "10.96.0.1", HTTP, endpoint)).await;
    let mut direct = TcpStream::connect(node.app.captured()[0]).await.unwrap();
    assert_eq!(rest(&mut direct).await, "");
    let mut gone = node.connect("10.96.0.9:80", None).await;
    assert_eq!(rest(&mut gone).await, "");
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn declared_ports_are_what_they_say() {
    let (web, raw) = (server(http).await, server(echo).await);
    let text = service("web", "10.96.0.1", HTTP, web)
        + &service("raw", "10.96.0.2", "mode: Proxy, ports: [{port: 80, appProtocol: tcp}]", raw);
    let node = Node::start(&text).await;
    let mut client = node.connect("10.96.0.1:80", None).await;
    client.write_all(b"*1\r\n$4\r\nPING\r\n\r\n").await.unwrap();
    let reply = rest(&mut client).await;
    assert!(reply.starts_with("HTTP/1.1 400"), "{reply}");
    let mut client = node.connect("10.96.0.2:80", None).await;
    client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    some(&mut client, "! GET / HTTP/1.1\r\n").await;
    drop(client);
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn whoever_speaks_first_tells_what_an_unknown_port_carries() {
    let (web, raw, smtp) = (server(http).await, server(echo).await, server(greeter).await);
    let text = service("web", "10.96.0.1", UNKNOWN, web)
        + &service("raw", "10.96.0.2", UNKNOWN, raw)
        + &service("smtp", "10.96.0.3", UNKNOWN, smtp);
    let node = Node::start(&text).await;

    let reply = node.get("10.96.0.1:80", None, "/x").await;
    assert!(reply.contains("GET /x HTTP/1.1") && reply.contains("x-request-id"), "served, not passed on: {reply}");

    // HTTP/2 too: an endpoint that speaks it (gRPC) would not understand Weft's HTTP/1.1.
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for said in ["*1\r\n$4\r\nPING\r\n", "\x16\x03\x01 hello", "PING\r\n", "hello", preface] {
        let mut client = node.connect("10.96.0.2:80", None).await;
        client.write_all(said.as_bytes()).await.unwrap();
        some(&mut client, &format!("! {said}")).await;
        client.write_all(b"more").await.unwrap();
        some(&mut client, "! more").await;
    }

    let mut client = node.connect("10.96.0.3:80", None).await;
    some(&mut client, "220 ready\n").await;
    client.write_all(b"EHLO x").await.unwrap();
    some(&mut client, "! EHLO x").await;
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut client).await, "");
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn a_request_that_comes_late_finds_the_trial_connection_closed_and_is_served() {
    // The first connection is the one on trial: it ends without a byte, and the request comes on another one.
    let (tell, told) = oneshot::channel();
    let (tell, first) = (Arc::new(Mutex::new(Some(tell))), Arc::new(Mutex::new(Some(()))));
    let opened = Arc::new(tokio::sync::Notify::new());
    let waiting = opened.clone();
    let endpoint = server(move |mut stream: TcpStream| {
        let (tell, first, opened) = (tell.clone(), first.clone(), opened.clone());
        async move {
            if first.lock().unwrap().take().is_none() {
                return http(stream).await;
            }
            opened.notify_one();
            let mut got = Vec::new();
            let _ = stream.read_to_end(&mut got).await;
            let tell = tell.lock().unwrap().take();
            tell.unwrap().send(got).unwrap();
        }
    })
    .await;
    let node = Node::start(&service("web", "10.96.0.1", UNKNOWN, endpoint)).await;
    let mut client = node.connect("10.96.0.1:80", None).await;
    within(waiting.notified()).await;
    client.write_all(b"GET /late HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let reply = rest(&mut client).await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("GET /late"), "{reply}");
    assert_eq!(within(told).await.unwrap(), b"");
    let admin = NodeAdmin::new(node.app.shared().clone(), node.app.state().clone());
    let closed = async {
        while admin.endpoints()[0]["connections"] != 0 {
            tokio::task::yield_now().await;
        }
    };
    within(closed).await;
    assert_eq!(admin.endpoints()[0]["endpoints"][0]["failures"], 0, "a trial is no failure");
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn connections_on_which_nobody_speaks_do_not_hold_up_a_drain() {
    let accepted = Arc::new(tokio::sync::Notify::new());
    let waiting = accepted.clone();
    let endpoint = server(move |mut stream: TcpStream| {
        accepted.notify_one();
        async move {
            let _ = stream.read_u8().await;
        }
    })
    .await;
    let node = Node::start(&service("mute", "10.96.0.1", UNKNOWN, endpoint)).await;
    let mut client = node.connect("10.96.0.1:80", None).await;
    within(waiting.notified()).await;
    assert!(timeout(PATIENCE / 2, node.app.drain()).await.unwrap());
    assert_eq!(rest(&mut client).await, "");
}

#[tokio::test]
async fn a_service_without_endpoints_that_answer_lets_its_clients_down() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let node = Node::start(&service("down", "10.96.0.1", UNKNOWN, closed)).await;
    let mut silent = node.connect("10.96.0.1:80", None).await;
    assert_eq!(rest(&mut silent).await, "", "as a refused connection would");
    let reply = node.get("10.96.0.1:80", None, "/").await;
    assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("connect_failed"), "{reply}");
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn access_is_asked_again_where_a_route_leads_elsewhere() {
    let endpoint = server(http).await;
    let text = service("shop", "10.96.0.1", HTTP, endpoint)
        + &service("db", "10.96.0.2", HTTP, endpoint)
        + &workload("web")
        + &workload("batch")
        + &guarded();
    let node = Node::start(&text).await;
    for (at, from, path, expected) in [
        ("10.96.0.1:80", Some("web"), "/db", "HTTP/1.1 200"),
        ("10.96.0.1:80", Some("batch"), "/shop", "HTTP/1.1 200"),
        ("10.96.0.1:80", Some("batch"), "/db", "AccessPolicy only-web does not let workload batch in"),
        ("10.96.0.1:80", None, "/db", "AccessPolicy only-web does not let an unknown workload in"),
        ("10.96.0.1:80", Some("web"), "/", "no route of this service matches"),
        // The kernel has let it connect to the service itself.
        ("10.96.0.2:80", Some("batch"), "/", "HTTP/1.1 200"),
    ] {
        let reply = node.get(at, from, path).await;
        assert!(reply.contains(expected), "{at} {from:?} {path}: {reply}");
        if expected.starts_with("AccessPolicy") {
            assert!(reply.starts_with("HTTP/1.1 403") && reply.contains("x-weft-reason: access_denied"), "{reply}");
        }
    }
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn access_is_asked_for_connections_that_a_route_leads_elsewhere() {
    let endpoint = server(echo).await;
    let tcp = "mode: Proxy, ports: [{port: 80, appProtocol: tcp}]";
    let route = "---\napiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {name: r}\n\
         spec: {parentRefs: [{group: weft.dev, kind: Service, name: front}], \
         rules: [{backendRefs: [{group: weft.dev, kind: Service, name: db, port: 80}]}]}\n\
         ---\napiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: not-batch}\n\
         spec: {targetRefs: [{group: weft.dev, kind: Service, name: db}], action: Deny, \
         rules: [{from: [{identities: ['spiffe://mesh.local/ns/default/sa/batch']}]}]}\n";
    let text = service("front", "10.96.0.1", tcp, endpoint) + &service("db", "10.96.0.2", tcp, endpoint);
    let node = Node::start(&(text + &workload("web") + &workload("batch") + route)).await;
    for (at, from, served) in [
        ("10.96.0.1:80", "web", true),
        ("10.96.0.1:80", "batch", false),
        // The kernel has let it connect to the service itself.
        ("10.96.0.2:80", "batch", true),
    ] {
        let mut client = node.connect(at, Some(from)).await;
        // The other side may have closed already.
        let _ = client.write_all(b"hello").await;
        let _ = client.shutdown().await;
        assert_eq!(rest(&mut client).await, if served { "! hello" } else { "" }, "{at} {from}");
    }
    assert!(within(node.app.drain()).await);
}

#[tokio::test]
async fn without_a_kernel_nothing_is_captured() {
    let options = Options { workers: 1, pin_workers: false, ..Options::default() };
    let app = App::start(options, None).unwrap();
    assert_eq!(app.captured(), []);
    let admin = NodeAdmin::new(app.shared().clone(), app.state().clone());
    assert_eq!((admin.connections(), admin.flows(0), admin.ebpf()), (json!([]), json!([]), json!({"enabled": false})));
    assert!(within(app.drain()).await);
}
