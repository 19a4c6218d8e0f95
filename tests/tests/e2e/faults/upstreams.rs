//! What the client learns when the upstream fails.

use std::{sync::atomic::Ordering, time::Duration};

use weft_tests::{
    Client, RawUpstream, SOON, Upstream, Weft, client, eventually, ports, soon,
    upstream::{channel, full},
    yaml,
};

use crate::{Stage, local};

#[tokio::test]
async fn a_refused_connection() {
    let stage = Stage::new(ports::refusing(), "http", |addr| *addr).await;
    for mut client in [stage.client_h1().await, stage.client_h2().await] {
        for _ in 0..3 {
            client.get("a", "/").await.unwrap().assert_refused(503, "connect_failed");
        }
        client.post("a", "/", "body").await.unwrap().assert_refused(503, "connect_failed");
    }
    let metrics = stage.weft.metrics().await;
    assert!(metrics.sum("weft_requests_total", &[("reason", "connect_failed")]) > 7.5);
}

#[tokio::test]
async fn an_address_that_swallows_packets() {
    // A full accept queue behaves like a black hole: connect() neither succeeds nor fails.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fillers = Vec::new();
    loop {
        let attempt = tokio::net::TcpStream::connect(addr);
        match tokio::time::timeout(Duration::from_millis(300), attempt).await {
            Ok(stream) => fillers.push(stream.unwrap()),
            Err(_) => break,
        }
    }
    let stage = Stage::with_policy(addr, "http", |addr| *addr, "timeouts: {connect: 300ms}").await;
    let reply = soon("an answer", client::get_once(stage.addr, "a", "/")).await.unwrap();
    reply.assert_refused(503, "connect_failed");
    drop(fillers);
}

/// What is answered to a GET by an upstream of raw bytes, over both versions.
async fn answered(upstream: RawUpstream) -> [client::Reply; 2] {
    let stage = Stage::raw(upstream).await;
    let mut replies = Vec::new();
    for mut client in [stage.client_h1().await, stage.client_h2().await] {
        replies.push(soon("an answer", client.get("a", "/x")).await.unwrap());
        // Whatever happened, the client's connection is good for another request.
        soon("another answer", client.get("a", "/y")).await.unwrap();
    }
    replies.try_into().unwrap()
}

#[tokio::test]
async fn a_reset_before_the_answer() {
    let close = |part: &'static str, reset: bool| {
        RawUpstream::start(move |mut wire, _| async move {
            if wire.read_head().await.is_some() {
                wire.send(part).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                if reset {
                    wire.reset();
                }
            }
        })
    };
    for part in ["", "HTTP/1.1 2", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"] {
        for reset in [false, true] {
            for reply in answered(close(part, reset).await).await {
                reply.assert_refused(502, "upstream_reset");
            }
        }
    }
}

#[tokio::test]
async fn answers_that_are_not_http() {
    let mut wrong = Vec::new();
    for (name, bytes) in [
        ("noise", "\x01\x02\x03 noise\r\n\r\n"),
        ("an SSH banner", "SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("no version", "200 OK\r\n\r\n"),
        ("a bad version", "HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("a bad status", "HTTP/1.1 20x OK\r\nContent-Length: 0\r\n\r\n"),
        ("status 99", "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"),
        ("a short status", "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello"),
        ("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"),
        ("a length with a plus", "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello"),
        ("an unknown transfer coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: zip\r\n\r\nhello"),
        ("a coding that stays on", "HTTP/1.1 200 OK\r\nTransfer-Encoding: zip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        ("a space before the colon", "HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length: 0\r\n\r\n"),
        ("a control character in a value", "HTTP/1.1 200 OK\r\nX-A: \x01\r\nContent-Length: 0\r\n\r\n"),
        ("NUL in a value", "HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n"),
        ("a line that is no field", "HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let text: &'static str = bytes;
        for reply in answered(RawUpstream::closing(text.as_bytes()).await).await {
            if (reply.status.as_u16(), reply.header("x-weft-reason")) != (502, Some("bad_upstream_response")) {
                wrong.push(format!("{name}: {} {:?}", reply.status, reply.header("x-weft-reason")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_length_beside_chunks_is_dropped_or_refused() {
    // RFC 9112 section 6.1: chunks win, and the length must not be forwarded; refusing is fine, too.
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for reply in answered(RawUpstream::closing(text.as_bytes()).await).await {
        if reply.status == 200 {
            assert_eq!((reply.text().as_str(), reply.header("content-length")), ("abc", None), "{reply:?}");
            assert_eq!(reply.error, None);
        } else {
            reply.assert_refused(502, "bad_upstream_response");
        }
    }
}

#[tokio::test]
async fn an_endless_head_is_cut() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        wire.read_head().await;
        wire.send("HTTP/1.1 200 OK\r\n").await;
        let block = "X-Endless: 0123456789012345678901234567890123456789\r\n".repeat(100);
        for _ in 0..2_000 {
            wire.send(&block).await;
        }
    })
    .await;
    for reply in answered(upstream).await {
        reply.assert_refused(502, "bad_upstream_response");
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer() {
    let policy = "timeouts: {request: 400ms}";
    let stage = Stage::with_policy(Upstream::h1("app").await, "http", |upstream| upstream.addr, policy).await;
    for (number, mut client) in [stage.client_h1().await, stage.client_h2().await].into_iter().enumerate() {
        let reply = soon("an answer", client.get("a", "/hang")).await.unwrap();
        reply.assert_refused(504, "upstream_timeout");
        assert_eq!(client.get("a", "/after").await.unwrap().status, 200, "the client's connection goes on");
        eventually("the upstream's work is cancelled", SOON, async || {
            stage.upstream.seen.cancelled.load(Ordering::SeqCst) == number + 1
        })
        .await;
    }
}

#[tokio::test]
async fn time_outs_of_a_rule_win_over_the_service() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let rule = |path: &str, timeouts: &str| {
        format!(
            "- {{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], timeouts: {timeouts}, backendRefs: [{}]}}\n",
            yaml::backend("app")
        )
    };
    let rules = format!(
        "rules:\n{}{}{}",
        rule("/slow/500", "{request: 0s}"),
        rule("/hang", "{request: 300ms}"),
        rule("/hang/backend", "{request: 10s, backendRequest: 300ms}"),
    );
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", &rules),
        yaml::service("app", "http", &[upstream.addr]),
        yaml::policy("app", "timeouts: {request: 200ms}"),
    ]);
    let _weft = Weft::start(&config).await;
    let mut client = Client::h1(local(port)).await.unwrap();
    assert_eq!(client.get("a", "/slow/500").await.unwrap().text(), "slow", "0s switches it off");
    for path in ["/hang", "/hang/backend"] {
        soon(path, client.get("a", path)).await.unwrap().assert_refused(504, "upstream_timeout");
    }
}

#[tokio::test]
async fn truncation_is_visible_to_the_client() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        for path in ["/truncate", "/truncate-chunked"] {
            for mut client in [stage.client_h1().await, stage.client_h2().await] {
                let h2 = client.is_h2();
                let reply = soon("an answer", client.get("a", path)).await.unwrap();
                assert_eq!(reply.status, 200);
                assert!(reply.error.is_some(), "{path}, h2 {h2}: a clean end of a cut body: {reply:?}");
                if h2 {
                    assert_eq!(client.get("a", "/after").await.unwrap().status, 200, "only the stream is lost");
                }
            }
            let mut wire = stage.wire().await;
            wire.send(format!("GET {path} HTTP/1.0\r\nHost: a\r\n\r\n")).await;
            let text = soon("the end", wire.read_to_end()).await;
            let text = String::from_utf8_lossy(&text).to_lowercase();
            // HTTP/1.0 has nothing but the close: without a length only a reset can tell, which a reader may not see.
            assert!(!text.ends_with("0\r\n\r\n"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_service_nobody_defined_or_without_endpoints() {
    let port = ports::free();
    let config = yaml::docs(&[yaml::gateway(port), yaml::all_to("app"), yaml::service("app", "http", &[])]);
    let weft = Weft::start(&config).await;
    for mut client in [Client::h1(local(port)).await.unwrap(), Client::h2(local(port)).await.unwrap()] {
        client.get("a", "/").await.unwrap().assert_refused(503, "no_endpoint");
        assert_eq!(client.post("a", "/", "body").await.unwrap().status, 503);
    }
    let endpoint = Upstream::h1("late").await;
    weft.apply(&yaml::simple(port, "http", endpoint.addr)).await;
    assert_eq!(client::get_once(local(port), "a", "/").await.unwrap().upstream(), "late");
}

#[tokio::test]
async fn an_upstream_that_goes_and_comes_back() {
    let stage = Stage::h1().await;
    assert_eq!(client::get_once(stage.addr, "a", "/").await.unwrap().status, 200);
    let addr = stage.upstream.stop().await;
    let reply = client::get_once(stage.addr, "a", "/").await.unwrap();
    assert!(reply.status.is_server_error(), "{reply:?}");
    let _back = Upstream::h1_at(addr, "back").await;
    eventually("it is used again", SOON, async || {
        client::get_once(stage.addr, "a", "/").await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_dies_under_an_upload() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        wire.read_head().await;
        wire.read_exact(1000).await;
        wire.reset();
    })
    .await;
    let stage = Stage::raw(upstream).await;
    for mut client in [stage.client_h1().await, stage.client_h2().await] {
        let (mut sender, body) = channel(1);
        let feed = tokio::spawn(async move { while sender.send_data(vec![b'x'; 16 * 1024].into()).await.is_ok() {} });
        let reply = soon("an answer", client.send(client::request("POST", "a", "/", body))).await;
        if let Ok(reply) = reply {
            reply.assert_refused(502, "upstream_reset");
        }
        feed.abort();
    }
    // With the body complete in one piece, there is always an answer.
    let reply = stage.client_h1().await.send(client::request("POST", "a", "/", full(vec![b'x'; 2000]))).await.unwrap();
    reply.assert_refused(502, "upstream_reset");
}

#[tokio::test]
async fn more_bytes_than_promised_do_not_become_the_next_answer() {
    // The upstream's connection is out of step: it must not serve a second client.
    let upstream = RawUpstream::answering(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    )
    .await;
    let stage = Stage::raw(upstream).await;
    let mut client = stage.client_h1().await;
    for _ in 0..50 {
        let reply = client.get("a", "/").await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "ok"));
    }
}
