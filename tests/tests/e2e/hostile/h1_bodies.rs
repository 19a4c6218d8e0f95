//! Malformed HTTP/1 bodies, and answers that come before the end of one.

use std::{sync::atomic::Ordering, time::Duration};

use weft_tests::{RawUpstream, SOON, eventually, soon};

use super::recorded;
use crate::Stage;

#[tokio::test]
async fn malformed_chunks_never_end_well() {
    let stage = recorded().await;
    let mut holes = Vec::new();
    for (name, body) in [
        ("size overflow", "FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n"),
        ("size of 2^64 - 1 and more", "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        ("negative size", "-5\r\nhello\r\n0\r\n\r\n"),
        ("plus sign", "+5\r\nhello\r\n0\r\n\r\n"),
        ("0x", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("no size", "\r\nhello\r\n0\r\n\r\n"),
        ("not hexadecimal", "5g\r\nhello\r\n0\r\n\r\n"),
        ("underscore", "0_5\r\nhello\r\n0\r\n\r\n"),
        ("trailing white space", "5 \r\nhello\r\n0\r\n\r\n"),
        ("leading white space", " 5\r\nhello\r\n0\r\n\r\n"),
        ("bare ; extension", "5;\r\nhello\r\n0\r\n\r\n"),
        ("control character in an extension", "5;a=\x01\r\nhello\r\n0\r\n\r\n"),
        ("bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"),
        ("bare CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n"),
        ("missing CRLF after the data", "5\r\nhello0\r\n\r\n"),
        ("other bytes after the data", "5\r\nhelloXX0\r\n\r\n"),
        ("bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
        ("bare LF after the data", "5\r\nhello\n0\r\n\r\n"),
        ("bare LF after the last chunk", "5\r\nhello\r\n0\n\n"),
        ("bare CR after the size", "5\rhello\r\n0\r\n\r\n"),
        ("a trailer that is none", "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n"),
        ("a trailer with a control character", "5\r\nhello\r\n0\r\nX-A: \x01\r\n\r\n"),
        ("a trailer with a space before the colon", "5\r\nhello\r\n0\r\nX-A : 1\r\n\r\n"),
        ("a folded trailer", "5\r\nhello\r\n0\r\nX-A: 1\r\n 2\r\n\r\n"),
    ] {
        let from = stage.upstream.received().len();
        let mut wire = stage.wire().await;
        wire.send(format!(
            "POST /{} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            name.replace(' ', "-")
        ))
        .await;
        // The recording upstream answers as soon as it has a head, so a 200 may come first; then the connection ends.
        let first = soon(name, wire.try_response("POST")).await;
        match first {
            Some(response) if response.status == 400 && response.header("x-weft-reason") == Some("bad_request") => {}
            Some(response) if response.status == 200 && response.keeps_alive() => {
                let second = soon(name, wire.try_response("GET")).await;
                if !matches!(&second, Some(second) if second.status == 400) && second.is_some() {
                    holes.push(format!("{name}: 200, and the connection goes on: {second:?}"));
                }
            }
            Some(response) if response.status == 200 || response.status == 502 => {}
            None => {}
            Some(response) => holes.push(format!("{name}: {response:?}")),
        }
        drop(wire);
        for received in &stage.upstream.received()[from..] {
            if received.ends_with("0\r\n\r\n") || received.contains("smuggled") {
                holes.push(format!("{name}: the upstream saw a complete request: {received:?}"));
            }
        }
    }
    assert!(!stage.upstream.all().contains("smuggled"), "{}", stage.upstream.all());
    assert!(holes.is_empty(), "{} holes:\n{}", holes.len(), holes.join("\n"));
}

#[tokio::test]
async fn a_patient_upstream_sees_malformed_chunks_as_an_error_and_the_client_a_400() {
    let stage = Stage::h1().await;
    for (number, body) in ["5\r\nhello\r\nzz\r\n", "5\r\nhelloXX", "5 \r\nhello\r\n0\r\n\r\n"].into_iter().enumerate() {
        let mut wire = stage.wire().await;
        wire.send(format!("POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).await;
        let response = wire.response_to("POST").await;
        assert_eq!((response.status, response.header("x-weft-reason")), (400, Some("bad_request")), "{body:?}");
        wire.expect_closed().await;
        let seen = &stage.upstream.seen;
        eventually("the upload broke, or never began", SOON, async || {
            seen.broken_bodies.load(Ordering::SeqCst) + seen.cancelled.load(Ordering::SeqCst)
                >= seen.count().min(number + 1)
        })
        .await;
    }
}

#[tokio::test]
async fn a_truncated_upload_is_an_error_upstream() {
    let stage = Stage::h1().await;
    for request in [
        "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this",
        "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ] {
        for reset in [false, true] {
            let seen = &stage.upstream.seen;
            let ends = || seen.broken_bodies.load(Ordering::SeqCst) + seen.cancelled.load(Ordering::SeqCst);
            let (before, count) = (ends(), seen.count());
            let mut wire = stage.wire().await;
            wire.send(request).await;
            eventually("the upload arrives", SOON, async || seen.count() > count).await;
            if reset {
                wire.reset();
            } else {
                drop(wire);
            }
            eventually("the upstream sees that it broke", SOON, async || ends() > before).await;
        }
    }
}

#[tokio::test]
async fn an_unread_body_is_never_taken_for_a_request() {
    // Pingora CVE-2025-4366: an early answer, and the connection reused while the body is still to come.
    let upstream = RawUpstream::start(|mut wire, _| async move {
        while wire.read_head().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for round in 0..10 {
        let mut wire = stage.wire().await;
        let length = smuggled.len() + 10;
        wire.send(format!("POST /{round} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
        let first = wire.response_to("POST").await;
        assert_eq!(first.text(), "early");
        wire.send(smuggled).await;
        wire.send("0123456789").await;
        // Either the rest was swallowed as a body and the connection goes on, or it is closed.
        wire.send("GET /honest HTTP/1.1\r\nHost: a\r\n\r\n").await;
        if let Some(next) = soon("the next answer or the end", wire.try_response("GET")).await {
            assert!(first.keeps_alive() && next.status == 200, "{next:?}");
            assert!(wire.silent_for(Duration::from_millis(50)).await || !next.keeps_alive(), "one answer, not two");
        }
    }
    for received in stage.upstream.received() {
        let complete = received.matches("x-forwarded-for").count();
        assert_eq!(received.matches("HTTP/1.1").count() - received.matches(smuggled).count(), complete, "{received}");
    }
}

#[tokio::test]
async fn bodies_larger_than_allowed_are_refused_or_streamed_but_never_kept() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let usage = stage.weft.usage();
    wire.send("POST /hang HTTP/1.1\r\nHost: a\r\nContent-Length: 18000000000000000000\r\n\r\n").await;
    let block = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        if tokio::time::timeout(Duration::from_millis(500), wire.send(&block)).await.is_err() {
            break; // Nobody reads: back-pressure has arrived here.
        }
    }
    assert!(stage.weft.usage().rss_kib < usage.rss_kib + 8 * 1024, "{usage:?} {:?}", stage.weft.usage());
}
