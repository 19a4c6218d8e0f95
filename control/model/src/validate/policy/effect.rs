//! What is written and has no effect.

use std::collections::{HashMap, HashSet};

use crate::{
    config::{Config, Filter, HttpRoute, Key, PolicyTarget, RouteKind, TrafficPolicy},
    duration,
    validate::{At, Context, Document, service::relative, whereabouts},
    written::{DurationText, Kind, TrafficPolicySpec},
};

/// Times of which one makes another pointless. Only within a document: a route's policy may mend its service's.
pub(super) fn times(at: At<'_>, spec: &TrafficPolicySpec) {
    let read = |text: Option<&str>| text.and_then(|text| duration::parse(text).ok()).filter(|time| !time.is_zero());
    let written = |text: &Option<DurationText>| read(text.as_ref().map(|DurationText(text)| text.as_str()));
    let Some(request) = spec.timeouts.as_ref().and_then(|timeouts| written(&timeouts.request)) else { return };
    let limit = duration::format(request);
    let contradictory = |at: At<'_>, what: &str, instead: &str| {
        let hint = format!("make it shorter, raise timeouts.request, or {instead}");
        at.error("contradictory", format!("{what} is longer than timeouts.request, which is {limit}"), Some(hint));
    };
    if let Some(retry) = &spec.retry
        && written(&retry.per_try_timeout).is_some_and(|attempt| attempt > request)
    {
        contradictory(at.field("retry").field("perTryTimeout"), "perTryTimeout", "leave it out");
    }
    if let Some(hedge) = &spec.hedge
        && read(hedge.after.as_deref()).is_some_and(|after| after > request)
    {
        contradictory(at.field("hedge").field("after"), "hedge.after", "use a quantile such as p95");
    }
    if let Some(slow) = spec.circuit_breaker.as_ref().and_then(|breaker| breaker.slow_calls.as_ref())
        && written(&slow.threshold).is_some_and(|threshold| threshold > request)
    {
        // A rule's own time-out may be longer.
        at.field("circuitBreaker").field("slowCalls").field("threshold").warn(
            "contradictory",
            format!("no call takes as long as this threshold: timeouts.request is {limit}"),
            Some("make it shorter, or raise timeouts.request".into()),
        );
    }
}

/// Where a field is, and whether a policy has it.
type Field = (&'static [&'static str], fn(&TrafficPolicySpec) -> bool);

/// What a service port has once, for all routes to it.
const SHARED: [Field; 5] = [
    (&["circuitBreaker"], |spec| spec.circuit_breaker.is_some()),
    (&["retryBudget"], |spec| spec.retry_budget.is_some()),
    (&["concurrency"], |spec| spec.concurrency.is_some()),
    (&["connectionPool", "maxConnections"], |spec| {
        spec.connection_pool.as_ref().is_some_and(|pool| pool.max_connections.is_some())
    }),
    (&["connectionPool", "maxPendingRequests"], |spec| {
        spec.connection_pool.as_ref().is_some_and(|pool| pool.max_pending_requests.is_some())
    }),
];

/// What only requests have.
const OF_REQUESTS: [Field; 6] = [
    (&["rateLimit"], |spec| spec.rate_limit.as_ref().is_some_and(|list| !list.is_empty())),
    (&["retry"], |spec| spec.retry.is_some()),
    (&["hedge"], |spec| spec.hedge.is_some()),
    (&["fault"], |spec| spec.fault.is_some()),
    (&["concurrency"], |spec| spec.concurrency.is_some()),
    (&["connectionPool", "maxRequests"], |spec| {
        spec.connection_pool.as_ref().is_some_and(|pool| pool.max_requests.is_some())
    }),
];

fn of_policy<'d>(documents: &'d [Document], key: &Key) -> Option<&'d Document> {
    documents.iter().find(|document| document.kind == Kind::TrafficPolicy && document.key == *key)
}

fn place<'a>(cx: &'a Context<'a>, document: &'a Document, path: &[&str]) -> At<'a> {
    path.iter().fold(At::new(cx, document).field("spec"), |at, field| at.field(field))
}

/// What a service port has once is said by the policy of its service or, where that says nothing, by that of one route.
/// What other routes say besides it counts nothing.
pub(in crate::validate) fn overruled(documents: &[Document], config: &Config, cx: &Context<'_>) {
    let mut policies: HashMap<&PolicyTarget, &TrafficPolicy> = HashMap::new();
    for policy in &config.traffic_policies {
        for target in &policy.targets {
            policies.entry(target).or_insert(policy);
        }
    }
    // In the order in which the first one counts.
    let mut routes: Vec<(&HttpRoute, &TrafficPolicy)> = Vec::new();
    for route in &config.http_routes {
        let policy = policies.get(&PolicyTarget::route(route.kind, &route.key));
        routes.extend(policy.map(|policy| (route, *policy)));
    }
    routes.sort_by_key(|(route, _)| (&route.key, route.kind == RouteKind::Grpc));
    for (path, says) in SHARED {
        let mut first: HashMap<(&Key, u16), &Key> = HashMap::new();
        let mut told = HashSet::new();
        for (route, policy) in routes.iter().filter(|(_, policy)| says(&policy.spec)) {
            for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
                let (service, port) = (&backend.service, backend.port);
                let own = policies.get(&PolicyTarget::Service(service.clone())).filter(|own| says(&own.spec));
                let counts = own.map_or_else(|| *first.entry((service, port)).or_insert(&policy.key), |own| &own.key);
                if *counts == policy.key || !told.insert((&policy.key, service, port)) {
                    continue;
                }
                let (Some(document), Some(other)) = (of_policy(documents, &policy.key), of_policy(documents, counts))
                else {
                    continue;
                };
                let at = place(cx, document, path);
                let several = config.service(service).is_some_and(|service| service.ports.len() > 1);
                let port = if several { format!("port {port} of ") } else { String::new() };
                let field = path.join(".");
                let message = format!("{field} has no effect on {port}Service {}", relative(at, service));
                let hint =
                    format!("TrafficPolicy {} at {} decides for it; merge the two", other.key, whereabouts(other));
                at.warn("contradictory", message, Some(hint));
            }
        }
    }
}

/// What a service's policy says about requests, although only TCPRoutes lead to it.
pub(in crate::validate) fn on_tcp(documents: &[Document], config: &Config, cx: &Context<'_>) {
    // Without references, its HTTPRoutes may be in another file.
    if !cx.refs || config.tcp_routes.is_empty() {
        return;
    }
    let mut only_tcp: HashSet<&Key> =
        config.tcp_routes.iter().flat_map(|route| &route.backends).map(|backend| &backend.service).collect();
    for rule in config.http_routes.iter().flat_map(|route| &route.rules) {
        for backend in &rule.backends {
            only_tcp.remove(&backend.service);
        }
        for filter in rule.filters.iter().chain(rule.backends.iter().flat_map(|backend| &backend.filters)) {
            if let Filter::Mirror(mirror) = filter {
                only_tcp.remove(&mirror.service);
            }
        }
    }
    for policy in &config.traffic_policies {
        let found = policy.targets.iter().find_map(|target| match target {
            PolicyTarget::Service(service) => only_tcp.get(service).copied(),
            _ => None,
        });
        // Another target may have requests.
        let all =
            policy.targets.iter().all(|target| matches!(target, PolicyTarget::Service(key) if only_tcp.contains(key)));
        let (Some(service), true, Some(document)) = (found, all, of_policy(documents, &policy.key)) else { continue };
        for (path, says) in OF_REQUESTS {
            if !says(&policy.spec) {
                continue;
            }
            let at = place(cx, document, path);
            let of = relative(at, service);
            let message = format!("{} has no effect on TCP, and only TCPRoutes lead to Service {of}", path.join("."));
            at.warn(
                "contradictory",
                message,
                Some("remove it, or lead an HTTPRoute or GRPCRoute to the service".into()),
            );
        }
    }
}
