//! Header modifiers, redirects, rewrites and mirrors.

use weft_tests::{Upstream, Weft, client, eventually, ports, soon, yaml};

use super::Routes;
use crate::{all_echoed, echoed, local};

/// One rule with a prefix match, filters in block style, and the service `app`.
fn filtered(prefix: &str, filters: &str) -> String {
    let filters: String = filters.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "- matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n  filters:\n{filters}  backendRefs: [{}]\n",
        yaml::backend("app")
    )
}

#[tokio::test]
async fn headers_are_set_added_and_removed_on_both_ways() {
    let rules = filtered(
        "/",
        "- type: RequestHeaderModifier
  requestHeaderModifier:
    set: [{name: X-Set, value: one}]
    add: [{name: x-add, value: more}]
    remove: [X-Remove]
- type: ResponseHeaderModifier
  responseHeaderModifier:
    set: [{name: content-type, value: text/weft}]
    add: [{name: set-cookie, value: c=3}]
    remove: [X-Upstream]",
    );
    let routes = Routes::new(&["app"], &[yaml::http_route("r", &format!("rules:\n{rules}"))]).await;
    let sent = [("x-set", "a"), ("x-set", "b"), ("x-add", "first"), ("x-remove", "1"), ("x-remove", "2")];
    let reply = routes.get_with("a", "/", &sent).await;
    let echo = reply.json();
    assert_eq!(all_echoed(&echo, "x-set"), ["one"]);
    let added = all_echoed(&echo, "x-add").join(",");
    assert_eq!(added.replace(' ', ""), "first,more");
    assert_eq!(echoed(&echo, "x-remove"), None);
    assert_eq!((reply.header("content-type"), reply.header("x-upstream")), (Some("text/weft"), None));
    let cookies = routes.get("a", "/cookies").await;
    let cookies: Vec<_> = cookies.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2", "c=3"]);
}

#[tokio::test]
async fn redirects() {
    let redirect = |prefix: &str, body: &str| {
        format!(
            "- matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n  filters: [{{type: RequestRedirect, requestRedirect: {body}}}]\n"
        )
    };
    let rules = [
        redirect("/default", "{hostname: new.local}"),
        redirect("/scheme", "{scheme: https, statusCode: 301}"),
        redirect("/port", "{port: 8443, scheme: https}"),
        redirect("/wellknown", "{port: 443, scheme: https}"),
        redirect("/full", "{path: {type: ReplaceFullPath, replaceFullPath: /x/y}, statusCode: 308}"),
        redirect("/prefix", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}, statusCode: 307}"),
        redirect("/gone", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}, statusCode: 303}"),
    ]
    .concat();
    let routes = Routes::new(&["app"], &[yaml::http_route("r", &format!("rules:\n{rules}"))]).await;
    let port = routes.addr.port();
    // A redirect without `port` keeps the listener's port unless it changes the scheme (GEP and field description).
    for (path, status, location) in [
        ("/default/a?b=c", 302, format!("http://new.local:{port}/default/a?b=c")),
        ("/scheme/a", 301, "https://old.local/scheme/a".into()),
        ("/port", 302, "https://old.local:8443/port".into()),
        ("/wellknown", 302, "https://old.local/wellknown".into()),
        ("/full/a?q=1", 308, format!("http://old.local:{port}/x/y?q=1")),
        ("/prefix/a/b?q=1", 307, format!("http://old.local:{port}/new/a/b?q=1")),
        ("/prefix", 307, format!("http://old.local:{port}/new")),
        ("/gone/a", 303, format!("http://old.local:{port}/a")),
        ("/gone", 303, format!("http://old.local:{port}/")),
    ] {
        let reply = routes.get("old.local", path).await;
        assert_eq!((reply.status.as_u16(), reply.header("location")), (status, Some(location.as_str())), "{path}");
    }
    assert_eq!(routes.counts(), [0]);
}

#[tokio::test]
async fn rewrites() {
    let rewrite = |prefix: &str, body: &str| filtered(prefix, &format!("- {{type: URLRewrite, urlRewrite: {body}}}"));
    let rules = [
        rewrite("/files", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}"),
        rewrite("/move", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /to/here}}"),
        rewrite("/slash", "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /end/}}"),
        rewrite("/full", "{path: {type: ReplaceFullPath, replaceFullPath: /only}}"),
        rewrite("/host", "{hostname: inner.local}"),
    ]
    .concat();
    let routes = Routes::new(&["app"], &[yaml::http_route("r", &format!("rules:\n{rules}"))]).await;
    for (path, seen) in [
        ("/files/a/b?c=d", "/a/b?c=d"),
        ("/files", "/"),
        ("/files/", "/"),
        ("/files?x=1", "/?x=1"),
        ("/move/a%20b", "/to/here/a%20b"),
        ("/move", "/to/here"),
        ("/slash/a", "/end/a"),
        ("/full/a/b?c", "/only?c"),
    ] {
        assert_eq!(routes.get("outer.local", path).await.json()["uri"], seen, "{path}");
    }
    let echo = routes.get("outer.local", "/host").await.json();
    assert_eq!((echoed(&echo, "host"), echoed(&echo, "x-forwarded-host")), (Some("inner.local"), Some("outer.local")));
}

async fn mirrored(mirror: std::net::SocketAddr, app: &Upstream, more: &str) -> (Weft, std::net::SocketAddr) {
    let port = ports::free();
    let filter = format!("- {{type: RequestMirror, requestMirror: {{backendRef: {}{more}}}}}", yaml::backend("mirror"));
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", &format!("rules:\n{}", filtered("/", &filter))),
        yaml::service("app", "http", &[app.addr]),
        yaml::service("mirror", "http", &[mirror]),
    ]);
    (Weft::start(&config).await, local(port))
}

#[tokio::test]
async fn a_mirror_gets_everything_and_its_answer_goes_nowhere() {
    let (app, mirror) = (Upstream::h1("app").await, Upstream::h1("mirror").await);
    let (_weft, addr) = mirrored(mirror.addr, &app, "").await;
    let mut client = weft_tests::Client::h1(addr).await.unwrap();
    let reply = client.post("shop.local", "/echo?x=1", "the body").await.unwrap();
    assert_eq!((reply.upstream().as_str(), reply.json()["body"].as_str()), ("app", Some("the body")));
    for status in [500, 404, 204] {
        assert_eq!(client.get("shop.local", &format!("/status/{status}")).await.unwrap().status, status);
    }
    eventually("all are mirrored", weft_tests::SOON, async || mirror.seen.count() == 4).await;
    let copy = &mirror.seen.to_path("/echo")[0];
    assert_eq!((copy.method.as_str(), copy.uri.query()), ("POST", Some("x=1")));
    assert!(copy.header("host").unwrap().starts_with("shop.local"), "{copy:?}");
}

#[tokio::test]
async fn a_mirror_that_is_away_or_hangs_is_not_noticed() {
    for hanging in [false, true] {
        let app = Upstream::h1("app").await;
        let mirror = weft_tests::RawUpstream::start(|mut wire, _| async move { drop(wire.read_to_end().await) }).await;
        let addr = if hanging { mirror.addr } else { ports::refusing() };
        let (_weft, addr) = mirrored(addr, &app, "").await;
        let mut client = weft_tests::Client::h1(addr).await.unwrap();
        for _ in 0..50 {
            let reply = soon("an answer in spite of the mirror", client.post("a", "/", "body")).await.unwrap();
            assert_eq!(reply.json()["body"], "body");
        }
        assert_eq!(client.get("a", "/stream/1000000").await.unwrap().body.len(), 1_000_000);
        let upload = client.post("a", "/upload", vec![0_u8; 4 << 20]).await.unwrap();
        assert_eq!(upload.json()["bytes"], 4 << 20, "a mirror that does not read must not stop an upload");
    }
}

#[tokio::test]
async fn a_share_of_the_requests_is_mirrored() {
    let (app, mirror) = (Upstream::h1("app").await, Upstream::h1("mirror").await);
    let (_weft, addr) = mirrored(mirror.addr, &app, ", fraction: {numerator: 1, denominator: 4}").await;
    let mut client = weft_tests::Client::h1(addr).await.unwrap();
    for _ in 0..800 {
        client.get("a", "/").await.unwrap();
    }
    eventually("mirrored requests arrive", weft_tests::SOON, async || mirror.seen.count() >= 120).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert!(mirror.seen.count() <= 280, "a quarter of 800: {}", mirror.seen.count());
}

#[tokio::test]
async fn filters_of_a_backend_concern_only_that_backend() {
    let one = Upstream::h1("one").await;
    let two = Upstream::h1("two").await;
    let port = ports::free();
    let rules = "rules:
- backendRefs:
  - group: weft.dev
    kind: Service
    name: one
    port: 80
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: one}]}}
  - {group: weft.dev, kind: Service, name: two, port: 80}
";
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::http_route("r", rules),
        yaml::service("one", "http", &[one.addr]),
        yaml::service("two", "http", &[two.addr]),
    ]);
    let _weft = Weft::start(&config).await;
    for _ in 0..100 {
        let echo = client::get_once(local(port), "a", "/").await.unwrap().json();
        let expected = (echo["upstream"] == "one").then_some("one");
        assert_eq!(echoed(&echo, "x-backend"), expected);
    }
    assert!(one.seen.count() > 20 && two.seen.count() > 20);
}
