//! The policy in force: which TrafficPolicies count, and the defaults of what they do not say.

mod merge;

use std::{sync::Arc, time::Duration};

use crate::{
    config::{
        Backoff, BalancerKind, CircuitBreaker, Concurrency, Config, ConnectionPool, FailureRate, Fault, FaultAbort,
        HashKey, HealthCheck, Hedge, HedgeAfter, Jitter, Key, LoadBalancer, NamedMatch, OnBreakerOpen, Policy,
        PolicyTarget, Probe, RateKey, RateLimit, Retry, RetryBudget, RetryOn, RouteKind, Service, SlowCalls, Timeouts,
        TrafficPolicy, ValueMatch,
    },
    duration,
    validate::syntax,
    written::{self, Chosen, DurationText, GrpcStatus, RetryCondition, TrafficPolicySpec},
};

impl Config {
    /// The service with this key.
    pub fn service(&self, key: &Key) -> Option<&Service> {
        self.services.iter().map(Arc::as_ref).find(|service| service.key == *key)
    }

    /// The policy in force for a service reached over a route: the route's fields over the service's over the defaults.
    pub fn policy_for(&self, service: Option<&Key>, route: Option<(RouteKind, &Key)>) -> Policy {
        let spec = |wanted: PolicyTarget| self.policy_on(&wanted).map(|policy| &policy.spec);
        let service = service.and_then(|key| spec(PolicyTarget::Service(key.clone())));
        let route = route.and_then(|(kind, key)| spec(PolicyTarget::route(kind, key)));
        match (service, route) {
            (Some(service), Some(route)) => Policy::new(&service.merged(route)),
            (Some(spec), None) | (None, Some(spec)) => Policy::new(spec),
            (None, None) => Policy::default(),
        }
    }

    /// The policy whose target is exactly this.
    pub fn policy_on(&self, target: &PolicyTarget) -> Option<&TrafficPolicy> {
        self.traffic_policies.iter().find(|policy| policy.targets.contains(target))
    }

    /// Whose `rateLimit` is in force for a service reached over a route: the document that it is written in, and the
    /// target that the budget belongs to. The route's list replaces the service's, even with an empty one.
    pub fn rate_limit_owner(
        &self,
        service: &Key,
        route: Option<(RouteKind, &Key)>,
    ) -> Option<(&TrafficPolicy, PolicyTarget)> {
        let targets =
            [route.map(|(kind, key)| PolicyTarget::route(kind, key)), Some(PolicyTarget::Service(service.clone()))];
        targets.into_iter().flatten().find_map(|target| {
            let policy = self.policy_on(&target).filter(|policy| policy.spec.rate_limit.is_some())?;
            Some((policy, target))
        })
    }

    /// Whether a route has a TrafficPolicy of its own.
    pub fn has_route_policy(&self, kind: RouteKind, key: &Key) -> bool {
        self.policy_on(&PolicyTarget::route(kind, key)).is_some()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(&TrafficPolicySpec::default())
    }
}

impl Policy {
    /// The policy of a checked spec, with every default filled in.
    pub fn new(spec: &TrafficPolicySpec) -> Self {
        Self {
            load_balancer: load_balancer(spec.load_balancer.as_ref()),
            connection_pool: connection_pool(spec.connection_pool.as_ref()),
            circuit_breaker: spec.circuit_breaker.as_ref().map(circuit_breaker),
            retry: spec.retry.as_ref().map(retry),
            retry_budget: {
                let budget = spec.retry_budget.clone().unwrap_or_default();
                RetryBudget {
                    percent: budget.percent.unwrap_or(20.0),
                    min_per_second: budget.min_per_second.unwrap_or(10),
                    ttl: time(&budget.ttl, 10_000),
                }
            },
            hedge: spec.hedge.as_ref().map(|hedge| Hedge {
                after: hedge.after.as_deref().and_then(hedge_after).unwrap_or(HedgeAfter::Quantile(0.95)),
                max_extra: hedge.max_extra.unwrap_or(1),
            }),
            rate_limits: spec.rate_limit.iter().flatten().filter_map(rate_limit).collect(),
            concurrency: spec.concurrency.as_ref().map(|concurrency| {
                let adaptive = concurrency.adaptive.clone().unwrap_or_default();
                let (min, max) = bounds(adaptive.min, adaptive.max, 3, 1000);
                Concurrency { min, max }
            }),
            timeouts: {
                let timeouts = spec.timeouts.clone().unwrap_or_default();
                Timeouts {
                    connect: time(&timeouts.connect, 1000),
                    request: timeouts.request.as_ref().map(|text| time(&Some(text.clone()), 0)),
                    idle: time(&timeouts.idle, 300_000),
                }
            },
            health_check: spec.health_check.as_ref().and_then(health_check),
            fault: spec.fault.as_ref().map(fault),
            priority: spec.priority.unwrap_or(Self::DEFAULT_PRIORITY),
        }
    }
}

/// A checked duration, or the default in milliseconds.
fn time(text: &Option<DurationText>, default: u64) -> Duration {
    checked(text).unwrap_or(Duration::from_millis(default))
}

fn checked(text: &Option<DurationText>) -> Option<Duration> {
    text.as_ref().and_then(|DurationText(text)| duration::parse(text).ok())
}

/// Two bounds that do not cross, although they may come from different documents or one of them from the defaults.
/// What was written moves the default of the other; of two that were written the upper one stays.
fn bounds<T: Ord + Copy>(least: Option<T>, most: Option<T>, default_least: T, default_most: T) -> (T, T) {
    match (least, most) {
        (Some(least), None) => (least, default_most.max(least)),
        (least, Some(most)) => (least.unwrap_or(default_least).min(most), most),
        (None, None) => (default_least, default_most),
    }
}

fn lower(text: &str) -> Arc<str> {
    text.to_ascii_lowercase().into()
}

fn load_balancer(written: Option<&written::LoadBalancer>) -> LoadBalancer {
    use written::BalancerType as B;
    let written = written.cloned().unwrap_or_default();
    LoadBalancer {
        kind: match written.kind.unwrap_or(B::PeakEWMA) {
            B::PeakEWMA => BalancerKind::PeakEwma,
            B::LeastRequest => BalancerKind::LeastRequest,
            B::RoundRobin => BalancerKind::RoundRobin,
            B::Random => BalancerKind::Random,
            B::RingHash => BalancerKind::RingHash,
            B::Maglev => BalancerKind::Maglev,
        },
        hash: match &written.hash {
            Some(written::HashOn::Name(written::HashName::Path)) => HashKey::Path,
            Some(written::HashOn::Field(written::HashField { header: Some(name), .. })) => HashKey::Header(lower(name)),
            Some(written::HashOn::Field(written::HashField { cookie: Some(name), .. })) => {
                HashKey::Cookie(name.as_str().into())
            }
            Some(written::HashOn::Field(written::HashField { path: Some(path), .. })) if path.is_chosen() => {
                HashKey::Path
            }
            _ => HashKey::SourceIp,
        },
        slow_start: time(&written.slow_start, 0),
        zone_aware: written.zone_aware.unwrap_or(true),
        panic_threshold_percent: written.panic_threshold_percent.unwrap_or(50.0),
    }
}

fn connection_pool(written: Option<&written::ConnectionPool>) -> ConnectionPool {
    let written = written.cloned().unwrap_or_default();
    ConnectionPool {
        max_connections: written.max_connections.unwrap_or(1024),
        max_pending_requests: written.max_pending_requests.unwrap_or(1024),
        max_requests: written.max_requests.unwrap_or(1024),
        max_retries: written.max_retries.unwrap_or(1024),
        max_requests_per_connection: written.max_requests_per_connection.unwrap_or(0),
        max_concurrent_streams: written.http2.and_then(|http2| http2.max_concurrent_streams).unwrap_or(100),
        idle_timeout: time(&written.idle_timeout, 60_000),
    }
}

fn circuit_breaker(written: &written::CircuitBreaker) -> CircuitBreaker {
    let rate = written.failure_rate.clone().unwrap_or_default();
    let (base_ejection_time, max_ejection_time) = bounds(
        checked(&written.base_ejection_time),
        checked(&written.max_ejection_time),
        Duration::from_secs(5),
        Duration::from_secs(300),
    );
    CircuitBreaker {
        consecutive_failures: written.consecutive_failures.unwrap_or(5),
        failure_rate: FailureRate {
            percent: rate.percent.unwrap_or(50.0),
            minimum_requests: rate.minimum_requests.unwrap_or(20),
            window: time(&rate.window, 10_000),
        },
        slow_calls: written.slow_calls.as_ref().map(|slow| SlowCalls {
            threshold: time(&slow.threshold, 1000),
            percent: slow.percent.unwrap_or(50.0),
            minimum_requests: slow.minimum_requests.unwrap_or(20),
        }),
        base_ejection_time,
        max_ejection_time,
        max_ejection_percent: written.max_ejection_percent.unwrap_or(50.0),
        half_open_requests: written.half_open_requests.unwrap_or(1),
        kernel_signals: written.kernel_signals.unwrap_or(true),
    }
}

fn retry(written: &written::Retry) -> Retry {
    let backoff = written.backoff.clone().unwrap_or_default();
    let (base, max) =
        bounds(checked(&backoff.base), checked(&backoff.max), Duration::from_millis(25), Duration::from_millis(250));
    let mut reasons: Vec<RetryOn> = match &written.retry_on {
        Some(list) => list.iter().filter_map(retry_on).flatten().collect(),
        None => [RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::ResetBeforeRequest]
            .into_iter()
            .chain([502, 503, 504].map(RetryOn::Status))
            .chain([RetryOn::Grpc(14)])
            .collect(),
    };
    // `5xx` and `503` may both be written.
    let mut seen = Vec::with_capacity(reasons.len());
    reasons.retain(|reason| {
        !seen.contains(reason) && {
            seen.push(*reason);
            true
        }
    });
    Retry {
        attempts: written.attempts.unwrap_or(2),
        retry_on: reasons,
        methods: written.methods.iter().flatten().map(|method| method.as_str().into()).collect(),
        unsafe_methods: written.unsafe_methods.unwrap_or(false),
        per_try_timeout: checked(&written.per_try_timeout),
        backoff: Backoff { base, max, jitter: backoff.jitter.unwrap_or(Jitter::Full) },
        max_body_bytes: written.max_body_bytes.as_ref().and_then(written::ByteSize::bytes).unwrap_or(64 << 10),
        avoid_previous_hosts: written.avoid_previous_hosts.unwrap_or(true),
    }
}

/// The words of `retryOn` besides status codes and `grpc:…`.
pub(crate) const RETRY_WORDS: [&str; 7] =
    ["connect-failure", "refused-stream", "reset-before-request", "reset", "per-try-timeout", "5xx", "gateway-error"];

/// What one entry of `retryOn` stands for.
pub(crate) fn retry_on(written: &RetryCondition) -> Option<Vec<RetryOn>> {
    let word = match written {
        RetryCondition::Status(status) => return (100..=599).contains(status).then(|| vec![RetryOn::Status(*status)]),
        RetryCondition::Word(word) => word.as_str(),
    };
    Some(match word {
        "connect-failure" => vec![RetryOn::ConnectFailure],
        "refused-stream" => vec![RetryOn::RefusedStream],
        "reset-before-request" => vec![RetryOn::ResetBeforeRequest],
        "reset" => vec![RetryOn::Reset],
        "per-try-timeout" => vec![RetryOn::PerTryTimeout],
        "gateway-error" => [502, 503, 504].map(RetryOn::Status).to_vec(),
        "5xx" => (500..=599).map(RetryOn::Status).collect(),
        word => match word.strip_prefix("grpc:") {
            Some(status) => vec![RetryOn::Grpc(syntax::grpc_status(status)?)],
            None => {
                return word
                    .parse()
                    .ok()
                    .filter(|status| (100..=599).contains(status))
                    .map(|status| vec![RetryOn::Status(status)]);
            }
        },
    })
}

/// `50ms`, `p95`, `p99.9`.
pub(crate) fn hedge_after(text: &str) -> Option<HedgeAfter> {
    if let Some(percent) = text.strip_prefix('p') {
        let plain = percent.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let percent: f64 = percent.parse().ok().filter(|_| plain)?;
        return (percent > 0.0 && percent < 100.0).then_some(HedgeAfter::Quantile(percent / 100.0));
    }
    let after = duration::parse(text).ok()?;
    (!after.is_zero()).then_some(HedgeAfter::Duration(after))
}

fn rate_limit(written: &written::RateLimit) -> Option<RateLimit> {
    let open = written.on_breaker_open.clone().unwrap_or_default();
    let requests = written.requests?;
    Some(RateLimit {
        requests,
        per: checked(&written.per)?,
        burst: written.burst.unwrap_or(requests),
        key: match &written.key {
            None | Some(written::RateKey::Name(written::RateKeyName::Global)) => RateKey::Global,
            Some(written::RateKey::Name(written::RateKeyName::SourceIp)) => RateKey::SourceIp,
            Some(written::RateKey::Name(written::RateKeyName::Identity)) => RateKey::Identity,
            Some(written::RateKey::Name(written::RateKeyName::Path)) => RateKey::Path,
            Some(written::RateKey::Field(field)) => rate_key(field),
        },
        on_breaker_open: OnBreakerOpen {
            factor: open.factor.unwrap_or(0.3),
            recover_percent_per_minute: open.recover_percent_per_minute.unwrap_or(5.0),
        },
    })
}

fn rate_key(field: &written::RateKeyField) -> RateKey {
    let chosen = |choice: &Option<Chosen>| choice.as_ref().is_some_and(Chosen::is_chosen);
    match field {
        written::RateKeyField { header: Some(name), .. } => RateKey::Header(lower(name)),
        written::RateKeyField { cookie: Some(name), .. } => RateKey::Cookie(name.as_str().into()),
        field if chosen(&field.source_ip) => RateKey::SourceIp,
        field if chosen(&field.identity) => RateKey::Identity,
        field if chosen(&field.path) => RateKey::Path,
        _ => RateKey::Global,
    }
}

/// Nothing when no probe is chosen: a route's policy may change a check that its service does not have.
fn health_check(written: &written::HealthCheck) -> Option<HealthCheck> {
    let probe = match written {
        written::HealthCheck { path: Some(path), .. } => Probe::Http(path.as_str().into()),
        written::HealthCheck { grpc: Some(written::GrpcProbe::Name(name)), .. } => Probe::Grpc(name.as_str().into()),
        written::HealthCheck { grpc: Some(written::GrpcProbe::Full(full)), .. } => {
            Probe::Grpc(full.service.as_deref().unwrap_or_default().into())
        }
        written::HealthCheck { tcp: Some(tcp), .. } if tcp.is_chosen() => Probe::Tcp,
        _ => return None,
    };
    Some(HealthCheck {
        probe,
        interval: time(&written.interval, 5000),
        timeout: time(&written.timeout, 1000),
        healthy: written.healthy.unwrap_or(2),
        unhealthy: written.unhealthy.unwrap_or(3),
    })
}

/// A gRPC status as written.
pub(crate) fn grpc_code(written: &GrpcStatus) -> Option<u16> {
    match written {
        GrpcStatus::Code(code) => Some(*code).filter(|code| usize::from(*code) < syntax::GRPC.len()),
        GrpcStatus::Name(name) => syntax::grpc_status(name),
    }
}

fn fault(written: &written::Fault) -> Fault {
    Fault {
        delay: written.delay.as_ref().and_then(|delay| Some((checked(&delay.fixed)?, delay.percent.unwrap_or(100.0)))),
        abort: written.abort.as_ref().and_then(|abort| {
            let how = match (abort.status, &abort.grpc_status) {
                (Some(status), _) => FaultAbort::Status(status),
                (None, Some(status)) => FaultAbort::Grpc(grpc_code(status)?),
                (None, None) => return None,
            };
            Some((how, abort.percent.unwrap_or(100.0)))
        }),
        header: written.header.as_ref().and_then(|header| {
            let value: Arc<str> = header.value.as_deref()?.into();
            let value = match header.kind {
                Some(written::ValueMatchType::RegularExpression) => ValueMatch::Regex(value),
                _ => ValueMatch::Exact(value),
            };
            Some(NamedMatch { name: lower(header.name.as_deref()?), value })
        }),
    }
}
