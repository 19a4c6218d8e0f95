//! `HTTPRoute`, `TCPRoute`, and what all routes have in common.

use std::{collections::HashSet, time::Duration};

use super::{
    at::At,
    filters,
    index::ListenerInfo,
    service::{port_ref, relative, service_ref},
    syntax,
};
use crate::{
    config::{
        BackendRef, Filter, Hostname, HttpMatch, HttpRoute, HttpRule, Key, NamedMatch, ParentRef, PathMatch,
        PathModifier, RouteKind, RuleRetry, TcpRoute, ValueMatch,
    },
    written::{self, GATEWAY_API, Kind, PathMatchType, Protocol, ValueMatchType},
};

pub(super) fn http(at: At<'_>, key: &Key, written: &written::HttpRouteSpec) -> HttpRoute {
    let hostnames = hostnames(at, &written.hostnames);
    let parents = parents(at, &written.parent_refs, &hostnames);
    let mut rules: Vec<HttpRule> = Vec::new();
    let mut names = HashSet::new();
    let rules_at = at.field("rules");
    for (i, rule) in written.rules.iter().flatten().enumerate() {
        let rule = self::rule(rules_at.item(i), rule);
        check_name(rules_at.item(i), &mut names, rule.name.as_deref());
        rules.push(rule);
    }
    if rules.is_empty() && !at.wrote("rules") {
        rules.push(everything());
    }
    HttpRoute { key: key.clone(), kind: RouteKind::Http, parents, hostnames, rules, created: created(at) }
}

/// The rule that an omitted list stands for. It has no backend, as in Gateway API.
fn everything() -> HttpRule {
    HttpRule {
        name: None,
        matches: vec![any()],
        filters: Vec::new(),
        backends: Vec::new(),
        request_timeout: None,
        backend_timeout: None,
        retry: None,
    }
}

/// The match that an omitted list stands for.
pub(super) fn any() -> HttpMatch {
    HttpMatch { path: PathMatch::Prefix("/".into()), headers: Vec::new(), query: Vec::new(), method: None }
}

pub(super) fn check_name(at: At<'_>, names: &mut HashSet<String>, name: Option<&str>) {
    let Some(name) = name else { return };
    let at = at.field("name");
    if let Err(reason) = syntax::subdomain(name) {
        at.invalid(format!("{name:?} is not a name: {reason}"), "lower-case letters, digits, - and .");
    }
    if !names.insert(name.to_owned()) {
        at.error("conflict", format!("rule {name:?} is defined twice"), Some("rename one".into()));
    }
}

/// `metadata.creationTimestamp`.
pub(super) fn created(at: At<'_>) -> Option<std::sync::Arc<str>> {
    let metadata = at.document.node.get("metadata")?;
    Some(metadata.get("creationTimestamp")?.as_str()?.into())
}

pub(super) fn hostnames(at: At<'_>, written: &[String]) -> Vec<Hostname> {
    let at = at.field("hostnames");
    let mut hostnames = Vec::new();
    for (i, text) in written.iter().enumerate() {
        let Some(hostname) = at.item(i).hostname(text, true) else { continue };
        if hostnames.contains(&hostname) {
            at.item(i).error("conflict", format!("hostname {text:?} is listed twice"), Some("remove one".into()));
        } else {
            hostnames.push(hostname);
        }
    }
    hostnames
}

/// Reads `parentRefs`. Those of a complete configuration have to lead somewhere.
pub(super) fn parents(at: At<'_>, written: &[written::ParentRef], hostnames: &[Hostname]) -> Vec<ParentRef> {
    if written.is_empty() && !at.wrote("parentRefs") {
        let kind = at.document.kind;
        let hint = Some("add parentRefs: [{name: NAME-OF-A-GATEWAY}]".to_owned());
        at.field("parentRefs").warn("not-attached", format!("this {kind} has no parentRefs and gets no traffic"), hint);
    }
    let at = at.field("parentRefs");
    let mut parents = Vec::new();
    for (i, reference) in written.iter().enumerate() {
        let at = at.item(i);
        let Some(parent) = parent(at, reference, hostnames) else { continue };
        if parents.contains(&parent) {
            at.error("conflict", "this parent is listed twice", Some("remove one".into()));
        } else {
            parents.push(parent);
        }
    }
    parents
}

fn parent(at: At<'_>, written: &written::ParentRef, hostnames: &[Hostname]) -> Option<ParentRef> {
    let name = written.name.as_deref()?;
    let kind = written.kind.as_deref().unwrap_or("Gateway");
    let group = written.group.as_deref();
    match (group.unwrap_or(if kind == "Service" { "" } else { GATEWAY_API }), kind) {
        (GATEWAY_API, "Gateway") => {
            let key = at.key(written.namespace.as_deref(), name);
            gateway_ref(at, &key, written, hostnames);
            Some(ParentRef::Gateway {
                key,
                section: written.section_name.as_deref().map(Into::into),
                port: written.port,
            })
        }
        ("" | "core" | "weft.dev", "Service") => {
            if written.section_name.is_some() {
                at.field("sectionName").unsupported("sectionName of a Service", "use port");
            }
            let key = service_ref(at, group, Some(kind), written.namespace.as_deref(), name)?;
            if let Some(port) = written.port {
                port_ref(at, &key, port);
            }
            Some(ParentRef::Service { key, port: written.port })
        }
        (group, kind) => {
            let field = if matches!(kind, "Gateway" | "Service") { "group" } else { "kind" };
            at.field(field)
                .unsupported(format!("a parent of kind {kind:?} in group {group:?}"), "use a Gateway or a Service");
            None
        }
    }
}

fn gateway_ref(at: At<'_>, key: &Key, written: &written::ParentRef, hostnames: &[Hostname]) {
    if !at.cx.refs {
        return;
    }
    let Some(listeners) = at.cx.index.gateways.get(key) else {
        let known: Vec<String> = at.cx.index.gateways.keys().map(|key| relative(at, key)).collect();
        return at.field("name").unresolved("Gateway", &relative(at, key), &known);
    };
    // A Gateway whose listeners have problems of their own says nothing about its routes.
    if listeners.is_empty() {
        return;
    }
    let section = written.section_name.as_deref();
    if let Some(section) = section
        && !listeners.iter().any(|listener| listener.name == section)
    {
        let known: Vec<String> = listeners.iter().map(|listener| listener.name.clone()).collect();
        let hint = crate::suggest::hint(section, "its listeners are", known.iter().map(String::as_str));
        return at.field("sectionName").error(
            "unresolved-reference",
            format!("Gateway {key} has no listener {section:?}"),
            hint,
        );
    }
    if let Some(port) = written.port
        && !listeners.iter().any(|listener| listener.port == port)
    {
        let known: Vec<String> = listeners.iter().map(|listener| listener.port.to_string()).collect();
        let hint = Some(format!("its ports are: {}", known.join(", ")));
        return at.field("port").error(
            "unresolved-reference",
            format!("Gateway {key} has no listener on port {port}"),
            hint,
        );
    }
    let chosen: Vec<&ListenerInfo> = listeners
        .iter()
        .filter(|listener| section.is_none_or(|section| listener.name == section))
        .filter(|listener| written.port.is_none_or(|port| listener.port == port))
        .collect();
    attach(at, key, &chosen, hostnames);
}

/// At least one of the listeners has to accept the route.
fn attach(at: At<'_>, key: &Key, chosen: &[&ListenerInfo], hostnames: &[Hostname]) {
    let kind = at.document.kind;
    let refuse = |message: String, hint: &str| at.error("not-attached", message, Some(hint.to_owned()));
    if chosen.is_empty() {
        return refuse(
            format!("no listener of Gateway {key} has this name and this port"),
            "leave out sectionName or port",
        );
    }
    let tcp = kind == Kind::TcpRoute;
    let speaking: Vec<_> = chosen.iter().filter(|listener| (listener.protocol == Protocol::TCP) == tcp).collect();
    if speaking.is_empty() {
        let hint =
            if tcp { "name a listener with protocol: TCP" } else { "name a listener with protocol: HTTP or HTTPS" };
        return refuse(format!("no listener chosen here carries {}", kind.with_article()), hint);
    }
    let open: Vec<_> = speaking
        .iter()
        .filter(|listener| listener.all_namespaces || key.namespace == at.document.key.namespace)
        .collect();
    if open.is_empty() {
        let namespace = &at.document.key.namespace;
        let hint = "set allowedRoutes: {namespaces: {from: All}} on the listener, or move the route";
        return refuse(format!("no listener chosen here accepts routes of namespace {namespace:?}"), hint);
    }
    let common = |listener: &ListenerInfo| match &listener.hostname {
        None => true,
        Some(_) if hostnames.is_empty() => true,
        Some(theirs) => hostnames.iter().any(|mine| overlap(mine, theirs)),
    };
    if !open.iter().any(|listener| common(listener)) {
        refuse(
            "no listener chosen here has a hostname in common with this route".into(),
            "compare hostnames with the listener's hostname",
        );
    }
}

/// Whether some name matches both.
fn overlap(a: &Hostname, b: &Hostname) -> bool {
    let below = |name: &str, suffix: &str| {
        name.len() > suffix.len() && name.ends_with(suffix) && name[..name.len() - suffix.len()].ends_with('.')
    };
    match (a, b) {
        (Hostname::Exact(a), Hostname::Exact(b)) => a == b,
        (Hostname::Exact(name), Hostname::Wildcard(suffix)) | (Hostname::Wildcard(suffix), Hostname::Exact(name)) => {
            below(name, suffix)
        }
        (Hostname::Wildcard(a), Hostname::Wildcard(b)) => a == b || below(a, b) || below(b, a),
    }
}

fn rule(at: At<'_>, written: &written::HttpRouteRule) -> HttpRule {
    let matches_at = at.field("matches");
    let mut matches: Vec<HttpMatch> =
        written.matches.iter().enumerate().filter_map(|(i, one)| self::http_match(matches_at.item(i), one)).collect();
    if matches.is_empty() {
        matches.push(any());
    }
    let filters = filters::http(at, &written.filters, false);
    let backends_at = at.field("backendRefs");
    let backends: Vec<BackendRef> = written
        .backend_refs
        .iter()
        .enumerate()
        .filter_map(|(i, written)| {
            let at = backends_at.item(i);
            let filters = filters::http(at, &written.filters, true);
            prefixes(at, &matches, &filters);
            let target = Target {
                group: &written.group,
                kind: &written.kind,
                namespace: &written.namespace,
                name: &written.name,
            };
            backend(at, target, written.port, written.weight, filters)
        })
        .collect();
    if filters.iter().any(|filter| matches!(filter, Filter::Redirect(_))) && !written.backend_refs.is_empty() {
        backends_at.error(
            "conflict",
            "a rule that redirects has no backends",
            Some("remove backendRefs or the filter".into()),
        );
    }
    prefixes(at, &matches, &filters);
    let (request_timeout, backend_timeout) =
        written.timeouts.as_ref().map(|timeouts| self::timeouts(at, timeouts)).unwrap_or_default();
    HttpRule {
        name: written.name.as_deref().map(Into::into),
        matches,
        filters,
        backends,
        request_timeout,
        backend_timeout,
        retry: written.retry.as_ref().map(|retry| RuleRetry {
            attempts: retry.attempts,
            backoff: at.field("retry").duration("backoff", retry.backoff.as_ref()),
            codes: retry.codes.clone(),
        }),
    }
}

/// A replaced prefix has to be known: every match has one.
fn prefixes(at: At<'_>, matches: &[HttpMatch], filters: &[Filter]) {
    let replaces = filters.iter().any(|filter| {
        let path = match filter {
            Filter::Redirect(redirect) => &redirect.path,
            Filter::Rewrite(rewrite) => &rewrite.path,
            _ => &None,
        };
        matches!(path, Some(PathModifier::ReplacePrefixMatch(_)))
    });
    if replaces && !matches.iter().all(|one| matches!(one.path, PathMatch::Prefix(_))) {
        let hint = "use type: PathPrefix in every match of the rule, or ReplaceFullPath";
        at.field("filters").error("conflict", "ReplacePrefixMatch needs PathPrefix matches only", Some(hint.into()));
    }
}

fn timeouts(at: At<'_>, written: &written::RuleTimeouts) -> (Option<Duration>, Option<Duration>) {
    let at = at.field("timeouts");
    let request = at.duration("request", written.request.as_ref());
    let backend = at.duration("backendRequest", written.backend_request.as_ref());
    if let (Some(request), Some(backend)) = (request, backend)
        && !request.is_zero()
        && backend > request
    {
        let hint = "one attempt cannot take longer than the whole request";
        at.field("backendRequest").invalid("backendRequest is longer than request", hint);
    }
    (request, backend)
}

fn http_match(at: At<'_>, written: &written::HttpRouteMatch) -> Option<HttpMatch> {
    let path = match &written.path {
        None => Some(PathMatch::Prefix("/".into())),
        Some(path) => self::path(at.field("path"), path),
    };
    let method = written.method.as_deref().and_then(|method| self::method(at.field("method"), method));
    Some(HttpMatch {
        path: path?,
        headers: headers(at.field("headers"), &written.headers),
        query: values(at.field("queryParams"), &written.query_params, "parameter"),
        method: method.map(Into::into),
    })
}

pub(super) fn method<'a>(at: At<'_>, text: &'a str) -> Option<&'a str> {
    if syntax::METHODS.contains(&text) {
        return Some(text);
    }
    let hint = crate::suggest::hint(text, "methods", syntax::METHODS);
    at.error("invalid-value", format!("{text:?} is not a method"), hint);
    None
}

fn path(at: At<'_>, written: &written::PathMatch) -> Option<PathMatch> {
    let text = written.value.as_deref().unwrap_or("/");
    let at_value = at.field("value");
    let kind = written.kind.unwrap_or(PathMatchType::PathPrefix);
    if kind == PathMatchType::RegularExpression {
        at_value.regex(text)?;
        return Some(PathMatch::Regex(text.into()));
    }
    if at.wrote("value") && written.value.is_none() {
        return None;
    }
    if let Err(reason) = syntax::path(text) {
        at_value.invalid(format!("{text:?} is not a path: {reason}"), "for instance /cart");
        return None;
    }
    Some(match kind {
        PathMatchType::Exact => PathMatch::Exact(text.into()),
        _ => PathMatch::Prefix(if text == "/" { text } else { text.trim_end_matches('/') }.into()),
    })
}

/// Header matches: names in lower case, each once.
pub(super) fn headers(at: At<'_>, written: &[written::ValueMatch]) -> Vec<NamedMatch> {
    let mut matches = values(at, written, "header");
    for one in &mut matches {
        one.name = one.name.to_ascii_lowercase().into();
    }
    matches
}

fn values(at: At<'_>, written: &[written::ValueMatch], what: &str) -> Vec<NamedMatch> {
    let mut matches: Vec<NamedMatch> = Vec::new();
    for (i, one) in written.iter().enumerate() {
        let at = at.item(i);
        let (Some(name), Some(value)) = (&one.name, &one.value) else { continue };
        // Parameter names are free text; only those of headers have a form.
        if what == "header" && !syntax::token(name) || name.is_empty() {
            at.field("name").invalid(format!("{name:?} is not a {what} name"), "for instance x-user");
            continue;
        }
        let same = |other: &str| if what == "header" { other.eq_ignore_ascii_case(name) } else { other == name };
        if matches.iter().any(|other| same(&other.name)) {
            let hint = Some("only the first counts; remove one, or use a regular expression".to_owned());
            at.field("name").warn("ignored", format!("{what} {name:?} is matched twice"), hint);
            continue;
        }
        let value = match one.kind {
            Some(ValueMatchType::RegularExpression) => {
                at.field("value").regex(value).map(|()| ValueMatch::Regex(value.as_str().into()))
            }
            _ => Some(ValueMatch::Exact(value.as_str().into())),
        };
        matches.extend(value.map(|value| NamedMatch { name: name.as_str().into(), value }));
    }
    matches
}

/// The naming part of a backendRef, whichever kind of route it belongs to.
pub(super) struct Target<'a> {
    pub group: &'a Option<String>,
    pub kind: &'a Option<String>,
    pub namespace: &'a Option<String>,
    pub name: &'a Option<String>,
}

pub(super) fn backend(
    at: At<'_>,
    target: Target<'_>,
    port: Option<u16>,
    weight: Option<u32>,
    filters: Vec<Filter>,
) -> Option<BackendRef> {
    let name = target.name.as_deref()?;
    let service = service_ref(at, target.group.as_deref(), target.kind.as_deref(), target.namespace.as_deref(), name)?;
    let port = port?;
    port_ref(at, &service, port);
    Some(BackendRef { service, port, weight: weight.unwrap_or(1), filters })
}

pub(super) fn tcp(at: At<'_>, key: &Key, written: &written::TcpRouteSpec) -> Option<TcpRoute> {
    let parents = parents(at, &written.parent_refs, &[]);
    let rules = written.rules.as_deref().unwrap_or_default();
    let at_rules = at.field("rules");
    if rules.len() > 1 {
        at_rules.item(1).unsupported("a second rule of a TCPRoute", "write one rule with several backendRefs");
    }
    let backends_at = at_rules.item(0).field("backendRefs");
    let written = rules.first()?.backend_refs.as_deref().unwrap_or_default();
    let backends = written.iter().enumerate().filter_map(|(i, written)| {
        let target =
            Target { group: &written.group, kind: &written.kind, namespace: &written.namespace, name: &written.name };
        backend(backends_at.item(i), target, written.port, written.weight, Vec::new())
    });
    Some(TcpRoute { key: key.clone(), parents, backends: backends.collect(), created: created(at) })
}
