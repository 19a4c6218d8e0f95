//! What is said about the entries that do not serve a request.

use super::{
    super::explain::{Criterion, Verdict, describe},
    *,
};

/// The verdict on each entry, by target, as text.
fn verdicts(ask: &Ask, table: &RouteTable<usize>) -> Vec<String> {
    let Ask { host, method, path, query, headers } = ask;
    let mut all = table.explain(&View { host, method, path, query: *query, headers });
    all.sort_by_key(|one| *one.target);
    let text = |verdict: Verdict| match verdict {
        Verdict::Serves(PrefixLen(length)) => format!("serves {length}"),
        Verdict::Outranked(criterion) => format!("{criterion:?}"),
        Verdict::Misses(misses) => misses.into_iter().map(|miss| miss.text).collect::<Vec<_>>().join("; "),
    };
    all.into_iter().map(|one| text(one.verdict)).collect()
}

#[test]
fn every_miss_is_named() {
    let all_at_once = HttpMatch {
        headers: vec![is("x-canary", "1"), fits("x-user", "[0-9]+")],
        query: vec![is("page", "2"), is("a", "b")],
        ..with_method(exact("/old"), "GET")
    };
    let table = table(vec![
        ("*.other.local", matcher(prefix("/cart"))),
        ("shop.local", matcher(prefix("/files"))),
        ("", matcher(prefix("/car"))),
        ("", matcher(regex("/[0-9]+"))),
        ("shop.local", all_at_once),
        ("", matcher(prefix("/"))),
    ]);
    let ask = get("shop.local", "/cart").method(Method::POST).query("a=b&page=3").header("x-user", b"m\te");
    assert_eq!(
        verdicts(&ask, &table),
        [
            "hostname *.other.local does not fit shop.local",
            "path /files is no prefix of /cart",
            "path /car is no prefix of /cart: prefixes end at a /",
            "path: /cart does not match the expression /[0-9]+",
            "path: wants /old exactly, is /cart; method: wants GET, is POST; header x-canary: wants \"1\", is absent; \
             header x-user: wants what matches [0-9]+, is \"m\\te\"; query page: wants \"2\", is \"3\"",
            "serves 0",
        ]
    );
}

#[test]
fn the_criterion_is_named() {
    let headers = |names: &[&str]| names.iter().map(|name| is(name, "1")).collect::<Vec<_>>();
    let table = table(vec![
        ("a.com", HttpMatch { headers: headers(&["x", "y"]), ..with_method(exact("/a/b"), "GET") }),
        ("", matcher(exact("/a/b"))),
        ("a.com", matcher(prefix("/a/b"))),
        ("a.com", matcher(exact("/a/b"))),
        ("a.com", HttpMatch { headers: headers(&["x"]), ..with_method(exact("/a/b"), "GET") }),
        ("a.com", HttpMatch { headers: headers(&["x", "y"]), ..with_method(exact("/a/b"), "GET") }),
    ]);
    let ask = get("a.com", "/a/b").header("x", b"1").header("y", b"1");
    assert_eq!(verdicts(&ask, &table), ["serves 4", "Hostname", "PathKind", "Method", "Headers", "Document"]);
    assert_eq!(Criterion::PathLength.as_str(), "a longer path");
}

#[test]
fn near_misses_come_first() {
    let table = table(vec![
        ("b.com", matcher(prefix("/x"))),
        ("a.com", matcher(prefix("/x"))),
        ("a.com", matcher(prefix("/carts"))),
        ("b.com", matcher(prefix("/cart"))),
        ("a.com", HttpMatch { headers: vec![is("x", "1")], ..matcher(prefix("/cart")) }),
    ]);
    let headers = HeaderMap::new();
    let view = View { host: "a.com", method: &Method::GET, path: "/cart", query: None, headers: &headers };
    let mut all = table.explain(&view);
    all.sort_by_key(|one| one.distance());
    assert_eq!(all.iter().map(|one| *one.target).collect::<Vec<_>>(), [4, 2, 1, 3, 0]);
}

#[test]
fn long_values_are_cut() {
    let table = table(vec![("", HttpMatch { headers: vec![is("x", "1")], ..matcher(prefix("/")) })]);
    let long: &'static str = Box::leak("a".repeat(100).into_boxed_str());
    let expected = format!("header x: wants \"1\", is \"{}... (100 bytes)\"", "a".repeat(60));
    assert_eq!(verdicts(&get("h", "/").header("x", long.as_bytes()), &table), [expected]);
}

#[test]
fn matches_in_a_line() {
    let all = HttpMatch {
        headers: vec![is("x-canary", "1"), fits("y", "a|b")],
        query: vec![is("page", "2")],
        ..with_method(prefix("/cart"), "GET")
    };
    assert_eq!(describe(&all), "GET /cart/* x-canary=\"1\" y~\"a|b\" ?page=\"2\"");
    assert_eq!(describe(&matcher(prefix("/"))), "/*");
    assert_eq!(describe(&matcher(exact("/old"))), "/old");
    assert_eq!(describe(&matcher(regex("/v[0-9]"))), "~/v[0-9]");
}
