//! The published configurations load, and mean what they say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::PathBuf, time::Duration};

use weft_model::{Checked, Options, config::*, load_paths};

fn load(name: &str) -> Checked {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/contract").join(name);
    load_paths(&[path], Options::default()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn warned(checked: &Checked) -> Vec<&str> {
    checked.warnings.iter().filter_map(|warning| warning.message.split(" has no effect").next()).collect()
}

#[test]
fn the_smallest_configuration_loads() {
    let checked = load("minimal.yaml");
    assert_eq!(checked.warnings, []);
    let config = checked.config;
    let listener = &config.gateways[0].listeners[0];
    assert_eq!(config.gateways[0].addresses, ["127.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((listener.port, &listener.protocol), (8080, &ListenerProtocol::Http));
    let rule = &config.http_routes[0].rules[0];
    assert_eq!(
        rule.matches,
        [HttpMatch { path: PathMatch::Prefix("/".into()), headers: vec![], query: vec![], method: None }]
    );
    assert_eq!(rule.backends[0].weight, 1);
    let service = config.service(&Key::new("default", "hello")).unwrap();
    assert_eq!(service.endpoints[0].address, Address::Ip("127.0.0.1".parse().unwrap()));
}

#[test]
fn the_gateway_configuration_loads() {
    let checked = load("gateway.yaml");
    assert_eq!(warned(&checked), Vec::<String>::new());
    let config = checked.config;
    let shop = &config.http_routes[0];
    assert_eq!(shop.hostnames, [Hostname::Exact("shop.local".into()), Hostname::Wildcard("shop.local".into())]);
    let cart = &shop.rules[1];
    assert_eq!(cart.request_timeout, Some(Duration::from_secs(2)));
    assert_eq!(cart.backend_timeout, Some(Duration::from_millis(500)));
    assert_eq!(cart.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [90, 10]);
    let retry = cart.retry.as_ref().unwrap();
    assert_eq!((retry.attempts, retry.codes.as_slice()), (Some(3), [502, 503, 504].as_slice()));
    let Filter::Redirect(redirect) = &shop.rules[2].filters[0] else { panic!("no redirect") };
    assert_eq!((redirect.status, &redirect.path), (301, &Some(PathModifier::ReplaceFullPath("/cart".into()))));
    let Filter::Mirror(mirror) = &shop.rules[3].filters[1] else { panic!("no mirror") };
    assert_eq!((mirror.numerator, mirror.denominator), (50, 100));
    let grpc = &config.http_routes[1];
    assert_eq!(grpc.kind, RouteKind::Grpc);
    assert_eq!(grpc.rules[0].matches[0].path, PathMatch::Prefix("/helloworld.Greeter".into()));
    assert_eq!(grpc.rules[0].matches[0].method.as_deref(), Some("POST"));
    assert_eq!(config.tcp_routes[0].backends[0].port, 6379);
    let files = config.service(&Key::new("default", "files")).unwrap();
    assert_eq!(files.endpoints[0].address, Address::Name("localhost".into()));
    assert_eq!(config.telemetry.sample_percent, 10.0);
    assert_eq!(config.telemetry.otlp.as_ref().unwrap().protocol, OtlpProtocol::Grpc);
    assert!(config.telemetry.access_log.as_ref().unwrap().when.is_some());
}

#[test]
fn the_policies_of_the_gateway_configuration_are_in_force() {
    let config = load("gateway.yaml").config;
    let cart =
        config.policy_for(Some(&Key::new("default", "cart")), Some((RouteKind::Http, &Key::new("default", "shop"))));
    assert_eq!(cart.load_balancer.slow_start, Duration::from_secs(10));
    assert_eq!(cart.connection_pool.max_pending_requests, 256);
    let breaker = cart.circuit_breaker.unwrap();
    assert_eq!((breaker.half_open_requests, breaker.max_ejection_time), (2, Duration::from_secs(60)));
    assert_eq!(breaker.slow_calls.unwrap().threshold, Duration::from_millis(800));
    let retry = cart.retry.unwrap();
    assert_eq!((retry.attempts, retry.retry_on.len()), (3, 6));
    assert_eq!(cart.rate_limits.len(), 2);
    assert_eq!(cart.rate_limits[1].key, RateKey::Header("x-user".into()));
    assert_eq!(cart.timeouts.request, Some(Duration::from_secs(2)));
    assert_eq!(cart.timeouts.idle, Duration::from_secs(300));
    assert_eq!(cart.health_check.unwrap().probe, Probe::Http("/healthz".into()));
    let files = config.policy_for(Some(&Key::new("default", "files")), None);
    assert_eq!(
        (files.load_balancer.kind, files.load_balancer.hash),
        (BalancerKind::RingHash, HashKey::Header("x-user".into()))
    );
    assert_eq!(files.rate_limits, []);
}

#[test]
fn the_mesh_configuration_loads() {
    let checked = load("mesh.yaml");
    assert_eq!(checked.warnings, []);
    let config = checked.config;
    assert_eq!(config.http_routes[0].parents, [ParentRef::Service { key: Key::new("default", "cart"), port: None }]);
    assert_eq!(config.services[0].mode, ServiceMode::Proxy);
    assert_eq!(config.services[0].cluster_ips.len(), 2);
    assert_eq!(config.services[1].endpoints.iter().map(|endpoint| endpoint.weight).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(&*config.workloads[0].cgroup, "web");
    assert_eq!(config.access_policies[0].services, [Key::new("default", "redis")]);
    assert_eq!(config.access_policies[0].rules[0].from[0].workloads, ["web".into()]);
}

#[test]
fn json_is_read_like_yaml() {
    let text = r#"{
	"apiVersion": "weft.dev/v1alpha1",
	"kind": "Service",
	"metadata": {"name": "a"},
	"spec": {"ports": [{"port": 80}], "endpoints": [{"address": "10.0.0.1", "port": 1}]}
}"#;
    let checked =
        weft_model::load_str("a.json", text, Options::default()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(checked.config.services[0].ports[0].port, 80);
}
