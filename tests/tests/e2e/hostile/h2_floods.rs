//! HTTP/2 floods: ended by Weft, bounded in memory, and not at the cost of anybody else.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use weft_tests::{
    Upstream, eventually,
    frames::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, H2Wire, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE,
    },
};

use super::Watch;
use crate::Stage;

/// How long an attack goes on when nobody ends it.
const LONG: Duration = Duration::from_secs(8);

/// Sends `batch(n)` again and again while reading nothing, until the peer ends the connection, stops reading, or
/// [`LONG`] has passed. Returns whether it was stopped.
async fn flood(wire: &mut H2Wire, mut batch: impl FnMut(u32) -> Vec<u8>) -> bool {
    let end = Instant::now() + LONG;
    let mut number = 0;
    while Instant::now() < end {
        if !wire.try_send(&batch(number), Duration::from_secs(1)).await {
            return true;
        }
        number += 1;
    }
    false
}

fn request(stream: u32, path: &str, end: bool) -> Vec<u8> {
    let flags = END_HEADERS | if end { END_STREAM } else { 0 };
    frames::frame(HEADERS, flags, stream, &frames::block(&frames::get("a", path)))
}

fn reset(stream: u32) -> Vec<u8> {
    frames::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// Reads in the background, as a real attacker's client would, so that TCP does not do the bounding.
fn reading(wire: H2Wire) -> (H2Half, tokio::task::JoinHandle<Option<u32>>) {
    let (mut read, write) = wire.stream.into_split();
    let task = tokio::spawn(async move {
        use tokio::io::AsyncReadExt as _;
        let mut code = None;
        loop {
            let mut head = [0; 9];
            if read.read_exact(&mut head).await.is_err() {
                return code;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if read.read_exact(&mut payload).await.is_err() {
                return code;
            }
            if head[3] == frames::GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
    });
    (H2Half(write), task)
}

struct H2Half(tokio::net::tcp::OwnedWriteHalf);

impl H2Half {
    async fn send(&mut self, bytes: &[u8]) -> bool {
        use tokio::io::AsyncWriteExt as _;
        matches!(tokio::time::timeout(Duration::from_secs(1), self.0.write_all(bytes)).await, Ok(Ok(())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset() {
    // CVE-2023-44487
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let (mut wire, reader) = reading(H2Wire::connect(stage.addr).await);
    let mut stopped = false;
    let end = Instant::now() + LONG;
    let mut stream = 1;
    while Instant::now() < end && !stopped {
        let mut bytes = Vec::new();
        for _ in 0..50 {
            bytes.extend(request(stream, "/hang", true));
            bytes.extend(reset(stream));
            stream += 2;
        }
        stopped = !wire.send(&bytes).await;
    }
    assert!(stopped, "{} streams were opened and reset, and nobody minded", stream / 2);
    let code = weft_tests::soon("the connection's end", reader).await.unwrap();
    assert!(code.is_none() || code == Some(11), "ENHANCE_YOUR_CALM or simply closed: {code:?}");
    let seen = &stage.upstream.seen;
    eventually("cancelled work stops upstream", weft_tests::SOON, async || {
        seen.to_path("/hang").len() == seen.cancelled.load(Ordering::SeqCst)
    })
    .await;
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_you_reset() {
    // CVE-2025-8671: frames that make the server reset the stream while its work goes on.
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let (mut wire, reader) = reading(H2Wire::connect(stage.addr).await);
    let mut stopped = false;
    let end = Instant::now() + LONG;
    let mut stream = 1;
    while Instant::now() < end && !stopped {
        let mut bytes = Vec::new();
        for _ in 0..50 {
            bytes.extend(request(stream, "/hang", false));
            bytes.extend(frames::frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
            stream += 2;
        }
        stopped = !wire.send(&bytes).await;
    }
    assert!(stopped, "Weft reset {} streams, and nobody minded", stream / 2);
    weft_tests::soon("the connection's end", reader).await.unwrap();
    let seen = &stage.upstream.seen;
    eventually("cancelled work stops upstream", weft_tests::SOON, async || {
        seen.to_path("/hang").len() == seen.cancelled.load(Ordering::SeqCst)
    })
    .await;
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuation_without_end() {
    // CVE-2024-30255
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let mut wire = H2Wire::connect(stage.addr).await;
    wire.send(HEADERS, END_STREAM, 1, &frames::block(&frames::get("a", "/flooded"))).await;
    let block = frames::block(&vec![("x-filler", "0123456789"); 500]);
    assert!(flood(&mut wire, |_| frames::frame(CONTINUATION, 0, 1, &block)).await, "CONTINUATION without end");
    let mut wire = H2Wire::connect(stage.addr).await;
    wire.send(HEADERS, END_STREAM, 1, &frames::block(&frames::get("a", "/flooded"))).await;
    let empty = frames::frame(CONTINUATION, 0, 1, &[]).repeat(200);
    assert!(flood(&mut wire, |_| empty.clone()).await, "empty CONTINUATION without end");
    assert!(stage.upstream.seen.to_path("/flooded").is_empty());
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_data_without_end() {
    // RUSTSEC-2026-0258
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let (mut wire, reader) = reading(H2Wire::connect(stage.addr).await);
    wire.send(&request(1, "/upload", false)).await;
    let empty = frames::frame(DATA, 0, 1, &[]).repeat(500);
    let end = Instant::now() + LONG;
    let mut stopped = false;
    while Instant::now() < end && !stopped {
        stopped = !wire.send(&empty).await;
    }
    assert!(stopped, "empty DATA without end");
    weft_tests::soon("the connection's end", reader).await.unwrap();
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_from_a_client_that_does_not_read() {
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let settings = frames::frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
    for (name, frame, answered) in [
        ("PING", frames::frame(PING, 0, 0, &[7; 8]), true),
        ("SETTINGS", settings, true),
        ("PRIORITY", frames::frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), false),
        ("WINDOW_UPDATE", frames::frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()), false),
        ("unknown frames", frames::frame(0xbe, 0, 1, &[1; 8]), false),
    ] {
        let before = stage.weft.usage();
        let mut wire = H2Wire::connect(stage.addr).await;
        wire.send_bytes(&request(1, "/hang", true)).await;
        let batch = frame.repeat(1000);
        let stopped = flood(&mut wire, |_| batch.clone()).await;
        let now = stage.weft.usage();
        assert!(now.rss_kib < before.rss_kib + 32 * 1024, "{name}: {before:?} {now:?}");
        // What needs no answer may be read for ever at no cost in memory; answers must not pile up.
        assert!(stopped || !answered, "{name}: answered for ever without being read");
    }
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hpack_bombs() {
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    // One large entry enters the table and is referred to thousands of times: one octet each on the wire.
    let mut block = frames::block(&frames::get("a", "/bomb"));
    block.extend(frames::indexed_literal("x-bomb", &"b".repeat(3_900)));
    block.extend(vec![0xbe; 12_000]);
    for _ in 0..20 {
        let mut wire = H2Wire::connect(stage.addr).await;
        wire.send(HEADERS, END_HEADERS | END_STREAM, 1, &block).await;
        let end = wire.end_of(1).await;
        assert_ne!(end, frames::End::Response(Some(200)), "a bomb of {} MiB decoded", 12_000 * 3_900 / 1024 / 1024);
    }
    // CVE-2026-49975: many tiny fields, among them cookie crumbs, each of which costs 32 octets and more once decoded.
    for name in ["cookie", "x"] {
        let mut block = frames::block(&frames::get("a", "/bomb"));
        block.extend(frames::indexed_literal(name, ""));
        block.extend(vec![0xbe; 15_000]);
        let mut wire = H2Wire::connect_with(stage.addr, &[(4, 0)]).await;
        wire.send(HEADERS, END_HEADERS | END_STREAM, 1, &block).await;
        let end = wire.end_of(1).await;
        assert_ne!(end, frames::End::Response(Some(200)), "15,000 fields of {name}");
    }
    assert!(stage.upstream.seen.to_path("/bomb").is_empty());
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zero_window_with_one_byte_drips_holds_no_memory() {
    // 500 connections to an upstream that shares two cores with everything here take their time.
    let policy = "timeouts: {connect: 20s}";
    let stage = Stage::with_policy(Upstream::h1("app").await, "http", |upstream| upstream.addr, policy).await;
    let watch = Watch::start(&stage).await;
    let before = stage.weft.usage();
    let mut wires = Vec::new();
    for _ in 0..10 {
        let mut wire = H2Wire::connect_with(stage.addr, &[(4, 0)]).await;
        for stream in (1..100).step_by(2) {
            wire.request(stream, &frames::get("a", "/bytes/10000000"), true).await;
        }
        for stream in (1..100).step_by(2) {
            wire.send(WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes()).await;
        }
        wires.push(wire);
    }
    eventually("the requests arrive", weft_tests::SOON, async || {
        stage.upstream.seen.to_path("/bytes/10000000").len() >= 300
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let now = stage.weft.usage();
    // 500 streams, each with at most 256 KiB.
    assert!(now.rss_kib < before.rss_kib + 500 * 256, "{before:?} {now:?}");
    drop(wires);
    watch.unharmed(&stage.weft).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_streams_than_allowed_are_refused() {
    let stage = Stage::h1().await;
    let watch = Watch::start(&stage).await;
    let seen = &stage.upstream.seen;
    // A little too many: the allowed ones are served.
    let (mut wire, reader) = reading(H2Wire::connect(stage.addr).await);
    for stream in (1..400).step_by(2) {
        assert!(wire.send(&request(stream, "/hang", true)).await);
    }
    eventually("the allowed ones arrive", weft_tests::SOON, async || seen.to_path("/hang").len() >= 50).await;
    // Far too many: none or some are served, but never more than allowed at once.
    let (mut second, second_reader) = reading(H2Wire::connect(stage.addr).await);
    for stream in (1..8_000).step_by(2) {
        if !second.send(&request(stream, "/hang", true)).await {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let count = seen.to_path("/hang").len();
    assert!(count <= 400, "two connections hold {count} requests");
    drop((wire, second));
    reader.abort();
    second_reader.abort();
    eventually("all of them are cancelled", weft_tests::SOON, async || {
        seen.cancelled.load(Ordering::SeqCst) == seen.to_path("/hang").len()
    })
    .await;
    watch.unharmed(&stage.weft).await;
}
