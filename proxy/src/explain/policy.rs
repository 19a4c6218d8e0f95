//! The policy in force for a request, one section per function. Live figures are what a section takes from the service;
//! a section without them says `null` there, never a guess.

use std::time::Duration;

use serde_json::{Value, json};
use weft_model::config::{FaultAbort, HedgeAfter, NamedMatch, ValueMatch};

use super::Case;
use crate::{
    headers,
    resilience::{
        retry::{Permit, RetryPlan},
        shed::{said, urgency_of},
    },
    snapshot::{Target, Upstream},
    telemetry::names,
    upstream::send::is_idempotent,
};

/// Milliseconds, to a microsecond.
pub(crate) fn ms(duration: Duration) -> Value {
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    if micros.is_multiple_of(1000) { json!(micros / 1000) } else { json!(micros as f64 / 1e3) }
}

/// How often, on what, and how this request may be sent again; `null` when nothing is retried.
pub(super) fn retry(case: &Case<'_>, target: &Target, upstream: &Upstream) -> Value {
    let Some(plan) = &target.retry else { return Value::Null };
    let (allowed, why) = may_repeat(case, plan);
    let (service, budget) = (&upstream.service, upstream.service.common.retry_budget());
    let mut shown = plan.describe();
    shown["allowed"] = json!(allowed);
    shown["why"] = json!(why);
    shown["in_flight"] = json!(service.retries.get());
    shown["max_retries"] = json!(upstream.policy.connection_pool.max_retries);
    shown["budget"] = json!({
        "percent": budget.percent,
        "min_per_second": budget.min_per_second,
        "ttl_ms": ms(budget.ttl),
        "remaining": service.budget.remaining(case.now),
    });
    shown
}

/// Whether the request may be sent twice, and why (not).
fn may_repeat(case: &Case<'_>, plan: &RetryPlan) -> (bool, String) {
    let method = case.question.request.method();
    if headers::wants_tunnel(method, case.seen) {
        return (false, "a tunnel is opened once".into());
    }
    let why = match plan.permit(method, case.headers(), case.seen.grpc) {
        Some(Permit::Idempotent) => format!("{method} is idempotent"),
        Some(Permit::UnsafeMethods) => "unsafeMethods is set".into(),
        Some(Permit::Listed) => format!("retry.methods has {method}"),
        Some(Permit::Key) => "the request has an Idempotency-Key".into(),
        Some(Permit::Grpc) => "retryOn has a condition for gRPC".into(),
        None => {
            let why = "sent again only if no endpoint has seen it (see methods, Idempotency-Key)";
            return (false, format!("{method} is not idempotent: it is {why}"));
        }
    };
    (true, why)
}

/// The time-outs in force, the client's own included. `client` has what it said, and whether that counts.
pub(super) fn timeouts(case: &Case<'_>, target: &Target, upstream: &Upstream) -> Value {
    let deadlines = target.deadlines;
    let said = headers::deadline(case.headers(), case.seen);
    // Both count; the shorter one is the one that is felt.
    let wins = said.is_some_and(|said| deadlines.request.is_none_or(|request| said < request));
    let word = |header: &str, value: Option<Duration>, read: bool| {
        let written = case.headers().get(header)?;
        let why = match value {
            None => Some("not a time-out"),
            Some(_) if !read => Some("only gRPC requests have one"),
            Some(value) if said.is_some_and(|said| said < value) => Some("the client's other one is shorter"),
            Some(_) if !wins => Some("the route's is shorter"),
            Some(_) => None,
        };
        Some(json!({
            "header": header,
            "value": String::from_utf8_lossy(written.as_bytes()),
            "ms": value.map(ms),
            "wins": why.is_none(),
            "why_not": why,
        }))
    };
    let client = [
        word("grpc-timeout", headers::grpc_timeout(case.headers()), case.seen.grpc),
        word("x-envoy-expected-rq-timeout-ms", headers::expected_timeout(case.headers()), true),
    ];
    json!({
        "connect_ms": ms(upstream.policy.timeouts.connect),
        "request_ms": if wins { said } else { deadlines.request }.map(ms),
        "request_by": if wins { "the client" } else { "the route" },
        "request_covers": if wins || deadlines.whole { "the whole exchange" } else { "up to the response's head" },
        "attempt_ms": deadlines.attempt.map(ms),
        "idle_ms": deadlines.idle.map(ms),
        "client": client.into_iter().flatten().collect::<Vec<_>>(),
    })
}

/// What opens the breaker of an endpoint; `null` without one.
pub(super) fn circuit_breaker(upstream: &Upstream) -> Value {
    let Some(policy) = &upstream.service.common.breaker else { return Value::Null };
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
        "applies": upstream.fault.as_ref().is_some_and(|compiled| compiled.applies(case.headers())),
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

fn grpc_name(code: u16) -> String {
    let name = u8::try_from(code).ok().and_then(names::grpc_status);
    name.map_or_else(|| code.to_string(), str::to_owned)
}

/// When a second request is sent; `null` when none ever is. `now_ms` is `null` as long as a quantile is not known yet.
pub(super) fn hedge(case: &Case<'_>, upstream: &Upstream) -> Value {
    let Some(hedge) = &upstream.policy.hedge else { return Value::Null };
    let (after, quantile) = match hedge.after {
        HedgeAfter::Duration(after) => (Some(ms(after)), None),
        HedgeAfter::Quantile(quantile) => (None, Some(format!("p{}", (quantile * 1e4).round() / 100.0))),
    };
    let method = case.question.request.method();
    json!({
        "after_ms": after,
        "after_quantile": quantile,
        "now_ms": upstream.hedge(case.now).map(|plan| ms(plan.after)),
        "max_extra": hedge.max_extra,
        "allowed": is_idempotent(method) && !headers::wants_tunnel(method, case.seen),
    })
}

/// Bounds of the adaptive limit, and where it is; `null` when there is none.
pub(super) fn concurrency(upstream: &Upstream) -> Value {
    let Some(policy) = &upstream.service.common.concurrency else { return Value::Null };
    let limit = upstream.service.concurrency.as_ref().map(|gradient| gradient.limit());
    json!({"min": policy.min, "max": policy.max, "limit": limit})
}

/// How urgent the request is: its policy's word, its own, what comes of it, and what the node sheds now.
pub(super) fn priority(case: &Case<'_>, upstream: &Upstream) -> Value {
    let policy = upstream.policy.priority;
    json!({
        "policy": policy,
        "request": said(case.headers()),
        "urgency": urgency_of(case.headers(), policy),
        "shed_from": case.shed.from(),
    })
}
