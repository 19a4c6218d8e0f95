//! TLS at the edge and towards upstreams.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use weft_tests::{
    Client, Options, Upstream, Weft,
    curl::curl,
    eventually,
    pki::{Ca, Leaf},
    ports, yaml,
};

use crate::{echoed, local};

/// A Certificate document for the files `NAME.crt` and `NAME.key` beside the configuration.
pub fn certificate(name: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Certificate\nmetadata: {{name: {name}}}\nspec: {{certFile: {name}.crt, keyFile: {name}.key}}\n"
    )
}

/// The files of [`certificate`].
pub fn files(name: &str, leaf: &Leaf) -> Vec<(String, String)> {
    vec![(format!("{name}.crt"), leaf.cert.clone()), (format!("{name}.key"), leaf.key.clone())]
}

fn listener(port: u16, certificates: &[&str]) -> String {
    let refs: Vec<_> =
        certificates.iter().map(|name| format!("{{group: weft.dev, kind: Certificate, name: {name}}}")).collect();
    yaml::listeners(&[format!(
        "{{name: https, port: {port}, protocol: HTTPS, tls: {{mode: Terminate, certificateRefs: [{}]}}}}",
        refs.join(", ")
    )])
}

/// HTTPS with the certificate `edge`, everything to one upstream.
pub fn https(port: u16, upstream: SocketAddr) -> String {
    yaml::docs(&[
        listener(port, &["edge"]),
        certificate("edge"),
        yaml::all_to("app"),
        yaml::service("app", "http", &[upstream]),
    ])
}

/// The leaf certificate that a handshake for `name` presents.
async fn presented(addr: SocketAddr, name: &str, config: Arc<rustls::ClientConfig>) -> Option<Vec<u8>> {
    let stream = tokio::net::TcpStream::connect(addr).await.ok()?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.ok()?;
    Some(stream.get_ref().1.peer_certificates()?[0].to_vec())
}

#[tokio::test]
async fn both_versions_by_alpn() {
    let upstream = Upstream::h1("app").await;
    let ca = Ca::new("edge");
    let port = ports::free();
    let options = Options { files: files("edge", &ca.leaf(&["app.test"])), ..Options::default() };
    let weft = Weft::start_with(&https(port, upstream.addr), options).await;
    for (alpn, h2) in [(&["h2", "http/1.1"][..], true), (&["http/1.1"], false), (&[], false)] {
        let mut client = Client::tls(local(port), "app.test", ca.client(alpn)).await.unwrap();
        assert_eq!(client.is_h2(), h2, "{alpn:?}");
        for _ in 0..3 {
            let echo = client.post("app.test", "/x", "secret").await.unwrap().json();
            assert_eq!((echo["body"].as_str(), echoed(&echo, "x-forwarded-proto")), (Some("secret"), Some("https")));
        }
    }
    // No protocol in common: refused, not guessed (RFC 7301).
    assert!(Client::tls(local(port), "app.test", ca.client(&["spdy/1"])).await.is_err());

    let ca_file = weft.dir().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let (cacert, resolve) = (ca_file.display().to_string(), format!("app.test:{port}:127.0.0.1"));
    let url = format!("https://app.test:{port}/");
    for (version, expected) in [("--http2", "2"), ("--http1.1", "1.1")] {
        for tls in [&["--tlsv1.3"][..], &["--tls-max", "1.2"]] {
            let mut args = vec!["--cacert", &cacert, "--resolve", &resolve, version, "-o", "/dev/null"];
            args.extend_from_slice(tls);
            args.extend_from_slice(&["-w", "%{http_code} %{http_version}", &url]);
            let Some(out) = curl("both_versions_by_alpn", &args).await else { return };
            assert_eq!((out.code, out.stdout), (0, format!("200 {expected}")), "{tls:?} {}", out.stderr);
        }
    }
    let old = ["--cacert", &cacert, "--resolve", &resolve, "--tls-max", "1.1", &url];
    assert_ne!(curl("both_versions_by_alpn", &old).await.unwrap().code, 0, "TLS 1.1 is refused");
}

#[tokio::test]
async fn the_certificate_is_chosen_by_name() {
    let upstream = Upstream::h1("app").await;
    let ca = Ca::new("edge");
    let leaves = [ca.leaf(&["one.test"]), ca.leaf(&["two.test"]), ca.leaf(&["*.wild.test"])];
    let port = ports::free();
    let names = ["one", "two", "wild"];
    let mut docs = vec![listener(port, &names), yaml::all_to("app"), yaml::service("app", "http", &[upstream.addr])];
    docs.extend(names.map(certificate));
    let files = names.iter().zip(&leaves).flat_map(|(name, leaf)| files(name, leaf)).collect();
    let _weft = Weft::start_with(&yaml::docs(&docs), Options { files, ..Options::default() }).await;
    for (name, leaf) in [("one.test", &leaves[0]), ("two.test", &leaves[1]), ("x.wild.test", &leaves[2])] {
        let seen = presented(local(port), name, ca.client(&[])).await;
        assert_eq!(seen.as_deref(), Some(leaf.der().as_ref()), "{name}");
    }
    assert!(presented(local(port), "unknown.test", ca.client(&[])).await.is_none(), "no certificate fits");
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_failed_request() {
    let upstream = Upstream::h1("app").await;
    let ca = Ca::new("edge");
    let (old, new) = (ca.leaf(&["app.test"]), ca.leaf(&["app.test"]));
    let port = ports::free();
    let options = Options { files: files("edge", &old), workers: 2, ..Options::default() };
    let weft = Weft::start_with(&https(port, upstream.addr), options).await;
    let config = ca.client(&["http/1.1"]);
    // Who looks at the certificate has no session to resume: a resumed one shows the certificate of its beginning.
    assert_eq!(presented(local(port), "app.test", ca.client(&["http/1.1"])).await.as_deref(), Some(old.der().as_ref()));

    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (stop, config) = (stop.clone(), config.clone());
            tokio::spawn(async move {
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    // Each round is a handshake and three requests.
                    let mut client = Client::tls(local(port), "app.test", config.clone()).await.unwrap();
                    for _ in 0..3 {
                        assert_eq!(client.get("app.test", "/").await.unwrap().status, 200);
                        count += 1;
                    }
                }
                count
            })
        })
        .collect();
    // Between the two writes the key does not fit the certificate: that state must never be served.
    std::fs::write(weft.dir().join("edge.crt"), &new.cert).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(weft.dir().join("edge.key"), &new.key).unwrap();
    eventually("the new certificate is presented", Duration::from_secs(20), async || {
        presented(local(port), "app.test", ca.client(&["http/1.1"])).await.as_deref() == Some(new.der().as_ref())
    })
    .await;
    std::fs::write(weft.dir().join("edge.crt"), "not a certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let kept = presented(local(port), "app.test", ca.client(&["http/1.1"])).await;
    assert_eq!(kept.as_deref(), Some(new.der().as_ref()), "a broken file replaces nothing");
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for client in clients {
        assert!(client.await.expect("no request fails") > 0);
    }
}

/// Weft over plain HTTP in front of a TLS upstream.
async fn backend_tls(server: &Leaf, hostname: &str, trusted: &Ca) -> (Weft, SocketAddr, Upstream) {
    let upstream = Upstream::tls("secure", server.server(&["http/1.1"])).await;
    let port = ports::free();
    let ca: String = trusted.pem().lines().map(|line| format!("    {line}\n")).collect();
    let config = yaml::docs(&[
        yaml::simple(port, "http", upstream.addr),
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca}}\ndata:\n  ca.crt: |\n{ca}"),
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: secure}}\nspec:\n  \
             targetRefs: [{{group: weft.dev, kind: Service, name: app}}]\n  validation:\n    hostname: {hostname}\n    \
             caCertificateRefs: [{{group: \"\", kind: ConfigMap, name: ca}}]\n"
        ),
    ]);
    (Weft::start(&config).await, local(port), upstream)
}

#[tokio::test]
async fn an_upstream_with_the_right_certificate_is_trusted() {
    let ca = Ca::new("inside");
    let (_weft, addr, upstream) = backend_tls(&ca.leaf(&["app.inside"]), "app.inside", &ca).await;
    let mut client = Client::h1(addr).await.unwrap();
    for _ in 0..10 {
        assert_eq!(client.get("shop.local", "/").await.unwrap().upstream(), "secure");
    }
    assert_eq!(upstream.seen.connections.load(std::sync::atomic::Ordering::SeqCst), 1, "connections are reused");
    assert_eq!(upstream.seen.last().header("host"), Some("shop.local"), "SNI is the policy's, Host the client's");
}

#[tokio::test]
async fn upstreams_that_cannot_prove_who_they_are_get_nothing() {
    let (ca, other) = (Ca::new("inside"), Ca::new("other"));
    for (name, leaf) in [
        ("another name", ca.leaf(&["evil.inside"])),
        ("an unknown authority", other.leaf(&["app.inside"])),
        ("an expired certificate", ca.expired(&["app.inside"])),
        ("a common name only", ca.leaf(&["127.0.0.1"])),
    ] {
        let (_weft, addr, upstream) = backend_tls(&leaf, "app.inside", &ca).await;
        let reply = Client::h1(addr).await.unwrap().post("shop.local", "/", "secret").await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.header("x-weft-reason")), (503, Some("connect_failed")), "{name}");
        assert_eq!(upstream.seen.count(), 0, "{name}");
    }
}

#[tokio::test]
async fn a_plain_upstream_behind_a_tls_policy_gets_nothing() {
    let ca = Ca::new("inside");
    let (weft, addr, secure) = backend_tls(&ca.leaf(&["app.inside"]), "app.inside", &ca).await;
    let plain = weft_tests::RawUpstream::closing(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let config = std::fs::read_to_string(&weft.config).unwrap();
    let from = format!("address: 127.0.0.1, port: {}", secure.addr.port());
    weft.apply(&config.replace(&from, &format!("address: 127.0.0.1, port: {}", plain.addr.port()))).await;
    let reply = Client::h1(addr).await.unwrap().post("shop.local", "/", "secret").await.unwrap();
    reply.assert_refused(503, "connect_failed");
    assert!(!plain.all().contains("secret") && !plain.all().contains("POST"), "{}", plain.all());
}
