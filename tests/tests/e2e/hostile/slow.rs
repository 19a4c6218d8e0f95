//! Clients that take their time, on purpose.

use std::time::Duration;

use weft_tests::within;

use super::Watch;
use crate::Stage;

/// Longer than the proxy's own limit for a request's head.
const LIMIT: Duration = Duration::from_secs(45);

#[tokio::test]
async fn half_a_head_is_given_up() {
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let mut wires = Vec::new();
    for _ in 0..100 {
        let mut wire = stage.wire().await;
        wire.send("GET /slow-head HTTP/1.1\r\nHost: a\r\nX-Half").await;
        wires.push(wire);
    }
    within(LIMIT, "every slow client is given up", async {
        for wire in &mut wires {
            if let Some(response) = wire.try_response("GET").await {
                assert_eq!((response.status, response.header("x-weft-reason")), (408, Some("request_timeout")));
            }
            assert!(wire.read_to_end().await.is_empty());
        }
    })
    .await;
    assert!(stage.upstream.seen.to_path("/slow-head").is_empty());
    watch.unharmed(&stage.weft).await;
}

#[tokio::test]
async fn a_head_that_drips_is_given_up() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    wire.send("GET /drip-head HTTP/1.1\r\nHost: a\r\n").await;
    let response = within(LIMIT, "the dripping client is given up", async {
        while wire.silent_for(Duration::from_millis(400)).await {
            wire.send("X-A: b\r\n").await;
        }
        wire.try_response("GET").await
    });
    let response = response.await.expect("an answer before the close");
    assert_eq!((response.status, response.header("x-weft-reason")), (408, Some("request_timeout")));
    assert!(stage.upstream.seen.to_path("/drip-head").is_empty());
}

#[tokio::test]
async fn half_a_preface_is_given_up() {
    let stage = Stage::h1().await;
    let waiting = ["", "P", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r"].map(async |start| {
        let mut wire = stage.wire().await;
        wire.send(start).await;
        within(LIMIT, &format!("{start:?} is given up"), wire.read_to_end()).await;
    });
    futures_util::future::join_all(waiting).await;
}
