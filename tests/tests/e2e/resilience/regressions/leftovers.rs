//! What an attempt, or a body, held on to although nobody needed it any more.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;
use weft_tests::{RawUpstream, SOON, Wire, eventually, soon, unruly::Mood, upstream::empty};

use super::{Scene, TWICE, Turns, by, number, raw, tagged, until};

/// In KiB; every byte that keeps the buffer it came in would take eight of them.
const BOUND: u64 = 16 * 1024;

#[tokio::test]
async fn a_body_that_drips_is_not_kept_in_large_pieces() {
    const CLIENTS: usize = 100;
    const BYTES: usize = 60;
    let upstream = RawUpstream::start(|mut wire, _| async move { wire.gone().await }).await;
    let scene = raw(upstream, &format!("{TWICE}\ntimeouts: {{request: 60s}}")).await;
    let upstream = &scene.upstreams[0];
    let mut wires = Vec::new();
    for _ in 0..CLIENTS {
        let mut wire = Wire::connect(scene.addr).await;
        wire.send("PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n~\r\n").await;
        wires.push(wire);
    }
    let arrived = async |bytes: usize| {
        eventually("so many bytes of each body have arrived", SOON, async || {
            upstream.received().iter().filter(|text| text.matches('~').count() == bytes).count() == CLIENTS
        })
        .await;
    };
    arrived(1).await;
    let before = scene.weft.usage().rss_kib;
    for bytes in 2..=BYTES {
        for wire in &mut wires {
            wire.send("1\r\n~\r\n").await;
        }
        arrived(bytes).await;
    }
    let after = scene.weft.usage().rss_kib;
    assert!(after < before + BOUND, "{before} KiB, then {after} KiB");
    assert_eq!(scene.weft.service("app").await["requests_in_flight"], CLIENTS);
}

#[tokio::test]
async fn the_only_connection_is_free_during_a_back_off() {
    let policy = "retry: {attempts: 1, retryOn: [503], backoff: {base: 5ms, max: 5s}}\n\
                  retryBudget: {minPerSecond: 1000}\nconnectionPool: {maxConnections: 1}\ntimeouts: {request: 9s}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    upstream.script([Mood::Answer(503, "Retry-After: 3\r\n")]);
    let (id, request) = tagged("GET", empty(), &[]);
    let mut client = scene.client().await;
    let first = tokio::spawn(async move { client.send(request).await });
    until("the first attempt has failed", || upstream.count() == 1).await;
    for _ in 0..5 {
        let reply = scene.get().await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app0")), "{reply:?}");
        assert!(!first.is_finished(), "the others do not wait for its back-off");
    }
    assert_eq!(scene.weft.service("app").await["connections"], 1);
    let reply = soon("an answer", first).await.unwrap().unwrap();
    assert_eq!((reply.status.as_u16(), upstream.received(&id), upstream.connections()), (200, 2, 1), "{reply:?}");
}

#[tokio::test]
async fn a_failed_attempt_is_in_flight_no_longer() {
    let scene = Scene::new(2, TWICE).await;
    let (failed, slow) = (&scene.upstreams[0], &scene.upstreams[1]);
    failed.set(Mood::Answer(503, ""));
    slow.set(Mood::Slow(Duration::from_secs(1), 200));
    let looks = async {
        // By turns: one of them begins at either.
        until("both are where it is slow", || slow.count() == 2).await;
        let in_flight = [scene.weft.endpoint(failed.addr).await, scene.weft.endpoint(slow.addr).await]
            .map(|endpoint| endpoint["in_flight"].as_u64());
        assert_eq!(in_flight, [Some(0), Some(2)]);
    };
    let (replies, ()) = tokio::join!(scene.at_once(2), looks);
    assert!(replies.iter().all(|reply| reply.status == 200 && by(reply) == Some("app1")), "{replies:?}");
    assert_eq!(failed.count(), 1);
}

#[tokio::test]
async fn a_retry_that_streams_on_leaves_its_place_to_others() {
    let turns = Arc::new(Turns::default());
    let upstream = RawUpstream::start(move |mut wire, _| {
        let turns = turns.clone();
        async move {
            while wire.read_head().await.is_some() {
                match turns.next() {
                    0 | 2 => wire.send("HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno").await,
                    1 => {
                        wire.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await;
                        wire.gone().await;
                    }
                    _ => wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwell").await,
                }
            }
        }
    })
    .await;
    let scene = raw(upstream, &format!("{TWICE}\nconnectionPool: {{maxRetries: 1}}")).await;
    let mut stream = Wire::connect(scene.addr).await;
    stream.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = soon("a head", stream.read_head()).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let reply = scene.get().await;
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "well"), "{reply:?}");
    let chunk = soon("the stream goes on", stream.read_until(b"ok\r\n")).await.unwrap();
    assert_eq!(chunk, b"2\r\nok\r\n");
    assert!((number(&scene.weft, scene.upstreams[0].addr, "in_flight").await - 1.0).abs() < 0.1);
    scene.weft.until_metric("weft_retries_total", &[("outcome", "recovered")], 2).await;
}

#[tokio::test]
async fn a_limit_is_learnt_from_connections_that_are_used_once() {
    for framing in ["Connection: close\r\nContent-Length: 4\r\n\r\nwell", "Connection: close\r\n\r\nwell"] {
        let upstream = RawUpstream::start(move |mut wire, _| async move {
            if wire.read_head().await.is_some() {
                sleep(Duration::from_millis(30)).await;
                wire.send(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
            }
        })
        .await;
        let scene = raw(upstream, "concurrency: {adaptive: {min: 3, max: 100}}").await;
        let limit = async || scene.weft.service("app").await["concurrency_limit"].as_f64().unwrap();
        let start = limit().await;
        eventually("the limit has grown", SOON, async || {
            for reply in scene.at_once(start as usize).await {
                assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "well"), "{reply:?}");
            }
            limit().await > start
        })
        .await;
        assert_eq!(scene.weft.service("app").await["requests_in_flight"], 0);
    }
}
