//! Pooled connections that the peer has closed: never the client's problem, and nothing unsafe is sent twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use weft_tests::{Client, RawUpstream, soon};

use crate::Stage;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Reads a request with a body whose length is given.
async fn read_request(wire: &mut weft_tests::Wire) -> Option<String> {
    let head = wire.read_head().await?;
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(|v| v.trim().parse().unwrap()))
        .unwrap_or(0);
    let body = wire.read_exact(length).await?;
    Some(head + &String::from_utf8_lossy(&body))
}

#[tokio::test]
async fn five_thousand_requests_to_an_upstream_that_closes_without_a_word() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        if read_request(&mut wire).await.is_some() {
            wire.send(OK).await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let results = join_all((0..4).map(|number| {
        let addr = stage.addr;
        async move {
            let mut client = Client::h1(addr).await.unwrap();
            let mut failures = Vec::new();
            for round in 0..1250 {
                // GETs only: for another method, a close in the very moment of sending is ambiguous.
                match client.get("a", &format!("/{number}/{round}")).await {
                    Ok(reply) if reply.status == 200 => {}
                    other => failures.push(format!("{other:?}")),
                }
            }
            failures
        }
    }))
    .await;
    let failures = results.concat();
    assert!(failures.is_empty(), "{} of 5,000 failed, the first: {}", failures.len(), failures[0]);
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_nothing_even_for_a_post() {
    // The close has long arrived when the next request comes: there is no ambiguity, whatever the method.
    let upstream = RawUpstream::start(|mut wire, _| async move {
        if read_request(&mut wire).await.is_some() {
            wire.send(OK).await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let mut client = stage.client_h1().await;
    for round in 0..20 {
        let reply = client.post("a", &format!("/{round}"), "once").await.unwrap();
        assert_eq!(reply.status, 200, "round {round}: {reply:?}");
        weft_tests::eventually("the upstream has closed", weft_tests::SOON, async || {
            stage.upstream.ended() == stage.upstream.connections()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(stage.upstream.all().matches("once").count(), 20);
}

#[tokio::test]
async fn nothing_unsafe_is_sent_twice() {
    // The first request of a connection is answered, the second read whole and then the connection is closed.
    let posts = Arc::new(AtomicUsize::new(0));
    let upstream = RawUpstream::start({
        let posts = posts.clone();
        move |mut wire, _| {
            let posts = posts.clone();
            async move {
                read_request(&mut wire).await;
                wire.send(OK).await;
                if let Some(second) = read_request(&mut wire).await
                    && second.starts_with("POST")
                {
                    posts.fetch_add(1, Ordering::SeqCst);
                }
                wire.reset();
            }
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    for round in 1..=20 {
        let mut client = stage.client_h1().await;
        let before = stage.upstream.all().matches("pay ").count();
        assert_eq!(client.get("a", "/warm").await.unwrap().status, 200);
        let reply = soon("an answer", client.post("a", "/buy", format!("pay {round}"))).await.unwrap();
        let sent = stage.upstream.all().matches("pay ").count() - before;
        assert_eq!(sent, 1, "round {round}: the POST was sent {sent} times: {reply:?}");
        if reply.status != 200 {
            reply.assert_refused(502, "upstream_reset");
        }
    }
    assert!(posts.load(Ordering::SeqCst) > 0, "connections were reused, or this test shows nothing");
}

#[tokio::test]
async fn an_idempotent_request_is_sent_again_on_a_fresh_connection() {
    let upstream = RawUpstream::start(|mut wire, number| async move {
        read_request(&mut wire).await;
        wire.send(OK).await;
        // Later connections last; the first one is reset under its second request.
        while read_request(&mut wire).await.is_some() {
            if number == 0 {
                wire.reset();
                return;
            }
            wire.send(OK).await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let mut client = stage.client_h1().await;
    for _ in 0..3 {
        let reply = client.get("a", "/").await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "ok"), "{reply:?}");
    }
    assert_eq!(stage.upstream.connections(), 2);
}

#[tokio::test]
async fn a_fresh_connection_that_dies_is_an_error_and_no_loop() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        read_request(&mut wire).await;
        wire.reset();
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let reply = soon("an answer", stage.client_h1().await.get("a", "/")).await.unwrap();
    reply.assert_refused(502, "upstream_reset");
    assert!(stage.upstream.connections() <= 2, "{} connections for one request", stage.upstream.connections());
}

#[tokio::test]
async fn a_connection_that_the_upstream_wants_closed_is_not_reused() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        while read_request(&mut wire).await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let stage = Stage::raw(upstream).await;
    let mut client = stage.client_h1().await;
    for _ in 0..5 {
        assert_eq!(client.get("a", "/").await.unwrap().text(), "ok");
    }
    assert_eq!(stage.upstream.connections(), 5);
}

#[tokio::test]
async fn a_limit_of_requests_per_connection_is_kept() {
    let upstream = weft_tests::Upstream::h1("app").await;
    let policy = "connectionPool: {maxRequestsPerConnection: 3}";
    let stage = Stage::with_policy(upstream, "http", |upstream| upstream.addr, policy).await;
    let mut client = stage.client_h1().await;
    for _ in 0..12 {
        assert_eq!(client.get("a", "/").await.unwrap().status, 200);
    }
    assert_eq!(stage.upstream.seen.connections.load(Ordering::SeqCst), 4);
}
