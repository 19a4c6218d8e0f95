//! `TrafficPolicy` as written. Every leaf is an `Option`, so that two policies merge field by field.

mod limit;
mod protect;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    meta::TargetRef,
    route::ValueMatchType,
    scalar::{Chosen, DurationText},
};

pub use self::{
    limit::{
        Adaptive, Concurrency, ConcurrencyAlgorithm, OnBreakerOpen, RateKey, RateKeyField, RateKeyName, RateLimit,
        RateScope,
    },
    protect::{Backoff, CircuitBreaker, FailureRate, Hedge, Jitter, Retry, RetryBudget, RetryCondition, SlowCalls},
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

/// `connectionPool`. Counts are per service port, for the whole node. A port's connections are shared by all routes to
/// it: a route's own `maxConnections` and `maxPendingRequests` count only where the service's policy says nothing, and of
/// several routes' those of the first one by namespace and name.
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
