//! Back-offs that nobody waits for, or whose node is about to end.

use std::time::Duration;

use rustix::process::Signal;
use weft_tests::{SOON, Wire, unruly::Mood};

use super::{Scene, by, until};

const BACK_OFF: &str = "retry: {attempts: 3, backoff: {base: 700ms, max: 700ms, jitter: None}}\n\
                        retryBudget: {minPerSecond: 1000}";

#[tokio::test]
async fn who_goes_away_during_a_back_off_gets_no_further_attempt() {
    let scene = Scene::new(2, BACK_OFF).await;
    for upstream in &scene.upstreams {
        upstream.set(Mood::Answer(503, ""));
    }
    for (round, resets) in [(1, true), (2, false)] {
        let mut wire = Wire::connect(scene.addr).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until("the first attempt has failed", || scene.count() == round).await;
        if resets {
            wire.reset();
        } else {
            drop(wire);
        }
        // The end of the exchange: nothing can come after that.
        scene.weft.until_metric("weft_requests_total", &[], round).await;
        assert_eq!(scene.count(), round, "no further attempt");
        assert_eq!(scene.weft.service("app").await["requests_in_flight"], 0);
    }
}

#[tokio::test]
async fn a_request_in_its_back_off_is_answered_before_the_node_ends() {
    let scene = Scene::new(1, BACK_OFF).await;
    let upstream = &scene.upstreams[0];
    upstream.script([Mood::Answer(503, "")]);
    let ends = async {
        until("the first attempt has failed", || upstream.count() == 1).await;
        scene.weft.signal(Signal::TERM);
    };
    let (reply, ()) = tokio::join!(scene.get(), ends);
    assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app0")), "{reply:?}");
    assert_eq!(reply.header("connection"), Some("close"), "{reply:?}");
    assert_eq!(upstream.count(), 2);
    let status = scene.weft.wait_exit(SOON + Duration::from_secs(10)).await;
    assert!(status.success(), "{status}");
}
