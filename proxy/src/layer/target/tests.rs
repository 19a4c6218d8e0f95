#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::snapshot::fixture::{gateway, object, ours, snapshot};

/// A request as hyper hands it over: version, method, target, `Host` fields.
fn request(version: Version, method: &str, target: &str, hosts: &[&str]) -> Request<()> {
    let mut request = Request::builder().version(version).method(method).uri(target).body(()).unwrap();
    for host in hosts {
        request.headers_mut().append(header::HOST, HeaderValue::from_bytes(host.as_bytes()).unwrap());
    }
    request
}

const H10: Version = Version::HTTP_10;
const H11: Version = Version::HTTP_11;
const H2: Version = Version::HTTP_2;

#[test]
fn what_requests_ask_for() {
    // Version, method, target, Host; host, path, x-forwarded-host.
    for (version, method, target, hosts, host, path, forwarded) in [
        (H11, "GET", "/a", &["Shop.Local:8080"][..], "shop.local", "/a", Some("Shop.Local:8080")),
        (H11, "GET", "/a?b=%zz", &["a"], "a", "/a", Some("a")),
        (H11, "GET", "/a/%2e%2E/b/%7Ec", &["a."], "a", "/b/~c", Some("a.")),
        (H11, "GET", "//a/", &["[::1]:80"], "[::1]", "//a/", Some("[::1]:80")),
        // Absolute-form wins over Host.
        (H11, "GET", "http://b:81/x", &["a"], "b", "/x", Some("b:81")),
        (H11, "GET", "http://b", &["a"], "b", "/", Some("b")),
        (H10, "GET", "/a", &[], "", "/a", None),
        (H10, "GET", "/a", &["a"], "a", "/a", Some("a")),
        (H2, "GET", "https://a:443/x", &[], "a", "/x", Some("a:443")),
        (H2, "GET", "https://a/x", &["A"], "a", "/x", Some("a")),
        (H2, "GET", "/x", &["a"], "a", "/x", Some("a")),
        (H11, "CONNECT", "a:443", &["a:443"], "a", "/", Some("a:443")),
        (H11, "OPTIONS", "*", &["a"], "a", "/", Some("a")),
        (H11, "OPTIONS", "/x", &["a"], "a", "/x", Some("a")),
    ] {
        let request = request(version, method, target, hosts);
        let source = Source::of(&request).unwrap();
        let asked = source.asked(request.method()).unwrap();
        let authority = asked.authority();
        let authority = authority.as_ref().map(|value| value.to_str().unwrap());
        assert_eq!((&*asked.host, asked.path(), authority), (host, path, forwarded), "{method} {target} {hosts:?}");
    }
}

#[test]
fn what_requests_cannot_ask_for() {
    for (version, method, target, hosts, detail) in [
        (H11, "GET", "/", &[][..], "names no host"),
        (H2, "GET", "/", &[], "names no host"),
        (H11, "GET", "/", &["a", "a"], "Host is repeated"),
        (H11, "GET", "http://a/", &["a", "b"], "Host is repeated"),
        (H2, "GET", "http://a/", &["b"], "differ"),
        (H2, "GET", "http://a/", &["a:80"], "differ"),
        (H11, "GET", "ftp://a/", &["a"], "neither http nor https"),
        (H11, "GET", "http://u:p@a/", &["a"], "user information"),
        (H11, "GET", "/", &["u@a"], "user information"),
        (H11, "GET", "/", &[""], "empty"),
        (H11, "GET", "/", &["a..b"], "empty label"),
        (H11, "GET", "/", &["a b"], "invalid character"),
        (H11, "GET", "/", &["a:0"], "not a port"),
        (H11, "GET", "/", &["\u{e9}"], "malformed"),
        (H11, "GET", "*", &["a"], "only OPTIONS"),
        (H11, "GET", "/a/../../b", &["a"], "above the root"),
        (H11, "GET", "/%00", &["a"], "NUL"),
        (H11, "GET", "/%2", &["a"], "broken percent-encoding"),
    ] {
        let request = request(version, method, target, hosts);
        let refusal = Source::of(&request).and_then(|source| source.asked(request.method()).map(|_| ())).unwrap_err();
        assert_eq!(refusal.reason, Reason::BadRequest, "{method} {target} {hosts:?}");
        assert!(refusal.detail.contains(detail), "{method} {target} {hosts:?}: {refusal}");
    }
}

/// A rule with such filters, and an upstream of that protocol.
fn rule(filters: &str, protocol: &str) -> (Snapshot, Arc<Upstream>) {
    let spec =
        format!("ports: [{{port: 80, appProtocol: {protocol}}}], endpoints: [{{address: 10.0.0.1, port: 9000}}]");
    let route = format!(
        "parentRefs: [{{name: edge}}], rules: [{{matches: [{{path: {{value: /api}}}}], filters: [{filters}], \
         backendRefs: [{{group: weft.dev, kind: Service, name: app, port: 80}}]}}]"
    );
    let snapshot = snapshot(
        &[
            gateway("edge", "[{name: http, port: 8001, protocol: HTTP}]"),
            ours("Service", "app", &spec),
            object("HTTPRoute", "name: r", &route),
        ]
        .concat(),
    );
    let upstream = snapshot.rules[0].backends.get(0).unwrap().upstream.clone().unwrap();
    (snapshot, upstream)
}

const PREFIX: &str = "{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}";
const HOST: &str = "{type: URLRewrite, urlRewrite: {hostname: Inner.Local}}";

#[test]
fn what_upstreams_are_asked_for() {
    let get = |target: &str| request(H11, "GET", target, &["a:8001"]);
    let h2 = |target: &str| request(H2, "GET", target, &[]);
    let connect = request(H11, "CONNECT", "a:443", &["a:443"]);
    let star = request(H11, "OPTIONS", "*", &["a"]);
    let old = request(H10, "GET", "/api", &[]);
    // `None` keeps the request's own target or Host.
    for (filters, protocol, request, uri, host) in [
        ("", "http", get("/api/x?q=1"), None, None),
        ("", "http", get("/api/./x?q=1"), Some("/api/x?q=1"), None),
        ("", "http", get("http://b:81/api?q"), Some("/api?q"), Some("b:81")),
        ("", "http", h2("https://a/api/x"), Some("/api/x"), Some("a")),
        ("", "http", h2("https://a"), Some("/"), Some("a")),
        ("", "http", star, None, None),
        ("", "http", connect, None, Some("a:443")),
        ("", "h2c", get("/api/x?q=1"), Some("http://a:8001/api/x?q=1"), None),
        ("", "grpc", h2("https://a/api/x"), Some("http://a/api/x"), Some("a")),
        ("", "h2c", get("/api/%2e/x"), Some("http://a:8001/api/x"), None),
        // A request that names no host gets the service's.
        ("", "h2c", old, Some("http://app/api"), None),
        (PREFIX, "http", get("/api/x?q=1"), Some("/v1/x?q=1"), None),
        (PREFIX, "http", get("/api"), Some("/v1"), None),
        (PREFIX, "h2c", h2("https://a/api/x"), Some("http://a/v1/x"), Some("a")),
        (HOST, "http", get("/api"), None, Some("inner.local")),
        (HOST, "http", h2("https://a/api"), Some("/api"), Some("inner.local")),
        (HOST, "h2c", h2("https://a/api"), Some("http://inner.local/api"), Some("inner.local")),
    ] {
        let (snapshot, upstream) = rule(filters, protocol);
        let rule = &snapshot.rules[0];
        let source = Source::of(&request).unwrap();
        let asked = source.asked(request.method()).unwrap();
        let matched = PrefixLen("/api".len());
        let found = forwarded_uri(rule, &upstream, request.method(), &asked, matched).unwrap();
        let case = format!("{filters} {protocol} {request:?}");
        assert_eq!(found.map(|uri| uri.to_string()).as_deref(), uri, "{case}");
        let found = forwarded_host(rule, &asked).unwrap();
        assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), host, "{case}");
    }
}

#[test]
fn cookies_are_found_by_name() {
    let mut headers = HeaderMap::new();
    assert_eq!(cookie(&headers, "a"), None);
    for line in ["a=1; b=2;c=x=y", " d = 4 ;e;f=", "a=last"] {
        headers.append(header::COOKIE, HeaderValue::from_static(line));
    }
    for (name, value) in [
        ("a", Some("1")),
        ("b", Some("2")),
        ("c", Some("x=y")),
        ("d", None),
        ("e", None),
        ("f", Some("")),
        ("A", None),
        ("", None),
    ] {
        assert_eq!(cookie(&headers, name), value.map(str::as_bytes), "{name}");
    }
}
