//! The policy in force for a request, one section per function. Live figures are what a section takes from the service;
//! a section without them says `null` there, never a guess.

use std::time::Duration;

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use weft_model::{
    config::{
        FaultAbort, HedgeAfter, HttpMatch, HttpRule, Jitter, NamedMatch, PathMatch, Policy, PolicyTarget, RateKey,
        RateLimit, Retry, RetryOn, RouteKind, ValueMatch,
    },
    written::TrafficPolicySpec,
};

use super::{Case, kind, service::RouteId, service::is_grpc};
use crate::{
    headers,
    layer::target,
    route::{Candidate, Found, Rank, RouteTable},
    snapshot::{Deadlines, Upstream},
    telemetry::names,
};

/// Milliseconds, to a microsecond.
pub(crate) fn ms(duration: Duration) -> Value {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if micros.is_multiple_of(1000) { json!(micros / 1000) } else { json!(micros as f64 / 1e3) }
}

/// Rate limits that apply, each with this request's key. The route's own come before the service's.
pub(super) fn limits(case: &Case<'_>, upstream: &Upstream, route: RouteId<'_>) -> Value {
    let limits = &upstream.policy.rate_limits;
    if limits.is_empty() {
        return Value::Null;
    }
    let (route_kind, key) = route;
    let by_route = match route_kind {
        RouteKind::Http => PolicyTarget::HttpRoute(key.clone()),
        RouteKind::Grpc => PolicyTarget::GrpcRoute(key.clone()),
    };
    let by_service = PolicyTarget::Service(upstream.service.key.clone());
    let owner = [
        (by_route, format!("{} {}/{}", kind(route_kind), key.namespace, key.name)),
        (by_service, format!("Service {}/{}", upstream.service.key.namespace, upstream.service.key.name)),
    ]
    .into_iter()
    .find_map(|(wanted, owner)| {
        let policy = case.snapshot.config.traffic_policies.iter().find(|policy| policy.targets.contains(&wanted))?;
        policy.spec.rate_limit.as_ref().map(|_| (policy.key.name.clone(), owner))
    });
    let one = |(at, limit): (usize, &RateLimit)| {
        let value = rate_value(case, &limit.key);
        json!({
            "name": owner.as_ref().map(|(policy, _)| format!("{policy}.{}", at + 1)),
            "target": owner.as_ref().map(|(_, target)| target),
            "key": rate_key(&limit.key),
            "value": value,
            "requests": limit.requests,
            "per_ms": ms(limit.per),
            "burst": limit.burst,
            "factor": factor(upstream, limit),
            "remaining": remaining(upstream, limit, at, value.as_deref()),
        })
    };
    limits.iter().enumerate().map(one).collect()
}

/// Tokens that are left for this key, without taking one.
fn remaining(_upstream: &Upstream, _limit: &RateLimit, _at: usize, _value: Option<&str>) -> Value {
    Value::Null
}

/// Share of the rate that is admitted because of an open circuit (0–1).
fn factor(_upstream: &Upstream, _limit: &RateLimit) -> Value {
    Value::Null
}

fn rate_key(key: &RateKey) -> String {
    match key {
        RateKey::Global => "global".into(),
        RateKey::Header(name) => format!("header {name}"),
        RateKey::Cookie(name) => format!("cookie {name}"),
        RateKey::SourceIp => "sourceIP".into(),
        RateKey::Identity => "identity".into(),
        RateKey::Path => "path".into(),
    }
}

/// What this request is counted under; `None` for everybody's budget, and for what a request lacks.
fn rate_value(case: &Case<'_>, key: &RateKey) -> Option<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match key {
        RateKey::Global | RateKey::Identity => None,
        RateKey::Header(name) => case.headers().get(&**name).map(|value| text(value.as_bytes())),
        RateKey::Cookie(name) => target::cookie(case.headers(), name).map(text),
        RateKey::SourceIp => case.question.client.map(|client| client.to_canonical().to_string()),
        RateKey::Path => Some(case.asked.path().to_owned()),
    }
}

/// How often, on what, and how this request may be sent again; `null` when nothing is retried.
pub(super) fn retry(upstream: &Upstream, rule: &HttpRule, method: &Method, headers: &HeaderMap) -> Value {
    let Some(plan) = plan(&upstream.policy, rule) else { return Value::Null };
    let (allowed, why) = may_repeat(&plan, method, headers);
    let budget = &upstream.policy.retry_budget;
    json!({
        "attempts": plan.attempts,
        "on": plan.retry_on.iter().map(|on| retry_on(*on)).collect::<Vec<_>>(),
        "allowed": allowed,
        "why": why,
        "per_try_ms": plan.per_try_timeout.map(ms),
        "backoff": {
            "base_ms": ms(plan.backoff.base),
            "max_ms": ms(plan.backoff.max),
            "jitter": match plan.backoff.jitter {
                Jitter::Full => "full",
                Jitter::Equal => "equal",
                Jitter::Decorrelated => "decorrelated",
                Jitter::None => "none",
            },
        },
        "max_body_bytes": plan.max_body_bytes,
        "avoid_previous_hosts": plan.avoid_previous_hosts,
        "budget": {
            "percent": budget.percent,
            "min_per_second": budget.min_per_second,
            "ttl_ms": ms(budget.ttl),
            "remaining": budget_left(upstream),
        },
    })
}

/// Retries that the service's budget still has.
fn budget_left(_upstream: &Upstream) -> Value {
    Value::Null
}

/// The policy's retry with the rule's own on top.
fn plan(policy: &Policy, rule: &HttpRule) -> Option<Retry> {
    let Some(own) = &rule.retry else { return policy.retry.clone() };
    let default = || Policy::new(&TrafficPolicySpec { retry: Some(Default::default()), ..Default::default() }).retry;
    let mut plan = policy.retry.clone().or_else(default)?;
    plan.attempts = own.attempts.unwrap_or(plan.attempts);
    if let Some(base) = own.backoff {
        plan.backoff.base = base;
        plan.backoff.max = plan.backoff.max.max(base);
    }
    for status in own.codes.iter().map(|code| RetryOn::Status(*code)) {
        if !plan.retry_on.contains(&status) {
            plan.retry_on.push(status);
        }
    }
    Some(plan)
}

/// Whether the method lets a request be sent twice, and why (not).
fn may_repeat(plan: &Retry, method: &Method, headers: &HeaderMap) -> (bool, String) {
    let grpc = plan.retry_on.iter().any(|on| matches!(on, RetryOn::Grpc(_)));
    if method.is_idempotent() {
        (true, format!("{method} is idempotent"))
    } else if plan.unsafe_methods {
        (true, "unsafeMethods is set".into())
    } else if plan.methods.iter().any(|own| **own == *method.as_str()) {
        (true, format!("retry.methods has {method}"))
    } else if headers.contains_key("idempotency-key") {
        (true, "the request has an Idempotency-Key".into())
    } else if grpc && is_grpc(headers) {
        (true, "retryOn has a condition for gRPC".into())
    } else {
        let why = "is not idempotent: it is sent again only if no endpoint has seen it (see methods, Idempotency-Key)";
        (false, format!("{method} {why}"))
    }
}

fn retry_on(on: RetryOn) -> String {
    match on {
        RetryOn::ConnectFailure => "connect-failure".into(),
        RetryOn::RefusedStream => "refused-stream".into(),
        RetryOn::ResetBeforeRequest => "reset-before-request".into(),
        RetryOn::Reset => "reset".into(),
        RetryOn::PerTryTimeout => "per-try-timeout".into(),
        RetryOn::Status(status) => status.to_string(),
        RetryOn::Grpc(code) => format!("grpc:{}", grpc_name(code)),
    }
}

fn grpc_name(code: u16) -> String {
    let name = u8::try_from(code).ok().and_then(names::grpc_status);
    name.map_or_else(|| code.to_string(), str::to_owned)
}

/// The time-outs in force. `client_ms` is what the client itself asked for.
pub(super) fn timeouts(upstream: &Upstream, deadlines: &Deadlines, headers: &HeaderMap) -> Value {
    let client = if is_grpc(headers) { headers::grpc_timeout(headers) } else { None };
    json!({
        "connect_ms": ms(upstream.policy.timeouts.connect),
        "request_ms": deadlines.request.map(ms),
        "request_covers": if deadlines.whole { "the whole exchange" } else { "up to the response's head" },
        "attempt_ms": deadlines.attempt.map(ms),
        "idle_ms": deadlines.idle.map(ms),
        "client_ms": client.map(ms),
    })
}

/// What opens the breaker of an endpoint; `null` without one.
pub(super) fn circuit_breaker(upstream: &Upstream) -> Value {
    // The breaker belongs to the endpoint: the service's own policy comes first.
    let own = upstream.service.policy.circuit_breaker.as_ref();
    let Some(policy) = own.or(upstream.policy.circuit_breaker.as_ref()) else { return Value::Null };
    json!({
        "consecutive_failures": policy.consecutive_failures,
        "failure_rate": {
            "percent": policy.failure_rate.percent,
            "minimum_requests": policy.failure_rate.minimum_requests,
            "window_ms": ms(policy.failure_rate.window),
        },
        "slow_calls": policy.slow_calls.as_ref().map(|slow| json!({
            "threshold_ms": ms(slow.threshold),
            "percent": slow.percent,
            "minimum_requests": slow.minimum_requests,
        })),
        "base_ejection_ms": ms(policy.base_ejection_time),
        "max_ejection_ms": ms(policy.max_ejection_time),
        "max_ejection_percent": policy.max_ejection_percent,
        "half_open_requests": policy.half_open_requests,
    })
}

/// Faults that are injected, and whether this request carries the header that they are for.
pub(super) fn fault(case: &Case<'_>, upstream: &Upstream) -> Value {
    let Some(fault) = &upstream.policy.fault else { return Value::Null };
    json!({
        "applies": fault.header.as_ref().is_none_or(|header| has(case, header)),
        "header": fault.header.as_ref().map(|NamedMatch { name, value }| match value {
            ValueMatch::Exact(value) => format!("{name}=\"{value}\""),
            ValueMatch::Regex(pattern) => format!("{name}~\"{pattern}\""),
        }),
        "delay": fault.delay.map(|(delay, percent)| json!({"ms": ms(delay), "percent": percent})),
        "abort": fault.abort.map(|(how, percent)| match how {
            FaultAbort::Status(status) => json!({"status": status, "percent": percent}),
            FaultAbort::Grpc(code) => json!({"grpc_status": grpc_name(code), "percent": percent}),
        }),
    })
}

/// Asked of the code that matches routes.
fn has(case: &Case<'_>, header: &NamedMatch) -> bool {
    let path = PathMatch::Prefix("/".into());
    let matcher = HttpMatch { path, headers: vec![header.clone()], query: Vec::new(), method: None };
    let rank = Rank::new(None, &weft_model::config::Key::new("", ""), 0, 0);
    let table = RouteTable::build(vec![Candidate { hostname: None, matcher, rank, target: () }]);
    table.is_ok_and(|table| matches!(table.find(&case.view()), Found::Match(..)))
}

/// When a second request is sent; `null` when it never is.
pub(super) fn hedge(upstream: &Upstream) -> Value {
    let Some(hedge) = &upstream.policy.hedge else { return Value::Null };
    let (after, quantile) = match hedge.after {
        HedgeAfter::Duration(after) => (Some(ms(after)), None),
        HedgeAfter::Quantile(quantile) => (None, Some(format!("p{}", (quantile * 1e4).round() / 100.0))),
    };
    json!({"after_ms": after, "after_quantile": quantile, "max_extra": hedge.max_extra})
}

/// Bounds of the adaptive limit, and where it is; `null` when there is none.
pub(super) fn concurrency(upstream: &Upstream) -> Value {
    let Some(policy) = &upstream.policy.concurrency else { return Value::Null };
    json!({"min": policy.min, "max": policy.max, "limit": adaptive_limit(upstream)})
}

/// Where the adaptive limit is now.
fn adaptive_limit(_upstream: &Upstream) -> Value {
    Value::Null
}

/// Urgency under which the request may be shed; `null` while nothing is shed.
pub(super) fn priority(_upstream: &Upstream, _headers: &HeaderMap) -> Value {
    Value::Null
}
