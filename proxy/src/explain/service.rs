//! A service as a request would meet it: endpoints, balancer, circuit, limits of the pool.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use weft_model::config::{HashKey, Key, RouteKind};

use super::{Case, limits, policy};
use crate::{
    app::admin,
    balance::{Unpicked, hash_str},
    endpoint::{Endpoint, Health},
    layer::target,
    snapshot::{Target, Upstream},
};

/// Which route a request came by; `None` when none is bound to the service that it was made to.
pub(super) type RouteId<'a> = Option<(RouteKind, &'a Key)>;

/// Sections of one backend. What is off is `null`.
pub(super) fn explain(case: &Case<'_>, target: &Target, upstream: &Upstream, route: RouteId<'_>) -> Map<String, Value> {
    let foreseen = upstream.foresee(case.now);
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value| drop(shown.insert(name.into(), value));
    if let Err(unpicked) = foreseen {
        put("problem", json!(problem(upstream, unpicked)));
    }
    put("protocol", json!(format!("{:?}", upstream.protocol).to_lowercase()));
    put("access_policies", json!(upstream.service.access.as_ref().map(|access| access.names().collect::<Vec<_>>())));
    put("tls", json!(upstream.tls.is_some()));
    put("balancer", balancer(case, upstream));
    put("circuit", json!(admin::circuit(&upstream.service)));
    put("next_probe_ms", next_probe(case, upstream));
    put("probe", json!(foreseen.ok().flatten().map(|endpoint| &*endpoint.label)));
    put("endpoints", endpoints(case, upstream, foreseen));
    put("rate_limits", limits::explain(case, target, upstream, route));
    put("pool", pool(upstream));
    put("retry", policy::retry(case, target, upstream));
    put("timeouts", policy::timeouts(case, target, upstream));
    put("circuit_breaker", policy::circuit_breaker(upstream));
    put("fault", policy::fault(case, upstream));
    put("hedge", policy::hedge(case, upstream));
    put("concurrency", policy::concurrency(upstream));
    put("priority", policy::priority(case, upstream));
    shown
}

/// Why no request would reach an endpoint.
fn problem(upstream: &Upstream, unpicked: Unpicked) -> String {
    let all = upstream.service.endpoints();
    match unpicked {
        Unpicked::CircuitOpen { retry_after: Duration::ZERO, .. } => "circuit open, a probe is out".into(),
        Unpicked::CircuitOpen { retry_after, .. } => {
            format!("circuit open, next probe in {:.1} s", retry_after.as_secs_f64())
        }
        Unpicked::NoEndpoint if all.is_empty() => "the service has no endpoints".into(),
        Unpicked::NoEndpoint if all.iter().all(|endpoint| endpoint.weight() == 0) => "no endpoint has a weight".into(),
        Unpicked::NoEndpoint => {
            let count = |what: &dyn Fn(&Endpoint) -> bool| all.iter().filter(|endpoint| what(endpoint)).count();
            let ejected = count(&|endpoint| endpoint.guard().ejected());
            let unhealthy = count(&|endpoint| endpoint.health() == Health::Unhealthy);
            format!("none of the {} endpoints is usable: {unhealthy} unhealthy, {ejected} ejected", all.len())
        }
    }
}

/// Until a probe may go out, while some breaker is not Closed.
fn next_probe(case: &Case<'_>, upstream: &Upstream) -> Value {
    let circuit = &upstream.service.circuit;
    if circuit.quiet() { Value::Null } else { policy::ms(circuit.outlook(case.now).0) }
}

/// As in `/endpoints`, and whether this request may go there.
fn endpoints(case: &Case<'_>, upstream: &Upstream, foreseen: Result<Option<&Arc<Endpoint>>, Unpicked>) -> Value {
    let panicking = upstream.balancer.panicking();
    let usable = |endpoint: &Arc<Endpoint>| match foreseen {
        Err(_) => false,
        Ok(Some(probed)) if upstream.service.circuit.is_open() => Arc::ptr_eq(probed, endpoint),
        Ok(_) => (panicking || endpoint.usable()) && endpoint.weight() > 0,
    };
    let all = upstream.service.endpoints().iter().map(|endpoint| {
        let mut shown = admin::endpoint(&upstream.service, endpoint, case.now);
        shown["usable"] = json!(usable(endpoint));
        shown
    });
    all.collect()
}

fn balancer(case: &Case<'_>, upstream: &Upstream) -> Value {
    let policy = &upstream.policy.load_balancer;
    json!({
        "type": format!("{:?}", policy.kind),
        "slow_start_ms": policy::ms(policy.slow_start),
        "zone_aware": policy.zone_aware,
        "panic_threshold_percent": policy.panic_threshold_percent,
        // While the circuit is open, only probes go out.
        "panicking": upstream.balancer.panicking() && !upstream.service.circuit.is_open(),
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
    let (connections, pending) = upstream.service.places.numbers();
    json!({
        "requests_in_flight": upstream.service.in_flight.get(),
        "max_requests": policy.max_requests,
        "connections": connections,
        "max_connections": limits.connections,
        "pending": pending,
        "max_pending_requests": limits.pending,
        "max_requests_per_connection": policy.max_requests_per_connection,
        "max_concurrent_streams": upstream.is_h2().then_some(policy.max_concurrent_streams),
        "idle_timeout_ms": policy::ms(policy.idle_timeout),
    })
}
