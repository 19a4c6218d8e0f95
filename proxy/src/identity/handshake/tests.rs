#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::identity::{
    ListenerCerts, ServerIdentity, VERSIONS,
    testing::{Ca, client, connect, listen},
};

fn server(ca: &Ca) -> Arc<ServerConfig> {
    let certificates = vec![ca.leaf(&["a.test"]).load("a")];
    ServerIdentity::new(&[ListenerCerts { hostname: None, certificates }]).unwrap().server_config()
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_cut_off() {
    let config = server(&Ca::new("ca"));
    let handshakes = Handshakes::new(1, Duration::from_secs(10));
    let (mut peer, io) = duplex(1024);
    peer.write_all(&[0x16, 0x03]).await.unwrap();
    let begun = tokio::time::Instant::now();
    let error = handshakes.accept(io, config).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Timeout));
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(handshakes.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_permit_counts() {
    let config = server(&Ca::new("ca"));
    let handshakes = Rc::new(Handshakes::new(2, Duration::from_secs(10)));
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            let mut peers = Vec::new();
            let mut running = Vec::new();
            for index in 0..3 {
                let (peer, io) = duplex(1024);
                peers.push(peer);
                let (handshakes, config) = (handshakes.clone(), config.clone());
                running.push(tokio::task::spawn_local(async move { handshakes.accept(io, config).await }));
                // The third begins later and would still wait when the others have been cut off.
                tokio::time::sleep(Duration::from_secs(index)).await;
            }
            assert_eq!(handshakes.available(), 0);
            let mut labels = Vec::new();
            for task in running {
                labels.push(task.await.unwrap().unwrap_err().label());
            }
            assert_eq!(labels, ["timeout", "timeout", "timeout"]);

            let hold = handshakes.permits.acquire_many(2).await.unwrap();
            let (_peer, io) = duplex(1024);
            let error = handshakes.accept(io, config.clone()).await.unwrap_err();
            assert_eq!(error.label(), "overloaded");
            drop(hold);
        })
        .await;
}

#[tokio::test]
async fn the_listener_survives_whatever_is_sent() {
    let ca = Ca::new("ca");
    let (address, mut results) = listen(server(&ca)).await;
    let hello = client_hello(&ca);
    let cut: &[u8] = &hello[..hello.len() / 2];
    let mut oversized = vec![0x16, 0x03, 0x01, 0xff, 0xff];
    oversized.extend([0; 70_000]);
    let close_notify = [0x15, 3, 1, 0, 2, 1, 0];
    let mut half_then_close = cut.to_vec();
    half_then_close.extend(close_notify);
    let mut bit_flipped = hello.clone();
    bit_flipped[9] ^= 0xff;
    for (what, bytes, labels) in [
        ("nothing", &b""[..], &["closed"][..]),
        ("cleartext HTTP", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", &["not_tls"]),
        ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["not_tls"]),
        ("zeros", &[0; 512], &["not_tls"]),
        ("half a hello", cut, &["closed"]),
        ("close_notify at once", &close_notify, &["closed", "refused", "protocol"]),
        ("close_notify within the hello", &half_then_close, &["closed", "refused", "protocol", "not_tls"]),
        ("a record too long", &oversized, &["not_tls", "protocol"]),
        ("a damaged hello", &bit_flipped, &["protocol", "incompatible", "closed"]),
    ] {
        let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
        let _ = io.write_all(bytes).await;
        let _ = io.shutdown().await;
        let label = results.recv().await.unwrap().unwrap_err().label();
        assert!(labels.contains(&label), "{what}: {label}");
    }
    connect(address, &client(&ca, &[], VERSIONS), "a.test").await.unwrap();
    results.recv().await.unwrap().unwrap();
}

#[tokio::test]
async fn a_hello_in_single_bytes_and_records_is_understood() {
    let ca = Ca::new("ca");
    let (address, mut results) = listen(server(&ca)).await;
    let hello = client_hello(&ca);
    let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
    io.set_nodelay(true).unwrap();
    // One record of one byte for each byte of the handshake message.
    for byte in &hello[5..] {
        io.write_all(&[0x16, 3, 1, 0, 1, *byte]).await.unwrap();
    }
    let mut reply = [0; 1];
    io.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[0], 0x16, "a handshake record, not an alert");
    drop(io);
    results.recv().await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_client_that_distrusts_us_is_named() {
    let ca = Ca::new("ca");
    let (address, mut results) = listen(server(&ca)).await;
    connect(address, &client(&Ca::new("other"), &[], VERSIONS), "a.test").await.unwrap_err();
    let error = results.recv().await.unwrap().unwrap_err();
    assert_eq!(error.label(), "refused");
    assert!(error.to_string().contains("UnknownCA"), "{error}");
}

fn client_hello(ca: &Ca) -> Vec<u8> {
    let mut connection =
        rustls::ClientConnection::new(client(ca, &[b"h2"], VERSIONS), "a.test".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}
