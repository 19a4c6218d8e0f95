#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_model::config::{Key, Trust};

use super::*;
use crate::identity::{
    ListenerCerts, ServerIdentity,
    testing::{Ca, Leaf, listen},
};

fn policy(hostname: &str, alternatives: &[SubjectAltName]) -> BackendTls {
    BackendTls {
        key: Key::new("default", "tls"),
        targets: Vec::new(),
        hostname: hostname.into(),
        trust: Trust::System,
        subject_alt_names: alternatives.to_vec(),
    }
}

async fn endpoint(leaf: &Leaf) -> SocketAddr {
    let listeners = [ListenerCerts { hostname: None, certificates: vec![leaf.load("c")] }];
    let (address, mut results) = listen(ServerIdentity::new(&listeners).unwrap().server_config()).await;
    tokio::spawn(async move {
        while let Some(result) = results.recv().await {
            if let Ok(mut accepted) = result {
                let _ = accepted.stream.write_all(b"x").await;
            }
        }
    });
    address
}

async fn try_connect(tls: &ClientTls, address: SocketAddr) -> Result<TlsStream<TcpStream>, ClientTlsError> {
    tls.connect(TcpStream::connect(address).await.unwrap(), AppProtocol::Http).await
}

/// What the user reads when an endpoint shows `leaf`.
async fn verdict(ca: &Ca, leaf: &Leaf, policy: &BackendTls) -> Result<(), String> {
    let tls = ClientTls::new(policy, ca.roots()).unwrap();
    try_connect(&tls, endpoint(leaf).await).await.map(drop).map_err(|error| error.to_string())
}

fn dns(name: &str) -> SubjectAltName {
    SubjectAltName::Hostname(name.into())
}

fn uri(name: &str) -> SubjectAltName {
    SubjectAltName::Uri(name.into())
}

#[tokio::test]
async fn the_hostname_is_verified() {
    let ca = Ca::new("ca");
    let leaf = ca.leaf(&["cart.test", "*.cart.test"]);
    verdict(&ca, &leaf, &policy("cart.test", &[])).await.unwrap();
    verdict(&ca, &leaf, &policy("a.cart.test", &[])).await.unwrap();
    let error = verdict(&ca, &leaf, &policy("shop.test", &[])).await.unwrap_err();
    assert_eq!(
        error,
        "the endpoint's certificate is refused: it is for `cart.test`, `*.cart.test`, not for `shop.test`"
    );
}

#[tokio::test]
async fn the_chain_is_verified() {
    let ca = Ca::new("ours");
    let theirs = Ca::new("theirs");
    let error = verdict(&ca, &theirs.leaf(&["a.test"]), &policy("a.test", &[])).await.unwrap_err();
    assert!(error.ends_with("it is issued by `CN=theirs`, which the policy does not trust"), "{error}");
    let expired = ca.leaf_with(&["a.test"], |p| {
        p.not_before = rcgen::date_time_ymd(2001, 1, 1);
        p.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    let error = verdict(&ca, &expired, &policy("a.test", &[])).await.unwrap_err();
    assert!(error.contains("it expired ") && error.ends_with(" days ago"), "{error}");
    let future = ca.leaf_with(&["a.test"], |p| p.not_before = rcgen::date_time_ymd(2999, 1, 1));
    let error = verdict(&ca, &future, &policy("a.test", &[])).await.unwrap_err();
    assert!(error.contains("not valid yet"), "{error}");
    let client_only =
        ca.leaf_with(&["a.test"], |p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
    let error = verdict(&ca, &client_only, &policy("a.test", &[])).await.unwrap_err();
    assert!(error.contains("without serverAuth"), "{error}");
    let authority = ca.leaf_with(&["a.test"], |p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    let error = verdict(&ca, &authority, &policy("a.test", &[])).await.unwrap_err();
    assert!(error.contains("it is a CA certificate"), "{error}");
}

#[tokio::test]
async fn alternative_names_replace_the_hostname() {
    let ca = Ca::new("ca");
    let id = "spiffe://weft.test/ns/default/sa/cart";
    let leaf = ca.leaf(&["cart.test", id]);
    for (accepted, good) in [
        (vec![uri(id)], true),
        (vec![uri("spiffe://weft.test/other"), uri(id)], true),
        (vec![dns("cart.test")], true),
        (vec![dns("*.test")], true),
        (vec![dns("CART.test")], true),
        (vec![dns("*.cart.test")], false),
        (vec![dns("other.test")], false),
        (vec![uri("spiffe://weft.test/ns/default/sa/car")], false),
        (vec![uri("SPIFFE://weft.test/ns/default/sa/cart")], false),
    ] {
        let result = verdict(&ca, &leaf, &policy("not-in-the-certificate.test", &accepted)).await;
        assert_eq!(result.is_ok(), good, "{accepted:?}: {result:?}");
    }
    // The hostname alone does not count any more.
    let error = verdict(&ca, &leaf, &policy("cart.test", &[uri("spiffe://x/y")])).await.unwrap_err();
    assert!(error.ends_with(&format!("it is for `cart.test`, `{id}`, not for `spiffe://x/y`")), "{error}");
    // Alternatives do not replace the chain.
    verdict(&Ca::new("other"), &leaf, &policy("cart.test", &[uri(id)])).await.unwrap_err();
}

#[tokio::test]
async fn a_spiffe_id_stands_alone() {
    let ca = Ca::new("ca");
    let leaf = ca.leaf(&["spiffe://a/one", "spiffe://a/two"]);
    let error = verdict(&ca, &leaf, &policy("a.test", &[uri("spiffe://a/one")])).await.unwrap_err();
    assert!(error.contains("several URI names"), "{error}");
    let leaf = ca.leaf(&["https://a/one", "https://a/two"]);
    verdict(&ca, &leaf, &policy("a.test", &[uri("https://a/one")])).await.unwrap();
}

#[tokio::test]
async fn protocols_are_negotiated() {
    let ca = Ca::new("ca");
    let address = endpoint(&ca.leaf(&["a.test"])).await;
    let tls = ClientTls::new(&policy("a.test", &[]), ca.roots()).unwrap();
    for (protocol, alpn) in [
        (AppProtocol::Http, Some(ALPN_HTTP1)),
        (AppProtocol::Http2, Some(ALPN_H2)),
        (AppProtocol::Grpc, Some(ALPN_H2)),
        (AppProtocol::Tcp, None),
    ] {
        let stream = tls.connect(TcpStream::connect(address).await.unwrap(), protocol).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), alpn);
    }
}

#[tokio::test]
async fn an_endpoint_without_http2_is_named() {
    let ca = Ca::new("ca");
    let listeners = [ListenerCerts { hostname: None, certificates: vec![ca.leaf(&["a.test"]).load("c")] }];
    let config = ServerIdentity::new(&listeners).unwrap().server_config();
    let tls = ClientTls::new(&policy("a.test", &[]), ca.roots()).unwrap();
    for alpn in [vec![], vec![ALPN_HTTP1.to_vec()]] {
        let mut old = ServerConfig::clone(&config);
        old.alpn_protocols = alpn;
        let (address, _results) = listen(old.into()).await;
        let error = tls.connect(TcpStream::connect(address).await.unwrap(), AppProtocol::Grpc).await.unwrap_err();
        assert!(matches!(error, ClientTlsError::NoAlpn("HTTP/2")), "{error}");
    }
}

#[tokio::test]
async fn an_endpoint_without_tls_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for reply in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
            let (mut io, _) = listener.accept().await.unwrap();
            let _ = io.read(&mut [0; 64]).await;
            let _ = io.write_all(reply).await;
        }
    });
    let tls = ClientTls::new(&policy("a.test", &[]), Ca::new("ca").roots()).unwrap();
    assert!(matches!(try_connect(&tls, address).await.unwrap_err(), ClientTlsError::NotTls));
    assert!(matches!(try_connect(&tls, address).await.unwrap_err(), ClientTlsError::Closed));
}

#[tokio::test]
async fn new_roots_end_old_sessions() {
    let ca = Ca::new("ca");
    let address = endpoint(&ca.leaf(&["a.test"])).await;
    let policy = policy("a.test", &[]);
    let tls = ClientTls::new(&policy, ca.roots()).unwrap();
    for resumed in [false, true] {
        let mut stream = try_connect(&tls, address).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed), resumed);
    }
    tls.replace(&policy, Ca::new("new").roots()).unwrap();
    try_connect(&tls, address).await.unwrap_err();
}

#[test]
fn a_hostname_that_is_none() {
    let error = ClientTls::new(&policy("a b", &[]), Ca::new("ca").roots()).unwrap_err();
    assert_eq!(error.problem, Problem::BadName("a b".into()));
}

#[test]
fn names_from_the_peer_are_escaped_and_cut() {
    assert_eq!(printable("a\u{1b}[31mb"), "a\\u{1b}[31mb");
    assert_eq!(printable(&"x".repeat(1000)).len(), 256);
    assert_eq!(list((0..7).map(|i| i.to_string()).collect()), "`0`, `1`, `2`, `3`, `4` and 2 more");
}
