//! The harness against itself, with no Weft in between: when one of these fails, look no further.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::{SinkExt, StreamExt};
use weft_tests::{
    Client, RawUpstream, SOON, Unruly, Upstream, Wire, client,
    curl::curl,
    eventually, grpc, load,
    metrics::Metrics,
    nginx::Nginx,
    pki::Ca,
    ports,
    unruly::{
        Mood,
        grpc::{GrpcMood, UnrulyGrpc},
    },
    websocket,
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

#[tokio::test]
async fn an_unruly_upstream_does_as_it_is_told() {
    let upstream = Unruly::start("wild").await;
    let ask = async |id: &str| {
        let mut request = client::request("POST", "a", "/x", weft_tests::upstream::full("hello"));
        request.headers_mut().insert("x-id", id.parse().unwrap());
        Client::h1(upstream.addr).await?.send(request).await
    };
    let reply = ask("1").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "wild 1"));
    upstream.set(Mood::Answer(503, "Retry-After: 7\r\n"));
    let reply = ask("1").await.unwrap();
    assert_eq!((reply.status.as_u16(), reply.header("retry-after")), (503, Some("7")));
    assert_eq!((upstream.received("1"), upstream.arrivals()[1].body.as_slice()), (2, &b"hello"[..]));
    for (id, mood, whole) in [
        ("unread", Mood::ResetUnread, false),
        ("head", Mood::ResetAfterHead, false),
        ("half", Mood::ResetInRequest, false),
        ("request", Mood::ResetAfterRequest, true),
        ("response", Mood::ResetInHead, true),
        ("noise", Mood::Garbage, true),
    ] {
        upstream.set(mood);
        assert!(ask(id).await.is_err(), "{mood:?}");
        eventually("it is recorded", SOON, async || upstream.received(id) == 1).await;
        assert_eq!(upstream.arrivals().last().unwrap().whole, whole, "{mood:?}");
    }
    for mood in [Mood::Half, Mood::ResetInBody] {
        upstream.set(mood);
        let reply = ask("truncated").await.unwrap();
        assert_eq!((reply.text().as_str(), reply.error.is_some()), ("0123456789", true), "{mood:?}");
    }
    upstream.set(Mood::ResetOnAccept);
    let before = upstream.count();
    assert!(ask("none").await.is_err() && upstream.count() == before);
    upstream.set(Mood::Slow(Duration::from_millis(30), 204));
    upstream.script([Mood::Answer(500, ""), Mood::Well]);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(ask("script").await.unwrap().status.as_u16());
    }
    assert_eq!(statuses, [500, 200, 204]);
    let arrivals = upstream.arrivals();
    assert!(arrivals.is_sorted_by_key(|arrival| arrival.at));
}

#[tokio::test]
async fn an_unruly_upstream_fails_at_a_rate_goes_away_and_comes_back() {
    let upstream = Unruly::start("wild").await;
    upstream.set_share(Mood::Answer(503, ""), 30.0);
    let mut client = Client::h1(upstream.addr).await.unwrap();
    let mut failed = 0;
    for _ in 0..300 {
        failed += usize::from(client.get("a", "/").await.unwrap().status == 503);
    }
    assert!((60..=120).contains(&failed), "30 % of 300: {failed}");
    upstream.set(Mood::Hang);
    let mut wire = Wire::connect(upstream.addr).await;
    wire.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually("the request arrives", SOON, async || upstream.count() == 301).await;
    wire.reset();
    eventually("its end is noticed", SOON, async || upstream.cancelled() == 1).await;
    upstream.stop().await;
    assert!(Client::h1(upstream.addr).await.is_err() && client.get("a", "/").await.is_err());
    upstream.set(Mood::Well);
    upstream.listen().await;
    assert_eq!(client::get_once(upstream.addr, "a", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn an_unruly_upstream_reads_chunks_and_trailers() {
    let upstream = Unruly::start("wild").await;
    let mut wire = Wire::connect(upstream.addr).await;
    let request =
        "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx-sum: 3\r\n\r\n";
    assert_eq!(wire.exchange(request).await.status, 200);
    let arrival = &upstream.arrivals()[0];
    assert_eq!((arrival.body.as_slice(), arrival.trailers[0].1.as_str(), arrival.whole), (&b"abc"[..], "3", true));
    wire.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(wire.response_to("HEAD").await.status, 200);
    assert_eq!(wire.exchange("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "wild 3");
}

#[tokio::test]
async fn an_unruly_grpc_server_does_as_it_is_told() {
    let server = UnrulyGrpc::start("wild").await;
    let mut client = grpc::GreeterClient::connect(server.upstream.addr, "grpc.local").await;
    let mut ask = async || {
        let mut call = tonic::Request::new(grpc::Msg::new("hi", 7));
        call.metadata_mut().insert("x-id", "1".parse().unwrap());
        client.unary(call).await
    };
    let reply = ask().await.unwrap();
    assert_eq!(reply.metadata().get("x-upstream").unwrap(), "wild");
    let code = tonic::Code::Unavailable;
    for mood in [GrpcMood::TrailersOnly(code), GrpcMood::Trailers(code), GrpcMood::AfterMessage(code)] {
        server.set(mood);
        let error = ask().await.unwrap_err();
        assert_eq!((error.code(), error.message()), (code, "told to fail"), "{mood:?}");
    }
    server.set(GrpcMood::Reset);
    assert!(ask().await.is_err());
    server.set(GrpcMood::Slow(Duration::from_millis(20)));
    assert_eq!(ask().await.unwrap().into_inner().count, 7);
    assert_eq!(server.received("1"), 6);

    // Where the status stands.
    let mut raw = Client::h2(server.upstream.addr).await.unwrap();
    let call = || {
        let path = format!("/{}/Unary", grpc::SERVICE);
        let mut call = client::request("POST", "a", &path, weft_tests::upstream::full(&b"\0\0\0\0\x04\x0a\x02hi"[..]));
        call.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        call
    };
    server.set(GrpcMood::TrailersOnly(code));
    let reply = raw.send(call()).await.unwrap();
    assert_eq!((reply.header("grpc-status"), reply.body.len()), (Some("14"), 0));
    server.set(GrpcMood::Trailers(code));
    let reply = raw.send(call()).await.unwrap();
    assert_eq!((reply.header("grpc-status"), reply.body.len()), (None, 0));
    assert_eq!(reply.trailers.unwrap()["grpc-status"], "14");
    server.set(GrpcMood::AfterMessage(code));
    let reply = raw.send(call()).await.unwrap();
    assert!(!reply.body.is_empty() && reply.trailers.unwrap()["grpc-status"] == "14");
}
