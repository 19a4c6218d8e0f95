#![allow(clippy::unwrap_used)]

mod explain;
mod model;

use http::HeaderValue;
use weft_model::config::{NamedMatch, ValueMatch};

use super::*;

fn exact(path: &str) -> PathMatch {
    PathMatch::Exact(path.into())
}

fn prefix(path: &str) -> PathMatch {
    PathMatch::Prefix(path.into())
}

fn regex(path: &str) -> PathMatch {
    PathMatch::Regex(path.into())
}

fn is(name: &str, value: &str) -> NamedMatch {
    NamedMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }
}

fn fits(name: &str, value: &str) -> NamedMatch {
    NamedMatch { name: name.into(), value: ValueMatch::Regex(value.into()) }
}

/// A match of the path only.
fn matcher(path: PathMatch) -> HttpMatch {
    HttpMatch { path, headers: vec![], query: vec![], method: None }
}

fn with_method(path: PathMatch, method: &str) -> HttpMatch {
    HttpMatch { method: Some(method.into()), ..matcher(path) }
}

/// `*.example.com`, `example.com`, or empty for every hostname.
fn hostname(text: &str) -> Option<Hostname> {
    match text.strip_prefix("*.") {
        Some(suffix) => Some(Hostname::Wildcard(suffix.into())),
        None => (!text.is_empty()).then(|| Hostname::Exact(text.into())),
    }
}

/// Targets are the positions in the list; ranks follow them.
fn try_table(matches: Vec<(&str, HttpMatch)>) -> Result<RouteTable<usize>, RouteError> {
    let key = Key::new("default", "route");
    let candidates = matches.into_iter().enumerate().map(|(target, (host, matcher))| Candidate {
        hostname: hostname(host),
        matcher,
        rank: Rank::new(None, &key, target, 0),
        target,
    });
    RouteTable::build(candidates.collect())
}

fn table(matches: Vec<(&str, HttpMatch)>) -> RouteTable<usize> {
    try_table(matches).unwrap()
}

/// A request, to be found in a table.
struct Ask {
    host: &'static str,
    method: Method,
    path: &'static str,
    query: Option<&'static str>,
    headers: HeaderMap,
}

fn get(host: &'static str, path: &'static str) -> Ask {
    Ask { host, method: Method::GET, path, query: None, headers: HeaderMap::new() }
}

impl Ask {
    fn method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    fn query(self, query: &'static str) -> Self {
        Self { query: Some(query), ..self }
    }

    fn header(mut self, name: &'static str, value: &'static [u8]) -> Self {
        self.headers.append(name, HeaderValue::from_bytes(value).unwrap());
        self
    }

    fn find<'t, T>(&self, table: &'t RouteTable<T>) -> Found<'t, T> {
        let Self { host, method, path, query, headers } = self;
        table.find(&View { host, method, path, query: *query, headers })
    }

    /// The target, if there is one.
    fn target(&self, table: &RouteTable<usize>) -> Option<usize> {
        match self.find(table) {
            Found::Match(target, _) => Some(*target),
            _ => None,
        }
    }
}

#[test]
fn paths_match_by_kind_then_length() {
    let table = table(vec![
        ("", matcher(prefix("/"))),
        ("", matcher(prefix("/abc"))),
        ("", matcher(prefix("/abc/def/"))),
        ("", matcher(exact("/abc/def"))),
        ("", matcher(regex("/abc/[0-9]+"))),
        ("", matcher(regex("/abc/[0-9]+.*"))),
        ("", matcher(exact("/trailing/"))),
    ]);
    for (path, target, length) in [
        ("/abc/def", 3, 8),
        ("/abc/def/", 2, 8),
        ("/abc/def/ghi", 2, 8),
        ("/abc/defg", 1, 4),
        ("/abc", 1, 4),
        ("/abc/", 1, 4),
        ("/abc//def", 1, 4),
        ("/abcd", 0, 0),
        ("/ABC", 0, 0),
        ("/", 0, 0),
        ("//", 0, 0),
        ("/abc/12", 5, 7),
        ("/abc/x/12", 1, 4),
        ("/x/abc/12", 0, 0),
        ("/trailing/", 6, 10),
        ("/trailing", 0, 0),
        ("/abc%2Fdef", 0, 0),
    ] {
        assert_eq!(get("h", path).find(&table), Found::Match(&target, PrefixLen(length)), "{path}");
    }
    assert_eq!(get("h", "*").find(&table), Found::None);
    assert_eq!(get("h", "").find(&table), Found::None);
}

#[test]
fn a_path_longer_than_every_prefix_is_cut_at_a_segment() {
    let table = table(vec![("", matcher(prefix("/abcd"))), ("", matcher(prefix("/a")))]);
    assert_eq!(get("h", "/abcdefgh/i").find(&table), Found::None);
    assert_eq!(get("h", "/a/bcdefgh").find(&table), Found::Match(&1, PrefixLen(2)));
    assert_eq!(get("h", "/abcd/efgh").find(&table), Found::Match(&0, PrefixLen(5)));
    assert_eq!(get("h", "/abcde").find(&table), Found::None);
}

#[test]
fn hosts_match_by_kind_then_length_and_fall_through() {
    let table = table(vec![
        ("", matcher(prefix("/"))),
        ("*.com", matcher(prefix("/com"))),
        ("*.example.com", matcher(prefix("/wild"))),
        ("www.example.com", matcher(prefix("/www"))),
        ("*.example.com", matcher(exact("/www/x"))),
    ]);
    for (host, path, target) in [
        ("www.example.com", "/www", 3),
        ("www.example.com", "/www/x", 3),
        ("www.example.com", "/wild", 2),
        ("www.example.com", "/com", 1),
        ("www.example.com", "/", 0),
        ("a.b.example.com", "/www/x", 4),
        ("example.com", "/wild", 0),
        ("example.com", "/com", 1),
        ("com", "/com", 0),
        ("", "/www", 0),
    ] {
        assert_eq!(get(host, path).target(&table), Some(target), "{host}{path}");
    }
}

#[test]
fn conditions_decide_by_number_after_path_and_method() {
    let headers = |names: &[&str]| names.iter().map(|name| is(name, "1")).collect::<Vec<_>>();
    let base = || matcher(prefix("/a"));
    let table = table(vec![
        ("", base()),
        ("", HttpMatch { query: headers(&["p", "q"]), ..base() }),
        ("", HttpMatch { headers: headers(&["x"]), ..base() }),
        ("", HttpMatch { headers: headers(&["x"]), query: headers(&["p"]), ..base() }),
        ("", HttpMatch { headers: headers(&["x", "y"]), ..base() }),
        ("", with_method(prefix("/a"), "POST")),
        ("", matcher(prefix("/a/b"))),
    ]);
    let x = || get("h", "/a").header("x", b"1");
    assert_eq!(get("h", "/a").target(&table), Some(0));
    assert_eq!(get("h", "/a").query("q=1&p=1").target(&table), Some(1));
    assert_eq!(x().target(&table), Some(2));
    assert_eq!(x().query("p=1&q=1").target(&table), Some(3));
    assert_eq!(x().header("y", b"1").query("p=1").target(&table), Some(4));
    assert_eq!(x().header("y", b"1").method(Method::POST).target(&table), Some(5));
    assert_eq!(get("h", "/a/b").header("x", b"1").method(Method::POST).target(&table), Some(6));
}

#[test]
fn header_values() {
    let of = |headers: Vec<NamedMatch>| table(vec![("", HttpMatch { headers, ..matcher(prefix("/")) })]);
    let found = |table: &RouteTable<usize>, lines: &[(&'static str, &'static [u8])]| {
        let ask = lines.iter().fold(get("h", "/"), |ask, (name, value)| ask.header(name, value));
        ask.target(table).is_some()
    };
    let plain = of(vec![is("x-canary", "a,b")]);
    assert!(found(&plain, &[("x-canary", b"a,b")]));
    assert!(found(&plain, &[("x-canary", b"a"), ("X-Canary", b"b")]));
    assert!(!found(&plain, &[("x-canary", b"b"), ("x-canary", b"a")]));
    assert!(!found(&plain, &[("x-canary", b"a, b")]));
    assert!(!found(&plain, &[("x-canary", b"A,B")]));
    assert!(!found(&plain, &[("x-canary", b"a,b"), ("x-canary", b"c")]));
    assert!(!found(&plain, &[]));
    let expression = of(vec![fits("x", "a|b,c"), fits("y", "")]);
    assert!(found(&expression, &[("x", b"a"), ("y", b"")]));
    assert!(found(&expression, &[("x", b"b"), ("x", b"c"), ("y", b"")]));
    assert!(!found(&expression, &[("x", b"ab"), ("y", b"")]));
    assert!(!found(&expression, &[("x", b"b"), ("y", b"")]));
    assert!(!found(&expression, &[("x", b"a")]));
    assert!(!found(&of(vec![fits("x", ".*")]), &[("x", b"\xff")]));
    assert!(found(&of(vec![is("cookie", "a=1; b=2")]), &[("cookie", b"a=1"), ("cookie", b"b=2")]));
}

#[test]
fn query_parameters() {
    let of = |query: Vec<NamedMatch>| table(vec![("", HttpMatch { query, ..matcher(prefix("/")) })]);
    let found = |table: &RouteTable<usize>, query| get("h", "/").query(query).target(table).is_some();
    let plain = of(vec![is("animal", "blue whale")]);
    for (query, expected) in [
        ("animal=blue%20whale", true),
        ("x=1&animal=blue%20whale&y", true),
        ("%61nimal=%62lue%20whale", true),
        ("animal=blue%20whale&animal=dolphin", true),
        ("animal=dolphin&animal=blue%20whale", false),
        ("%61nimal=dolphin&animal=blue%20whale", false),
        ("animal=blue+whale", false),
        ("Animal=blue%20whale", false),
        ("animals=blue%20whale", false),
        ("animal", false),
        ("", false),
    ] {
        assert_eq!(found(&plain, query), expected, "{query}");
    }
    assert_eq!(get("h", "/").target(&plain), None);
    let empty = of(vec![is("flag", "")]);
    assert!(found(&empty, "flag") && found(&empty, "flag=") && found(&empty, "a&flag&b"));
    assert!(!found(&empty, "flag=1") && !found(&empty, "a"));
    let equals = of(vec![is("a", "b=c%")]);
    assert!(found(&equals, "a=b=c%25") && found(&equals, "a=b=c%"));
    let expression = of(vec![fits("v", "[0-9]+")]);
    assert!(found(&expression, "v=12") && !found(&expression, "v=12x") && !found(&expression, "v=%FF"));
}

#[test]
fn another_method_would_be_served() {
    let table = table(vec![
        ("", with_method(prefix("/a"), "POST")),
        ("", with_method(prefix("/a"), "PUT")),
        ("", with_method(prefix("/a/b"), "DELETE")),
        ("a.com", with_method(exact("/a/b"), "POST")),
        ("", HttpMatch { headers: vec![is("x", "1")], ..with_method(prefix("/a"), "PATCH") }),
    ]);
    let allowed = |ask: Ask| match ask.find(&table) {
        Found::MethodMismatch(methods) => methods.iter().map(|method| method.as_str()).collect(),
        Found::Match(..) => vec!["match"],
        Found::None => vec![],
    };
    assert_eq!(allowed(get("a.com", "/a/b")), ["POST", "DELETE", "PUT"]);
    assert_eq!(allowed(get("b.com", "/a/b")), ["DELETE", "POST", "PUT"]);
    assert_eq!(allowed(get("b.com", "/a").method(Method::PUT)), ["match"]);
    assert_eq!(allowed(get("b.com", "/a").header("x", b"1")), ["PATCH", "POST", "PUT"]);
    assert_eq!(allowed(get("b.com", "/b")), Vec::<&str>::new());
    assert_eq!(allowed(get("b.com", "/a").method(Method::HEAD)), ["POST", "PUT"]);
}

#[test]
fn a_method_that_would_not_help_is_not_offered() {
    let table = table(vec![("", HttpMatch { headers: vec![is("x", "1")], ..with_method(prefix("/a"), "POST") })]);
    assert_eq!(get("h", "/a").find(&table), Found::None);
    assert_eq!(get("h", "/a").method(Method::POST).find(&table), Found::None);
}

#[test]
fn ranks_are_ordered_as_gateway_api_says() {
    let rank = |created: Option<&str>, namespace: &str, name: &str, rule, position| {
        Rank::new(created.map(Into::into), &Key::new(namespace, name), rule, position)
    };
    let ordered = [
        rank(Some("2020-01-01T00:00:00Z"), "z", "z", 9, 9),
        rank(Some("2021-01-01T00:00:00Z"), "a", "a", 0, 0),
        // As text `-` sorts before `/`.
        rank(None, "a-b", "c", 9, 0),
        rank(None, "a", "a", 0, 0),
        rank(None, "a", "a", 0, 1),
        rank(None, "a", "a", 1, 0),
        rank(None, "a", "b", 0, 0),
        rank(None, "b", "a", 0, 0),
    ];
    assert!(ordered.is_sorted_by(|a, b| a < b));
}

#[test]
fn expressions_match_the_whole_path() {
    for several in [false, true] {
        let mut matches =
            vec![("", matcher(regex("/a|/ab+"))), ("", matcher(regex("(?i)/K"))), ("", matcher(regex("")))];
        if several {
            matches.extend(["/1", "/2", "/3", "/4"].map(|path| ("", matcher(regex(path)))));
        }
        let table = table(matches);
        for (path, expected) in [
            ("/a", Some(0)),
            ("/abb", Some(0)),
            ("/abc", None),
            ("/x/a", None),
            ("/k", Some(1)),
            ("/a\n", None),
            ("/3", several.then_some(5)),
            ("/33", None),
        ] {
            assert_eq!(get("h", path).target(&table), expected, "{path:?} {several}");
        }
    }
}

#[test]
fn bad_candidates_are_refused() {
    let headers = |named| HttpMatch { headers: vec![named], ..matcher(prefix("/")) };
    for (bad, expected) in [
        (matcher(regex("(")), "regular expression `(`"),
        (matcher(regex("a)|(b")), "regular expression `a)|(b`"),
        (matcher(regex(r"(\w{500}){500}")), "regular expression"),
        (headers(fits("a", "[")), "regular expression `[`"),
        (headers(is("a b", "")), "`a b` is not a header name"),
        (with_method(prefix("/"), "G ET"), "`G ET` is not a method"),
        (matcher(exact("/a b")), "path `/a b`"),
        (matcher(prefix("a")), "path `a`"),
    ] {
        let error = try_table(vec![("", bad)]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn configured_paths_are_normalised_like_requests() {
    let table = table(vec![("", matcher(exact("/caf%c3%a9/%7Ebob"))), ("", matcher(prefix("/%61/")))]);
    assert_eq!(get("h", "/caf%C3%A9/~bob").target(&table), Some(0));
    assert_eq!(get("h", "/a/x").target(&table), Some(1));
}
