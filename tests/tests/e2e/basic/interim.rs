//! `Expect: 100-continue` and other 1xx.

use std::time::Duration;

use weft_tests::{RawUpstream, Upstream, Weft, Wire, curl::curl, eventually, ports, soon, yaml};

use crate::{Stage, local};

const ASK: &str = "POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";

#[tokio::test]
async fn a_100_comes_before_the_body() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    for _ in 0..2 {
        wire.send(ASK).await;
        let interim = soon("a 100", wire.try_response("POST")).await.unwrap();
        assert_eq!(interim.status, 100);
        wire.send("hello").await;
        let response = wire.response_to("POST").await;
        assert_eq!((response.status, response.json()["body"].as_str()), (200, Some("hello")));
    }
}

#[tokio::test]
async fn a_body_that_does_not_wait_for_the_100_is_fine() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    wire.send(format!("{ASK}hello")).await;
    assert_eq!(wire.response_to("POST").await.json()["body"], "hello");
    assert_eq!(wire.exchange("GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await.json()["uri"], "/after");
}

#[tokio::test]
async fn a_refused_request_gets_no_100() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let route = format!("hostnames: [only.this]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("app"));
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("app", &route),
        yaml::service("app", "http", &[upstream.addr]),
    ]);
    let _weft = Weft::start(&config).await;
    let mut wire = Wire::connect(local(port)).await;
    wire.send(ASK).await;
    let first = soon("an answer", wire.try_response("POST")).await.unwrap();
    assert_eq!((first.status, first.header("x-weft-reason")), (404, Some("no_route")));
    // The body may still come (RFC 9110 section 10.1.1): what follows is that body, or the connection is closed, but it
    // is never read as a request.
    wire.send("GET /GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await;
    if let Some(next) = soon("the next answer or the end", wire.try_response("GET")).await {
        assert!(first.keeps_alive() && next.header("x-weft-reason") == Some("no_route"), "{next:?}");
    }
    assert_eq!(upstream.seen.count(), 0);
}

#[tokio::test]
async fn an_unknown_expectation_is_refused() {
    let stage = Stage::h1().await;
    for expectation in ["200-maybe", "100-continue-please", "100-continue, 200-ok"] {
        let mut wire = stage.wire().await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: {expectation}\r\nContent-Length: 0\r\n\r\n")).await;
        let response = wire.read_response().await;
        assert_eq!((response.status, response.header("x-weft-reason")), (417, Some("expectation_failed")));
    }
    assert_eq!(stage.upstream.seen.count(), 0);
    let mut wire = stage.wire().await;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(wire.response_to("POST").await.status, 200, "the token has no case");
}

#[tokio::test]
async fn an_upstream_may_refuse_before_the_body() {
    let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    let stage = Stage::raw(RawUpstream::closing(answer).await).await;
    let mut wire = stage.wire().await;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n").await;
    let response = wire.response_to("POST").await;
    assert_eq!((response.status, response.text().as_str()), (413, "big"));
}

#[tokio::test]
async fn several_interim_responses_do_not_confuse() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        while wire.read_head().await.is_some() {
            wire.send("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
                .await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            wire.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal").await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    for _ in 0..3 {
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut interim = Vec::new();
        let last = loop {
            let response = soon("a response", wire.try_response("GET")).await.unwrap();
            if response.status >= 200 {
                break response;
            }
            interim.push(response);
        };
        assert_eq!((last.status, last.text().as_str()), (200, "final"));
        for hint in interim.iter().filter(|response| response.status == 103) {
            assert_eq!(hint.header("link"), Some("</a.css>; rel=preload"), "forwarded whole, if at all");
        }
    }
    assert_eq!(stage.client_h2().await.get("a", "/").await.unwrap().text(), "final");
    let mut wire = stage.wire().await;
    let old = wire.exchange("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!(old.status, 200);
    let mut wire = stage.wire().await;
    wire.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let first = soon("a response", wire.try_response("GET")).await.unwrap();
    assert_eq!(first.status, 200, "1xx is never sent to an HTTP/1.0 client (RFC 9110 section 15.2)");
}

#[tokio::test]
async fn curl_expects_a_100() {
    let stage = Stage::h1().await;
    let body = "x".repeat(100_000);
    let url = format!("http://{}/upload", stage.addr);
    let args = ["-H", "Expect: 100-continue", "--expect100-timeout", "15", "-d", &body, &url];
    let Some(out) = curl("curl_expects_a_100", &args).await else { return };
    assert_eq!(out.code, 0, "{}", out.stderr);
    assert!(out.stdout.contains("\"bytes\":100000"), "{}", out.stdout);
}

#[tokio::test]
async fn a_client_that_gives_up_waiting_is_noticed() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    wire.send(ASK).await;
    let _ = soon("a 100", wire.try_response("POST")).await;
    drop(wire);
    // What the upstream got, if anything, must not look like a complete request with a body.
    let seen = &stage.upstream.seen;
    eventually("the upstream's connections are free or broken", weft_tests::SOON, async || {
        let cancelled = seen.cancelled.load(std::sync::atomic::Ordering::SeqCst);
        let broken = seen.broken_bodies.load(std::sync::atomic::Ordering::SeqCst);
        cancelled.max(broken) == seen.count()
    })
    .await;
}
