//! TCPRoute: opaque bytes.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_tests::{RawUpstream, SOON, Weft, Wire, eventually, ports, soon, within, yaml};

use crate::local;

async fn in_front_of(addr: std::net::SocketAddr) -> (Weft, std::net::SocketAddr) {
    let port = ports::free();
    let config = yaml::docs(&[
        yaml::listeners(&[format!("{{name: raw, port: {port}, protocol: TCP}}")]),
        yaml::tcp_route("raw", "store", 6379),
        yaml::service_port("store", "tcp", 6379, &[addr]),
    ]);
    (Weft::start(&config).await, local(port))
}

#[tokio::test]
async fn bytes_pass_in_both_directions_and_either_may_begin() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        wire.send("220 ready\r\n").await;
        while let Some(line) = wire.read_until(b"\n").await {
            wire.send([b"got ", line.as_slice()].concat()).await;
        }
        wire.send("after your end").await;
    })
    .await;
    let (_weft, addr) = in_front_of(upstream.addr).await;
    let mut wire = Wire::connect(addr).await;
    assert_eq!(soon("the server speaks first", wire.read_until(b"\n")).await.unwrap(), b"220 ready\r\n");
    for _ in 0..50 {
        wire.send(b"\x00\xff not HTTP\n").await;
        assert_eq!(soon("an answer", wire.read_until(b"\n")).await.unwrap(), b"got \x00\xff not HTTP\n");
    }
    wire.finish().await;
    assert_eq!(soon("half-close: the other direction goes on", wire.read_to_end()).await, b"after your end");
    eventually("the upstream's side has ended", SOON, async || upstream.ended() == 1).await;
}

#[tokio::test]
async fn the_upstream_may_finish_first() {
    let upstream = RawUpstream::start(|mut wire, _| async move {
        wire.send("all I have").await;
        wire.finish().await;
        wire.read_until(b"thanks").await.expect("the client's direction stays open");
    })
    .await;
    let (_weft, addr) = in_front_of(upstream.addr).await;
    let mut wire = Wire::connect(addr).await;
    assert_eq!(soon("everything", wire.read_to_end()).await, b"all I have");
    wire.send("thanks").await;
    eventually("the upstream got the thanks", SOON, async || upstream.ended() == 1).await;
    assert_eq!(upstream.all(), "thanks");
}

#[tokio::test]
async fn a_large_transfer_is_exact() {
    const SIZE: usize = 64 * 1024 * 1024;
    let upstream = RawUpstream::start(|wire, _| async move {
        let (mut read, mut write) = wire.stream.into_split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let (weft, addr) = in_front_of(upstream.addr).await;
    let before = weft.usage();
    let (mut read, mut write) = tokio::net::TcpStream::connect(addr).await.unwrap().into_split();
    let writing = tokio::spawn(async move {
        let block: Vec<u8> = (0..64 * 1024_u32).map(|n| (n % 251) as u8).collect();
        for _ in 0..SIZE / block.len() {
            write.write_all(&block).await.unwrap();
        }
    });
    let mut block = vec![0; 64 * 1024];
    within(Duration::from_secs(60), "64 MiB there and back", async {
        for _ in 0..SIZE / block.len() {
            read.read_exact(&mut block).await.unwrap();
            assert!(block.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
        }
        assert_eq!(read.read(&mut block).await.unwrap(), 0);
    })
    .await;
    writing.await.unwrap();
    weft.recovered(before, 16 * 1024).await;
}

#[tokio::test]
async fn a_refusing_upstream_closes_the_client() {
    let (weft, addr) = in_front_of(ports::refusing()).await;
    Wire::connect(addr).await.expect_closed().await;
    assert_eq!(weft.exited(), None);
}

#[tokio::test]
async fn a_reset_on_either_side_reaches_the_other() {
    let upstream = RawUpstream::start(|mut wire, number| async move {
        if number == 0 {
            wire.read_exact(1).await;
            wire.reset();
        } else {
            wire.read_to_end().await;
        }
    })
    .await;
    let (_weft, addr) = in_front_of(upstream.addr).await;
    let mut first = Wire::connect(addr).await;
    first.send("x").await;
    first.expect_closed().await;
    let mut second = Wire::connect(addr).await;
    second.send("y").await;
    eventually("the byte arrives", SOON, async || upstream.all().contains('y')).await;
    second.reset();
    eventually("the upstream notices", SOON, async || upstream.ended() == 2).await;
}

#[tokio::test]
async fn weights_spread_connections() {
    let greeting = |text: &'static str| RawUpstream::start(move |mut wire, _| async move { wire.send(text).await });
    let (heavy, none) = (greeting("heavy").await, greeting("none").await);
    let port = ports::free();
    let route = yaml::tcp_route("raw", "heavy", 1).replace(
        "backendRefs: [{group: weft.dev, kind: Service, name: heavy, port: 1}]",
        "backendRefs: [{group: weft.dev, kind: Service, name: heavy, port: 1, weight: 3}, \
         {group: weft.dev, kind: Service, name: none, port: 1, weight: 0}]",
    );
    let config = yaml::docs(&[
        yaml::listeners(&[format!("{{name: raw, port: {port}, protocol: TCP}}")]),
        route,
        yaml::service_port("heavy", "tcp", 1, &[heavy.addr]),
        yaml::service_port("none", "tcp", 1, &[none.addr]),
    ]);
    let _weft = Weft::start(&config).await;
    for _ in 0..30 {
        assert_eq!(soon("a greeting", Wire::connect(local(port)).await.read_to_end()).await, b"heavy");
    }
    assert_eq!((heavy.connections(), none.connections()), (30, 0));
}
