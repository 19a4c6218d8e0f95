//! Framing and streaming of bodies.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::BodyExt;
use weft_tests::{
    RawUpstream, client, soon,
    upstream::{channel, full},
};

use crate::{Stage, echoed};

#[tokio::test]
async fn bodiless_responses_keep_the_connection_in_sync() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    for (method, path, status) in [
        ("GET", "/status/204", 204),
        ("GET", "/status/304", 304),
        ("HEAD", "/bytes/123", 200),
        ("HEAD", "/stream/123", 200),
        ("HEAD", "/status/404", 404),
        ("GET", "/status/205", 205),
    ] {
        wire.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        let response = wire.response_to(method).await;
        assert_eq!(response.status, status, "{method} {path}: {response:?}");
        if path == "/bytes/123" {
            assert_eq!(response.header("content-length"), Some("123"), "HEAD tells what GET would send");
        }
        let after = wire.exchange("GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(after.json()["uri"], "/after", "after {method} {path}");
    }
    let mut client = stage.client_h2().await;
    for (method, path) in [("GET", "/status/204"), ("GET", "/status/304"), ("HEAD", "/bytes/123")] {
        let reply = client.send(client::request(method, "a", path, weft_tests::upstream::empty())).await.unwrap();
        assert!(reply.body.is_empty() && reply.error.is_none(), "{reply:?}");
    }
}

#[tokio::test]
async fn a_304_and_a_head_may_carry_a_length_without_a_body() {
    let answer = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\nEtag: \"x\"\r\n\r\n";
    let stage = Stage::raw(RawUpstream::answering(answer).await).await;
    let mut wire = stage.wire().await;
    for _ in 0..3 {
        let response = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((response.status, response.header("etag")), (304, Some("\"x\"")));
    }
}

#[tokio::test]
async fn lengths_are_kept_and_chunks_stay_chunks() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    let reply = client.get("a", "/bytes/1000").await.unwrap();
    assert_eq!((reply.header("content-length"), reply.body.len()), (Some("1000"), 1000));
    let reply = client.get("a", "/stream/1000").await.unwrap();
    assert_eq!((reply.header("content-length"), reply.body.len()), (None, 1000));

    let echo = client.post("a", "/", "hello").await.unwrap().json();
    assert_eq!(echoed(&echo, "content-length"), Some("5"));
    let mut wire = stage.wire().await;
    let response = wire
        .exchange(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
        )
        .await;
    let echo = response.json();
    assert_eq!((echo["body"].as_str(), echoed(&echo, "content-length")), (Some("abc0123456789"), None));
    let echo = wire.exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.json();
    assert_eq!((echo["body"].as_str(), echoed(&echo, "transfer-encoding")), (Some(""), None));
    assert_eq!(echoed(&echo, "content-length"), Some("0"));
    let echo = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.json();
    assert_eq!(
        (echoed(&echo, "content-length"), echoed(&echo, "transfer-encoding")),
        (None, None),
        "a GET gets no body"
    );
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_complete() {
    let upstream = RawUpstream::closing(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end").await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    for _ in 0..2 {
        let response = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((response.status, response.text().as_str()), (200, "until the end"));
        assert!(response.keeps_alive(), "the upstream's `Connection: close` is its own affair: {response:?}");
    }
}

#[tokio::test]
async fn an_http_1_0_upstream_is_understood() {
    let stage = Stage::raw(RawUpstream::closing(b"HTTP/1.0 200 OK\r\n\r\nold but good").await).await;
    let response = stage.wire().await.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.status, response.version, response.text().as_str()), (200, 1, "old but good"));
}

#[tokio::test]
async fn large_bodies_pass_in_both_directions() {
    const SIZE: usize = 16 * 1024 * 1024;
    for stage in [Stage::h1().await, Stage::h2().await] {
        for mut client in [stage.client_h1().await, stage.client_h2().await] {
            let reply = client.get("a", &format!("/bytes/{SIZE}")).await.unwrap();
            assert_eq!((reply.body.len(), reply.error), (SIZE, None));
            let reply = client.post("a", "/upload", vec![b'u'; SIZE]).await.unwrap();
            assert_eq!(reply.json()["bytes"], SIZE, "{:?}", reply.status);
        }
    }
}

#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        for mut client in [stage.client_h1().await, stage.client_h2().await] {
            let (mut sender, body) = channel(1);
            let request = client::request("POST", "a", "/mirror-body", body);
            let response = soon("the response's head, before the request's end", client.open(request)).await.unwrap();
            let mut body = response.into_body();
            for round in 0..5 {
                let part = Bytes::from(format!("part {round}"));
                soon("room for a part", sender.send_data(part.clone())).await.unwrap();
                let frame = soon("the part comes back", body.frame()).await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), part);
            }
            drop(sender);
            let rest = soon("the end", body.collect()).await.unwrap().to_bytes();
            assert!(rest.is_empty(), "more than was sent: {rest:?}");
        }
    }
}

#[tokio::test]
async fn chunks_are_passed_on_when_they_come() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    let response = client.open(client::get("a", "/drip/1000/20")).await.unwrap();
    let mut body = response.into_body();
    let first = soon("the first of many drops", body.frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "drop 0\n");
    drop(body);
    drop(client);
    weft_tests::eventually("the upstream's body is dropped", weft_tests::SOON, async || {
        stage.upstream.seen.cut.load(Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_is_delivered_although_the_body_is_unread() {
    let stage = Stage::h1().await;
    for mut client in [stage.client_h1().await, stage.client_h2().await] {
        let (mut sender, body) = channel(1);
        let response =
            soon("an early answer", client.open(client::request("POST", "a", "/early", body))).await.unwrap();
        let reply = client::collect(response).await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (403, "early"));
        let _ = sender.send_data(Bytes::from_static(b"too late")).await;
    }
    // Whatever was left over of those bodies must not be taken for a request.
    let mut client = stage.client_h1().await;
    for _ in 0..20 {
        assert_eq!(client.get("a", "/after").await.unwrap().json()["uri"], "/after");
    }
    let methods: Vec<_> =
        stage.upstream.seen.requests.lock().unwrap().iter().map(|request| request.method.to_string()).collect();
    assert!(methods.iter().all(|method| method == "POST" || method == "GET"), "{methods:?}");
}

#[tokio::test]
async fn a_get_with_a_body_keeps_it() {
    let stage = Stage::h1().await;
    let echo = stage.client_h1().await.send(client::request("GET", "a", "/", full("query"))).await.unwrap().json();
    assert_eq!(echo["body"], "query");
}
