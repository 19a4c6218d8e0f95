//! Clients that vanish or stall.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::io::AsyncReadExt;
use weft_tests::{RawUpstream, SOON, Wire, client, eventually, soon, within};

use crate::Stage;

#[tokio::test]
async fn a_client_that_vanishes_cancels_its_request_upstream() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        let cancelled = || stage.upstream.seen.cancelled.load(Ordering::SeqCst);
        for (round, reset) in [(1, false), (2, true)] {
            let mut wire = stage.wire().await;
            wire.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await;
            eventually("the request arrives", SOON, async || stage.upstream.seen.count() == round).await;
            if reset {
                wire.reset();
            } else {
                drop(wire);
            }
            eventually("it is cancelled", SOON, async || cancelled() == round).await;
        }
        let mut wire = weft_tests::frames::H2Wire::connect(stage.addr).await;
        wire.request(1, &weft_tests::frames::get("a", "/hang"), true).await;
        eventually("the request arrives", SOON, async || stage.upstream.seen.count() == 3).await;
        wire.send(weft_tests::frames::RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await;
        eventually("the reset stream is cancelled", SOON, async || cancelled() == 3).await;
        wire.request(3, &weft_tests::frames::get("a", "/hang"), true).await;
        eventually("the request arrives", SOON, async || stage.upstream.seen.count() == 4).await;
        drop(wire);
        eventually("the lost connection is cancelled", SOON, async || cancelled() == 4).await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_in_the_middle_of_a_download_ends_it() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        for _ in 0..2 {
            let cut = stage.upstream.seen.cut.load(Ordering::SeqCst);
            let mut wire = stage.wire().await;
            wire.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
            soon("a megabyte", wire.read_exact(1 << 20)).await.unwrap();
            wire.reset();
            eventually("the upstream's body is dropped", SOON, async || {
                stage.upstream.seen.cut.load(Ordering::SeqCst) == cut + 1
            })
            .await;
        }
    }
}

#[tokio::test]
async fn a_client_gone_during_the_connect_leaves_nothing_behind() {
    let upstream = RawUpstream::start(|mut wire, _| async move { drop(wire.read_to_end().await) }).await;
    let stage = Stage::raw(upstream).await;
    let before = stage.weft.usage();
    for _ in 0..200 {
        let mut wire = stage.wire().await;
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n").await;
        wire.reset();
    }
    eventually("every upstream connection of theirs ends", SOON, async || {
        stage.upstream.ended() == stage.upstream.connections()
    })
    .await;
    stage.weft.recovered(before, 16 * 1024).await;
}

/// Asks for a GiB on each of `count` connections, reads a little of it, and stops.
async fn stalled(stage: &Stage<weft_tests::Upstream>, count: usize) -> Vec<Wire> {
    const GIB: u64 = 1 << 30;
    let mut wires = Vec::new();
    for _ in 0..count {
        let mut wire = stage.wire().await;
        wire.send(format!("GET /bytes/{GIB} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        soon("a first part", wire.read_exact(1000)).await.unwrap();
        wires.push(wire);
    }
    let sent = || stage.upstream.seen.body_bytes.load(Ordering::SeqCst);
    eventually("the upstream is held back everywhere", Duration::from_secs(20), async || {
        let before = sent();
        tokio::time::sleep(Duration::from_millis(300)).await;
        sent() == before
    })
    .await;
    wires
}

#[tokio::test]
async fn a_reader_that_stalls_keeps_memory_bounded() {
    const MORE: usize = 32;
    for stage in [Stage::h1().await, Stage::h2().await] {
        let before = stage.weft.usage();
        // What the first ones cost beyond themselves is the allocator's.
        let mut wires = stalled(&stage, 8).await;
        let first = stage.weft.usage();
        wires.extend(stalled(&stage, MORE).await);
        let now = stage.weft.usage();
        let each = now.rss_kib.saturating_sub(first.rss_kib) / MORE as u64;
        assert!(each <= 256, "{each} KiB for a stalled reader: {before:?} {first:?} {now:?}");
        assert!(now.rss_kib < before.rss_kib + 32 * 1024, "{before:?} {now:?}");
        drop(wires);
        stage.weft.recovered(before, 24 * 1024).await;
    }
}

#[tokio::test]
async fn stalled_readers_do_not_hold_others_up() {
    // Over HTTP/2 all of them share an upstream connection, and its flow-control window.
    for stage in [Stage::h1().await, Stage::h2().await] {
        let wires = stalled(&stage, 60).await;
        let reply = soon("an honest request", stage.client_h1().await.get("a", "/bytes/300000")).await.unwrap();
        assert_eq!((reply.body.len(), reply.error), (300_000, None));
        drop(wires);
    }
}

#[tokio::test]
async fn a_gibibyte_passes_through_little_memory() {
    const SIZE: u64 = 1 << 30;
    let stage = Stage::h1().await;
    stage.client_h1().await.get("a", "/bytes/50000000").await.unwrap();
    let before = stage.weft.usage();
    let mut wire = stage.wire().await;
    wire.send(format!("GET /bytes/{SIZE} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    let head = wire.read_head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut left = SIZE;
    let mut peak = 0;
    let mut block = vec![0; 256 * 1024];
    left -= wire.take_buffer().len() as u64;
    within(Duration::from_secs(90), "a GiB", async {
        let mut since = 0;
        while left > 0 {
            let count = wire.stream.read(&mut block).await.unwrap();
            assert_ne!(count, 0, "{left} bytes are missing");
            left -= count as u64;
            since += count;
            if since > 64 << 20 {
                since = 0;
                peak = peak.max(stage.weft.usage().rss_kib);
            }
        }
    })
    .await;
    assert!(peak < before.rss_kib + 4 * 1024, "{before:?}, at most {peak} KiB");
}

#[tokio::test]
async fn a_slow_body_does_not_hold_others_up() {
    let stage = Stage::h1().await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut wire = stage.wire().await;
        wire.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx").await;
        slow.push(wire);
    }
    let mut client = stage.client_h1().await;
    for _ in 0..50 {
        assert_eq!(soon("an honest request", client.get("a", "/")).await.unwrap().status, 200);
    }
    for wire in &mut slow {
        wire.send(vec![b'x'; 999]).await;
        assert_eq!(wire.response_to("POST").await.json()["bytes"], 1000, "slow is not wrong");
    }
}

#[tokio::test]
async fn a_body_that_never_comes_ends_with_the_time_out() {
    let policy = "timeouts: {request: 500ms}";
    let upstream = weft_tests::Upstream::h1("app").await;
    let stage = Stage::with_policy(upstream, "http", |upstream| upstream.addr, policy).await;
    let mut wire = stage.wire().await;
    wire.send("POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nx").await;
    let response = wire.response_to("POST").await;
    let reason = response.header("x-weft-reason").unwrap();
    assert!(
        (response.status, reason) == (408, "request_timeout") || (response.status, reason) == (504, "upstream_timeout"),
        "{response:?}"
    );
    assert!(!response.keeps_alive(), "the rest of the body may still come");
    eventually("the upstream is told", SOON, async || {
        let seen = &stage.upstream.seen;
        seen.broken_bodies.load(Ordering::SeqCst) + seen.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
}

#[tokio::test]
async fn a_client_that_half_closes_still_gets_its_answer() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    wire.send("GET /slow/200 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    wire.finish().await;
    // Many one-shot clients (`printf … | nc`) do this. A proxy may take it for a client that vanished; nginx and
    // Envoy answer. What must not happen is a half-written answer.
    let bytes = soon("an answer or the end", wire.read_to_end()).await;
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.is_empty() || text.ends_with("slow"), "{text}");
}

#[tokio::test]
async fn idle_connections_cost_little_memory_and_no_processor_time() {
    let stage = Stage::h1().await;
    // What the first hundred cost beyond themselves (buffers of the allocator, tables that grow) is not of interest.
    let mut wires = idle(&stage, 100).await;
    let before = stage.weft.usage();
    wires.extend(idle(&stage, 500).await);
    eventually("idle connections leave the processor alone", SOON, async || {
        let ticks = stage.weft.cpu_ticks();
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.weft.cpu_ticks() - ticks <= 2
    })
    .await;
    let each = stage.weft.usage().rss_kib.saturating_sub(before.rss_kib) / 500;
    // 32 KiB is what an optimised build has to keep to.
    let limit = if cfg!(debug_assertions) { 56 } else { 32 };
    assert!(each <= limit, "{each} KiB for an idle connection");
    drop(wires);
    stage.weft.recovered(before, 16 * 1024).await;
    assert_eq!(client::get_once(stage.addr, "a", "/").await.unwrap().status, 200);
}

/// Keep-alive connections that have served a request.
async fn idle(stage: &Stage<weft_tests::Upstream>, count: usize) -> Vec<Wire> {
    let mut wires = Vec::new();
    for _ in 0..count {
        let mut wire = stage.wire().await;
        wire.send("GET /status/204 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.read_response().await.status, 204);
        wires.push(wire);
    }
    wires
}
