//! Answers of one attempt that came with another one.

use std::{sync::Arc, time::Duration};

use tonic::Code;
use weft_tests::{
    Client, RawUpstream, Reply, Response, Wire, soon, unruly::grpc::GrpcMood, unruly::grpc::UnrulyGrpc, upstream::full,
};

use super::{Scene, TWICE, Turns, blamed, grpc_request, nobody, number, raw, stage};

const UNAVAILABLE: &str = "retry: {attempts: 2, retryOn: [\"grpc:UNAVAILABLE\"], backoff: {base: 5ms, max: 20ms}}\n\
                           retryBudget: {minPerSecond: 1000}\n\
                           circuitBreaker: {consecutiveFailures: 2, failureRate: {minimumRequests: 10000}}";

/// A call that meets these moods, one after the other.
async fn call(moods: [GrpcMood; 2]) -> (Reply, Scene<UnrulyGrpc>) {
    let scene = Scene::grpc(1, UNAVAILABLE).await;
    scene.upstreams[0].script(moods);
    let (id, request) = grpc_request(&[]);
    let reply = soon("an answer", Client::h2(scene.addr).await.unwrap().send(request)).await.unwrap();
    assert_eq!((scene.received(&id), &reply.error), (2, &None), "{reply:?}");
    (reply, scene)
}

#[tokio::test]
async fn trailers_of_a_failed_call_do_not_end_the_one_that_follows() {
    let late = GrpcMood::Late(Duration::from_millis(60));
    let (reply, scene) = call([GrpcMood::Trailers(Code::Unavailable), late]).await;
    // Its only message: field 1 is "some", field 2 is 1.
    assert_eq!(&reply.body[..], b"\0\0\0\0\x08\x0a\x04some\x10\x01", "{reply:?}");
    let trailers = reply.trailers.as_ref().unwrap();
    assert_eq!((trailers.len(), trailers.get("grpc-status").unwrap().as_bytes()), (1, &b"0"[..]), "{reply:?}");
    scene.weft.until_metric("weft_retries_total", &[("outcome", "recovered")], 1).await;
    let endpoint = scene.weft.endpoint(scene.upstreams[0].upstream.addr).await;
    let numbers = (endpoint["breaker"].as_str(), endpoint["requests"].as_u64(), endpoint["failures"].as_u64());
    assert_eq!(numbers, (Some("closed"), Some(2), Some(1)), "{endpoint}");
}

#[tokio::test]
async fn trailers_of_a_failed_call_do_not_follow_an_answer_without_any() {
    let (reply, scene) = call([GrpcMood::Trailers(Code::Unavailable), GrpcMood::TrailersOnly(Code::NotFound)]).await;
    assert_eq!((reply.header("grpc-status"), reply.trailers.as_ref()), (Some("5"), None), "{reply:?}");
    assert!(reply.body.is_empty(), "{reply:?}");
    scene.weft.until_metric("weft_retries_total", &[("outcome", "failed")], 1).await;
}

#[tokio::test]
async fn a_grpc_web_answer_keeps_its_length() {
    let scene = Scene::new(1, UNAVAILABLE).await;
    for number in 1..=4 {
        let (_, reply) = scene.ask("POST", full("pay"), &[("content-type", "application/grpc-web")]).await;
        let text = format!("app0 {number}");
        assert_eq!((reply.status.as_u16(), reply.text(), &reply.error), (200, text, &None), "{reply:?}");
        assert_eq!(reply.header("content-length"), Some("6"), "{reply:?}");
    }
    assert_eq!(scene.count(), 4);
    assert_eq!(blamed(&scene.weft, scene.upstreams[0].addr).await, nobody());
}

/// Before its answer it hints at the path that was asked for; the answer to `/bad` is 503, once.
async fn hinting() -> RawUpstream {
    let bad = Arc::new(Turns::default());
    RawUpstream::start(move |mut wire, _| {
        let bad = bad.clone();
        async move {
            while let Some(head) = wire.read_head().await {
                let path = head.split(' ').nth(1).unwrap();
                wire.send(format!("HTTP/1.1 103 Early Hints\r\nLink: <{path}>\r\n\r\n")).await;
                tokio::time::sleep(Duration::from_millis(60)).await;
                let status = if path == "/bad" && bad.next() == 0 { 503 } else { 200 };
                wire.send(format!("HTTP/1.1 {status} Told\r\nContent-Length: 2\r\n\r\nok")).await;
            }
        }
    })
    .await
}

/// A request; the links of the hints that came with it, and its response.
async fn hinted(wire: &mut Wire, method: &str, path: &str) -> (Vec<String>, Response) {
    wire.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")).await;
    let mut links = Vec::new();
    loop {
        let response = soon("a response", wire.try_response(method)).await.unwrap();
        if response.status != 103 {
            return (links, response);
        }
        links.push(response.header("link").unwrap().to_owned());
    }
}

#[tokio::test]
async fn hints_of_a_hedged_request_do_not_come_with_the_next_one() {
    for after in ["20ms", "5s"] {
        let policy = format!("hedge: {{after: {after}}}\nretryBudget: {{minPerSecond: 1000}}");
        let scene = stage(vec![hinting().await, hinting().await], "http", |upstream| upstream.addr, &policy).await;
        let mut wire = Wire::connect(scene.addr).await;
        for (method, path) in [("GET", "/one"), ("GET", "/two"), ("POST", "/three"), ("POST", "/four")] {
            let (links, response) = hinted(&mut wire, method, path).await;
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{after} {path}: {response:?}");
            let own = format!("<{path}>");
            assert!(links.iter().all(|link| *link == own), "{after} {path}: {links:?}");
            assert!(method == "GET" || links.len() == 1, "{after} {path} is not hedged: {links:?}");
        }
        let all = scene.upstreams.iter().map(RawUpstream::all).collect::<String>();
        let times = all.matches(" /one ").count();
        assert_eq!(times, if after == "5s" { 1 } else { 2 }, "{after}: whether it was hedged");
    }
}

#[tokio::test]
async fn hints_of_a_retried_request_are_passed_on() {
    let scene = raw(hinting().await, TWICE).await;
    let mut wire = Wire::connect(scene.addr).await;
    let (links, response) = hinted(&mut wire, "GET", "/bad").await;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{response:?}");
    assert!((1..=2).contains(&links.len()) && links.iter().all(|link| link == "</bad>"), "{links:?}");
    let (links, _) = hinted(&mut wire, "GET", "/next").await;
    assert_eq!(links, ["</next>"]);
    assert!((number(&scene.weft, scene.upstreams[0].addr, "requests").await - 3.0).abs() < 0.1);
}

#[tokio::test]
async fn chunked_errors_that_are_retried_do_not_cost_connections() {
    let answer = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbad\r\n0\r\n\r\n";
    let scene = raw(RawUpstream::answering(answer).await, TWICE).await;
    for _ in 0..20 {
        let reply = scene.get().await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str(), &reply.error), (503, "bad", &None), "{reply:?}");
    }
    let upstream = &scene.upstreams[0];
    assert!((number(&scene.weft, upstream.addr, "requests").await - 60.0).abs() < 0.1);
    assert!(upstream.connections() <= 5, "{} connections", upstream.connections());
}
