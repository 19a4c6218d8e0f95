//! `TrafficPolicy` as written. Every leaf is an `Option`, so that two policies merge field by field.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    meta::TargetRef,
    route::ValueMatchType,
    scalar::{ByteSize, Chosen, DurationText},
};

/// `TrafficPolicy.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficPolicySpec {
    /// What it applies to. Not part of a merge.
    #[schemars(required, length(min = 1))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// How an endpoint is picked.
    pub load_balancer: Option<LoadBalancer>,
    /// Limits towards the service.
    pub connection_pool: Option<ConnectionPool>,
    /// Off unless present; `{}` is on with defaults.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Off unless present; `{}` is on with defaults.
    pub retry: Option<Retry>,
    /// Limits whatever retries there are.
    pub retry_budget: Option<RetryBudget>,
    /// Off unless present.
    pub hedge: Option<Hedge>,
    /// Every entry has to admit a request.
    pub rate_limit: Option<Vec<RateLimit>>,
    /// Off unless present.
    pub concurrency: Option<Concurrency>,
    /// Deadlines.
    pub timeouts: Option<Timeouts>,
    /// Off unless present.
    pub health_check: Option<HealthCheck>,
    /// Off unless present.
    pub fault: Option<Fault>,
    /// Which requests go first when a node sheds load: 0 is served longest, 7 is refused first; 3 when omitted.
    #[schemars(range(min = 0, max = 7))]
    pub priority: Option<u8>,
}

/// `loadBalancer`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// `PeakEWMA` when omitted.
    #[serde(rename = "type")]
    pub kind: Option<BalancerType>,
    /// What RingHash and Maglev hash; `sourceIP` when omitted.
    pub hash: Option<HashOn>,
    /// A new or recovered endpoint's share grows over this time; 0s when omitted.
    pub slow_start: Option<DurationText>,
    /// Prefer endpoints in this node's zone; true when omitted.
    pub zone_aware: Option<bool>,
    /// Below this share of healthy endpoints health is ignored; 50 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold_percent: Option<f64>,
}

/// `loadBalancer.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum BalancerType {
    PeakEWMA,
    LeastRequest,
    RoundRobin,
    Random,
    RingHash,
    Maglev,
}

/// `loadBalancer.hash`: `sourceIP`, `path`, or a mapping with one of the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum HashOn {
    /// One without parameters.
    Name(HashName),
    /// Any.
    Field(HashField),
}

/// `loadBalancer.hash` in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum HashName {
    #[serde(rename = "sourceIP")]
    SourceIp,
    #[serde(rename = "path")]
    Path,
}

/// `loadBalancer.hash`: exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashField {
    /// Value of this header.
    pub header: Option<String>,
    /// Value of this cookie.
    pub cookie: Option<String>,
    /// The client's address.
    #[serde(rename = "sourceIP")]
    pub source_ip: Option<Chosen>,
    /// The path without its query.
    pub path: Option<Chosen>,
}

/// `connectionPool`. Counts are per service, for the whole node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConnectionPool {
    /// Open connections; 1024 when omitted.
    #[schemars(range(min = 1))]
    pub max_connections: Option<u32>,
    /// Requests waiting for a connection; 1024 when omitted.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight; 1024 when omitted.
    #[schemars(range(min = 1))]
    pub max_requests: Option<u32>,
    /// Retries in flight; 1024 when omitted. 0 allows none.
    pub max_retries: Option<u32>,
    /// Requests after which a connection is closed; 0 (when omitted) is unlimited.
    pub max_requests_per_connection: Option<u32>,
    /// For HTTP/2.
    pub http2: Option<Http2>,
    /// An idle connection is closed after this time; 60s when omitted.
    pub idle_timeout: Option<DurationText>,
}

/// `connectionPool.http2`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http2 {
    /// Streams on one connection; 100 when omitted.
    #[schemars(range(min = 1))]
    pub max_concurrent_streams: Option<u32>,
}

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
    #[schemars(range(min = 1))]
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
    /// Retries that are always allowed; 10 when omitted.
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

/// `rateLimit[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Requests admitted …
    #[schemars(required, range(min = 1))]
    pub requests: Option<u32>,
    /// … in this time.
    #[schemars(required)]
    pub per: Option<DurationText>,
    /// Requests admitted at once; as many as `requests` when omitted.
    #[schemars(range(min = 1))]
    pub burst: Option<u32>,
    /// What shares a budget; `global` when omitted. A request without it is not limited by this entry.
    pub key: Option<RateKey>,
    /// Who counts together; `Node` when omitted.
    pub scope: Option<RateScope>,
    /// What happens while the service's breaker is open.
    pub on_breaker_open: Option<OnBreakerOpen>,
}

/// `rateLimit[].scope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateScope {
    /// Each node by itself.
    Node,
}

/// `rateLimit[].key`: `global`, `sourceIP`, `identity`, `path`, or a mapping with one of the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RateKey {
    /// One without parameters.
    Name(RateKeyName),
    /// Any.
    Field(RateKeyField),
}

/// `rateLimit[].key` in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum RateKeyName {
    Global,
    #[serde(rename = "sourceIP")]
    SourceIp,
    Identity,
    Path,
}

/// `rateLimit[].key`: exactly one field.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateKeyField {
    /// Everybody.
    pub global: Option<Chosen>,
    /// Value of a header.
    pub header: Option<String>,
    /// Value of a cookie.
    pub cookie: Option<String>,
    /// The client's address.
    #[serde(rename = "sourceIP")]
    pub source_ip: Option<Chosen>,
    /// The client's SPIFFE id.
    pub identity: Option<Chosen>,
    /// The path without its query.
    pub path: Option<Chosen>,
}

/// `rateLimit[].onBreakerOpen`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnBreakerOpen {
    /// Share of the rate admitted while open; 0.3 when omitted.
    #[schemars(range(min = 0, max = 1))]
    pub factor: Option<f64>,
    /// Recovery afterwards; 5 when omitted.
    #[schemars(range(min = 0))]
    pub recover_percent_per_minute: Option<f64>,
}

/// `concurrency`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// A limit found by measuring.
    #[schemars(required)]
    pub adaptive: Option<Adaptive>,
}

/// `concurrency.adaptive`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Adaptive {
    /// `Gradient` when omitted.
    pub algorithm: Option<ConcurrencyAlgorithm>,
    /// Lower bound; 3 when omitted.
    #[schemars(range(min = 1))]
    pub min: Option<u32>,
    /// Upper bound; 1000 when omitted.
    #[schemars(range(min = 1))]
    pub max: Option<u32>,
}

/// `concurrency.adaptive.algorithm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum ConcurrencyAlgorithm {
    Gradient,
}

/// `timeouts`. `0s` switches one off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// Until a connection is usable; 1s when omitted.
    pub connect: Option<DurationText>,
    /// The whole request; 15s when omitted. A rule's own time-out wins.
    pub request: Option<DurationText>,
    /// Without a byte in either direction; 5m when omitted.
    pub idle: Option<DurationText>,
}

/// `healthCheck`. Exactly one of `path`, `grpc` and `tcp`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// GET this path; 2xx is healthy.
    pub path: Option<String>,
    /// `grpc.health.v1.Health/Check` of this service.
    pub grpc: Option<GrpcProbe>,
    /// A connection is enough.
    pub tcp: Option<Chosen>,
    /// Between two probes; 5s when omitted.
    pub interval: Option<DurationText>,
    /// For one probe; 1s when omitted.
    pub timeout: Option<DurationText>,
    /// Successes that make an endpoint healthy; 2 when omitted.
    #[schemars(range(min = 1))]
    pub healthy: Option<u32>,
    /// Failures that make it unhealthy; 3 when omitted.
    #[schemars(range(min = 1))]
    pub unhealthy: Option<u32>,
}

/// `healthCheck.grpc`: a service name, or `{service: name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum GrpcProbe {
    /// In short.
    Name(String),
    /// In full.
    Full(GrpcProbeFull),
}

/// `healthCheck.grpc` in full.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcProbeFull {
    /// The whole server when omitted.
    pub service: Option<String>,
}

/// `fault`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Wait before forwarding.
    pub delay: Option<FaultDelay>,
    /// Answer instead of forwarding.
    pub abort: Option<FaultAbort>,
    /// Only requests that carry this header.
    pub header: Option<FaultHeader>,
}

/// `fault.delay`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// How long.
    #[schemars(required)]
    pub fixed: Option<DurationText>,
    /// Share of the requests; 100 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<f64>,
}

/// `fault.abort`. Exactly one of `status` and `grpcStatus`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// An HTTP status.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,
    /// A gRPC status, by name or number.
    pub grpc_status: Option<GrpcStatus>,
    /// Share of the requests; 100 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<f64>,
}

/// A gRPC status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum GrpcStatus {
    /// `14`
    Code(u16),
    /// `UNAVAILABLE`
    Name(String),
}

/// `fault.header`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultHeader {
    /// `Exact` when omitted.
    #[serde(rename = "type")]
    pub kind: Option<ValueMatchType>,
    /// Name of the header.
    #[schemars(required)]
    pub name: Option<String>,
    /// What its value has to be.
    #[schemars(required)]
    pub value: Option<String>,
}
