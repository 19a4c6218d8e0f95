#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rustls::{HandshakeKind, pki_types::CertificateDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::identity::{
    handshake::Alpn,
    testing::{Ca, Leaf, client, connect, listen},
};

fn exact(host: &str) -> Option<Hostname> {
    Some(Hostname::Exact(host.into()))
}

fn wildcard(suffix: &str) -> Option<Hostname> {
    Some(Hostname::Wildcard(suffix.into()))
}

fn listener(hostname: Option<Hostname>, certificates: &[&Leaf]) -> ListenerCerts {
    ListenerCerts { hostname, certificates: certificates.iter().map(|leaf| leaf.load("c")).collect() }
}

fn chosen(table: &Table, name: Option<&str>) -> CertificateDer<'static> {
    table.choose(name)[0].cert[0].clone()
}

#[test]
fn the_certificate_follows_the_name() {
    let ca = Ca::new("ca");
    let shop = ca.leaf(&["Shop.example.com"]);
    let wild = ca.leaf(&["*.example.com"]);
    let first = ca.leaf(&["first.test"]);
    let table = Table::build(&[listener(None, &[&first, &wild, &shop])]);
    for (name, leaf) in [
        (Some("shop.example.com"), &shop),
        (Some("other.example.com"), &wild),
        (Some("a.b.example.com"), &first),
        (Some("example.com"), &first),
        (Some("elsewhere.test"), &first),
        (None, &first),
    ] {
        assert_eq!(chosen(&table, name), leaf.der(), "{name:?}");
    }
}

#[test]
fn the_most_specific_listener_decides_before_the_certificate() {
    let ca = Ca::new("ca");
    let any = ca.leaf(&["shop.example.com", "any.test"]);
    let wild = ca.leaf(&["*.example.com"]);
    let deep = ca.leaf(&["deep.test"]);
    let one = ca.leaf(&["one.test"]);
    let table = Table::build(&[
        listener(None, &[&any]),
        listener(wildcard("example.com"), &[&wild]),
        listener(wildcard("eu.example.com"), &[&deep]),
        listener(exact("api.example.com"), &[&one]),
    ]);
    for (name, leaf) in [
        (Some("shop.example.com"), &wild),
        (Some("a.b.example.com"), &wild),
        (Some("a.eu.example.com"), &deep),
        (Some("eu.example.com"), &wild),
        (Some("api.example.com"), &one),
        (Some("example.com"), &any),
        (None, &any),
    ] {
        assert_eq!(chosen(&table, name), leaf.der(), "{name:?}");
    }
}

#[test]
fn without_a_catch_all_the_first_listener_answers_unknown_names() {
    let ca = Ca::new("ca");
    let (a, b) = (ca.leaf(&["a.test"]), ca.leaf(&["b.test"]));
    let table = Table::build(&[listener(exact("a.test"), &[&a]), listener(exact("b.test"), &[&b])]);
    assert_eq!(chosen(&table, Some("c.test")), a.der());
    assert_eq!(chosen(&table, None), a.der());
    assert!(Table::build(&[]).choose(None).is_empty());
}

#[test]
fn equal_hostnames_add_up() {
    let ca = Ca::new("ca");
    let (a, b) = (ca.leaf(&["a.test"]), ca.leaf(&["b.test"]));
    let table = Table::build(&[listener(None, &[&a]), listener(None, &[&b])]);
    assert_eq!(chosen(&table, Some("b.test")), b.der());
}

#[test]
fn a_host_of_another_listener_is_misdirected() {
    let ca = Ca::new("ca");
    let (a, b) = (ca.leaf(&["a.test"]), ca.leaf(&["*.b.test"]));
    let identity =
        ServerIdentity::new(&[listener(exact("a.test"), &[&a]), listener(wildcard("b.test"), &[&b])]).unwrap();
    assert!(identity.is_misdirected(Some("a.test"), "x.b.test"));
    assert!(!identity.is_misdirected(Some("x.b.test"), "Y.B.test"));
    assert!(!identity.is_misdirected(None, "x.b.test"));
}

#[tokio::test]
async fn sni_alpn_and_versions_over_a_socket() {
    let ca = Ca::new("ca");
    let (shop, other) = (ca.leaf(&["shop.test"]), ca.leaf(&["*.other.test"]));
    let identity = ServerIdentity::new(&[listener(None, &[&shop, &other])]).unwrap();
    let (address, mut results) = listen(identity.server_config()).await;
    let versions: [(&[&rustls::SupportedProtocolVersion], &str); 2] =
        [(&[&rustls::version::TLS12], "1.2"), (&[&rustls::version::TLS13], "1.3")];
    for (versions, version) in versions {
        for (offered, alpn) in [
            (&[ALPN_H2, ALPN_HTTP1][..], Alpn::Http2),
            (&[ALPN_HTTP1, ALPN_H2][..], Alpn::Http2),
            (&[ALPN_HTTP1][..], Alpn::Http1),
            (&[][..], Alpn::None),
        ] {
            let config = client(&ca, offered, versions);
            let stream = connect(address, &config, "a.OTHER.test").await.unwrap();
            assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], other.der());
            let accepted = results.recv().await.unwrap().unwrap();
            assert_eq!((accepted.alpn, accepted.version), (alpn, version));
            assert_eq!(accepted.sni.as_deref(), Some("a.other.test"));
        }
    }
    let unknown = client(&ca, &[b"spdy/1"], VERSIONS);
    connect(address, &unknown, "shop.test").await.unwrap_err();
    assert_eq!(results.recv().await.unwrap().unwrap_err().label(), "incompatible");
}

#[tokio::test]
async fn sessions_resume() {
    let ca = Ca::new("ca");
    let identity = ServerIdentity::new(&[listener(None, &[&ca.leaf(&["a.test"])])]).unwrap();
    assert!(identity.server_config().ticketer.enabled(), "any worker resumes, without shared state");
    let (address, mut results) = listen(identity.server_config()).await;
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let config = client(&ca, &[], versions);
        for resumed in [false, true] {
            let mut stream = connect(address, &config, "a.test").await.unwrap();
            let mut accepted = results.recv().await.unwrap().unwrap();
            assert_eq!(accepted.resumed, resumed);
            assert_eq!(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed), resumed);
            // The ticket of TLS 1.3 comes after the handshake.
            accepted.stream.write_all(b"x").await.unwrap();
            accepted.stream.flush().await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_new_certificate_leaves_open_connections_alone() {
    let ca = Ca::new("ca");
    let (old, new) = (ca.leaf(&["a.test"]), ca.leaf(&["a.test"]));
    let identity = ServerIdentity::new(&[listener(None, &[&old])]).unwrap();
    let (address, mut results) = listen(identity.server_config()).await;
    let config = client(&ca, &[], VERSIONS);
    let mut open = connect(address, &config, "a.test").await.unwrap();
    let mut served = results.recv().await.unwrap().unwrap().stream;
    assert_eq!(open.get_ref().1.peer_certificates().unwrap()[0], old.der());

    identity.replace(&[listener(None, &[&new])]);

    let fresh = client(&ca, &[], VERSIONS);
    let second = connect(address, &fresh, "a.test").await.unwrap();
    assert_eq!(second.get_ref().1.peer_certificates().unwrap()[0], new.der());
    served.write_all(b"still here").await.unwrap();
    served.flush().await.unwrap();
    let mut buffer = [0; 10];
    open.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"still here");
}

#[tokio::test]
async fn a_client_without_the_key_type_gets_the_other_certificate() {
    let ca = Ca::new("ca");
    let p256 = ca.leaf(&["a.test"]);
    let ed25519 = {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        ca.leaf_for(&["a.test"], key, |_| {})
    };
    let identity = ServerIdentity::new(&[listener(None, &[&ed25519, &p256])]).unwrap();
    let (address, _results) = listen(identity.server_config()).await;
    let mut few = (**provider()).clone();
    let mapping = few.signature_verification_algorithms.mapping;
    let only = mapping.iter().filter(|(scheme, _)| *scheme == rustls::SignatureScheme::ECDSA_NISTP256_SHA256).copied();
    few.signature_verification_algorithms.mapping = Vec::leak(only.collect());
    let config = rustls::ClientConfig::builder_with_provider(few.into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(ca.roots())
        .with_no_client_auth();
    let stream = connect(address, &Arc::new(config), "a.test").await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], p256.der());
}
