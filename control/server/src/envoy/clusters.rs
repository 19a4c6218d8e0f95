//! A service port as a cluster.

use std::time::Duration;

use weft_model::config::{
    AppProtocol, CircuitBreaker, ConnectionPool, HealthCheck, Policy, Probe, Service, ServicePort,
};

use super::{Built, Kind, Resource, World, balancing, endpoints, names, tls, wire, wire::Typed};

/// Longest wait for a connection where none was asked for: Envoy has no "no time-out".
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// As many streams as HTTP/2 can number.
const STREAMS_MAX: u32 = (1 << 31) - 1;

/// The clusters of a service.
pub(super) fn build(world: &World<'_>, service: &Service, built: &mut Built) {
    if world.protected.contains(&service.key) {
        let why = "an AccessPolicy protects it, and only Weft's own nodes enforce those: reach it through one of them";
        return built.leave_out(format!("Service {}", service.key), why);
    }
    let policy = world.config.policy_for(Some(&service.key), None);
    for port in &service.ports {
        let name = names::cluster(&service.key, port.port);
        match cluster(world, service, port, &policy, &name) {
            Ok(cluster) => {
                built.resources.insert((Kind::Cluster, name), Resource::listed(&cluster));
            }
            Err(why) => built.leave_out(format!("Service {} port {}", service.key, port.port), why),
        }
    }
}

fn cluster(
    world: &World<'_>,
    service: &Service,
    port: &ServicePort,
    policy: &Policy,
    name: &str,
) -> Result<wire::Cluster, String> {
    let http2 = matches!(port.protocol, AppProtocol::Http2 | AppProtocol::Grpc);
    let connect = policy.timeouts.connect;
    let mut cluster = wire::Cluster {
        name: name.to_owned(),
        connect_timeout: Some(if connect.is_zero() { PATIENCE } else { connect }.into()),
        load_balancing_policy: Some(balancing::policies(&policy.load_balancer)),
        health_checks: policy.health_check.iter().filter_map(|check| health_check(check, service, http2)).collect(),
        // What is no longer an endpoint gets nothing, however healthy it is.
        ignore_health_on_host_removal: true,
        circuit_breakers: Some(limits(policy)),
        outlier_detection: policy.circuit_breaker.as_ref().map(outliers),
        common_lb_config: Some(wire::CommonLb {
            healthy_panic_threshold: Some(wire::Percent { value: policy.load_balancer.panic_threshold_percent }),
        }),
        transport_socket: tls::upstream(world, service, port)?,
        ..wire::Cluster::default()
    };
    if port.protocol != AppProtocol::Tcp {
        let options = http_options(&policy.connection_pool, http2).any();
        cluster.typed_extension_protocol_options.insert(wire::UpstreamHttp::NAME.to_owned(), options);
    }
    if endpoints::by_name(service) {
        cluster.set_discovery(wire::Discovery::StrictDns);
        // As Weft's own nodes do it.
        cluster.set_dns_lookup_family(wire::DnsFamily::V4Preferred);
        let endpoints = endpoints::localities(service);
        cluster.load_assignment = Some(wire::ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints });
    } else {
        cluster.set_discovery(wire::Discovery::Eds);
        cluster.eds_cluster_config = Some(wire::EdsConfig { eds_config: Some(wire::ConfigSource::ads()) });
    }
    Ok(cluster)
}

fn http_options(pool: &ConnectionPool, http2: bool) -> wire::UpstreamHttp {
    let version = if http2 {
        wire::HttpVersion::Http2(wire::Http2Options {
            max_concurrent_streams: Some(pool.max_concurrent_streams.clamp(1, STREAMS_MAX)),
        })
    } else {
        wire::HttpVersion::Http1(())
    };
    let most = pool.max_requests_per_connection;
    wire::UpstreamHttp {
        common_http_protocol_options: Some(wire::AnyHttpOptions {
            idle_timeout: Some(pool.idle_timeout.into()),
            max_requests_per_connection: (most > 0).then_some(most),
        }),
        explicit_http_config: Some(wire::ExplicitHttp { version: Some(version) }),
    }
}

fn limits(policy: &Policy) -> wire::CircuitBreakers {
    let pool = &policy.connection_pool;
    let budget = &policy.retry_budget;
    let none = pool.max_retries == 0;
    let thresholds = wire::Thresholds {
        max_connections: Some(pool.max_connections),
        max_pending_requests: Some(pool.max_pending_requests),
        max_requests: Some(pool.max_requests),
        // With a budget Envoy does not look at it.
        max_retries: none.then_some(0),
        retry_budget: (!none).then(|| wire::RetryBudget {
            budget_percent: Some(wire::Percent { value: budget.percent }),
            min_retry_concurrency: Some(budget.min_per_second),
            budget_interval: Some(budget.ttl.into()),
        }),
    };
    wire::CircuitBreakers { thresholds: vec![thresholds] }
}

/// Failures in a row, and the share of failures. Envoy looks at both, and lets endpoints in again, once an `interval`.
fn outliers(breaker: &CircuitBreaker) -> wire::OutlierDetection {
    let rate = &breaker.failure_rate;
    wire::OutlierDetection {
        consecutive_5xx: Some(breaker.consecutive_failures),
        enforcing_consecutive_5xx: Some(100),
        interval: positive(rate.window),
        base_ejection_time: positive(breaker.base_ejection_time),
        max_ejection_time: positive(breaker.max_ejection_time),
        max_ejection_percent: Some(percent(breaker.max_ejection_percent)),
        // Envoy's own idea, which compares endpoints with each other.
        enforcing_success_rate: Some(0),
        failure_percentage_threshold: Some(percent(rate.percent)),
        enforcing_failure_percentage: Some(100),
        failure_percentage_minimum_hosts: Some(1),
        failure_percentage_request_volume: Some(rate.minimum_requests),
    }
}

/// Envoy takes no 0 here.
fn positive(time: Duration) -> Option<wire::Duration> {
    Some(time.max(Duration::from_millis(1)).into())
}

/// 0 to 100, rounded.
fn percent(value: f64) -> u32 {
    value.clamp(0.0, 100.0).round() as u32
}

/// Nothing for what Envoy cannot ask: it takes no cluster with gRPC's check that does not speak HTTP/2.
fn health_check(check: &HealthCheck, service: &Service, http2: bool) -> Option<wire::HealthCheck> {
    let host = format!("{}.{}", service.key.name, service.key.namespace);
    let checker = match &check.probe {
        Probe::Http(path) => wire::Checker::Http(wire::HttpCheck {
            host,
            path: path.to_string(),
            expected_statuses: vec![wire::Range { start: 200, end: 300 }],
            codec_client_type: i32::from(http2),
        }),
        Probe::Grpc(_) if !http2 => return None,
        Probe::Grpc(name) => wire::Checker::Grpc(wire::GrpcCheck { service_name: name.to_string(), authority: host }),
        Probe::Tcp => wire::Checker::Tcp(()),
    };
    Some(wire::HealthCheck {
        timeout: positive(check.timeout),
        interval: positive(check.interval),
        // Envoy asks endpoints that get no requests only once a minute otherwise.
        no_traffic_interval: positive(check.interval),
        interval_jitter_percent: 10,
        healthy_threshold: Some(check.healthy),
        unhealthy_threshold: Some(check.unhealthy),
        checker: Some(checker),
    })
}
