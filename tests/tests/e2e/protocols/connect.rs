//! CONNECT to a backend of a route.

use std::time::Duration;

use weft_tests::{RawUpstream, soon};

use crate::Stage;

/// Echoes bytes; when it is spoken to as a proxy, it grants the tunnel first.
async fn echo() -> RawUpstream {
    RawUpstream::start(|mut wire, _| async move {
        let Some(first) = wire.read_exact(4).await else { return };
        if first == b"CONN" {
            wire.read_head().await;
            wire.send("HTTP/1.1 200 OK\r\n\r\n").await;
        } else {
            wire.send(first).await;
        }
        while let Some(byte) = wire.read_exact(1).await {
            wire.send(byte).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_tunnel_is_opened_after_the_200() {
    let stage = Stage::raw(echo().await).await;
    let mut wire = stage.wire().await;
    wire.send("CONNECT app.local:443 HTTP/1.1\r\nHost: app.local:443\r\n\r\n").await;
    let response = wire.response_to("CONNECT").await;
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!((response.header("content-length"), response.header("transfer-encoding")), (None, None));
    wire.send("tunnel bytes").await;
    assert_eq!(soon("the echo", wire.read_exact(12)).await.unwrap(), b"tunnel bytes");
    wire.finish().await;
    assert!(soon("half-close passes", wire.read_to_end()).await.is_empty());
}

#[tokio::test]
async fn a_refused_tunnel_is_an_ordinary_response() {
    let stage = Stage::new(weft_tests::ports::refusing(), "http", |addr| *addr).await;
    let mut wire = stage.wire().await;
    wire.send("CONNECT app.local:443 HTTP/1.1\r\nHost: app.local:443\r\n\r\n").await;
    let response = wire.response_to("CONNECT").await;
    assert_eq!((response.status, response.header("x-weft-reason")), (503, Some("connect_failed")), "{response:?}");
}

#[tokio::test]
async fn data_before_the_200_is_never_a_request() {
    // CVE-2025-64763: early data behind CONNECT must not become a request of its own when the tunnel is refused.
    let upstream = RawUpstream::start(|mut wire, _| async move {
        while wire.read_head().await.is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            wire.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n").await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    wire.send("CONNECT app.local:443 HTTP/1.1\r\nHost: app.local:443\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        .await;
    let _ = soon("some end", wire.read_to_end_or_idle(Duration::from_secs(1))).await;
    for received in stage.upstream.received() {
        let smuggled = received.contains("GET /smuggled") && received.contains("x-forwarded-for");
        assert!(!smuggled, "early data became a request: {received}");
    }
}
