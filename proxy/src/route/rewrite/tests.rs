#![allow(clippy::unwrap_used)]

use super::*;

fn prefix(replacement: &str) -> PathRewrite {
    PathRewrite::new(&PathModifier::ReplacePrefixMatch(replacement.into())).unwrap()
}

fn full(replacement: &str) -> PathRewrite {
    PathRewrite::new(&PathModifier::ReplaceFullPath(replacement.into())).unwrap()
}

/// The table of `replacePrefixMatch` in Gateway API's reference, and what follows from it. The model keeps `/foo/` as
/// `/foo`, and `/` matches with length 0.
#[test]
fn prefixes_are_replaced() {
    for (path, matched, replacement, expected) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        ("/foo/bar", "/foo", "/", "/bar"),
        ("/foo", "/foo", "/xyz/", "/xyz/"),
        ("/foo/", "/foo", "/xyz/", "/xyz/"),
        ("/foo/bar/", "/foo", "/xyz", "/xyz/bar/"),
        ("/foo//bar", "/foo", "/xyz/", "/xyz//bar"),
        ("/", "", "/xyz", "/xyz/"),
        ("/a", "", "/xyz", "/xyz/a"),
        ("/a", "", "/", "/a"),
    ] {
        let rewritten = prefix(replacement).apply(path, PrefixLen(matched.len())).into_owned();
        assert_eq!(rewritten, expected, "{path} {matched} {replacement}");
    }
}

#[test]
fn the_query_stays() {
    let target = |rewrite: Option<PathRewrite>, path, query, matched| {
        rewritten_path_and_query(rewrite.as_ref(), path, query, PrefixLen(matched)).unwrap().to_string()
    };
    assert_eq!(target(None, "/a", None, 0), "/a");
    assert_eq!(target(None, "/a%2Fb", Some("x=%41"), 0), "/a%2Fb?x=%41");
    assert_eq!(target(None, "/a", Some(""), 0), "/a?");
    assert_eq!(target(Some(full("/cart")), "/a/b", Some("x=1"), 0), "/cart?x=1");
    assert_eq!(target(Some(prefix("/v2")), "/v1/b", Some("x=?"), 3), "/v2/b?x=?");
    assert_eq!(target(None, "*", None, 0), "*");
}

#[test]
fn replacements_are_paths() {
    for bad in ["a", "/a?b=c", "/a#b", "/a\r\nx: y", "http://evil.example/", "/..", "/%"] {
        assert!(PathRewrite::new(&PathModifier::ReplaceFullPath(bad.into())).is_err(), "{bad}");
        assert!(PathRewrite::new(&PathModifier::ReplacePrefixMatch(bad.into())).is_err(), "{bad}");
    }
}

const PLAIN: Redirect = Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 };

fn location(redirect: &Redirect, scheme: Scheme, listener_port: u16) -> String {
    let original =
        Original { scheme, host: "shop.local", listener_port, path: "/a/b", query: Some("q=1"), matched: PrefixLen(2) };
    CompiledRedirect::new(redirect).unwrap().location(&original).unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_port_of_a_redirect() {
    use Scheme::{Http, Https};
    for (scheme, port, listener, listener_port, expected) in [
        (None, None, Http, 80, "http://shop.local/a/b?q=1"),
        (None, None, Http, 8080, "http://shop.local:8080/a/b?q=1"),
        (None, None, Http, 443, "http://shop.local:443/a/b?q=1"),
        (None, None, Https, 443, "https://shop.local/a/b?q=1"),
        (None, None, Https, 8443, "https://shop.local:8443/a/b?q=1"),
        (None, Some(80), Http, 8080, "http://shop.local/a/b?q=1"),
        (None, Some(443), Https, 8443, "https://shop.local/a/b?q=1"),
        (None, Some(8083), Http, 80, "http://shop.local:8083/a/b?q=1"),
        (Some("https"), None, Http, 8080, "https://shop.local/a/b?q=1"),
        (Some("http"), None, Https, 8443, "http://shop.local/a/b?q=1"),
        (Some("https"), Some(443), Http, 80, "https://shop.local/a/b?q=1"),
        (Some("https"), Some(80), Http, 80, "https://shop.local:80/a/b?q=1"),
        (Some("https"), Some(8443), Http, 80, "https://shop.local:8443/a/b?q=1"),
    ] {
        let redirect = Redirect { scheme: scheme.map(Into::into), port, ..PLAIN };
        assert_eq!(location(&redirect, listener, listener_port), expected);
    }
}

#[test]
fn host_and_path_of_a_redirect() {
    let to = |hostname: Option<&str>, path| Redirect { hostname: hostname.map(Into::into), path, ..PLAIN };
    let full = |path: &str| Some(PathModifier::ReplaceFullPath(path.into()));
    let prefix = |path: &str| Some(PathModifier::ReplacePrefixMatch(path.into()));
    for (redirect, expected) in [
        (to(Some("Example.org"), None), "http://example.org/a/b?q=1"),
        (to(None, full("/cart")), "http://shop.local/cart?q=1"),
        (to(None, full("")), "http://shop.local/?q=1"),
        (to(None, prefix("/x")), "http://shop.local/x/b?q=1"),
        (to(None, prefix("/")), "http://shop.local/b?q=1"),
    ] {
        assert_eq!(location(&redirect, Scheme::Http, 80), expected);
    }
}

/// What a client controls, host, path and query, stays host, path and query.
#[test]
fn a_redirect_goes_where_it_was_told() {
    let redirect = CompiledRedirect::new(&PLAIN).unwrap();
    let original = Original {
        scheme: Scheme::Https,
        host: "shop.local",
        listener_port: 443,
        path: "//evil.example/x",
        query: Some("a=\u{e9}\x7f\r\nset-cookie: b"),
        matched: PrefixLen(0),
    };
    assert_eq!(
        redirect.location(&original).unwrap(),
        "https://shop.local//evil.example/x?a=%C3%A9%7F%0D%0Aset-cookie:%20b"
    );
    assert_eq!(redirect.location(&Original { host: "", ..original }), Err(RewriteError::NoHost));
    assert!(redirect.location(&Original { host: "a\r\nb", ..original }).is_err());
    let star = Original { path: "*", query: None, ..original };
    assert_eq!(redirect.location(&star).unwrap(), "https://shop.local/");
}

#[test]
fn redirects_are_checked() {
    let check = |redirect: Redirect| CompiledRedirect::new(&redirect).map(|redirect| redirect.status.as_u16());
    assert_eq!(check(PLAIN), Ok(302));
    assert_eq!(check(Redirect { status: 308, ..PLAIN }), Ok(308));
    for status in [0, 200, 300, 304, 306, 400, 1000] {
        assert_eq!(check(Redirect { status, ..PLAIN }), Err(RewriteError::Status(status)));
    }
    assert!(check(Redirect { scheme: Some("javascript".into()), ..PLAIN }).is_err());
    for host in ["a/b", "a:80", "u@a", ""] {
        assert!(check(Redirect { hostname: Some(host.into()), ..PLAIN }).is_err(), "{host}");
    }
}

fn modifier(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderModifier {
    let fields = |fields: &[(&str, &str)]| fields.iter().map(|&(name, value)| (name.into(), value.into())).collect();
    HeaderModifier { set: fields(set), add: fields(add), remove: remove.iter().map(|&name| name.into()).collect() }
}

#[test]
fn headers_are_set_then_added_then_removed() {
    let modifier =
        modifier(&[("a", "new"), ("d", "1")], &[("A", "more"), ("b", "2"), ("e", "x")], &["c", "D", "missing"]);
    let compiled = CompiledModifier::new(&modifier).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in [("a", "old"), ("a", "older"), ("b", "1"), ("c", "1"), ("c", "2"), ("f", "kept")] {
        headers.append(name, HeaderValue::from_static(value));
    }
    compiled.apply(&mut headers);
    let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    left.sort_unstable();
    assert_eq!(left, [("a", "more"), ("a", "new"), ("b", "1"), ("b", "2"), ("e", "x"), ("f", "kept")]);
    assert!(!compiled.is_empty() && CompiledModifier::default().is_empty());
}

#[test]
fn headers_that_frame_a_message_are_left_alone() {
    for name in OF_CONNECTION.into_iter().chain(["Transfer-Encoding", "TE"]) {
        for bad in [modifier(&[(name, "x")], &[], &[]), modifier(&[], &[(name, "x")], &[]), modifier(&[], &[], &[name])]
        {
            assert!(matches!(CompiledModifier::new(&bad), Err(RewriteError::Framing(_))), "{name}");
        }
    }
    for (name, value) in [("a b", "x"), ("", "x"), ("a", "x\r\ny: z"), ("a", "x\0"), ("a:", "x")] {
        assert!(CompiledModifier::new(&modifier(&[(name, value)], &[], &[])).is_err(), "{name:?} {value:?}");
    }
}
