//! What a request has to look like.

use weft_model::config::{HttpMatch, NamedMatch, PathMatch, ValueMatch};

use super::wire::{self, PathSpecifier};

/// As Envoy matches.
pub(super) fn envoy(matcher: &HttpMatch) -> wire::RouteMatch {
    let path = match &matcher.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
        PathMatch::Regex(regex) => PathSpecifier::Regex(wire::Regex { regex: regex.to_string() }),
        PathMatch::Prefix(path) if &**path == "/" => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(path) => PathSpecifier::Segments(path.trim_end_matches('/').to_owned()),
    };
    let method = matcher.method.iter().map(|method| header(":method", exact(method)));
    wire::RouteMatch {
        path: Some(path),
        headers: method.chain(headers(matcher)).collect(),
        query_parameters: matcher.query.iter().map(query).collect(),
    }
}

/// As gRPC's client matches; nothing when no call can fit: every call is a POST to `/SERVICE/METHOD` without a query.
pub(super) fn grpc(matcher: &HttpMatch) -> Option<wire::RouteMatch> {
    if matcher.method.as_deref().is_some_and(|method| method != "POST") || !matcher.query.is_empty() {
        return None;
    }
    let path = match &matcher.path {
        PathMatch::Prefix(path) => {
            let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
            match &*parts {
                [] => PathSpecifier::Prefix("/".to_owned()),
                [service] => PathSpecifier::Prefix(format!("/{service}/")),
                [service, method] => PathSpecifier::Path(format!("/{service}/{method}")),
                _ => return None,
            }
        }
        PathMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
        PathMatch::Regex(regex) => PathSpecifier::Regex(wire::Regex { regex: regex.to_string() }),
    };
    Some(wire::RouteMatch { path: Some(path), headers: headers(matcher).collect(), query_parameters: Vec::new() })
}

fn headers(matcher: &HttpMatch) -> impl Iterator<Item = wire::HeaderMatcher> {
    matcher.headers.iter().map(|one| header(&one.name, text(&one.value)))
}

fn query(one: &NamedMatch) -> wire::QueryMatcher {
    wire::QueryMatcher { name: one.name.to_string(), string_match: Some(text(&one.value)) }
}

/// A header that has to match.
pub(super) fn header(name: &str, text: wire::StringMatcher) -> wire::HeaderMatcher {
    wire::HeaderMatcher { name: name.to_owned(), specifier: Some(wire::HeaderMatch::Text(text)) }
}

/// Equal.
pub(super) fn exact(value: &str) -> wire::StringMatcher {
    wire::StringMatcher { pattern: Some(wire::TextMatch::Exact(value.to_owned())) }
}

fn text(value: &ValueMatch) -> wire::StringMatcher {
    match value {
        ValueMatch::Exact(value) => exact(value),
        ValueMatch::Regex(regex) => {
            let regex = wire::Regex { regex: regex.to_string() };
            wire::StringMatcher { pattern: Some(wire::TextMatch::Regex(regex)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(path: PathMatch) -> HttpMatch {
        HttpMatch { path, headers: Vec::new(), query: Vec::new(), method: None }
    }

    #[test]
    fn a_prefix_is_one_of_whole_segments() {
        for (prefix, expected, in_grpc) in [
            ("/", PathSpecifier::Prefix("/".into()), Some(PathSpecifier::Prefix("/".into()))),
            ("/a.B", PathSpecifier::Segments("/a.B".into()), Some(PathSpecifier::Prefix("/a.B/".into()))),
            ("/a.B/C", PathSpecifier::Segments("/a.B/C".into()), Some(PathSpecifier::Path("/a.B/C".into()))),
            ("/a/b/c", PathSpecifier::Segments("/a/b/c".into()), None),
        ] {
            let matcher = matcher(PathMatch::Prefix(prefix.into()));
            assert_eq!(envoy(&matcher).path, Some(expected), "{prefix}");
            assert_eq!(grpc(&matcher).and_then(|one| one.path), in_grpc, "{prefix}");
        }
    }

    #[test]
    fn what_no_call_can_be_is_no_route_of_grpcs_client() {
        let path = || PathMatch::Exact("/a.B/C".into());
        let value = NamedMatch { name: "q".into(), value: ValueMatch::Exact("x".into()) };
        assert!(grpc(&HttpMatch { method: Some("POST".into()), ..matcher(path()) }).is_some());
        assert!(grpc(&HttpMatch { method: Some("GET".into()), ..matcher(path()) }).is_none());
        assert!(grpc(&HttpMatch { query: vec![value], ..matcher(path()) }).is_none());
    }
}
