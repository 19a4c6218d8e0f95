//! A policy on a route overrides one on its service field by field.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use weft_model::{Options, config::*, load_str};

/// The policy for a service with one spec, over a route with another.
fn merged(service: &str, route: &str) -> Policy {
    let policy = |name: &str, kind: &str, fields: &str| match fields {
        "" => String::new(),
        fields => format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{{kind: {kind}, name: x}}]\n  {fields}\n"
        ),
    };
    let text = format!("{}{}", policy("a", "Service", service), policy("b", "HTTPRoute", route));
    let options = Options { require_refs: false };
    let config = match text.is_empty() {
        true => Config::default(),
        false => load_str("p.yaml", &text, options).unwrap_or_else(|problems| panic!("{problems}")).config,
    };
    let key = Key::new("default", "x");
    config.policy_for(Some(&key), Some((RouteKind::Http, &key)))
}

#[test]
fn defaults_are_those_of_the_contract() {
    let policy = merged("", "");
    assert_eq!(policy, Policy::default());
    assert_eq!(
        policy.load_balancer,
        LoadBalancer {
            kind: BalancerKind::PeakEwma,
            hash: HashKey::SourceIp,
            slow_start: Duration::ZERO,
            zone_aware: true,
            panic_threshold_percent: 50.0,
        }
    );
    assert_eq!(
        policy.connection_pool,
        ConnectionPool {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 1024,
            max_requests_per_connection: 0,
            max_concurrent_streams: 100,
            idle_timeout: Duration::from_secs(60),
        }
    );
    assert_eq!(policy.retry_budget, RetryBudget { percent: 20.0, min_per_second: 10, ttl: Duration::from_secs(10) });
    let (connect, idle) = (Duration::from_secs(1), Duration::from_secs(300));
    // Nobody wrote a request time-out: the default of 15 s counts, and does not cover the response's body.
    assert_eq!(policy.timeouts, Timeouts { connect, request: None, idle });
    assert!(policy.circuit_breaker.is_none() && policy.retry.is_none() && policy.hedge.is_none());
    assert!(policy.rate_limits.is_empty() && policy.concurrency.is_none() && policy.fault.is_none());
    assert!(policy.health_check.is_none());
}

#[test]
fn present_but_empty_is_on_with_defaults() {
    let policy = merged("circuitBreaker: {}\n  retry: {}\n  hedge: {}\n  concurrency: {adaptive: {}}", "");
    assert_eq!(
        policy.circuit_breaker.unwrap(),
        CircuitBreaker {
            consecutive_failures: 5,
            failure_rate: FailureRate { percent: 50.0, minimum_requests: 20, window: Duration::from_secs(10) },
            slow_calls: None,
            base_ejection_time: Duration::from_secs(5),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 50.0,
            half_open_requests: 1,
            kernel_signals: true,
        }
    );
    assert_eq!(
        policy.retry.unwrap(),
        Retry {
            attempts: 2,
            retry_on: vec![
                RetryOn::ConnectFailure,
                RetryOn::RefusedStream,
                RetryOn::ResetBeforeRequest,
                RetryOn::Status(502),
                RetryOn::Status(503),
                RetryOn::Status(504),
                RetryOn::Grpc(14),
            ],
            methods: vec![],
            unsafe_methods: false,
            per_try_timeout: None,
            backoff: Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250), jitter: Jitter::Full },
            max_body_bytes: 65_536,
            avoid_previous_hosts: true,
        }
    );
    assert_eq!(policy.hedge.unwrap(), Hedge { after: HedgeAfter::Quantile(0.95), max_extra: 1 });
    assert_eq!(policy.concurrency.unwrap(), Concurrency { min: 3, max: 1000 });
}

#[test]
fn fields_of_the_route_win_and_the_others_stay() {
    let policy = merged(
        "timeouts: {connect: 2s, request: 3s}\n  circuitBreaker: {consecutiveFailures: 9, failureRate: {percent: 10, window: 1s}}\n  retry: {attempts: 1, retryOn: [502, 503]}",
        "timeouts: {request: 4s}\n  circuitBreaker: {failureRate: {percent: 12.5}}\n  retry: {retryOn: [504]}",
    );
    assert_eq!(policy.timeouts.connect, Duration::from_secs(2));
    assert_eq!(policy.timeouts.request, Some(Duration::from_secs(4)));
    assert_eq!(policy.timeouts.idle, Duration::from_secs(300));
    let breaker = policy.circuit_breaker.unwrap();
    assert_eq!((breaker.consecutive_failures, breaker.failure_rate.percent), (9, 12.5));
    assert_eq!(breaker.failure_rate.window, Duration::from_secs(1));
    let retry = policy.retry.unwrap();
    assert_eq!((retry.attempts, retry.retry_on), (1, vec![RetryOn::Status(504)]));
}

#[test]
fn a_choice_is_replaced_whole() {
    let policy = merged(
        "loadBalancer: {type: Maglev, hash: {cookie: c}}\n  healthCheck: {path: /a, interval: 7s}\n  fault: {abort: {status: 500, percent: 3}}",
        "loadBalancer: {hash: {header: X-User}}\n  healthCheck: {tcp: {}}\n  fault: {abort: {grpcStatus: UNAVAILABLE}}",
    );
    assert_eq!(policy.load_balancer.kind, BalancerKind::Maglev);
    assert_eq!(policy.load_balancer.hash, HashKey::Header("x-user".into()));
    let check = policy.health_check.unwrap();
    assert_eq!((check.probe, check.interval), (Probe::Tcp, Duration::from_secs(7)));
    assert_eq!(policy.fault.unwrap().abort, Some((FaultAbort::Grpc(14), 3.0)));
    // A word replaces a mapping, and a mapping a word.
    assert_eq!(
        merged("loadBalancer: {hash: {cookie: c}}", "loadBalancer: {hash: path}").load_balancer.hash,
        HashKey::Path
    );
    assert_eq!(
        merged("loadBalancer: {hash: path}", "loadBalancer: {hash: {sourceIP: true}}").load_balancer.hash,
        HashKey::SourceIp
    );
}

#[test]
fn a_budget_belongs_to_whoever_wrote_the_list() {
    let own = "rateLimit: [{requests: 1, per: 1s}]";
    let config = |service: &str, route: &str| {
        let policy = |name: &str, kind: &str, fields: &str| {
            format!(
                "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  targetRefs: [{{kind: {kind}, name: x}}]\n  {fields}\n"
            )
        };
        let text = format!("{}{}", policy("a", "Service", service), policy("b", "HTTPRoute", route));
        load_str("p.yaml", &text, Options { require_refs: false }).unwrap().config
    };
    let key = Key::new("default", "x");
    for (service, route, owner) in [
        (own, "timeouts: {request: 1s}", Some(("a", "Service default/x"))),
        (own, own, Some(("b", "HTTPRoute default/x"))),
        ("timeouts: {request: 1s}", own, Some(("b", "HTTPRoute default/x"))),
        // Said, and empty: no limits, and no budget of the service's.
        (own, "rateLimit: []", Some(("b", "HTTPRoute default/x"))),
        ("timeouts: {request: 1s}", "timeouts: {request: 1s}", None),
    ] {
        let config = config(service, route);
        let found = config.rate_limit_owner(&key, Some((RouteKind::Http, &key)));
        let found = found.map(|(policy, target)| (policy.key.name.to_string(), target.to_string()));
        let owner = owner.map(|(policy, target)| (policy.to_owned(), target.to_owned()));
        assert_eq!(found, owner, "{service} under {route}");
        // A GRPCRoute of the same name is somebody else.
        let other = config.rate_limit_owner(&key, Some((RouteKind::Grpc, &key)));
        assert_eq!(other.is_some(), service == own);
    }
}

#[test]
fn both_spellings_mean_the_same() {
    let limits = |keys: &str| -> Vec<RateKey> {
        let entries: Vec<String> = keys.split(';').map(|key| format!("{{requests: 1, per: 1s, key: {key}}}")).collect();
        let policy = merged(&format!("rateLimit: [{}]", entries.join(", ")), "");
        policy.rate_limits.into_iter().map(|limit| limit.key).collect()
    };
    assert_eq!(
        limits(
            "global;{global: {}};sourceIP;{sourceIP: {}};{sourceIP: true};identity;path;{path: {}};{header: X-A};{cookie: c}"
        ),
        [
            RateKey::Global,
            RateKey::Global,
            RateKey::SourceIp,
            RateKey::SourceIp,
            RateKey::SourceIp,
            RateKey::Identity,
            RateKey::Path,
            RateKey::Path,
            RateKey::Header("x-a".into()),
            RateKey::Cookie("c".into()),
        ]
    );
    let probe = |check: &str| merged(&format!("healthCheck: {{{check}}}"), "").health_check.unwrap().probe;
    assert_eq!(probe("grpc: a.B"), Probe::Grpc("a.B".into()));
    assert_eq!(probe("grpc: {service: a.B}"), Probe::Grpc("a.B".into()));
    assert_eq!(probe("grpc: {}"), Probe::Grpc("".into()));
    assert_eq!(probe("tcp: true"), Probe::Tcp);
    assert_eq!(probe("tcp: {}"), Probe::Tcp);
    let size = |size: &str| merged(&format!("retry: {{maxBodyBytes: {size}}}"), "").retry.unwrap().max_body_bytes;
    assert_eq!((size("1MiB"), size("64KiB"), size("7")), (1 << 20, 64 << 10, 7));
    let after = |after: &str| merged(&format!("hedge: {{after: {after}}}"), "").hedge.unwrap().after;
    assert_eq!(after("50ms"), HedgeAfter::Duration(Duration::from_millis(50)));
    assert_eq!(after("p99"), HedgeAfter::Quantile(0.99));
}

#[test]
fn reasons_to_retry_are_expanded() {
    let reasons = |list: &str| merged(&format!("retry: {{retryOn: [{list}]}}"), "").retry.unwrap().retry_on;
    assert_eq!(reasons("gateway-error, 502"), [502, 503, 504].map(RetryOn::Status));
    assert_eq!(reasons("5xx, 503").len(), 100);
    assert_eq!(reasons("reset, per-try-timeout"), [RetryOn::Reset, RetryOn::PerTryTimeout]);
    assert_eq!(
        reasons("\"grpc:UNAVAILABLE\", \"grpc:8\", \"503\""),
        [RetryOn::Grpc(14), RetryOn::Grpc(8), RetryOn::Status(503)]
    );
}

#[test]
fn bounds_from_two_places_never_cross() {
    let breaker = merged("circuitBreaker: {baseEjectionTime: 20s}", "circuitBreaker: {maxEjectionTime: 10s}")
        .circuit_breaker
        .unwrap();
    assert!(breaker.base_ejection_time <= breaker.max_ejection_time, "{breaker:?}");
    assert_eq!(breaker.max_ejection_time, Duration::from_secs(10));
    let breaker = merged("circuitBreaker: {baseEjectionTime: 10m}", "").circuit_breaker.unwrap();
    assert_eq!(
        (breaker.base_ejection_time, breaker.max_ejection_time),
        (Duration::from_secs(600), Duration::from_secs(600))
    );
    let backoff = merged("retry: {backoff: {base: 1s}}", "").retry.unwrap().backoff;
    assert_eq!((backoff.base, backoff.max), (Duration::from_secs(1), Duration::from_secs(1)));
    assert_eq!(
        merged("concurrency: {adaptive: {min: 2000}}", "").concurrency.unwrap(),
        Concurrency { min: 2000, max: 2000 }
    );
    assert_eq!(merged("concurrency: {adaptive: {max: 2}}", "").concurrency.unwrap(), Concurrency { min: 2, max: 2 });
}

#[test]
fn a_route_alone_and_a_service_alone_have_their_policy() {
    let text = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a, namespace: n}\nspec: {targetRefs: [{kind: GRPCRoute, name: x}], timeouts: {request: 1s}}\n";
    let config = load_str("p.yaml", text, Options { require_refs: false }).unwrap().config;
    let key = Key::new("n", "x");
    assert_eq!(config.policy_for(None, Some((RouteKind::Grpc, &key))).timeouts.request, Some(Duration::from_secs(1)));
    assert_eq!(config.policy_for(None, Some((RouteKind::Http, &key))), Policy::default());
    assert_eq!(config.policy_for(Some(&key), None), Policy::default());
}
