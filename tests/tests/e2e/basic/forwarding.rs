//! What happens to header fields on their way.

use weft_tests::{RawUpstream, client};

use crate::{Stage, all_echoed, echoed};

#[tokio::test]
async fn hop_by_hop_headers_of_a_request_stay_behind() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire
        .exchange(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Private, keep-alive\r\nConnection: x-other\r\nKeep-Alive: timeout=9\r\n\
             X-Private: 1\r\nX-Other: 2\r\nProxy-Connection: keep-alive\r\nUpgrade: nothing\r\nX-Public: 3\r\n\r\n",
        )
        .await;
    let echo = response.json();
    for gone in ["connection", "keep-alive", "x-private", "x-other", "proxy-connection", "upgrade", "transfer-encoding"]
    {
        assert_eq!(echoed(&echo, gone), None, "{gone} is hop-by-hop: {echo}");
    }
    assert_eq!(echoed(&echo, "x-public"), Some("3"));
}

#[tokio::test]
async fn hop_by_hop_headers_of_a_response_stay_behind() {
    for (name, stage) in [("h1", Stage::h1().await)] {
        for reply in [
            stage.client_h1().await.get("a", "/hop").await.unwrap(),
            stage.client_h2().await.get("a", "/hop").await.unwrap(),
        ] {
            assert_eq!(reply.text(), "hop");
            assert_eq!(reply.header("x-private"), None, "{name}: {reply:?}");
            assert_eq!(reply.header("keep-alive"), None);
            assert_eq!(reply.header("x-public"), Some("for everybody"));
        }
    }
}

#[tokio::test]
async fn connection_cannot_take_away_what_weft_or_the_message_needs() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    let response = wire
        .exchange(
            "POST / HTTP/1.1\r\nHost: shop.local\r\nConnection: host, content-length, x-forwarded-for, x-forwarded-proto, \
             x-request-id, traceparent\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
    if response.status == 400 {
        return; // Refusing such a list is fine too.
    }
    let echo = response.json();
    assert_eq!((echo["body"].as_str(), echoed(&echo, "host")), (Some("hello"), Some("shop.local")));
    assert_eq!(echoed(&echo, "x-forwarded-for"), Some("127.0.0.1"));
    assert!(echoed(&echo, "x-request-id").is_some());
    let response = wire.exchange("GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.json()["uri"], "/after", "the connection is in sync");
}

#[tokio::test]
async fn the_upstream_learns_who_asked() {
    let stage = Stage::h1().await;
    for mut client in [stage.client_h1().await, stage.client_h2().await] {
        let echo = client.get("shop.local:8080", "/").await.unwrap().json();
        assert_eq!(echoed(&echo, "x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(echoed(&echo, "x-forwarded-proto"), Some("http"));
        assert_eq!(echoed(&echo, "x-forwarded-host"), Some("shop.local:8080"));
        assert_eq!(echoed(&echo, "via"), None, "off by default");
    }
}

#[tokio::test]
async fn forged_forwarding_headers_do_not_pass() {
    let stage = Stage::h1().await;
    let forged = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-for", "7.7.7.7"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "bank.example"),
        ("forwarded", "for=6.6.6.6;host=bank.example"),
        ("x-real-ip", "6.6.6.6"),
    ];
    for mut client in [stage.client_h1().await, stage.client_h2().await] {
        let echo = client.send(client::get_with("shop.local", "/", &forged)).await.unwrap().json();
        assert_eq!(all_echoed(&echo, "x-forwarded-for"), ["127.0.0.1"], "{echo}");
        assert_eq!(all_echoed(&echo, "x-forwarded-proto"), ["http"]);
        assert_eq!(all_echoed(&echo, "x-forwarded-host"), ["shop.local"]);
        assert!(!all_echoed(&echo, "forwarded").iter().any(|value| value.contains("6.6.6.6")), "{echo}");
    }
}

#[tokio::test]
async fn a_request_id_is_made_when_absent_and_kept_when_present() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    let mut made = Vec::new();
    for _ in 0..20 {
        let echo = client.get("a", "/").await.unwrap().json();
        made.push(echoed(&echo, "x-request-id").expect("x-request-id").to_owned());
    }
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 20, "each is new: {made:?}");
    let echo = client.send(client::get_with("a", "/", &[("x-request-id", "mine-1")])).await.unwrap().json();
    assert_eq!(echoed(&echo, "x-request-id"), Some("mine-1"));
}

#[tokio::test]
async fn server_and_via_are_the_upstreams_own() {
    let upstream = RawUpstream::answering(b"HTTP/1.1 200 OK\r\nServer: theirs\r\nContent-Length: 2\r\n\r\nok").await;
    let stage = Stage::raw(upstream).await;
    let reply = stage.client_h1().await.get("a", "/").await.unwrap();
    assert_eq!((reply.header("server"), reply.header("via")), (Some("theirs"), None));
    let stage = Stage::h1().await;
    let reply = stage.client_h1().await.get("a", "/").await.unwrap();
    assert_eq!(reply.header("server"), None, "none is added: {reply:?}");
    assert_eq!(reply.header("x-weft-reason"), None);
}

#[tokio::test]
async fn repeated_headers_stay_apart_and_in_order() {
    let stage = Stage::h1().await;
    let mut client = stage.client_h1().await;
    let several = [("x-many", "1"), ("x-many", "2"), ("accept", "a/b"), ("x-many", "3")];
    let echo = client.send(client::get_with("a", "/", &several)).await.unwrap().json();
    assert_eq!(all_echoed(&echo, "x-many"), ["1", "2", "3"]);
    let reply = client.get("a", "/cookies").await.unwrap();
    let cookies: Vec<_> = reply.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[tokio::test]
async fn cookie_crumbs_become_one_cookie_in_http_1() {
    let stage = Stage::h1().await;
    let crumbs = [("cookie", "a=1"), ("cookie", "b=2")];
    let echo = stage.client_h2().await.send(client::get_with("a", "/", &crumbs)).await.unwrap().json();
    assert_eq!(all_echoed(&echo, "cookie"), ["a=1; b=2"], "RFC 9113 section 8.2.3");
}

#[tokio::test]
async fn bytes_above_ascii_in_values_pass() {
    let upstream = RawUpstream::answering(b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9\r\nContent-Length: 0\r\n\r\n").await;
    let stage = Stage::raw(upstream).await;
    let mut wire = stage.wire().await;
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-Ask: \xfc\xdf\r\n\r\n").await;
    assert_eq!(wire.read_response().await.header("x-name"), Some("caf\u{fffd}"));
    assert!(stage.upstream.all().contains("\u{fffd}\u{fffd}\r\n"), "{}", stage.upstream.all());
}
