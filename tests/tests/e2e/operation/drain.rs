//! SIGTERM: finish what is in flight, lose nothing, exit 0.

use std::{process::ExitStatus, time::Duration};

use rustix::process::Signal;
use weft_tests::{
    Client, Options, SOON, Upstream, Weft, client, eventually,
    frames::{self, GOAWAY, H2Wire},
    load::{Load, Speak},
    ports, soon,
    websocket::{Message, WsEcho, connect},
    yaml,
};

use crate::{Stage, local};

fn clean(status: ExitStatus) {
    assert_eq!(status.code(), Some(0), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_fails_no_request() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let options = Options { workers: 2, ..Options::default() };
    let weft = Weft::start_with(&yaml::simple(port, "http", upstream.addr), options).await;
    let mut loads = [(Speak::H1, "/"), (Speak::H1, "/slow/50"), (Speak::H2, "/"), (Speak::H2, "/slow/50")]
        .map(|(speak, path)| Load::start(local(port), speak, 4, "a", path));
    for load in &loads {
        load.progress(20).await;
        load.expect_drain();
    }
    weft.signal(Signal::TERM);
    clean(weft.wait_exit(Duration::from_secs(20)).await);
    for load in &mut loads {
        eventually("clients notice", SOON, async || load.ended()).await;
    }
    for (number, load) in loads.into_iter().enumerate() {
        let outcome = load.finish().await;
        assert!(outcome.failures.is_empty(), "load {number}: {outcome:?}");
        // HTTP/1.1 clients are told with a last response; none is cut off between two requests.
        assert_eq!(outcome.raced, 0, "load {number}: {outcome:?}");
    }
}

#[tokio::test]
async fn requests_in_flight_are_finished_and_told() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    wire.send("GET /slow/1500 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut h2 = H2Wire::connect(stage.addr).await;
    h2.request(1, &frames::get("a", "/slow/1500"), true).await;
    eventually("both are upstream", SOON, async || stage.upstream.seen.count() == 2).await;
    stage.weft.signal(Signal::TERM);
    eventually("new connections are refused", SOON, async || tokio::net::TcpStream::connect(stage.addr).await.is_err())
        .await;
    if let Ok(ready) = stage.weft.try_admin("/ready").await {
        assert_eq!(ready.status, 503, "not ready while draining");
        assert!(ready.text().to_lowercase().contains("drain"), "{}", ready.text());
    }
    let response = wire.read_response().await;
    assert_eq!((response.status, response.text().as_str()), (200, "slow"));
    assert!(!response.keeps_alive(), "Connection: close is announced: {response:?}");
    wire.expect_closed().await;
    let (mut goaway, mut status) = (false, None);
    soon("the HTTP/2 connection's end", async {
        while let Some(frame) = h2.read().await {
            goaway |= frame.kind == GOAWAY && frame.code() == 0;
            if frame.kind == frames::HEADERS {
                status = frame.status();
            }
        }
    })
    .await;
    assert!(goaway && status == Some(200), "GOAWAY: {goaway}, status {status:?}");
    clean(stage.weft.wait_exit(SOON).await);
}

#[tokio::test]
async fn idle_connections_do_not_hold_a_drain_up() {
    let stage = Stage::h1().await;
    let mut wires = Vec::new();
    for _ in 0..50 {
        let mut wire = stage.wire().await;
        wire.send("GET /status/200 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(wire.read_response().await.status, 200);
        wires.push(wire);
    }
    let silent: Vec<_> = futures_util::future::join_all((0..10).map(|_| stage.wire())).await;
    stage.weft.signal(Signal::TERM);
    clean(stage.weft.wait_exit(SOON).await);
    for wire in wires.iter_mut() {
        wire.expect_closed().await;
    }
    drop(silent);
}

#[tokio::test]
async fn a_drain_ends_after_its_time_out() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let options = Options { args: vec!["--drain-timeout".into(), "1s".into()], ..Options::default() };
    let weft = Weft::start_with(&yaml::simple(port, "http", upstream.addr), options).await;
    let mut wire = weft_tests::Wire::connect(local(port)).await;
    wire.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually("the request is upstream", SOON, async || upstream.seen.count() == 1).await;
    weft.signal(Signal::TERM);
    clean(weft.wait_exit(SOON).await);
}

#[tokio::test]
async fn tunnels_end_with_the_drain() {
    let upstream = WsEcho::start().await;
    let port = ports::free();
    let options = Options { args: vec!["--drain-timeout".into(), "2s".into()], ..Options::default() };
    let weft = Weft::start_with(&yaml::simple(port, "http", upstream.addr), options).await;
    let mut socket = connect(local(port), "ws.local", "/").await.unwrap();
    weft.signal(Signal::TERM);
    eventually("new connections are refused", SOON, async || {
        tokio::net::TcpStream::connect(local(port)).await.is_err()
    })
    .await;
    use futures_util::{SinkExt, StreamExt};
    socket.send(Message::text("still there")).await.unwrap();
    assert_eq!(soon("an echo while draining", socket.next()).await.unwrap().unwrap(), Message::text("still there"));
    clean(weft.wait_exit(SOON).await);
}

#[tokio::test]
async fn the_admin_port_can_start_a_drain() {
    let stage = Stage::h1().await;
    let mut admin = Client::h1(stage.weft.admin).await.unwrap();
    let reply =
        admin.send(client::request("POST", "localhost", "/drain", weft_tests::upstream::empty())).await.unwrap();
    assert!(reply.status.is_success(), "{reply:?}");
    clean(stage.weft.wait_exit(SOON).await);
}

#[tokio::test]
async fn a_drain_by_get_is_refused() {
    let stage = Stage::h1().await;
    assert_eq!(stage.weft.admin("/drain").await.status, 405);
    assert_eq!(stage.client_h1().await.get("a", "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn sigint_ends_too() {
    let stage = Stage::h1().await;
    stage.weft.signal(Signal::INT);
    let status = stage.weft.wait_exit(SOON).await;
    assert!(status.code() == Some(0) || status.code() == Some(130), "{status}");
}
