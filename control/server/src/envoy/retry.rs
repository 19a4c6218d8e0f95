//! `retry` of a policy and of a rule, as `weft-proxy` puts them together.

use std::{collections::BTreeSet, time::Duration};

use weft_model::config::{HttpRule, Policy, Retry, RetryOn};

use super::{matching, wire, wire::Typed};

/// Where a rule's `retry` stands alone.
const ATTEMPTS: u32 = 2;
const BASE: Duration = Duration::from_millis(25);
const MAX: Duration = Duration::from_millis(250);
/// From a rule's `backoff`, which is the least wait, to the longest.
const STRETCH: u32 = 10;
/// How often another endpoint is looked for than those that were tried.
const SEARCH: i64 = 5;

/// What is retried over a rule whose requests are under this policy, and how long an attempt may take.
pub(super) fn policy(policy: &Policy, rule: Option<&HttpRule>) -> Option<wire::RetryPolicy> {
    let off = |time: Duration| (!time.is_zero()).then_some(time);
    let per_try = policy.retry.as_ref().and_then(|retry| retry.per_try_timeout);
    let attempt = rule.and_then(|rule| rule.backend_timeout).and_then(off);
    let attempt = [attempt, per_try].into_iter().flatten().min();
    let mut retries = retries(policy.retry.as_ref(), rule);
    if let Some(attempt) = attempt {
        let retries = retries.get_or_insert_with(|| wire::RetryPolicy { num_retries: Some(0), ..Default::default() });
        retries.per_try_timeout = Some(attempt.into());
    }
    retries
}

fn retries(policy: Option<&Retry>, rule: Option<&HttpRule>) -> Option<wire::RetryPolicy> {
    let rule = rule.and_then(|rule| rule.retry.as_ref());
    if policy.is_none() && rule.is_none() {
        return None;
    }
    let attempts = rule.and_then(|rule| rule.attempts).or(policy.map(|policy| policy.attempts)).unwrap_or(ATTEMPTS);
    if attempts == 0 {
        return None;
    }
    let mut on = BTreeSet::new();
    let mut statuses = BTreeSet::new();
    let alone = [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::ResetBeforeRequest];
    for condition in policy.map_or(&alone[..], |policy| &policy.retry_on) {
        match condition {
            RetryOn::Status(status) => {
                statuses.insert(u32::from(*status));
            }
            other => on.extend(word(*other)),
        }
    }
    if let Some(rule) = rule.filter(|rule| !rule.codes.is_empty()) {
        statuses = rule.codes.iter().map(|code| u32::from(*code)).collect();
    }
    if (500..600).all(|status| statuses.contains(&status)) {
        on.insert("5xx");
        statuses.retain(|status| !(500..600).contains(status));
    }
    if !statuses.is_empty() {
        on.insert("retriable-status-codes");
    }
    let (mut base, mut max) = policy.map_or((BASE, MAX), |policy| (policy.backoff.base, policy.backoff.max));
    if let Some(least) = rule.and_then(|rule| rule.backoff).filter(|least| !least.is_zero()) {
        base = least;
        if max <= least {
            max = least.saturating_mul(STRETCH);
        }
    }
    let avoid = policy.is_none_or(|policy| policy.avoid_previous_hosts);
    let base = base.max(Duration::from_millis(1));
    Some(wire::RetryPolicy {
        retry_on: on.into_iter().collect::<Vec<_>>().join(","),
        num_retries: Some(attempts),
        per_try_timeout: None,
        retry_host_predicate: if avoid { vec![another_host()] } else { Vec::new() },
        host_selection_retry_max_attempts: if avoid { SEARCH } else { 0 },
        retriable_status_codes: statuses.into_iter().collect(),
        retry_back_off: Some(wire::RetryBackOff {
            base_interval: Some(base.into()),
            max_interval: Some(max.max(base).into()),
        }),
        retriable_request_headers: repeatable(policy),
    })
}

/// Envoy's word for a condition; those of gRPC that it has none for are not retried.
fn word(condition: RetryOn) -> Option<&'static str> {
    Some(match condition {
        RetryOn::ConnectFailure => "connect-failure",
        RetryOn::RefusedStream => "refused-stream",
        RetryOn::ResetBeforeRequest => "reset-before-request",
        // Envoy's `reset` includes an attempt that timed out.
        RetryOn::Reset | RetryOn::PerTryTimeout => "reset",
        RetryOn::Grpc(1) => "cancelled",
        RetryOn::Grpc(4) => "deadline-exceeded",
        RetryOn::Grpc(8) => "resource-exhausted",
        RetryOn::Grpc(13) => "internal",
        RetryOn::Grpc(14) => "unavailable",
        RetryOn::Grpc(_) | RetryOn::Status(_) => return None,
    })
}

/// Which requests may be sent twice: those that one of these headers fits. None at all: every request.
fn repeatable(policy: Option<&Retry>) -> Vec<wire::HeaderMatcher> {
    if policy.is_some_and(|policy| policy.unsafe_methods) {
        return Vec::new();
    }
    let mut methods: BTreeSet<&str> = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"].into();
    methods.extend(policy.iter().flat_map(|policy| &policy.methods).map(|method| &**method));
    let mut headers: Vec<_> =
        methods.into_iter().map(|method| matching::header(":method", matching::exact(method))).collect();
    headers.push(wire::HeaderMatcher {
        name: "idempotency-key".to_owned(),
        specifier: Some(wire::HeaderMatch::Present(true)),
    });
    // Who lists a status of gRPC means calls, all of which are POSTs.
    if policy.is_some_and(|policy| policy.retry_on.iter().any(|on| matches!(on, RetryOn::Grpc(_)))) {
        let grpc = wire::StringMatcher { pattern: Some(wire::TextMatch::Prefix("application/grpc".to_owned())) };
        headers.push(matching::header("content-type", grpc));
    }
    headers
}

fn another_host() -> wire::HostPredicate {
    wire::HostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        typed_config: Some(wire::PreviousHosts::default().any()),
    }
}
