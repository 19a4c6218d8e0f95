//! `GRPCRoute`: the same rules as an HTTPRoute, with paths made of service and method.

use std::collections::HashSet;

use super::{
    at::At,
    filters,
    route::{self, Target},
};
use crate::{
    config::{HttpMatch, HttpRoute, HttpRule, Key, PathMatch, RouteKind},
    written::{self, ValueMatchType},
};

pub(super) fn grpc(at: At<'_>, key: &Key, written: &written::GrpcRouteSpec) -> HttpRoute {
    let hostnames = route::hostnames(at, &written.hostnames);
    let parents = route::parents(at, &written.parent_refs, &hostnames);
    let mut rules: Vec<HttpRule> = Vec::new();
    let mut names = HashSet::new();
    for (i, written) in written.rules.iter().enumerate() {
        let at = at.field("rules").item(i);
        route::check_name(at, &mut names, written.name.as_deref());
        rules.push(rule(at, written));
    }
    HttpRoute { key: key.clone(), kind: RouteKind::Grpc, parents, hostnames, rules, created: route::created(at) }
}

fn rule(at: At<'_>, written: &written::GrpcRouteRule) -> HttpRule {
    let at_matches = at.field("matches");
    let mut matches: Vec<HttpMatch> =
        written.matches.iter().enumerate().filter_map(|(i, one)| grpc_match(at_matches.item(i), one)).collect();
    if matches.is_empty() {
        matches.push(route::any());
    }
    let at_backends = at.field("backendRefs");
    let backends = written.backend_refs.iter().enumerate().filter_map(|(i, written)| {
        let at = at_backends.item(i);
        let filters = filters::grpc(at, &written.filters, true);
        let target =
            Target { group: &written.group, kind: &written.kind, namespace: &written.namespace, name: &written.name };
        route::backend(at, target, written.port, written.weight, filters)
    });
    HttpRule {
        name: written.name.as_deref().map(Into::into),
        matches,
        filters: filters::grpc(at, &written.filters, false),
        backends: backends.collect(),
        request_timeout: None,
        backend_timeout: None,
        retry: None,
    }
}

fn grpc_match(at: At<'_>, written: &written::GrpcRouteMatch) -> Option<HttpMatch> {
    let headers = route::headers(at.field("headers"), &written.headers);
    let Some(method) = &written.method else {
        return Some(HttpMatch { headers, ..route::any() });
    };
    let path = path(at.field("method"), method)?;
    Some(HttpMatch { path, headers, query: Vec::new(), method: Some("POST".into()) })
}

fn path(at: At<'_>, written: &written::GrpcMethodMatch) -> Option<PathMatch> {
    let (service, method) = (written.service.as_deref(), written.method.as_deref());
    if service.is_none() && method.is_none() {
        if !at.lost_fields() {
            at.error(
                "missing-field",
                "a method match needs service, method or both",
                Some("for instance {service: helloworld.Greeter}".into()),
            );
        }
        return None;
    }
    if written.kind == Some(ValueMatchType::RegularExpression) {
        let any = "[^/]+";
        for (field, text) in [("service", service), ("method", method)] {
            if let Some(text) = text {
                at.field(field).regex(text)?;
            }
        }
        let group = |text: Option<&str>| text.map_or_else(|| any.to_owned(), |text| format!("(?:{text})"));
        let whole = format!("^/{}/{}$", group(service), group(method));
        // Two that are small enough can be too large together.
        at.regex(&whole)?;
        return Some(PathMatch::Regex(whole.into()));
    }
    let fine = |field: &str, text: Option<&str>, also: &[u8]| {
        let Some(text) = text else { return true };
        let letters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || also.contains(&b));
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let fine = letters && starts && !text.ends_with('.');
        if !fine {
            let message = format!("{text:?} is not the name of a gRPC {field}");
            at.field(field).invalid(message, "for instance service: helloworld.Greeter, method: SayHello");
        }
        fine
    };
    if !(fine("service", service, b".") & fine("method", method, b"")) {
        return None;
    }
    Some(match (service, method) {
        (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}").into()),
        (Some(service), None) => PathMatch::Prefix(format!("/{service}").into()),
        (None, method) => PathMatch::Regex(format!("^/[^/]+/{}$", method.unwrap_or_default()).into()),
    })
}
