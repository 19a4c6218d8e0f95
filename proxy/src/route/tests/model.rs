//! The table against the plainest way to say the same: filter everything, take the smallest.

use std::cmp::Reverse;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{
    super::explain::{Part, Verdict},
    *,
};

const HOSTS: &[&str] = &["", "com", "a.com", "b.a.com", "c.b.a.com", "x.org"];
const HOSTNAMES: &[&str] = &["", "a.com", "b.a.com", "*.com", "*.a.com", "*.b.a.com"];
const PATHS: &[&str] = &["/", "/a", "/a/", "/a/b", "/a//b", "/ab", "/a/b/c", "/b", "/b/a", "//", "/a/b/"];
const EXPRESSIONS: &[&str] = &["/a.*", "/.*", "/(a|b)", "/[ab]/b", "/a/b/?", "/b?", ".*b.*", "/a"];
const METHODS: &[&str] = &["GET", "POST", "PUT"];

fn named(names: &'static [&'static str]) -> impl Strategy<Value = Vec<NamedMatch>> {
    let value = prop_oneof![
        3 => select(vec!["1", "2"]).prop_map(|value| ValueMatch::Exact(value.into())),
        1 => Just(ValueMatch::Regex("[12]".into())),
    ];
    vec(option::weighted(0.3, value), names.len()).prop_map(move |values| {
        let pairs = names.iter().zip(values);
        pairs.filter_map(|(&name, value)| value.map(|value| NamedMatch { name: name.into(), value })).collect()
    })
}

fn path_match() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        select(PATHS).prop_map(exact),
        select(PATHS)
            .prop_map(|path| prefix(if path == "/" { path } else { path.trim_end_matches('/') }))
            .prop_filter("no path", |path| *path != prefix("")),
        select(EXPRESSIONS).prop_map(regex),
    ]
}

fn candidate() -> impl Strategy<Value = Candidate<usize>> {
    let matcher = (path_match(), named(&["x", "y"]), named(&["p", "q"]), option::of(select(METHODS)))
        .prop_map(|(path, headers, query, method)| HttpMatch { path, headers, query, method: method.map(Into::into) });
    let rank = (option::of(select(vec!["2020", "2021"])), select(vec!["r", "s"]), 0..2usize)
        .prop_map(|(created, name, rule)| Rank::new(created.map(Into::into), &Key::new("ns", name), rule, 0));
    (select(HOSTNAMES), matcher, rank).prop_map(|(host, matcher, rank)| Candidate {
        hostname: hostname(host),
        matcher,
        rank,
        target: 0,
    })
}

fn candidates() -> impl Strategy<Value = Vec<Candidate<usize>>> {
    vec(candidate(), 0..40).prop_map(|mut all| {
        for (number, candidate) in all.iter_mut().enumerate() {
            candidate.target = number;
            // Equal ranks do not occur: a route has each position once.
            candidate.rank.position = number;
        }
        all
    })
}

#[derive(Debug)]
struct Request {
    host: &'static str,
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Vec<(&'static str, &'static str)>,
}

fn request() -> impl Strategy<Value = Request> {
    let values = || select(vec!["1", "2", "3"]);
    let headers = vec((select(vec!["x", "y"]), values()), 0..3);
    let query = vec((select(vec!["p", "q"]), values()), 0..3);
    (select(HOSTS), select(METHODS), select(PATHS), headers, query)
        .prop_map(|(host, method, path, headers, query)| Request { host, method, path, headers, query })
}

fn host_fits(hostname: &Option<Hostname>, host: &str) -> bool {
    match hostname {
        None => true,
        Some(Hostname::Exact(name)) => **name == *host,
        Some(Hostname::Wildcard(suffix)) => host.len() > suffix.len() + 1 && host.ends_with(&format!(".{suffix}")),
    }
}

fn whole(expression: &str, text: &str) -> bool {
    regex::Regex::new(&format!("^(?:{expression})$")).unwrap().is_match(text)
}

fn path_fits(path: &PathMatch, actual: &str) -> bool {
    match path {
        PathMatch::Exact(path) => **path == *actual,
        PathMatch::Regex(path) => whole(path, actual),
        PathMatch::Prefix(path) => **path == *"/" || **path == *actual || actual.starts_with(&format!("{path}/")),
    }
}

fn value_fits(value: &ValueMatch, actual: &str) -> bool {
    match value {
        ValueMatch::Exact(value) => **value == *actual,
        ValueMatch::Regex(value) => whole(value, actual),
    }
}

/// Everything but the method.
fn rest_fits(candidate: &Candidate<usize>, request: &Request) -> bool {
    let header = |name: &str| {
        let lines: Vec<_> = request.headers.iter().filter(|(key, _)| *key == name).map(|(_, value)| *value).collect();
        (!lines.is_empty()).then(|| lines.join(","))
    };
    let parameter = |name: &str| request.query.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let matcher = &candidate.matcher;
    host_fits(&candidate.hostname, request.host)
        && path_fits(&matcher.path, request.path)
        && matcher
            .headers
            .iter()
            .all(|named| header(&named.name).is_some_and(|actual| value_fits(&named.value, &actual)))
        && matcher
            .query
            .iter()
            .all(|named| parameter(&named.name).is_some_and(|actual| value_fits(&named.value, actual)))
}

fn precedence(candidate: &Candidate<usize>) -> impl Ord {
    let matcher = &candidate.matcher;
    let host = match &candidate.hostname {
        Some(Hostname::Exact(name)) => (0, Reverse(name.len())),
        Some(Hostname::Wildcard(suffix)) => (1, Reverse(suffix.len())),
        None => (2, Reverse(0)),
    };
    let path = match &matcher.path {
        PathMatch::Exact(_) => (0, Reverse(0)),
        PathMatch::Regex(path) => (1, Reverse(path.len())),
        PathMatch::Prefix(path) => (2, Reverse(path.len())),
    };
    let conditions = (matcher.method.is_none(), Reverse(matcher.headers.len()), Reverse(matcher.query.len()));
    (host, path, conditions, candidate.rank.clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_table_finds_what_the_model_finds(all in candidates(), requests in vec(request(), 1..20)) {
        let table = RouteTable::build(all.clone()).unwrap();
        for request in &requests {
            let mut fitting: Vec<_> = all.iter().filter(|candidate| rest_fits(candidate, request)).collect();
            fitting.sort_by_key(|candidate| precedence(candidate));
            let served = |candidate: &&&Candidate<usize>| {
                candidate.matcher.method.as_ref().is_none_or(|method| **method == *request.method)
            };
            let mut headers = HeaderMap::new();
            for (name, value) in &request.headers {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let query = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
            let method = Method::try_from(request.method).unwrap();
            let view = View { host: request.host, method: &method, path: request.path, query: Some(&query), headers: &headers };
            match table.find(&view) {
                Found::Match(target, PrefixLen(length)) => {
                    let expected = fitting.iter().find(served).map(|candidate| candidate.target);
                    prop_assert_eq!(Some(*target), expected, "{:?}", request);
                    let covered = match &all[*target].matcher.path {
                        PathMatch::Prefix(path) => path.trim_end_matches('/').len(),
                        _ => request.path.len(),
                    };
                    prop_assert_eq!(length, covered);
                }
                found => {
                    prop_assert!(fitting.iter().find(served).is_none(), "{:?} {:?}", request, found);
                    let mut expected: Vec<&str> = Vec::new();
                    for candidate in &fitting {
                        let method = candidate.matcher.method.as_deref().unwrap();
                        if !expected.contains(&method) {
                            expected.push(method);
                        }
                    }
                    let allowed: Vec<&str> = match &found {
                        Found::MethodMismatch(methods) => {
                            prop_assert!(!methods.is_empty());
                            methods.iter().map(|method| method.as_str()).collect()
                        }
                        _ => vec![],
                    };
                    prop_assert_eq!(allowed, expected, "{:?}", request);
                }
            }
        }
    }

    /// Explaining asks the code that finds: the entry that it calls the winner is the one that is found, what it says
    /// fits does fit, and the order is that of precedence.
    #[test]
    fn the_winner_that_is_explained_is_found(all in candidates(), requests in vec(request(), 1..10)) {
        let table = RouteTable::build(all.clone()).unwrap();
        for request in &requests {
            let mut headers = HeaderMap::new();
            for (name, value) in &request.headers {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let query = request.query.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
            let method = Method::try_from(request.method).unwrap();
            let view = View { host: request.host, method: &method, path: request.path, query: Some(&query), headers: &headers };
            let considered = table.explain(&view);
            prop_assert_eq!(considered.len(), all.len());
            prop_assert!(considered.is_sorted_by_key(|one| precedence(&all[*one.target])));
            let fits: Vec<_> = considered.iter().filter(|one| !matches!(one.verdict, Verdict::Misses(_))).collect();
            match table.find(&view) {
                Found::Match(target, matched) => {
                    prop_assert_eq!((fits[0].target, &fits[0].verdict), (target, &Verdict::Serves(matched)));
                }
                _ => prop_assert!(fits.is_empty(), "{:?}", fits),
            }
            for one in &considered {
                let candidate = &all[*one.target];
                let served = candidate.matcher.method.as_ref().is_none_or(|method| **method == *request.method);
                match &one.verdict {
                    Verdict::Serves(_) | Verdict::Outranked(_) => prop_assert!(rest_fits(candidate, request) && served),
                    Verdict::Misses(misses) => {
                        prop_assert!(!misses.is_empty());
                        prop_assert!(!served || !rest_fits(candidate, request));
                        let missing = |part| misses.iter().any(|miss| miss.part == part);
                        prop_assert_eq!(missing(Part::Hostname), !host_fits(&candidate.hostname, request.host));
                        prop_assert_eq!(missing(Part::Path), !path_fits(&candidate.matcher.path, request.path));
                        prop_assert_eq!(missing(Part::Method), !served);
                    }
                }
            }
        }
    }
}
