//! TLS handshakes that are none: the listener survives, and honest clients do not wait.

use std::{sync::Arc, time::Duration};

use tokio::io::AsyncWriteExt;
use weft_tests::{Client, Options, Upstream, Weft, Wire, pki::Ca, ports, soon, within};

use crate::local;

struct TlsStage {
    weft: Weft,
    addr: std::net::SocketAddr,
    client: Arc<rustls::ClientConfig>,
    upstream: Upstream,
}

async fn stage() -> TlsStage {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let ca = Ca::new("edge");
    let leaf = ca.leaf(&["app.test"]);
    let config = crate::tls::https(port, upstream.addr);
    let options = Options { files: crate::tls::files("edge", &leaf), ..Options::default() };
    let weft = Weft::start_with(&config, options).await;
    TlsStage { weft, addr: local(port), client: ca.client(&["http/1.1"]), upstream }
}

impl TlsStage {
    async fn honest(&self) {
        let reply = soon("an honest handshake", Client::tls(self.addr, "app.test", self.client.clone()))
            .await
            .unwrap()
            .get("app.test", "/")
            .await
            .unwrap();
        assert_eq!(reply.upstream(), "app");
    }
}

/// A ClientHello as rustls would send it.
fn client_hello(config: &Arc<rustls::ClientConfig>) -> Vec<u8> {
    let name = "app.test".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config.clone(), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn broken_handshakes_are_closed() {
    let stage = stage().await;
    let hello = client_hello(&stage.client);
    let mut flipped = hello.clone();
    flipped[5] = 0xff;
    for (name, bytes) in [
        ("plain HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("noise", vec![0xaa; 500]),
        ("a record of zero length", vec![0x16, 3, 1, 0, 0]),
        ("a record too large", [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 1000]].concat()),
        ("another handshake message", flipped),
        ("close_notify first", vec![0x15, 3, 1, 0, 2, 1, 0]),
        ("close_notify in the middle", [&hello[..], &[0x15, 3, 3, 0, 2, 1, 0]].concat()),
        ("an alert in the middle", [&hello[..], &[0x15, 3, 3, 0, 2, 2, 40]].concat()),
        ("the hello twice", [&hello[..], &hello[..]].concat()),
    ] {
        let mut wire = Wire::connect(stage.addr).await;
        wire.send(bytes).await;
        within(Duration::from_secs(20), name, wire.read_to_end()).await;
        stage.honest().await;
    }
    assert_eq!(stage.weft.exited(), None);
}

#[tokio::test]
async fn a_fragmented_client_hello_is_understood() {
    // rustls RUSTSEC-2024-0399: a fragmented ClientHello made an acceptor panic.
    let stage = stage().await;
    let hello = client_hello(&stage.client);
    // The same message in records of three bytes each.
    let mut records = Vec::new();
    for part in hello[5..].chunks(3) {
        records.extend([0x16, 3, 1, 0, part.len() as u8]);
        records.extend(part);
    }
    let mut wire = Wire::connect(stage.addr).await;
    wire.send(&records).await;
    let answer = soon("a ServerHello", wire.read_exact(1)).await.expect("an answer");
    assert_eq!(answer, [0x16]);
    // And byte by byte.
    let mut wire = Wire::connect(stage.addr).await;
    for byte in &hello {
        wire.send([*byte]).await;
    }
    assert_eq!(soon("a ServerHello", wire.read_exact(1)).await.expect("an answer"), [0x16]);
    stage.honest().await;
}

#[tokio::test]
async fn slow_handshakes_are_given_up_and_nobody_waits_for_them() {
    let stage = stage().await;
    let before = stage.weft.usage();
    let hello = client_hello(&stage.client);
    let mut wires = Vec::new();
    for number in 0..300 {
        let mut wire = Wire::connect(stage.addr).await;
        let _ = wire.stream.write_all(&hello[..number % hello.len()]).await;
        wires.push(wire);
    }
    stage.honest().await;
    within(Duration::from_secs(45), "slow handshakes are given up", async {
        for wire in &mut wires {
            wire.read_to_end().await;
        }
    })
    .await;
    stage.honest().await;
    stage.weft.recovered(before, 32 * 1024).await;
    assert_eq!(stage.upstream.seen.count(), 2);
}

#[tokio::test]
async fn a_name_with_control_characters_is_escaped_in_the_log() {
    let stage = stage().await;
    let mut hello = client_hello(&stage.client);
    let at = hello.windows(8).position(|window| window == b"app.test").unwrap();
    hello[at..at + 4].copy_from_slice(b"\x1b[3m");
    let mut wire = Wire::connect(stage.addr).await;
    wire.send(&hello).await;
    let _ = wire.read_to_end_or_idle(Duration::from_millis(500)).await;
    stage.honest().await;
    let log = stage.weft.stderr() + &stage.weft.stdout();
    assert!(!log.contains("\u{1b}[3m"), "a client's escape sequence in the log");
}
