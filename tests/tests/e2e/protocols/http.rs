//! HTTP/1.1 and HTTP/2 on both sides.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use weft_tests::{Client, Upstream, client, upstream::empty};

use crate::{Stage, echoed};

#[tokio::test]
async fn every_pair_of_versions() {
    for (stage, upstream_version) in [(Stage::h1().await, "HTTP/1.1"), (Stage::h2().await, "HTTP/2.0")] {
        for mut client in [stage.client_h1().await, stage.client_h2().await] {
            let reply = client.post("shop.local:81", "/p?q=1", "hello").await.unwrap();
            let version = if client.is_h2() { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
            assert_eq!((reply.status.as_u16(), reply.version), (200, version));
            let echo = reply.json();
            assert_eq!((echo["version"].as_str(), echo["body"].as_str()), (Some(upstream_version), Some("hello")));
            assert_eq!(echoed(&echo, "content-length"), Some("5"));
            let seen = stage.upstream.seen.last();
            assert_eq!(seen.uri.path_and_query().unwrap(), "/p?q=1");
            let authority = if upstream_version == "HTTP/1.1" {
                seen.header("host").map(str::to_owned)
            } else {
                seen.uri.authority().map(ToString::to_string)
            };
            assert_eq!(authority.as_deref(), Some("shop.local:81"));
            for (path, status) in [("/status/204", 204), ("/status/304", 304), ("/status/500", 500), ("/bytes/0", 200)]
            {
                let reply = client.get("a", path).await;
                let reply = reply.unwrap_or_else(|error| panic!("{path} from {upstream_version}: {error}"));
                assert!(reply.status == status && reply.error.is_none(), "{path}: {reply:?}");
            }
            let head = client.send(client::request("HEAD", "a", "/bytes/77", empty())).await.unwrap();
            assert_eq!((head.header("content-length"), head.body.len()), (Some("77"), 0));
        }
    }
}

#[tokio::test]
async fn connection_headers_never_cross_into_http_2() {
    let stage = Stage::h2().await;
    let mut wire = stage.wire().await;
    let response = wire
        .exchange(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-gone\r\nKeep-Alive: 5\r\nX-Gone: 1\r\nTE: gzip\r\n\
             Proxy-Connection: keep-alive\r\n\r\n",
        )
        .await;
    assert_eq!(response.status, 200, "{response:?}");
    let echo = response.json();
    for gone in ["connection", "keep-alive", "x-gone", "proxy-connection", "te", "transfer-encoding"] {
        assert_eq!(echoed(&echo, gone), None, "{gone}: {echo}");
    }
}

#[tokio::test]
async fn many_streams_share_connections() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        let replies = join_all((0..8).map(|number| {
            let addr = stage.addr;
            async move {
                let mut client = Client::h2(addr).await.unwrap();
                let mut bodies = Vec::new();
                for round in 0..20 {
                    bodies.push(client.get("a", &format!("/{number}/{round}")).await.unwrap().json());
                }
                bodies
            }
        }))
        .await;
        for (number, bodies) in replies.iter().enumerate() {
            for (round, body) in bodies.iter().enumerate() {
                // Over HTTP/2 the upstream sees an absolute URI.
                let uri: http::Uri = body["uri"].as_str().unwrap().parse().unwrap();
                assert_eq!(uri.path(), format!("/{number}/{round}"));
            }
        }
        assert_eq!(stage.upstream.seen.count(), 160);
    }
}

#[tokio::test]
async fn streams_of_one_connection_do_not_wait_for_each_other() {
    let stage = Stage::h1().await;
    let (sender, connection) = {
        let stream = tokio::net::TcpStream::connect(stage.addr).await.unwrap();
        h2::client::handshake(stream).await.unwrap()
    };
    let task = tokio::spawn(connection);
    let ask = |path: &str| {
        let request = http::Request::get(format!("http://a{path}")).body(()).unwrap();
        sender.clone().send_request(request, true).unwrap().0
    };
    let slow = ask("/hang");
    let fast: Vec<_> = (0..50).map(|_| ask("/status/200")).collect();
    for response in weft_tests::soon("fast streams beside a hanging one", join_all(fast)).await {
        assert_eq!(response.unwrap().status(), 200);
    }
    drop(slow);
    weft_tests::eventually("the hanging request is cancelled", weft_tests::SOON, async || {
        stage.upstream.seen.cancelled.load(Ordering::SeqCst) == 1
    })
    .await;
    task.abort();
}

#[tokio::test]
async fn an_h2c_upgrade_is_not_passed_on() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire
        .exchange(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        )
        .await;
    assert_eq!(response.status, 200, "the upgrade is ignored, not followed: {response:?}");
    let echo = response.json();
    for gone in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(echoed(&echo, gone), None, "{gone}: {echo}");
    }
}

#[tokio::test]
async fn host_is_the_authority_when_http_2_has_none() {
    use weft_tests::frames::{End, H2Wire};
    let stage = Stage::h1().await;
    let mut wire = H2Wire::connect(stage.addr).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/x"), ("host", "shop.local")];
    wire.request(1, &fields, true).await;
    assert_eq!(wire.end_of(1).await, End::Response(Some(200)));
    assert_eq!(stage.upstream.seen.last().header("host"), Some("shop.local"));
}

#[tokio::test]
async fn an_http_2_upstream_that_says_goaway_costs_nothing() {
    // Each connection of this upstream serves three requests, then is closed gracefully.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut served = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let _ = respond.send_response(http::Response::new(()), true);
                    served += 1;
                    if served == 3 {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    let stage = Stage::new(addr, "h2c", |addr| *addr).await;
    let mut client = stage.client_h1().await;
    for number in 0..100 {
        let reply = client.get("a", "/").await.unwrap();
        assert_eq!(reply.status, 200, "request {number}: {reply:?}");
    }
    task.abort();
}

#[tokio::test]
async fn an_http_2_upstream_that_allows_one_stream_at_a_time_is_respected() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                let Ok(mut connection) = builder.max_concurrent_streams(1).handshake::<_, bytes::Bytes>(stream).await
                else {
                    return;
                };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                        let _ = respond.send_response(http::Response::new(()), true);
                    });
                }
            });
        }
    });
    let stage = Stage::new(addr, "h2c", |addr| *addr).await;
    let replies = join_all((0..20).map(|_| client::get_once(stage.addr, "a", "/"))).await;
    for reply in replies {
        assert_eq!(reply.unwrap().status, 200);
    }
    task.abort();
}

#[tokio::test]
async fn a_service_that_does_not_speak_http_2_is_named_as_such() {
    let stage = Stage::new(Upstream::h1("app").await, "h2c", |upstream| upstream.addr).await;
    let reply = stage.client_h1().await.get("a", "/").await.unwrap();
    assert_eq!(reply.status, 502, "{reply:?}");
    assert!(["bad_upstream_response", "upstream_reset"].contains(&reply.header("x-weft-reason").unwrap()), "{reply:?}");
}
