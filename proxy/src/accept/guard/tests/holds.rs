//! CONNECT, upgrades, phases and deadlines.

use super::*;

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const CONNECT: &str = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

/// The bytes behind `head` in one piece with it, and one by one.
fn held(head: &str, then: &str) -> [(Guard<Script>, GuardHandle); 2] {
    let whole = [head, then].concat();
    [vec![whole.clone().into_bytes()], whole.bytes().map(|byte| vec![byte]).collect()].map(|pieces| {
        let (mut guard, handle) = guard(pieces, Limits::default());
        assert_eq!(drain(&mut guard, 1000).0, head.as_bytes());
        assert_eq!((handle.phase(), handle.violation()), (Phase::Hold, None));
        (guard, handle)
    })
}

#[test]
fn bytes_behind_an_upgrade_wait_for_the_decision() {
    for then in ["", "\0\x01 frames\n", NEXT] {
        for (head, accepted) in [(UPGRADE, true), (CONNECT, true)] {
            for (mut guard, handle) in held(head, then) {
                let exchange = handle.exchange();
                handle.resume_after_upgrade(accepted);
                assert_eq!(drain(&mut guard, 7).0, then.as_bytes());
                drop(exchange);
                assert_eq!((handle.phase(), handle.violation()), (Phase::Tunnel, None));
            }
        }
    }
}

#[test]
fn behind_a_refused_upgrade_comes_the_next_request() {
    for (mut guard, handle) in held(UPGRADE, NEXT) {
        handle.resume_after_upgrade(false);
        assert_eq!(drain(&mut guard, 1000).0, NEXT.as_bytes());
    }
    for (mut guard, handle) in held(UPGRADE, "\0\0") {
        drop(handle.exchange());
        assert_eq!(drain(&mut guard, 1000).0, b"");
        assert!(!handle.violation().unwrap().in_body);
    }
}

#[test]
fn behind_a_refused_connect_comes_nothing() {
    for (mut guard, handle) in held(CONNECT, NEXT) {
        drop(handle.exchange());
        assert_eq!(drain(&mut guard, 1000).0, b"");
        assert_eq!((handle.phase(), handle.violation()), (Phase::Closed, None));
    }
}

#[test]
fn an_upgrade_with_a_body_holds_behind_it() {
    let head = UPGRADE.replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\nhi");
    for (mut guard, handle) in held(&head, NEXT) {
        handle.resume_after_upgrade(true);
        assert_eq!(drain(&mut guard, 1000).0, NEXT.as_bytes());
    }
}

#[test]
fn h2c_and_http_1_0_do_not_upgrade() {
    for head in [
        UPGRADE.replace("websocket", "h2c"),
        UPGRADE.replace("websocket", " H2C ,"),
        UPGRADE.replace("websocket", ""),
        UPGRADE.replace("HTTP/1.1", "HTTP/1.0").replace("upgrade\r", "upgrade, keep-alive\r"),
    ] {
        passes(format!("{head}{NEXT}").as_bytes());
    }
    held(&UPGRADE.replace("websocket", "h2c, websocket"), NEXT);
}

#[test]
fn phases_follow_a_request_and_deadlines_follow_phases() {
    let now = clock();
    let second = Duration::from_secs(1);
    let tick = |n: u32| now.set(now.get() + n * second);
    let (mut guard, handle) = Guard::new(Script::default(), BytesMut::new(), Limits::default(), now.clone());
    let deadlines = Deadlines { header: 10 * second, body: 20 * second, idle: 60 * second, write: 30 * second };
    let overdue = || handle.overdue(now.get(), &deadlines);
    let mut bring = |bytes: &str| {
        if !bytes.is_empty() {
            guard.io.pieces.push_back(bytes.as_bytes().to_vec());
        }
        drain(&mut guard, 1000);
    };

    bring("");
    assert_eq!(handle.phase(), Phase::Idle);
    tick(59);
    assert_eq!(overdue(), None);
    tick(1);
    assert_eq!(overdue(), Some(Overdue::Idle));

    bring("POST / HTTP/1.1\r\n");
    assert_eq!((handle.phase(), overdue()), (Phase::Head, None));
    tick(9);
    bring("Host: a\r\n");
    tick(1);
    assert_eq!(overdue(), Some(Overdue::Header), "drips do not help");

    bring("Content-Length: 2\r\n\r\n");
    assert_eq!((handle.phase(), overdue()), (Phase::Body, None));
    tick(19);
    bring("h");
    tick(19);
    assert_eq!(overdue(), None);
    tick(1);
    assert_eq!(overdue(), Some(Overdue::Body));

    bring("i");
    let exchange = handle.exchange();
    tick(1000);
    assert_eq!((handle.phase(), overdue()), (Phase::Exchange, None));
    bring("GET");
    assert_eq!((handle.phase(), overdue()), (Phase::Exchange, None));
    tick(1000);
    drop(exchange);
    assert_eq!((handle.phase(), overdue()), (Phase::Head, None), "a head that had to wait starts anew");
    tick(10);
    assert_eq!(overdue(), Some(Overdue::Header));
    assert_eq!((handle.bytes_in(), handle.requests()), (52, 1));
}

#[test]
fn a_deadline_refuses_like_a_broken_rule() {
    let (mut idle, handle) = guard([b"GET / HT".to_vec()], Limits::default());
    drain(&mut idle, 1000);
    handle.refuse(Reason::RequestTimeout, "the head is late");
    assert!(handle.refuse_now());
    assert!(Pin::new(&mut idle).poll_shutdown(&mut Context::from_waker(Waker::noop())).is_ready());
    let reply = String::from_utf8(idle.io.written).unwrap();
    assert!(
        reply.starts_with("HTTP/1.1 408 Request Timeout\r\n") && reply.ends_with("\r\n\r\nthe head is late\n"),
        "{reply}"
    );

    let (mut body, handle) =
        guard([b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n".to_vec()], Limits::default());
    drain(&mut body, 1000);
    handle.refuse(Reason::RequestTimeout, "the body is late");
    assert!(!handle.refuse_now(), "the service answers");
    assert_eq!(drain(&mut body, 1000), (Vec::new(), true));
}

#[test]
fn close_read_ends_reading() {
    let (mut guard, handle) = guard([NEXT.as_bytes().to_vec()], Limits::default());
    handle.close_read();
    assert_eq!(drain(&mut guard, 1000), (Vec::new(), false));
    assert_eq!(handle.phase(), Phase::Closed);
}

#[test]
fn an_interim_response_is_written_at_a_flush_or_not_at_all() {
    let (mut guard, handle) = guard([], Limits::default());
    let mut cx = Context::from_waker(Waker::noop());
    let mut write = |guard: &mut Guard<Script>, bytes: &[u8]| {
        assert!(Pin::new(&mut *guard).poll_write(&mut cx, bytes).is_ready());
    };
    let early = handle.inject(b"HTTP/1.1 103 Early Hints\r\n\r\n");
    write(&mut guard, b"the end of an earlier response;");
    assert!(Pin::new(&mut guard).poll_flush(&mut Context::from_waker(Waker::noop())).is_ready());
    drop(early);
    drop(handle.inject(b"never sent"));
    write(&mut guard, b"the final response");
    assert_eq!(
        String::from_utf8(guard.io.written).unwrap(),
        "the end of an earlier response;HTTP/1.1 103 Early Hints\r\n\r\nthe final response"
    );
}

#[test]
fn what_follows_the_last_request_is_read_only_so_far() {
    let mut pieces = vec![b"GET / HTTP/1.0\r\n\r\n".to_vec()];
    pieces.extend(std::iter::repeat_n(vec![b'x'; 8192], 100));
    let (mut guard, handle) = guard(pieces, Limits::default());
    drain(&mut guard, 8192);
    assert!(handle.bytes_in() < (MAX_DISCARD + 8192 + 100) as u64);
    assert!(guard.held.is_empty());
}

#[test]
fn a_decision_is_only_for_the_request_that_holds() {
    let both = [NEXT, UPGRADE, "\0"].concat().into_bytes();
    let (mut ahead, handle) = guard([both.clone()], Limits::default());
    drain(&mut ahead, 1000);
    handle.resume_after_upgrade(true);
    assert_eq!(handle.phase(), Phase::Hold, "the first request is not the one");

    let (first, second) = both.split_at(NEXT.len());
    let (mut later, handle) = guard([first.to_vec()], Limits::default());
    drain(&mut later, 1000);
    handle.resume_after_upgrade(true);
    drop(handle.exchange());
    later.io.pieces.push_back(second.to_vec());
    drain(&mut later, 1000);
    assert_eq!(handle.phase(), Phase::Hold, "nor is an earlier one");
}

#[test]
fn a_reply_waits_for_what_hyper_has_not_flushed() {
    let (mut guard, handle) = guard([b"\0and much more".to_vec()], Limits::default());
    let mut cx = Context::from_waker(Waker::noop());
    drain(&mut guard, 1000);
    assert!(guard.held.is_empty(), "what is refused is not kept");
    assert!(Pin::new(&mut guard).poll_write(&mut cx, b"x").is_ready());
    assert!(!handle.refuse_now());
    assert!(Pin::new(&mut guard).poll_flush(&mut cx).is_ready());
    assert!(handle.refuse_now());
    for _ in 0..2 {
        assert!(Pin::new(&mut guard).poll_shutdown(&mut cx).is_ready());
    }
    assert_eq!((guard.io.shut, handle.bytes_out()), (1, guard.io.written.len() as u64));
    let replies = String::from_utf8(guard.io.written).unwrap();
    assert_eq!(replies.matches("x-weft-reason").count(), 1);
}

#[test]
fn refused_bytes_are_not_kept() {
    let (mut guard, handle) = guard([b"GE".to_vec(), [b"T\0".to_vec(), vec![b'x'; 9000]].concat()], Limits::default());
    drain(&mut guard, 8192);
    assert!(handle.violation().is_some() && guard.held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn lingering_ends_with_the_client_with_enough_bytes_or_with_patience() {
    let second = Duration::from_secs(1);
    for (max_bytes, closes, reads) in [(1 << 20, true, 100_000), (50_000, false, 50_000)] {
        let (mut client, mut server) = tokio::io::duplex(1000);
        let (_, sent) = tokio::join!(linger(&mut server, max_bytes, 3600 * second), async move {
            let mut sent = 0;
            while sent < 100_000 {
                match tokio::time::timeout(second, client.write(&[0; 1000])).await {
                    Ok(Ok(n)) => sent += n,
                    _ => break,
                }
            }
            if closes {
                drop(client)
            } else {
                std::mem::forget(client)
            }
            sent
        });
        assert!((reads..reads + 6000).contains(&sent), "{sent}");
    }
    let (_client, mut server) = tokio::io::duplex(1000);
    let start = tokio::time::Instant::now();
    linger(&mut server, 1, second).await;
    assert_eq!(start.elapsed(), second);
}

#[tokio::test(start_paused = true)]
async fn closing_a_refused_connection_lingers() {
    let (client, server) = tokio::io::duplex(1000);
    let (mut guard, handle) = Guard::new(server, BytesMut::from(&b"\0"[..]), Limits::default(), clock());
    drain(&mut guard, 1000);
    assert!(handle.refuse_now());
    let (mut from, mut to) = tokio::io::split(client);
    let mut reply = String::new();
    let (closed, sent, read) = tokio::join!(
        guard.close(1 << 20, Duration::from_secs(5)),
        async move { to.write_all(&[b'x'; 100_000]).await },
        from.read_to_string(&mut reply),
    );
    assert!(closed.is_ok() && sent.is_ok() && read.is_ok());
    assert!(reply.starts_with("HTTP/1.1 400 "));
}
