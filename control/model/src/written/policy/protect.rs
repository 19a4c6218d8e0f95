//! Breakers, retries, hedging.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::written::scalar::{ByteSize, DurationText};

/// `circuitBreaker`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// Failures in a row that open it; 5 when omitted.
    #[schemars(range(min = 1))]
    pub consecutive_failures: Option<u32>,
    /// Share of failures that opens it.
    pub failure_rate: Option<FailureRate>,
    /// Slow calls that open it; off when omitted.
    pub slow_calls: Option<SlowCalls>,
    /// First ejection; 5s when omitted.
    pub base_ejection_time: Option<DurationText>,
    /// Longest ejection; 300s when omitted.
    pub max_ejection_time: Option<DurationText>,
    /// Share of the endpoints that may be ejected at once; 50 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejection_percent: Option<f64>,
    /// Probes while half open; 1 when omitted.
    #[schemars(range(min = 1, max = 100))]
    pub half_open_requests: Option<u32>,
    /// Whether the kernel's signals count; true when omitted.
    pub kernel_signals: Option<bool>,
}

/// `circuitBreaker.failureRate`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailureRate {
    /// More than 0; 50 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<f64>,
    /// Fewer requests in the window decide nothing; 20 when omitted.
    #[schemars(range(min = 1))]
    pub minimum_requests: Option<u32>,
    /// Sliding window; 10s when omitted.
    pub window: Option<DurationText>,
}

/// `circuitBreaker.slowCalls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowCalls {
    /// A call is slow from here on; 1s when omitted.
    pub threshold: Option<DurationText>,
    /// More than 0; 50 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<f64>,
    /// Fewer requests in the window decide nothing; 20 when omitted.
    #[schemars(range(min = 1))]
    pub minimum_requests: Option<u32>,
}

/// `retry`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retry {
    /// Attempts after the first; 2 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub attempts: Option<u32>,
    /// What is retried: status codes, `5xx`, `gateway-error`, `connect-failure`, `refused-stream`,
    /// `reset-before-request`, `reset`, `per-try-timeout`, `grpc:UNAVAILABLE`.
    pub retry_on: Option<Vec<RetryCondition>>,
    /// Methods retried besides the idempotent ones.
    pub methods: Option<Vec<String>>,
    /// Retry every method; false when omitted.
    pub unsafe_methods: Option<bool>,
    /// Time-out of one attempt.
    pub per_try_timeout: Option<DurationText>,
    /// Wait between attempts.
    pub backoff: Option<Backoff>,
    /// Bodies up to this size are kept for a retry; 64KiB when omitted.
    pub max_body_bytes: Option<ByteSize>,
    /// Prefer an endpoint not tried yet; true when omitted.
    pub avoid_previous_hosts: Option<bool>,
}

/// `retry.retryOn[]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RetryCondition {
    /// A status code.
    Status(u16),
    /// A word.
    Word(String),
}

/// `retry.backoff`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backoff {
    /// First wait; 25ms when omitted.
    pub base: Option<DurationText>,
    /// Longest wait; 250ms when omitted.
    pub max: Option<DurationText>,
    /// How it is spread; `Full` when omitted.
    pub jitter: Option<Jitter>,
}

/// `retry.backoff.jitter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Jitter {
    Full,
    Equal,
    Decorrelated,
    None,
}

/// `retryBudget`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Retries per hundred requests; 20 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<f64>,
    /// Retries that are always allowed; 10 when omitted. Over `ttl` they should come to one at least.
    pub min_per_second: Option<u32>,
    /// Window; 10s when omitted.
    pub ttl: Option<DurationText>,
}

/// `hedge`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hedge {
    /// A duration, or a quantile of the service's latency such as `p95` (when omitted).
    pub after: Option<String>,
    /// How many more requests at most; 1 when omitted.
    #[schemars(range(min = 1, max = 10))]
    pub max_extra: Option<u32>,
}
