//! A service as a request would meet it: endpoints, balancer, circuit, limits of the pool.

use http::HeaderMap;
use serde_json::{Map, Value, json};
use weft_model::config::{HashKey, HttpRule, Key, RouteKind};

use super::{Case, policy};
use crate::{
    app::admin,
    balance::hash_str,
    endpoint::Endpoint,
    layer::target,
    snapshot::{Deadlines, Upstream},
};

/// Which route a request came by.
pub(crate) type RouteId<'a> = (RouteKind, &'a Key);

/// Sections of one backend. What is off is `null`.
pub(super) fn explain(
    case: &Case<'_>,
    upstream: &Upstream,
    deadlines: &Deadlines,
    rule: &HttpRule,
    route: RouteId<'_>,
) -> Map<String, Value> {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| drop(shown.insert(name.into(), value));
    if let Some(problem) = problem(upstream) {
        put("problem", json!(problem));
    }
    put("protocol", json!(format!("{:?}", upstream.protocol).to_lowercase()));
    put("tls", json!(upstream.tls.is_some()));
    put("balancer", balancer(case, upstream));
    put("circuit", circuit(upstream));
    put("endpoints", upstream.service.endpoints().iter().map(|each| endpoint(each, case)).collect());
    put("rate_limits", policy::limits(case, upstream, route));
    put("pool", pool(upstream));
    put("retry", policy::retry(upstream, rule, case.question.request.method(), case.headers()));
    put("timeouts", policy::timeouts(upstream, deadlines, case.headers()));
    put("circuit_breaker", policy::circuit_breaker(upstream));
    put("fault", policy::fault(case, upstream));
    put("hedge", policy::hedge(upstream));
    put("concurrency", policy::concurrency(upstream));
    put("priority", policy::priority(upstream, case.headers()));
    shown
}

/// Why no request would reach an endpoint.
fn problem(upstream: &Upstream) -> Option<String> {
    let all = upstream.service.endpoints();
    let weighted = || all.iter().filter(|endpoint| endpoint.weight() > 0);
    if all.is_empty() {
        Some("the service has no endpoints".into())
    } else if weighted().count() == 0 {
        Some("no endpoint has a weight".into())
    } else if !upstream.balancer.panicking() && !weighted().any(|endpoint| endpoint.usable()) {
        Some(format!("none of the {} endpoints is usable", all.len()))
    } else {
        None
    }
}

/// State of the service's circuit; `null` when it has no breaker.
fn circuit(_upstream: &Upstream) -> Value {
    Value::Null
}

/// As in `/endpoints`, and whether it may be picked.
fn endpoint(endpoint: &Endpoint, case: &Case<'_>) -> Value {
    let mut shown = admin::endpoint(endpoint, case.now);
    shown["usable"] = json!(endpoint.usable() && endpoint.weight() > 0);
    shown
}

fn balancer(case: &Case<'_>, upstream: &Upstream) -> Value {
    let policy = &upstream.policy.load_balancer;
    json!({
        "type": format!("{:?}", policy.kind),
        "slow_start_ms": policy::ms(policy.slow_start),
        "zone_aware": policy.zone_aware,
        "panic_threshold_percent": policy.panic_threshold_percent,
        "panicking": upstream.balancer.panicking(),
        "hash": if upstream.balancer.needs_hash() { hash(case, upstream, &policy.hash) } else { Value::Null },
    })
}

/// The key of this request, and the endpoint that it leads to. Both are `null` when they depend on the client's address
/// and nobody said which it is.
fn hash(case: &Case<'_>, upstream: &Upstream, key: &HashKey) -> Value {
    let client = case.question.client.map(|client| client.to_canonical().to_string());
    let missing = match key {
        HashKey::Header(name) => !case.headers().contains_key(&**name),
        HashKey::Cookie(name) => target::cookie(case.headers(), name).is_none(),
        HashKey::SourceIp => true,
        HashKey::Path => false,
    };
    let known = !missing || client.is_some();
    let client = client.unwrap_or_default();
    let value = target::hash_key(key, case.headers(), case.asked.path(), client.as_bytes());
    let owner = upstream.balancer.owner(hash_str(value), case.now).filter(|_| known);
    json!({
        "key": match key {
            HashKey::Header(name) => format!("header {name}"),
            HashKey::Cookie(name) => format!("cookie {name}"),
            HashKey::SourceIp => "the client's address".into(),
            HashKey::Path => "path".into(),
        },
        "value": known.then(|| String::from_utf8_lossy(value)),
        "by_address": missing,
        "endpoint": owner.map(|endpoint| &*endpoint.label),
    })
}

/// `connectionPool`, and how much of it is in use.
fn pool(upstream: &Upstream) -> Value {
    let policy = &upstream.policy.connection_pool;
    let limits = upstream.service.common.limits();
    json!({
        "requests_in_flight": upstream.service.in_flight.get(),
        "max_requests": policy.max_requests,
        "connections": connections(upstream),
        "max_connections": limits.connections,
        "pending": pending(upstream),
        "max_pending_requests": limits.pending,
        "max_requests_per_connection": policy.max_requests_per_connection,
        "max_concurrent_streams": upstream.is_h2().then_some(policy.max_concurrent_streams),
        "idle_timeout_ms": policy::ms(policy.idle_timeout),
    })
}

/// Open connections of the service port; `null` while nobody counts them.
fn connections(_upstream: &Upstream) -> Value {
    Value::Null
}

/// Requests that wait for a connection; `null` while nobody counts them.
fn pending(_upstream: &Upstream) -> Value {
    Value::Null
}

/// Whether a request speaks gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    crate::headers::scan(headers).grpc
}
