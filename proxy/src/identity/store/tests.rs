#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use weft_model::config::{AllowedNamespaces, AppProtocol, CertificateKind, Hostname};

use super::*;
use crate::{
    identity::{
        VERSIONS,
        testing::{Ca, Leaf, client, connect, in_files, listen},
        watch::watch,
    },
    source::dirs::DirWatch,
};

fn key(name: &str) -> Key {
    Key::new("default", name)
}

fn https(port: u16, hostname: Option<&str>, certificates: &[&str]) -> Listener {
    Listener {
        name: "https".into(),
        hostname: hostname.map(|host| Hostname::Exact(host.into())),
        port,
        protocol: ListenerProtocol::Https { certificates: certificates.iter().map(|name| key(name)).collect() },
        allowed_namespaces: AllowedNamespaces::Same,
    }
}

fn gateway(addresses: &[&str], listeners: Vec<Listener>) -> Gateway {
    Gateway {
        key: key("edge"),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        listeners,
    }
}

fn bundle(name: &str, path: &Path) -> Certificate {
    Certificate {
        key: key(name),
        kind: CertificateKind::ConfigMap,
        chain: None,
        private_key: None,
        ca: Some(Pem::File(path.into())),
    }
}

fn policy(name: &str, hostname: &str, bundles: &[&str]) -> BackendTls {
    BackendTls {
        key: key(name),
        targets: Vec::new(),
        hostname: hostname.into(),
        trust: Trust::Bundles(bundles.iter().map(|name| key(name)).collect()),
        subject_alt_names: Vec::new(),
    }
}

/// A folder with `a.crt` and `a.key`.
fn pair(folder: &Path, leaf: &Leaf) -> Certificate {
    let (chain, key) = (folder.join("a.crt"), folder.join("a.key"));
    fs::write(&chain, &leaf.chain).unwrap();
    fs::write(&key, &leaf.key).unwrap();
    in_files("a", chain, key)
}

fn one_port(certificate: Certificate) -> Config {
    Config {
        gateways: vec![gateway(&[], vec![https(443, None, &["a"])])],
        certificates: vec![certificate],
        ..Config::default()
    }
}

fn now() -> SystemTime {
    SystemTime::now()
}

async fn shown(address: std::net::SocketAddr, ca: &Ca) -> CertificateDer<'static> {
    let stream = connect(address, &client(ca, &[], VERSIONS), "a.test").await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

#[test]
fn sockets_have_identities() {
    let ca = Ca::new("ca");
    let config = Config {
        gateways: vec![
            gateway(&["10.0.0.1", "::1"], vec![https(443, None, &["a"]), https(443, Some("b.test"), &["b"])]),
            gateway(&[], vec![https(8443, None, &["a"])]),
        ],
        certificates: vec![ca.leaf(&["a.test"]).certificate("a"), ca.leaf(&["b.test"]).certificate("b")],
        ..Config::default()
    };
    let identities = Identities::new();
    identities.apply(&config, now()).unwrap();
    for (address, port, there) in [
        (Some("10.0.0.1"), 443, true),
        (Some("::1"), 443, true),
        (None, 443, false),
        (None, 8443, true),
        (Some("10.0.0.1"), 8443, false),
    ] {
        let address = address.map(|address| address.parse().unwrap());
        assert_eq!(identities.server(address, port).is_some(), there, "{address:?} {port}");
    }
    assert_eq!(identities.status().len(), 2);
    assert!(identities.files().is_empty());
}

#[test]
fn a_bad_configuration_changes_nothing_and_says_everything() {
    let ca = Ca::new("ca");
    let identities = Identities::new();
    identities.apply(&one_port(ca.leaf(&["a.test"]).certificate("a")), now()).unwrap();
    let before = identities.server(None, 443).unwrap();
    let mut broken = ca.leaf(&["a.test"]);
    broken.key = ca.leaf(&["a.test"]).key;
    let bad = Config {
        gateways: vec![gateway(&[], vec![https(443, None, &["a"]), https(444, None, &["none"])])],
        certificates: vec![broken.certificate("a")],
        backend_tls: vec![policy("p", "a.test", &["a"])],
        ..Config::default()
    };
    let errors = identities.apply(&bad, now()).unwrap_err();
    let problems: Vec<Problem> = errors.into_iter().map(|error| error.problem).collect();
    let missing = Problem::Missing;
    assert_eq!(problems, [Problem::KeyMismatch, missing("a certificate chain and key"), missing("a CA bundle")]);
    assert!(Arc::ptr_eq(&before, &identities.server(None, 443).unwrap()));
    assert!(identities.server(None, 444).is_none());
}

#[tokio::test]
async fn what_stays_keeps_its_identity() {
    let ca = Ca::new("ca");
    let (old, new) = (ca.leaf(&["a.test"]), ca.leaf(&["a.test"]));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ca.crt"), &ca.pem).unwrap();
    let mut config = one_port(old.certificate("a"));
    config.certificates.push(bundle("ca", &folder.path().join("ca.crt")));
    config.backend_tls.push(policy("p", "a.test", &["ca"]));
    let identities = Identities::new();
    identities.apply(&config, now()).unwrap();
    let (server, towards) = (identities.server(None, 443).unwrap(), identities.client(&key("p")).unwrap());
    let (address, _results) = listen(server.server_config()).await;
    assert_eq!(shown(address, &ca).await, old.der());

    config.certificates[0] = new.certificate("a");
    identities.apply(&config, now()).unwrap();
    assert_eq!(shown(address, &ca).await, new.der());
    assert!(Arc::ptr_eq(&server, &identities.server(None, 443).unwrap()));
    assert!(Arc::ptr_eq(&towards, &identities.client(&key("p")).unwrap()));

    config.backend_tls[0].hostname = "b.test".into();
    config.gateways.clear();
    identities.apply(&config, now()).unwrap();
    assert!(identities.server(None, 443).is_none());
    assert!(!Arc::ptr_eq(&towards, &identities.client(&key("p")).unwrap()));
}

#[test]
fn a_file_broken_for_the_moment_does_not_hold_up_a_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = one_port(pair(folder.path(), &Ca::new("ca").leaf(&["a.test"])));
    let identities = Identities::new();
    identities.apply(&config, now()).unwrap();
    fs::write(folder.path().join("a.crt"), "half").unwrap();
    config.gateways[0].listeners.push(https(444, None, &["a"]));
    identities.apply(&config, now()).unwrap();
    assert!(identities.server(None, 444).is_some());
    assert!(identities.status()[0].error.is_some());
    // Nothing to keep for one that starts now.
    Identities::new().apply(&config, now()).unwrap_err();
}

#[test]
fn failures_are_reported_once() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let leaf = ca.leaf(&["a.test"]);
    let identities = Identities::new();
    identities.apply(&one_port(pair(folder.path(), &leaf)), now()).unwrap();
    let counts = |reloaded: Reloaded| (reloaded.replaced.len(), reloaded.failed.len());
    assert_eq!(counts(identities.reload(now())), (0, 0));
    fs::write(folder.path().join("a.crt"), "broken").unwrap();
    assert_eq!(counts(identities.reload(now())), (0, 1));
    assert_eq!(counts(identities.reload(now())), (0, 0));
    fs::write(folder.path().join("a.crt"), "broken in the same way").unwrap();
    assert_eq!(counts(identities.reload(now())), (0, 0));
    fs::remove_file(folder.path().join("a.crt")).unwrap();
    assert_eq!(counts(identities.reload(now())), (0, 1));
    pair(folder.path(), &ca.leaf(&["a.test"]));
    assert_eq!(counts(identities.reload(now())), (1, 0));
    assert!(identities.status()[0].error.is_none());
}

#[tokio::test]
async fn files_are_watched_and_open_connections_stay() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new("ca");
    let (first, second, third) = (ca.leaf(&["a.test"]), ca.leaf(&["a.test"]), ca.leaf(&["a.test"]));
    let identities = Arc::new(Identities::new());
    let failures = Arc::new(AtomicUsize::new(0));
    let counter = failures.clone();
    tokio::spawn(watch(identities.clone(), DirWatch::new(), move |_| {
        counter.fetch_add(1, Relaxed);
    }));
    // Watching begins before there is anything to watch.
    tokio::time::sleep(Duration::from_millis(20)).await;
    identities.apply(&one_port(pair(folder.path(), &first)), now()).unwrap();
    let (address, mut results) = listen(identities.server(None, 443).unwrap().server_config()).await;
    let mut open = connect(address, &client(&ca, &[], VERSIONS), "a.test").await.unwrap();
    let mut served = results.recv().await.unwrap().unwrap().stream;

    tokio::time::sleep(Duration::from_millis(50)).await;
    pair(folder.path(), &second);
    eventually(|| async { shown(address, &ca).await == second.der() }).await;

    let before = failures.load(Relaxed);
    fs::write(folder.path().join("a.key"), &third.key).unwrap();
    eventually(|| async { failures.load(Relaxed) > before }).await;
    assert_eq!(shown(address, &ca).await, second.der());
    assert_eq!(identities.status()[0].error.as_ref().unwrap().problem, Problem::KeyMismatch);

    fs::write(folder.path().join("a.crt"), &third.chain).unwrap();
    eventually(|| async { shown(address, &ca).await == third.der() }).await;

    served.write_all(b"open").await.unwrap();
    served.flush().await.unwrap();
    let mut buffer = [0; 4];
    open.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"open");
}

#[tokio::test]
async fn a_new_bundle_counts_from_the_next_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new("old"), Ca::new("new"));
    let path = folder.path().join("ca.crt");
    fs::write(&path, &old.pem).unwrap();
    let extra = folder.path().join("extra.crt");
    fs::write(&extra, &Ca::new("extra").pem).unwrap();
    let config = Config {
        backend_tls: vec![policy("p", "a.test", &["ca", "extra"])],
        certificates: vec![bundle("ca", &path), bundle("extra", &extra)],
        ..Config::default()
    };
    let identities = Arc::new(Identities::new());
    identities.apply(&config, now()).unwrap();
    assert_eq!(identities.files(), [path.clone(), extra]);
    let listeners = [ListenerCerts { hostname: None, certificates: vec![new.leaf(&["a.test"]).load("x")] }];
    let (address, _results) = listen(ServerIdentity::new(&listeners).unwrap().server_config()).await;
    let towards = identities.client(&key("p")).unwrap();
    let trusted = || async {
        let io = TcpStream::connect(address).await.unwrap();
        towards.connect(io, AppProtocol::Http).await.is_ok()
    };
    assert!(!trusted().await);
    fs::write(&path, &new.pem).unwrap();
    assert_eq!(identities.reload(now()).replaced, [key("ca")]);
    assert!(trusted().await);
}

async fn eventually<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("never came true");
}
