//! What protects a service: breakers, retries and their budget, hedging, rate limits, concurrency.

use std::time::Duration;

use super::key_field;
use crate::{
    config::{Policy, RetryBudget},
    duration, effective,
    validate::{At, route, syntax},
    written::{self, RateKey, RetryCondition, TrafficPolicySpec},
};

pub(super) fn protection(at: At<'_>, spec: &TrafficPolicySpec) {
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
        guaranteed(at, budget);
    }
    if let Some(after) = spec.hedge.as_ref().and_then(|hedge| hedge.after.as_deref())
        && effective::hedge_after(after).is_none()
    {
        let message = format!("{after:?} is neither a duration nor a quantile");
        at.field("hedge").field("after").invalid(message, "for instance 50ms, p95 or p99");
    }
}

/// `minPerSecond`, unless it is 0, is to allow a retry in a window at least.
fn guaranteed(at: At<'_>, written: &written::RetryBudget) {
    let spec = TrafficPolicySpec { retry_budget: Some(written.clone()), ..Default::default() };
    let RetryBudget { min_per_second, ttl, .. } = Policy::new(&spec).retry_budget;
    if min_per_second == 0 || ttl.is_zero() || ttl.saturating_mul(min_per_second) >= Duration::from_secs(1) {
        return;
    }
    let enough = duration::format(Duration::from_millis(1000_u64.div_ceil(u64::from(min_per_second))));
    let message = format!(
        "{min_per_second} per second come to less than one retry in a ttl of {}, and allow none",
        duration::format(ttl)
    );
    at.warn("contradictory", message, Some(format!("make ttl {enough} or longer, or minPerSecond larger")));
}

/// A breaker's percentage, which cannot be 0.
fn share(at: At<'_>, percent: Option<f64>, message: &str) {
    if percent == Some(0.0) {
        let hint = "give more than 0; 100 with a large minimumRequests hardly ever opens it";
        at.field("percent").invalid(message, hint);
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
        route::method(at.field("methods").item(i), method);
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

pub(super) fn limits(at: At<'_>, spec: &TrafficPolicySpec) {
    for (i, limit) in spec.rate_limit.iter().flatten().enumerate() {
        let at = at.field("rateLimit").item(i);
        let per = at.positive("per", limit.per.as_ref());
        if let (Some(per), Some(requests)) = (per, limit.requests) {
            refill(at, per, requests, limit.burst.unwrap_or(requests));
        }
        if limit.on_breaker_open.as_ref().is_some_and(|open| open.recover_percent_per_minute == Some(0.0)) {
            at.field("onBreakerOpen").field("recoverPercentPerMinute").invalid(
                "at 0 % per minute the limit would stay lowered for ever",
                "give more than 0; 100 is back to all of it within a minute",
            );
        }
        let identity = match &limit.key {
            Some(RateKey::Name(name)) => *name == written::RateKeyName::Identity,
            Some(RateKey::Field(key)) => key.identity.as_ref().is_some_and(written::Chosen::is_chosen),
            None => false,
        };
        if identity {
            let message = "only captured connections of a Workload with a serviceAccount have an identity: this limit \
                           admits everybody else";
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

/// Buckets are counted in nanoseconds: one that takes longer than 36 years to fill up would fill up faster than written.
fn refill(at: At<'_>, per: Duration, requests: u32, burst: u32) {
    const LONGEST: u128 = 1 << 60;
    if per.as_nanos().saturating_mul(u128::from(burst)) > LONGEST * u128::from(requests) {
        let hint = "make per or burst smaller, or requests larger";
        at.field("per").invalid("at this rate the burst takes more than 36 years to fill up", hint);
    }
}
