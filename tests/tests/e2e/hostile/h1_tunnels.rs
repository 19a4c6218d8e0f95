//! Upgrades and CONNECT used for smuggling: a tunnel only after 101 or 2xx, and only when it was asked for.

use std::time::Duration;

use weft_tests::{RawUpstream, SOON, eventually, soon};

use crate::Stage;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn bytes_before_the_101_do_not_reach_an_upstream_that_refuses() {
    // Pingora CVE-2026-2833: bytes behind an Upgrade were passed on before the upstream had agreed.
    let upstream = RawUpstream::start(|mut wire, _| async move {
        while wire.read_head().await.is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    wire.send(format!("{UPGRADE}{SMUGGLED}")).await;
    let first = wire.read_response().await;
    assert_eq!((first.status, first.text().as_str()), (200, "no"));
    let _ = soon("the end or an answer", wire.read_to_end_or_idle(Duration::from_millis(500))).await;
    // What came behind was an ordinary request: it may be served as one, with Weft's own headers, or dropped.
    for received in stage.upstream.received() {
        if let Some(at) = received.find("GET /smuggled") {
            assert!(received[at..].contains("x-forwarded-for"), "raw bytes got through: {received}");
        }
    }
}

#[tokio::test]
async fn a_200_to_an_upgrade_opens_no_tunnel() {
    // CVE-2024-23326: any response to an Upgrade was taken for the start of a tunnel.
    let upstream = RawUpstream::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    assert_eq!(wire.exchange(UPGRADE).await.status, 200);
    let next = wire.exchange("POST /next HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!(next.status, 200);
    let all = stage.upstream.all();
    let next = &all[all.find("POST /next").expect("the next request is forwarded")..];
    assert!(next.contains("x-forwarded-for"), "it went through Weft as a request: {all}");
}

#[tokio::test]
async fn a_101_without_its_headers_opens_no_tunnel() {
    for answer in [
        &b"HTTP/1.1 101 Switching Protocols\r\n\r\n"[..],
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
    ] {
        let answer: &'static [u8] = answer;
        let stage = Stage::raw(RawUpstream::answering(answer).await).await;
        let mut wire = stage.wire().await;
        wire.send(UPGRADE).await;
        let response = soon("an answer", wire.try_response("GET")).await.expect("an answer");
        // A 101 to another protocol breaks RFC 9110 section 7.8. Passing it on is the client's to judge, but a 101
        // without any Upgrade cannot be a tunnel.
        if answer.len() < 50 {
            assert_eq!((response.status, response.header("x-weft-reason")), (502, Some("bad_upstream_response")));
        } else {
            assert!([101, 502].contains(&response.status), "{response:?}");
        }
    }
}

#[tokio::test]
async fn an_upgrade_with_a_body_cannot_desynchronise() {
    let upstream = RawUpstream::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    let with_body = UPGRADE
        .replacen("GET", "POST", 1)
        .replace("\r\n\r\n", &format!("\r\nContent-Length: {}\r\n\r\n", SMUGGLED.len()));
    wire.send(format!("{with_body}{SMUGGLED}")).await;
    let response = wire.read_response().await;
    assert!([200, 400, 501].contains(&response.status), "{response:?}");
    let requests = || stage.upstream.all().matches("x-forwarded-for").count();
    eventually("the upstream is done", SOON, async || requests() <= 1).await;
    assert!(!stage.upstream.all().contains("GET /smuggled HTTP/1.1\r\nhost: a\r\nx-"), "{}", stage.upstream.all());
}

#[tokio::test]
async fn an_upgrade_over_http_1_0_is_ignored() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire.exchange(UPGRADE.replace("HTTP/1.1", "HTTP/1.0")).await;
    assert_eq!(response.status, 200);
    assert_eq!(crate::echoed(&response.json(), "upgrade"), None, "RFC 9110 section 7.8");
}
