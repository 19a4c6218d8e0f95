//! `TrafficPolicy`: targets, and every leaf of its spec.

use std::collections::{HashMap, HashSet};

use super::{
    At, Context, Document, Written, filters,
    service::{relative, service_ref},
    syntax, whereabouts,
};
use crate::{
    config::{Config, HttpRoute, Key, PolicyTarget, RouteKind, TrafficPolicy},
    duration, effective,
    written::{self, DurationText, GATEWAY_API, GrpcProbe, HashOn, Kind, RateKey, RetryCondition, TrafficPolicySpec},
};

pub(super) fn policy(at: At<'_>, key: &Key, written: &TrafficPolicySpec) -> TrafficPolicy {
    let mut targets = Vec::new();
    for (i, reference) in written.target_refs.iter().flatten().enumerate() {
        let at = at.field("targetRefs").item(i);
        let Some(target) = target(at, reference) else { continue };
        if targets.contains(&target) {
            at.error("conflict", "this target is listed twice", Some("remove one".into()));
        } else {
            targets.push(target);
        }
    }
    traffic(at, written);
    protection(at, written);
    limits(at, written);
    probes(at, written);
    times(at, written);
    TrafficPolicy { key: key.clone(), targets, spec: TrafficPolicySpec { target_refs: None, ..written.clone() } }
}

fn target(at: At<'_>, written: &written::TargetRef) -> Option<PolicyTarget> {
    let name = written.name.as_deref()?;
    let kind = written.kind.as_deref()?;
    if written.section_name.is_some() {
        at.field("sectionName").unsupported("sectionName of a TrafficPolicy", "the policy covers the whole target");
    }
    let route = match (written.group.as_deref().unwrap_or(GATEWAY_API), kind) {
        (_, "Service") => {
            return service_ref(at, written.group.as_deref(), Some(kind), None, name).map(PolicyTarget::Service);
        }
        (GATEWAY_API, "HTTPRoute") => Kind::HttpRoute,
        (GATEWAY_API, "GRPCRoute") => Kind::GrpcRoute,
        (_, "HTTPRoute" | "GRPCRoute") => {
            at.field("group").unsupported(format!("a {kind} of this group"), "use group: gateway.networking.k8s.io");
            return None;
        }
        _ => {
            at.field("kind")
                .unsupported(format!("a TrafficPolicy on a {kind}"), "target a Service, an HTTPRoute or a GRPCRoute");
            return None;
        }
    };
    let key = at.key(None, name);
    let routes = &at.cx.index.routes;
    if at.cx.refs && !routes.contains(&(route, key.clone())) {
        let known: Vec<String> =
            routes.iter().filter(|(kind, _)| *kind == route).map(|(_, key)| relative(at, key)).collect();
        at.field("name").unresolved(kind, &relative(at, &key), &known);
    }
    Some(if route == Kind::HttpRoute { PolicyTarget::HttpRoute(key) } else { PolicyTarget::GrpcRoute(key) })
}

/// One policy per target: there is no order between two.
pub(super) fn conflicts(documents: &[Document], cx: &Context<'_>) {
    let mut owners: HashMap<(Kind, String, Key), &Document> = HashMap::new();
    for document in documents {
        let targets = match &document.written {
            Written::TrafficPolicy(spec) => &spec.target_refs,
            Written::BackendTlsPolicy(spec) => &spec.target_refs,
            _ => continue,
        };
        let at = At::new(cx, document).field("spec").field("targetRefs");
        for (i, target) in targets.iter().flatten().enumerate() {
            let (Some(kind), Some(name)) = (&target.kind, &target.name) else { continue };
            let section = target.section_name.as_deref().unwrap_or_default();
            let of = (document.kind, format!("{kind}#{section}"), at.key(None, name));
            match owners.insert(of, document) {
                Some(first) if !std::ptr::eq(first, document) => {
                    let hint = format!("{} {} at {} has it; merge the two", first.kind, first.key, whereabouts(first));
                    at.item(i).field("name").error(
                        "conflict",
                        format!("{kind} {name} has two {}s", document.kind.name().replace("Policy", "Policie")),
                        Some(hint),
                    );
                }
                _ => {}
            }
        }
    }
}

fn traffic(at: At<'_>, spec: &TrafficPolicySpec) {
    if let Some(balancer) = &spec.load_balancer {
        let at = at.field("loadBalancer");
        at.duration("slowStart", balancer.slow_start.as_ref());
        if let Some(HashOn::Field(hash)) = &balancer.hash {
            let at = at.field("hash");
            let flags = [("sourceIP", &hash.source_ip), ("path", &hash.path)];
            key_field(at, &hash.header, &hash.cookie, &flags, "{header: x-user}, {cookie: session}, sourceIP or path");
        }
    }
    if let Some(pool) = &spec.connection_pool {
        at.field("connectionPool").positive("idleTimeout", pool.idle_timeout.as_ref());
    }
    if let Some(timeouts) = &spec.timeouts {
        let at = at.field("timeouts");
        at.duration("connect", timeouts.connect.as_ref());
        at.duration("request", timeouts.request.as_ref());
        at.duration("idle", timeouts.idle.as_ref());
    }
}

/// Exactly one of a header, a cookie and some flags.
fn key_field(
    at: At<'_>,
    header: &Option<String>,
    cookie: &Option<String>,
    flags: &[(&str, &Option<written::Chosen>)],
    hint: &str,
) {
    for (field, text) in [("header", header), ("cookie", cookie)] {
        let Some(text) = text else { continue };
        if !syntax::token(text) {
            at.field(field).invalid(format!("{text:?} is not the name of a {field}"), "for instance x-user");
        }
    }
    let chosen = flags.iter().filter(|(_, chosen)| chosen.as_ref().is_some_and(written::Chosen::is_chosen)).count();
    let count = usize::from(header.is_some()) + usize::from(cookie.is_some()) + chosen;
    if count != 1 && !at.lost_fields() {
        at.invalid("exactly one key is needed here", &format!("one of {hint}"));
    }
}

fn protection(at: At<'_>, spec: &TrafficPolicySpec) {
    if let Some(breaker) = &spec.circuit_breaker {
        let at = at.field("circuitBreaker");
        let base = at.positive("baseEjectionTime", breaker.base_ejection_time.as_ref());
        let max = at.positive("maxEjectionTime", breaker.max_ejection_time.as_ref());
        if let (Some(base), Some(max)) = (base, max)
            && base > max
        {
            at.field("maxEjectionTime")
                .invalid("maxEjectionTime is shorter than baseEjectionTime", "make it at least as long");
        }
        if let Some(rate) = &breaker.failure_rate {
            let at = at.field("failureRate");
            at.positive("window", rate.window.as_ref());
            share(at, rate.percent, "a rate of 0 % is reached by every request, and would keep the circuit open");
        }
        if let Some(slow) = &breaker.slow_calls {
            let at = at.field("slowCalls");
            at.positive("threshold", slow.threshold.as_ref());
            share(at, slow.percent, "a share of 0 % is reached by every request, and would keep the circuit open");
        }
    }
    if let Some(retry) = &spec.retry {
        self::retry(at.field("retry"), retry);
    }
    if let Some(budget) = &spec.retry_budget {
        let at = at.field("retryBudget");
        at.positive("ttl", budget.ttl.as_ref());
        if budget.percent == Some(0.0) && budget.min_per_second == Some(0) {
            let hint = "raise percent or minPerSecond, or leave out retry".to_owned();
            at.warn("contradictory", "a budget of 0 % and 0 per second allows no retry", Some(hint));
        }
    }
    if let Some(after) = spec.hedge.as_ref().and_then(|hedge| hedge.after.as_deref())
        && effective::hedge_after(after).is_none()
    {
        let message = format!("{after:?} is neither a duration nor a quantile");
        at.field("hedge").field("after").invalid(message, "for instance 50ms, p95 or p99");
    }
}

/// A breaker's percentage, which cannot be 0.
fn share(at: At<'_>, percent: Option<f64>, message: &str) {
    if percent == Some(0.0) {
        let hint = "give more than 0; 100 with a large minimumRequests hardly ever opens it";
        at.field("percent").invalid(message, hint);
    }
}

/// Times of which one makes another pointless. Only within a document: a route's policy may mend its service's.
fn times(at: At<'_>, spec: &TrafficPolicySpec) {
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

/// A breaker belongs to an endpoint, which has one policy: that of its service or, if that has none, of one route. A
/// route's `circuitBreaker` besides it counts nothing.
pub(super) fn breakers(documents: &[Document], config: &Config, cx: &Context<'_>) {
    let owner = |wanted: PolicyTarget| {
        let has = |policy: &&TrafficPolicy| policy.targets.contains(&wanted) && policy.spec.circuit_breaker.is_some();
        config.traffic_policies.iter().find(has).map(|policy| &policy.key)
    };
    let of_route = |route: &HttpRoute| {
        owner(match route.kind {
            RouteKind::Http => PolicyTarget::HttpRoute(route.key.clone()),
            RouteKind::Grpc => PolicyTarget::GrpcRoute(route.key.clone()),
        })
    };
    // In the order in which the first one counts.
    let mut routes: Vec<&HttpRoute> = config.http_routes.iter().collect();
    routes.sort_by_key(|route| (&route.key, route.kind == RouteKind::Grpc));
    let mut first: HashMap<&Key, &Key> = HashMap::new();
    let mut told = HashSet::new();
    for route in routes {
        let Some(policy) = of_route(route) else { continue };
        for service in route.rules.iter().flat_map(|rule| &rule.backends).map(|backend| &backend.service) {
            let counts = owner(PolicyTarget::Service(service.clone()))
                .unwrap_or_else(|| *first.entry(service).or_insert(policy));
            if counts == policy || !told.insert((policy, service)) {
                continue;
            }
            let of = |key: &Key| {
                documents.iter().find(|document| document.kind == Kind::TrafficPolicy && document.key == *key)
            };
            let (Some(document), Some(other)) = (of(policy), of(counts)) else { continue };
            let at = At::new(cx, document).field("spec").field("circuitBreaker");
            let message = format!("circuitBreaker has no effect on Service {}", relative(at, service));
            let hint = format!("TrafficPolicy {} at {} decides for it; merge the two", other.key, whereabouts(other));
            at.warn("contradictory", message, Some(hint));
        }
    }
}

fn retry(at: At<'_>, retry: &written::Retry) {
    for (i, condition) in retry.retry_on.iter().flatten().enumerate() {
        if effective::retry_on(condition).is_none() {
            let at = at.field("retryOn").item(i);
            match condition {
                RetryCondition::Status(status) => {
                    at.invalid(format!("{status} is not a status code"), "between 100 and 599")
                }
                RetryCondition::Word(word) => {
                    let hint = match word.strip_prefix("grpc:") {
                        Some(status) => crate::suggest::hint(status, "gRPC statuses", syntax::GRPC),
                        None => crate::suggest::hint(word, "or a status code", effective::RETRY_WORDS),
                    };
                    at.error("invalid-value", format!("{word:?} is not a reason to retry"), hint);
                }
            }
        }
    }
    for (i, method) in retry.methods.iter().flatten().enumerate() {
        super::route::method(at.field("methods").item(i), method);
    }
    at.positive("perTryTimeout", retry.per_try_timeout.as_ref());
    if let Some(backoff) = &retry.backoff {
        let at = at.field("backoff");
        let base = at.positive("base", backoff.base.as_ref());
        let max = at.positive("max", backoff.max.as_ref());
        if let (Some(base), Some(max)) = (base, max)
            && base > max
        {
            at.field("max").invalid("max is shorter than base", "make it at least as long");
        }
    }
    if let Some(size) = &retry.max_body_bytes
        && size.bytes().is_none()
    {
        at.field("maxBodyBytes").invalid("this is not a number of bytes", "for instance 65536, 64KiB or 1MiB");
    }
}

fn limits(at: At<'_>, spec: &TrafficPolicySpec) {
    for (i, limit) in spec.rate_limit.iter().flatten().enumerate() {
        let at = at.field("rateLimit").item(i);
        at.positive("per", limit.per.as_ref());
        let identity = match &limit.key {
            Some(RateKey::Name(name)) => *name == written::RateKeyName::Identity,
            Some(RateKey::Field(key)) => key.identity.as_ref().is_some_and(written::Chosen::is_chosen),
            None => false,
        };
        if identity {
            let message = "no listener knows client identities yet: this limit admits everybody";
            at.field("key").warn("no-identity", message, Some("use sourceIP, or a header".into()));
        }
        if let Some(RateKey::Field(key)) = &limit.key {
            let flags = [
                ("global", &key.global),
                ("sourceIP", &key.source_ip),
                ("identity", &key.identity),
                ("path", &key.path),
            ];
            key_field(
                at.field("key"),
                &key.header,
                &key.cookie,
                &flags,
                "global, {header: x-user}, {cookie: session}, sourceIP, identity or path",
            );
        }
    }
    if let Some(adaptive) = spec.concurrency.as_ref().and_then(|concurrency| concurrency.adaptive.as_ref())
        && let (Some(min), Some(max)) = (adaptive.min, adaptive.max)
        && min > max
    {
        at.field("concurrency")
            .field("adaptive")
            .field("max")
            .invalid("max is less than min", "make it at least as large");
    }
}

fn probes(at: At<'_>, spec: &TrafficPolicySpec) {
    if let Some(check) = &spec.health_check {
        let at = at.field("healthCheck");
        at.positive("interval", check.interval.as_ref());
        at.positive("timeout", check.timeout.as_ref());
        if let Some(path) = &check.path {
            // A probe's path may carry a query.
            if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b >= 0x7f || b == b'#') {
                at.field("path").invalid(format!("{path:?} is not a path"), "for instance /healthz");
            }
        }
        if let Some(GrpcProbe::Name(name)) = &check.grpc
            && name.contains('/')
        {
            at.field("grpc")
                .invalid(format!("{name:?} is not the name of a gRPC service"), "for instance helloworld.Greeter");
        }
        let tcp = check.tcp.as_ref().is_some_and(written::Chosen::is_chosen);
        let count = usize::from(check.path.is_some()) + usize::from(check.grpc.is_some()) + usize::from(tcp);
        // A route's policy may change the interval of its service's check and leave the probe alone: none is fine.
        if count > 1 {
            at.invalid("only one of path, grpc and tcp can be probed", "remove the others");
        } else if count == 0 && !at.lost_fields() && at_service(spec) {
            at.error(
                "missing-field",
                "a healthCheck needs path, grpc or tcp",
                Some("for instance path: /healthz".into()),
            );
        }
    }
    if let Some(fault) = &spec.fault {
        let at = at.field("fault");
        if let Some(delay) = &fault.delay {
            at.field("delay").positive("fixed", delay.fixed.as_ref());
        }
        if let Some(abort) = &fault.abort {
            let at = at.field("abort");
            if abort.status.is_some() && abort.grpc_status.is_some() {
                at.field("grpcStatus").invalid("only one of status and grpcStatus can be given", "remove the other");
            }
            if abort.status.is_none() && abort.grpc_status.is_none() && !at.lost_fields() && at_service(spec) {
                at.error("missing-field", "abort needs status or grpcStatus", Some("for instance status: 503".into()));
            }
            if abort.grpc_status.as_ref().is_some_and(|status| effective::grpc_code(status).is_none()) {
                let hint = "a name such as UNAVAILABLE, or a number from 0 to 16";
                at.field("grpcStatus").invalid("this is not a gRPC status", hint);
            }
        }
        if let Some(header) = &fault.header {
            let at = at.field("header");
            if let Some(name) = &header.name {
                filters::header_name(at.field("name"), name);
            }
            if let (Some(written::ValueMatchType::RegularExpression), Some(value)) = (header.kind, &header.value) {
                at.field("value").regex(value);
            }
        }
    }
}

/// Whether the policy stands alone on a service, with nothing below it to merge with.
fn at_service(spec: &TrafficPolicySpec) -> bool {
    spec.target_refs.iter().flatten().any(|target| target.kind.as_deref() == Some("Service"))
}
