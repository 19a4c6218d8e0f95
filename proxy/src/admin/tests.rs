#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::telemetry::store::StatusFilter;

#[derive(Default)]
struct Fake {
    unready: AtomicBool,
    drained: AtomicUsize,
    queries: Mutex<Vec<TraceQuery>>,
}

impl Admin for Fake {
    fn ready(&self) -> Readiness {
        if self.unready.load(Relaxed) { Readiness::not_yet("no configuration yet") } else { Readiness::READY }
    }

    fn metrics(&self, accept: &str) -> (String, String) {
        (format!("# accept {accept}\n"), "text/plain; version=0.0.4".into())
    }

    fn config_dump(&self) -> Value {
        json!({ "revision": 7 })
    }

    fn endpoints(&self) -> Value {
        assert!(!self.unready.load(Relaxed), "a panic in the admin's own code");
        json!({ "services": [] })
    }

    fn traces(&self, query: &TraceQuery) -> Value {
        self.queries.lock().unwrap().push(query.clone());
        json!([])
    }

    fn drain(&self) {
        self.drained.fetch_add(1, Relaxed);
    }
}

async fn start() -> (SocketAddr, Arc<Fake>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fake = Arc::new(Fake::default());
    tokio::spawn(serve(listener, Hosts::new(address).allow("node-1.test"), fake.clone()));
    (address, fake)
}

/// Sends bytes, returns everything until the server closes.
async fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut io = TcpStream::connect(address).await.unwrap();
    let _ = io.write_all(request).await;
    let mut reply = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), io.read_to_end(&mut reply)).await.expect("no end");
    String::from_utf8(reply).unwrap()
}

async fn ask(address: SocketAddr, line: &str, headers: &str) -> (u16, String, String) {
    let request = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    split(&raw(address, request.as_bytes()).await)
}

/// Status, head in lower case, body.
fn split(reply: &str) -> (u16, String, String) {
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((reply, ""));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn readiness_with_reasons() {
    let (address, fake) = start().await;
    let (status, _, body) = ask(address, "GET /ready", "").await;
    assert_eq!((status, body.as_str()), (200, "ready\n"));
    fake.unready.store(true, Relaxed);
    let (status, _, body) = ask(address, "GET /ready", "").await;
    assert_eq!((status, body.as_str()), (503, "no configuration yet\n"));
    let (status, head, body) = ask(address, "GET /ready", "accept: application/json\r\n").await;
    assert!(status == 503 && head.contains("content-type: application/json"), "{head}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body, json!({ "ready": false, "reasons": ["no configuration yet"] }));
}

#[tokio::test]
async fn every_listed_path_answers() {
    let (address, _) = start().await;
    let (status, head, listing) = ask(address, "GET /", "").await;
    assert_eq!(status, 200);
    assert!(head.contains("server: weft") && head.contains("cache-control: no-store"), "{head}");
    assert_eq!(listing.lines().count(), 14);
    for line in listing.lines() {
        let (method, path) = (line.split_whitespace().next().unwrap(), line.split_whitespace().nth(1).unwrap());
        let query = if path == "/explain" { "?url=http://a/" } else { "" };
        let (status, head, body) = ask(address, &format!("{method} {path}{query}"), "").await;
        assert_eq!(status, 200, "{line}");
        if head.contains("application/json") {
            serde_json::from_str::<Value>(&body).unwrap();
        }
    }
    let (_, _, heap) = ask(address, "GET /debug/heap", "").await;
    let heap: Value = serde_json::from_str(&heap).unwrap();
    assert!(heap["status"]["VmRSS"].as_u64().unwrap() > 1 << 20, "{heap}");
}

#[tokio::test]
async fn metrics_negotiate() {
    let (address, _) = start().await;
    let (_, head, body) = ask(address, "GET /metrics", "accept: application/openmetrics-text\r\n").await;
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert_eq!(body, "# accept application/openmetrics-text\n");
}

#[tokio::test]
async fn head_has_no_body() {
    let (address, _) = start().await;
    let (status, head, body) = ask(address, "HEAD /ready", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(head.contains("content-length: 6"), "{head}");
}

#[tokio::test]
async fn wrong_methods_and_paths() {
    let (address, fake) = start().await;
    for (line, allow) in [
        ("POST /ready", "get, head"),
        ("DELETE /", "get, head"),
        ("OPTIONS /metrics", "get, head"),
        ("GET /drain", "post"),
        ("HEAD /drain", "post"),
    ] {
        let (status, head, _) = ask(address, line, "").await;
        assert!(status == 405 && head.contains(&format!("allow: {allow}")), "{line}: {head}");
    }
    for path in ["/nothing", "/ready/", "//ready", "/debug", "/READY"] {
        let (status, _, body) = ask(address, &format!("GET {path}"), "").await;
        assert!(status == 404 && body.contains("/config_dump"), "{path}: {body}");
    }
    assert_eq!(fake.drained.load(Relaxed), 0);
}

#[tokio::test]
async fn only_known_hosts() {
    let (address, _) = start().await;
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST:15000", 200),
        ("localhost.", 200),
        ("127.0.0.1:1", 200),
        ("127.8.8.8", 200),
        ("[::1]:15000", 200),
        ("node-1.test:15000", 200),
        ("evil.test", 403),
        ("localhost.evil.test", 403),
        ("127.0.0.1.evil.test", 403),
        ("127.0.0.1@evil.test", 403),
        ("localhost@127.0.0.1", 403),
        ("10.0.0.1", 403),
        ("", 403),
    ] {
        let request = format!("GET /ready HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(split(&raw(address, request.as_bytes()).await).0, status, "{host}");
    }
    for (request, status) in [
        ("GET /ready HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
        ("GET /ready HTTP/1.0\r\n\r\n", 200),
        ("GET /ready HTTP/1.1\r\nhost: localhost\r\nhost: evil.test\r\nconnection: close\r\n\r\n", 400),
        ("GET http://evil.test/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 403),
        ("GET http://localhost/ready HTTP/1.1\r\nhost: evil.test\r\nconnection: close\r\n\r\n", 403),
        ("GET http://localhost/ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
    ] {
        assert_eq!(split(&raw(address, request.as_bytes()).await).0, status, "{request}");
    }
    let everywhere = Hosts::new("0.0.0.0:15000".parse().unwrap());
    assert!(everywhere.allows("10.1.2.3:15000") && !everywhere.allows("evil.test"));
    let one = Hosts::new("10.1.2.3:15000".parse().unwrap());
    assert!(one.allows("10.1.2.3") && !one.allows("10.1.2.4"));
}

#[tokio::test]
async fn web_pages_cannot_drain() {
    let (address, fake) = start().await;
    for headers in [
        "origin: http://evil.test\r\n",
        "origin: null\r\n",
        "origin: https://evil.test\r\norigin: http://localhost\r\n",
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
    ] {
        assert_eq!(ask(address, "POST /drain", headers).await.0, 403, "{headers}");
    }
    assert_eq!(fake.drained.load(Relaxed), 0);
    for headers in ["", "origin: http://localhost:15000\r\nsec-fetch-site: same-origin\r\n", "content-length: 0\r\n"] {
        assert_eq!(ask(address, "POST /drain", headers).await.0, 200, "{headers}");
    }
    assert_eq!(fake.drained.load(Relaxed), 3);
}

#[tokio::test]
async fn large_bodies_are_refused() {
    let (address, fake) = start().await;
    let declared = "POST /drain HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n";
    assert_eq!(split(&raw(address, declared.as_bytes()).await).0, 413);
    let mut chunked = b"POST /drain HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..65 {
        chunked.extend(b"400\r\n");
        chunked.extend([b'x'; 1024]);
        chunked.extend(b"\r\n");
    }
    let reply = raw(address, &chunked).await;
    assert_eq!(split(&reply).0, 413);
    assert_eq!(fake.drained.load(Relaxed), 0);
    let small = "POST /drain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(split(&raw(address, small.as_bytes()).await).0, 200);
    let huge_head = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let reply = raw(address, huge_head.as_bytes()).await;
    assert!(reply.is_empty() || split(&reply).0 == 431, "{reply}");
}

#[tokio::test]
async fn traces_take_a_query() {
    let (address, fake) = start().await;
    assert_eq!(ask(address, "GET /traces?min_ms=12.5&status=5xx&route=shop%2Fcart+a&", "").await.0, 200);
    let expected = TraceQuery {
        min: Duration::from_micros(12_500),
        status: Some(StatusFilter::Class(5)),
        route: Some("shop/cart a".into()),
        limit: None,
    };
    assert_eq!(*fake.queries.lock().unwrap(), [expected]);
    for query in ["min_ms=fast", "min_ms=-1", "min_ms=NaN", "status=9xx", "status=42"] {
        let (status, _, body) = ask(address, &format!("GET /traces?{query}"), "").await;
        assert_eq!(status, 400, "{query}: {body}");
    }
}

#[tokio::test]
async fn a_panic_costs_one_connection() {
    let (address, fake) = start().await;
    fake.unready.store(true, Relaxed);
    assert_eq!(raw(address, b"GET /endpoints HTTP/1.1\r\nhost: localhost\r\n\r\n").await, "");
    fake.unready.store(false, Relaxed);
    assert_eq!(ask(address, "GET /endpoints", "").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn slow_heads_are_cut_off() {
    let (address, _) = start().await;
    let mut io = TcpStream::connect(address).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    let mut reply = Vec::new();
    let begun = tokio::time::Instant::now();
    let _ = io.read_to_end(&mut reply).await;
    assert!(begun.elapsed() <= Duration::from_secs(11), "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_secs(9), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_question_that_is_no_request_is_refused_with_the_reason() {
    let (address, _) = start().await;
    let (status, _, body) = ask(address, "GET /explain?url=shop.local", "").await;
    assert_eq!(
        (status, &*body),
        (400, "`shop.local` is not a URL of a request: it has no scheme; write http://shop.local\n")
    );
    let (status, _, body) = ask(address, "GET /explain?url=http://a/&header=x", "").await;
    assert_eq!((status, &*body), (400, "header `x`: expected name:value\n"));
}
