//! WebSocket and other upgrades.

use futures_util::{SinkExt, StreamExt};
use weft_tests::{
    RawUpstream, SOON, eventually, soon,
    websocket::{Message, WsEcho, connect},
};

use crate::Stage;

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";

#[tokio::test]
async fn messages_come_back() {
    let stage = Stage::new(WsEcho::start().await, "http", |echo| echo.addr).await;
    let mut socket = connect(stage.addr, "ws.local", "/chat?room=1").await.unwrap();
    for round in 0..50 {
        let message = Message::text(format!("message {round}"));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(soon("an echo", socket.next()).await.unwrap().unwrap(), message);
    }
    let large = Message::binary(vec![7_u8; 8 * 1024 * 1024]);
    let (mut send, mut receive) = socket.split();
    let sending = tokio::spawn({
        let large = large.clone();
        async move {
            send.send(large).await.unwrap();
            send
        }
    });
    assert_eq!(soon("a large echo", receive.next()).await.unwrap().unwrap(), large);
    let mut send = sending.await.unwrap();
    send.close().await.unwrap();
    assert!(matches!(soon("the closing handshake", receive.next()).await, Some(Ok(Message::Close(_)))));
}

#[tokio::test]
async fn the_kubernetes_name_of_websocket_works_too() {
    let stage = Stage::new(WsEcho::start().await, "kubernetes.io/ws", |echo| echo.addr).await;
    let mut socket = connect(stage.addr, "ws.local", "/").await.unwrap();
    socket.send(Message::text("hi")).await.unwrap();
    assert_eq!(soon("an echo", socket.next()).await.unwrap().unwrap(), Message::text("hi"));
}

/// Upgrades to a protocol that echoes bytes; records the head.
async fn upgrading() -> RawUpstream {
    RawUpstream::start(|mut wire, _| async move {
        let Some(_) = wire.read_head().await else { return };
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\nhello").await;
        while let Some(byte) = wire.read_exact(1).await {
            wire.send(byte).await;
        }
        wire.send("bye").await;
    })
    .await
}

#[tokio::test]
async fn any_protocol_may_be_upgraded_to() {
    let stage = Stage::raw(upgrading().await).await;
    let mut wire = stage.wire().await;
    wire.send(UPGRADE).await;
    let response = wire.read_response().await;
    assert_eq!((response.status, response.header("upgrade")), (101, Some("echo/1")));
    assert_eq!(response.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("upgrade"));
    assert_eq!(soon("bytes behind the 101", wire.read_exact(5)).await.unwrap(), b"hello");
    wire.send("abc").await;
    assert_eq!(soon("an echo", wire.read_exact(3)).await.unwrap(), b"abc");
    wire.finish().await;
    assert_eq!(soon("half-close passes, and the last words", wire.read_to_end()).await, b"bye");
    let head = stage.upstream.all().to_ascii_lowercase();
    assert!(head.contains("\r\nupgrade: echo/1\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
}

#[tokio::test]
async fn a_client_that_vanishes_ends_the_upstreams_side() {
    let stage = Stage::raw(upgrading().await).await;
    let mut wire = stage.wire().await;
    wire.send(UPGRADE).await;
    assert_eq!(wire.read_response().await.status, 101);
    wire.reset();
    eventually("the upstream's connection ends", SOON, async || stage.upstream.ended() == 1).await;
}

#[tokio::test]
async fn a_refused_upgrade_leaves_the_connection_in_sync() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    for path in ["/status/400", "/status/200", "/status/403", "/status/426"] {
        let response = wire.exchange(UPGRADE.replace("/chat", path)).await;
        assert_eq!(response.status.to_string(), path[8..], "{response:?}");
        assert!(response.keeps_alive(), "an ordinary response to an ordinary request: {response:?}");
        let after = wire.exchange("GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(after.json()["uri"], "/after");
    }
}

#[tokio::test]
async fn an_upstream_that_upgrades_unasked_is_not_believed() {
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";
    let stage = Stage::raw(RawUpstream::answering(answer).await).await;
    let response = stage.wire().await.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((response.status, response.header("x-weft-reason")), (502, Some("bad_upstream_response")));
    let reply = stage.client_h2().await.get("a", "/").await.unwrap();
    assert_eq!(reply.status, 502, "{reply:?}");
}

#[tokio::test]
async fn a_web_socket_outlives_the_request_time_out() {
    let stage = Stage::with_policy(WsEcho::start().await, "http", |echo| echo.addr, "timeouts: {request: 300ms}").await;
    let mut socket = connect(stage.addr, "ws.local", "/").await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        socket.send(Message::text("tick")).await.unwrap();
        assert_eq!(soon("an echo", socket.next()).await.unwrap().unwrap(), Message::text("tick"));
    }
}
