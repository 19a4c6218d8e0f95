//! The order in which matches are tried: Gateway API's for HTTPRoute, as `weft-proxy` documents and follows it.

use std::cmp::Reverse;

use weft_model::config::{HttpMatch, HttpRoute, HttpRule, PathMatch};

use super::hosts::{Host, intersect, specificity};

/// One match of one rule under one hostname.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate<'c> {
    pub host: Host<'c>,
    pub matcher: &'c HttpMatch,
    pub route: &'c HttpRoute,
    pub rule: &'c HttpRule,
    number: usize,
    position: usize,
}

impl Candidate<'_> {
    /// `NAMESPACE/ROUTE/RULE`, the rule by its number if it has no name.
    pub(super) fn name(&self) -> String {
        let key = &self.route.key;
        match &self.rule.name {
            Some(name) => format!("{}/{}/{name}", key.namespace, key.name),
            None => format!("{}/{}/{}", key.namespace, key.name, self.number),
        }
    }
}

/// The matches of a route that is attached to something with this hostname.
pub(super) fn candidates<'c>(route: &'c HttpRoute, listener: Host<'c>) -> Vec<Candidate<'c>> {
    let mut all = Vec::new();
    for host in intersect(listener, &route.hostnames) {
        for (number, rule) in route.rules.iter().enumerate() {
            for (position, matcher) in rule.matches.iter().enumerate() {
                all.push(Candidate { host, matcher, route, rule, number, position });
            }
        }
    }
    all
}

/// The first that fits a request is the one that counts.
pub(super) fn sort(candidates: &mut [Candidate<'_>]) {
    candidates.sort_by_cached_key(|one| {
        let (kind, length) = match &one.matcher.path {
            PathMatch::Exact(path) => (0, path.chars().count()),
            // Its place is left to implementations: Weft tries the longest expression first.
            PathMatch::Regex(path) => (1, path.chars().count()),
            PathMatch::Prefix(path) => (2, path.trim_end_matches('/').chars().count()),
        };
        let conditions = (Reverse(one.matcher.headers.len()), Reverse(one.matcher.query.len()));
        let path = (kind, Reverse(length), one.matcher.method.is_none());
        (specificity(one.host), path, conditions, age(one.route), one.number, one.position)
    });
}

/// What decides between routes that are equally specific: the oldest, and one without a timestamp is younger than any
/// with one; then the first by `namespace/name`.
fn age(route: &HttpRoute) -> (bool, Option<String>, String) {
    let name = format!("{}/{}", route.key.namespace, route.key.name);
    (route.created.is_none(), route.created.as_deref().map(str::to_owned), name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use weft_model::{Options, config::Config, load_str};

    use super::*;

    /// Every step of the order, in a document that has it the wrong way round.
    #[test]
    fn matches_are_tried_in_gateway_apis_order() {
        let route = |name: &str, created: &str, hosts: &str, rules: &[&str]| {
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}{created}}}\nspec:\n  \
                 parentRefs: [{{name: edge}}]\n  hostnames: [{hosts}]\n  rules:\n{}---\n",
                rules.iter().map(|rule| format!("  - {rule}\n")).collect::<String>()
            )
        };
        let rule = |name: &str, fields: &str| format!("{{name: {name}, matches: [{{{fields}}}]}}");
        let prefix = |path: &str| format!("path: {{type: PathPrefix, value: {path}}}");
        let header = |count: usize| {
            let all: Vec<String> = (0..count).map(|n| format!("{{name: h{n}, value: x}}")).collect();
            format!("headers: [{}]", all.join(", "))
        };
        let young = rule("young", &prefix("/tie"));
        let zebra = rule("zebra", &prefix("/tie"));
        let rules = [
            rule("short", &prefix("/a")),
            rule("long", &prefix("/a/b")),
            rule("query", &format!("{}, queryParams: [{{name: q, value: x}}]", prefix("/a/b"))),
            rule("one", &format!("{}, {}", prefix("/a/b"), header(1))),
            rule("two", &format!("{}, {}", prefix("/a/b"), header(2))),
            rule("method", &format!("{}, method: GET", prefix("/a/b"))),
            rule("regex", "path: {type: RegularExpression, value: '/a.*'}"),
            rule("longest-regex", "path: {type: RegularExpression, value: '/aa.*'}"),
            rule("exact", "path: {type: Exact, value: /a}"),
            rule("old", &prefix("/tie")),
            rule("later", &prefix("/tie")),
        ];
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        let other = rule("wildcard", "path: {type: Exact, value: /a/b/c/d}");
        let text = [
            route("y", ", creationTimestamp: '2025-02-01T00:00:00Z'", "a.test", &[&young]),
            route("w", "", "'*.test'", &[&other]),
            route("z", "", "a.test", &[&zebra]),
            route("r", ", creationTimestamp: '2025-01-01T00:00:00Z'", "a.test", &rules),
        ];
        let config: Config = load_str("r.yaml", &text.concat(), Options { require_refs: false }).unwrap().config;
        let mut all: Vec<Candidate<'_>> = config.http_routes.iter().flat_map(|route| candidates(route, None)).collect();
        sort(&mut all);
        let names: Vec<&str> = all.iter().map(|one| one.rule.name.as_deref().unwrap()).collect();
        let expected = [
            "exact",
            "longest-regex",
            "regex",
            "method",
            "two",
            "one",
            "query",
            "long",
            "old",
            "later",
            "young",
            "zebra",
            "short",
            "wildcard",
        ];
        // `/a/b` and `/tie` are equally long.
        assert_eq!(names, expected);
    }
}
