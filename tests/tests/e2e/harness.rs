//! The harness against itself, with no Weft in between: when one of these fails, look no further.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::{SinkExt, StreamExt};
use weft_tests::{
    Client, RawUpstream, SOON, Upstream, Wire, client, curl::curl, eventually, grpc, load, metrics::Metrics,
    nginx::Nginx, pki::Ca, ports, websocket,
};

#[test]
fn ports_are_never_given_twice() {
    let mut all: Vec<u16> = (0..50).map(|_| ports::free()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 50);
}

#[tokio::test]
async fn the_toolbox_speaks_both_versions() {
    let (h1, h2) = (Upstream::h1("one").await, Upstream::h2("two").await);
    for mut client in [Client::h1(h1.addr).await.unwrap(), Client::h2(h2.addr).await.unwrap()] {
        let echo = client.post("shop.local", "/a?b=c", "hello").await.unwrap().json();
        assert_eq!((echo["method"].as_str(), echo["body"].as_str()), (Some("POST"), Some("hello")));
        let trailers = client
            .send(client::get_with("shop.local", "/trailers", &[("te", "trailers")]))
            .await
            .unwrap()
            .trailers
            .unwrap();
        assert_eq!(trailers["x-sum"], "42");
        assert!(client.get("shop.local", "/truncate").await.unwrap().error.is_some());
        let cookies = Client::h1(h1.addr).await.unwrap().get("a", "/cookies").await.unwrap();
        assert_eq!(cookies.headers.get_all("set-cookie").iter().count(), 2);
    }
}

#[tokio::test]
async fn a_vanished_client_is_noticed() {
    let upstream = Upstream::h1("one").await;
    let mut wire = Wire::connect(upstream.addr).await;
    wire.send("GET /hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("the request arrives", SOON, async || upstream.seen.count() == 1).await;
    wire.reset();
    eventually("the handler is dropped", SOON, async || upstream.seen.cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_raw_upstream_records_and_a_raw_client_reads_strictly() {
    let upstream =
        RawUpstream::answering(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let mut wire = Wire::connect(upstream.addr).await;
    let response = wire.exchange("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((response.status, response.text().as_str()), (200, "abc"));
    assert_eq!(wire.exchange("GET /two HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 200);
    assert!(upstream.all().contains("GET /two"));
}

#[tokio::test]
async fn grpc_has_all_four_kinds() {
    let (upstream, calls) = grpc::start().await;
    let mut client = grpc::GreeterClient::connect(upstream.addr, "grpc.local").await;
    let all = || futures_util::stream::iter(["a", "b"]).map(|text| grpc::Msg::new(text, 1));
    assert_eq!(client.unary(tonic::Request::new(grpc::Msg::new("hi", 7))).await.unwrap().into_inner().count, 7);
    assert_eq!(client.collect(all()).await.unwrap().into_inner(), grpc::Msg::new("ab", 2));
    let repeated = client.repeat(grpc::Msg::new("x", 3)).await.unwrap().into_inner();
    assert_eq!(repeated.count().await, 3);
    let chat = client.chat(all()).await.unwrap().into_inner();
    assert_eq!(chat.count().await, 2);
    assert_eq!(client.unary(tonic::Request::new(grpc::Msg::new("fail:5:no", 0))).await.unwrap_err().code() as i32, 5);
    let mut endless = client.repeat(grpc::Msg::new("endless", 0)).await.unwrap().into_inner();
    assert!(endless.message().await.unwrap().is_some());
    drop(endless);
    eventually("the stream is cancelled", SOON, async || calls.cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn web_socket_echo() {
    let echo = websocket::WsEcho::start().await;
    let mut socket = websocket::connect(echo.addr, "ws.local", "/").await.unwrap();
    socket.send(websocket::Message::text("hi")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), websocket::Message::text("hi"));
}

#[tokio::test]
async fn tls_curl_and_nginx() {
    let ca = Ca::new("test");
    let upstream = Upstream::tls("secure", ca.leaf(&["app.test"]).server(&["http/1.1"])).await;
    let mut client = Client::tls(upstream.addr, "app.test", ca.client(&["h2", "http/1.1"])).await.unwrap();
    assert_eq!(client.get("app.test", "/").await.unwrap().upstream(), "secure");
    assert!(Client::tls(upstream.addr, "other.test", ca.client(&[])).await.is_err());
    let Some(nginx) = Nginx::start("tls_curl_and_nginx", "location / { return 200 nginx; }").await else { return };
    let url = format!("http://{}/", nginx.addr);
    let Some(out) = curl("tls_curl_and_nginx", &[&url]).await else { return };
    assert_eq!((out.code, out.stdout.as_str()), (0, "nginx"));
}

#[tokio::test]
async fn load_counts_failures() {
    let upstream = Upstream::h1("one").await;
    let good = load::Load::start(upstream.addr, load::Speak::H1, 2, "a", "/");
    good.progress(50).await;
    good.finish_unharmed().await;
    let bad = load::Load::start(upstream.addr, load::Speak::H1, 1, "a", "/status/503");
    eventually("a request is made", SOON, async || !upstream.seen.to_path("/status/503").is_empty()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!bad.finish().await.failures.is_empty());
}

#[test]
fn metrics_are_read_strictly() {
    let metrics =
        Metrics::parse("# HELP a_b Some.\n# TYPE a_b counter\na_b_total{x=\"1\",y=\"q\\\"\"} 3\na_b_total 4\n# EOF\n");
    assert!((metrics.sum("a_b", &[]) - 7.0).abs() < f64::EPSILON);
    assert!((metrics.sum("a_b_total", &[("x", "1")]) - 3.0).abs() < f64::EPSILON);
    assert_eq!(metrics.family("a_b_total"), Some("a_b"));
    assert!(std::panic::catch_unwind(|| Metrics::parse("a b c{")).is_err());
}

#[tokio::test]
async fn get_once_sees_a_refused_connection() {
    assert!(client::get_once(ports::refusing(), "a", "/").await.is_err());
}
