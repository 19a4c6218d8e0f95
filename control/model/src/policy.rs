//! TrafficPolicy: the fields as they can be merged, and the effective policy with every default filled in.

use std::{fmt, sync::Arc, time::Duration};

use crate::config::{Key, RouteKind};

pub use crate::written::Jitter;

/// A TrafficPolicy: what it targets, and the fields that it sets.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TrafficPolicy {
    /// Identity.
    pub key: Key,
    /// What it applies to.
    pub targets: Vec<PolicyTarget>,
    /// The fields as written, checked one by one; merged by [`crate::Config::policy_for`].
    pub spec: crate::written::TrafficPolicySpec,
}

/// `targetRefs[]` of a TrafficPolicy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub enum PolicyTarget {
    /// Everything that goes to this service.
    Service(Key),
    /// Everything that this HTTPRoute routes.
    HttpRoute(Key),
    /// Everything that this GRPCRoute routes.
    GrpcRoute(Key),
}

impl PolicyTarget {
    /// A route.
    pub fn route(kind: RouteKind, key: &Key) -> Self {
        match kind {
            RouteKind::Http => Self::HttpRoute(key.clone()),
            RouteKind::Grpc => Self::GrpcRoute(key.clone()),
        }
    }
}

impl fmt::Display for PolicyTarget {
    /// `HTTPRoute default/shop`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, key) = match self {
            Self::Service(key) => ("Service", key),
            Self::HttpRoute(key) => ("HTTPRoute", key),
            Self::GrpcRoute(key) => ("GRPCRoute", key),
        };
        write!(f, "{kind} {}/{}", key.namespace, key.name)
    }
}

/// The policy in force for a service, or for a route to a service: every default is filled in.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Policy {
    /// How an endpoint is picked.
    pub load_balancer: LoadBalancer,
    /// Limits towards the service.
    pub connection_pool: ConnectionPool,
    /// Off unless present.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Off unless present.
    pub retry: Option<Retry>,
    /// Always present; it limits whatever retries there are.
    pub retry_budget: RetryBudget,
    /// Off unless present.
    pub hedge: Option<Hedge>,
    /// Empty: no limit.
    pub rate_limits: Vec<RateLimit>,
    /// Off unless present.
    pub concurrency: Option<Concurrency>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Off unless present.
    pub health_check: Option<HealthCheck>,
    /// Off unless present.
    pub fault: Option<Fault>,
    /// Urgency of its requests when a node sheds load: 0 (served longest) to 7 (refused first).
    pub priority: u8,
}

impl Policy {
    /// `priority` where none is given, as RFC 9218 has it for requests.
    pub const DEFAULT_PRIORITY: u8 = 3;
}

/// `loadBalancer`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LoadBalancer {
    /// Algorithm.
    pub kind: BalancerKind,
    /// What RingHash and Maglev hash; the source address when omitted.
    pub hash: HashKey,
    /// A new or recovered endpoint's share grows over this time.
    pub slow_start: Duration,
    /// Prefer endpoints in this node's zone.
    pub zone_aware: bool,
    /// Below this share of healthy endpoints, health is ignored (0–100).
    pub panic_threshold_percent: f64,
}

/// `loadBalancer.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub enum BalancerKind {
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    RingHash,
    Maglev,
}

/// `loadBalancer.hash`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum HashKey {
    /// Value of this header (lower case).
    Header(Arc<str>),
    /// Value of this cookie.
    Cookie(Arc<str>),
    /// The client's address.
    SourceIp,
    /// The path without its query.
    Path,
}

/// `connectionPool`. Counts are per service port, for the whole node.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ConnectionPool {
    /// Open connections to the service port, of all routes together: a proxy goes by the service's own policy, and by a
    /// route's only where that says nothing.
    pub max_connections: u32,
    /// Requests waiting for a connection, of all routes together like `max_connections`.
    pub max_pending_requests: u32,
    /// Requests in flight.
    pub max_requests: u32,
    /// Retries in flight; 0 allows none.
    pub max_retries: u32,
    /// Requests after which a connection is closed; 0 is unlimited.
    pub max_requests_per_connection: u32,
    /// Streams on one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// An idle connection is closed after this time.
    pub idle_timeout: Duration,
}

/// `circuitBreaker`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct CircuitBreaker {
    /// Failures in a row that open it.
    pub consecutive_failures: u32,
    /// Share of failures that opens it.
    pub failure_rate: FailureRate,
    /// Slow calls that open it; off unless present.
    pub slow_calls: Option<SlowCalls>,
    /// First ejection.
    pub base_ejection_time: Duration,
    /// Longest ejection.
    pub max_ejection_time: Duration,
    /// Share of a service's endpoints that may be ejected at once (0–100).
    pub max_ejection_percent: f64,
    /// Probes while half open.
    pub half_open_requests: u32,
    /// Whether the kernel's signals count.
    pub kernel_signals: bool,
}

/// `circuitBreaker.failureRate`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct FailureRate {
    /// 0–100.
    pub percent: f64,
    /// Fewer requests in the window decide nothing.
    pub minimum_requests: u32,
    /// Sliding window.
    pub window: Duration,
}

/// `circuitBreaker.slowCalls`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SlowCalls {
    /// A call is slow from here on.
    pub threshold: Duration,
    /// 0–100.
    pub percent: f64,
    /// Fewer requests in the window decide nothing.
    pub minimum_requests: u32,
}

/// `retry`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Retry {
    /// Attempts after the first.
    pub attempts: u32,
    /// What is retried.
    pub retry_on: Vec<RetryOn>,
    /// Methods retried besides the idempotent ones (upper case).
    pub methods: Vec<Arc<str>>,
    /// Retry every method.
    pub unsafe_methods: bool,
    /// Time-out of one attempt.
    pub per_try_timeout: Option<Duration>,
    /// Wait between attempts.
    pub backoff: Backoff,
    /// Bodies up to this size are kept for a retry.
    pub max_body_bytes: u64,
    /// Prefer an endpoint not tried yet.
    pub avoid_previous_hosts: bool,
}

/// A condition of `retry.retryOn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum RetryOn {
    /// No connection could be made.
    ConnectFailure,
    /// The peer refused the stream before processing it.
    RefusedStream,
    /// Reset before the request had been sent.
    ResetBeforeRequest,
    /// Reset at any time before the response's head.
    Reset,
    /// This attempt timed out.
    PerTryTimeout,
    /// An HTTP status.
    Status(u16),
    /// A gRPC status, by number.
    Grpc(u16),
}

/// `retry.backoff`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Backoff {
    /// First wait.
    pub base: Duration,
    /// Longest wait.
    pub max: Duration,
    /// How it is spread.
    pub jitter: Jitter,
}

/// `retryBudget`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RetryBudget {
    /// Retries per hundred requests.
    pub percent: f64,
    /// Retries that are always allowed.
    pub min_per_second: u32,
    /// Window.
    pub ttl: Duration,
}

/// `hedge`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Hedge {
    /// When the second request is sent.
    pub after: HedgeAfter,
    /// How many more requests at most.
    pub max_extra: u32,
}

/// `hedge.after`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub enum HedgeAfter {
    /// Fixed.
    Duration(Duration),
    /// A quantile of the service's latency, 0–1.
    Quantile(f64),
}

/// One entry of `rateLimit`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RateLimit {
    /// Requests admitted …
    pub requests: u32,
    /// … in this time.
    pub per: Duration,
    /// Requests admitted at once; `requests` when omitted.
    pub burst: u32,
    /// What shares a budget. A request without it is not limited by this entry.
    pub key: RateKey,
    /// What happens while the service's breaker is open.
    pub on_breaker_open: OnBreakerOpen,
}

/// `rateLimit[].key`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum RateKey {
    /// Everybody.
    Global,
    /// Value of a header.
    Header(Arc<str>),
    /// Value of a cookie.
    Cookie(Arc<str>),
    /// The client's address.
    SourceIp,
    /// The client's SPIFFE id.
    Identity,
    /// The path without its query.
    Path,
}

/// `rateLimit[].onBreakerOpen`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct OnBreakerOpen {
    /// Share of the rate admitted while open (0–1).
    pub factor: f64,
    /// Recovery afterwards.
    pub recover_percent_per_minute: f64,
}

/// `concurrency.adaptive`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Concurrency {
    /// Lower bound.
    pub min: u32,
    /// Upper bound.
    pub max: u32,
}

/// `timeouts`. `ZERO` switches one off.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Timeouts {
    /// Until a connection to an endpoint is usable, TLS included.
    pub connect: Duration,
    /// The whole request, if a policy says so; a rule's own time-out wins. `None`: [`Timeouts::DEFAULT_REQUEST`], which
    /// does not cover the response's body.
    pub request: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Duration,
}

impl Timeouts {
    /// From the end of a request to the head of its response, where nobody asked for anything else.
    pub const DEFAULT_REQUEST: Duration = Duration::from_secs(15);
}

/// `healthCheck`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Between two probes, jittered.
    pub interval: Duration,
    /// For one probe.
    pub timeout: Duration,
    /// Successes that make an endpoint healthy.
    pub healthy: u32,
    /// Failures that make it unhealthy.
    pub unhealthy: u32,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum Probe {
    /// GET this path; 2xx is healthy.
    Http(Arc<str>),
    /// `grpc.health.v1.Health/Check` of this service name ("" is the server).
    Grpc(Arc<str>),
    /// A connection.
    Tcp,
}

/// `fault`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Fault {
    /// Wait before forwarding: how long, and for which share (0–100).
    pub delay: Option<(Duration, f64)>,
    /// Answer instead of forwarding, and for which share (0–100).
    pub abort: Option<(FaultAbort, f64)>,
    /// Only requests that carry this header.
    pub header: Option<crate::config::NamedMatch>,
}

/// `fault.abort`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum FaultAbort {
    /// An HTTP status.
    Status(u16),
    /// A gRPC status, by number.
    Grpc(u16),
}
