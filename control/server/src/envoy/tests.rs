//! What configurations come to.
#![allow(clippy::unwrap_used, clippy::panic)]

use prost::Message;
use weft_model::{Options, config::Address, load_str};

use super::{wire::*, *};

const GATEWAY: &str = include_str!("../../../model/tests/contract/gateway.yaml");
const MESH: &str = include_str!("../../../model/tests/contract/mesh.yaml");
const MINIMAL: &str = include_str!("../../../model/tests/contract/minimal.yaml");

fn config(text: &str) -> Config {
    load_str("test.yaml", text, Options { require_refs: false }).unwrap_or_else(|e| panic!("{e:?}")).config
}

fn names(built: &Built, kind: Kind, listed: bool) -> Vec<&str> {
    let all = built.resources.iter().filter(|((of, _), resource)| *of == kind && resource.listed == listed);
    all.map(|((_, name), _)| name.as_str()).collect()
}

fn get<M: Message + Default>(built: &Built, kind: Kind, name: &str) -> M {
    let resource = built.resources.get(&(kind, name.to_owned()));
    M::decode(resource.unwrap_or_else(|| panic!("there is no {name}")).body.clone()).unwrap()
}

fn cluster(built: &Built, name: &str) -> Cluster {
    get(built, Kind::Cluster, name)
}

fn routes(built: &Built, name: &str) -> RouteConfiguration {
    get(built, Kind::Routes, name)
}

fn action(route: &Route) -> &RouteAction {
    match &route.action {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

/// A Service `web` with port 80, and what more is written.
fn web(more: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  \
         ports: [{{name: http, port: 80, appProtocol: http}}]\n  endpoints: [{{address: 10.0.0.1, port: 8080}}]\n---\n{more}"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web}}\nspec:\n  \
         targetRefs: [{{group: weft.dev, kind: Service, name: web}}]\n  {spec}\n---\n"
    )
}

fn web_cluster(policy_spec: &str) -> Cluster {
    cluster(&build(&config(&web(&policy(policy_spec)))), "default/web:80")
}

#[test]
fn the_contracts_gateway_comes_to_this() {
    let built = build(&config(GATEWAY));
    let clusters =
        ["default/cart-v2:80", "default/cart:80", "default/files:80", "default/greeter:50051", "default/redis:6379"];
    assert_eq!(names(&built, Kind::Cluster, true), clusters);
    let assignments: Vec<&str> = clusters.into_iter().filter(|name| !name.contains("files")).collect();
    assert_eq!(names(&built, Kind::Assignment, true), assignments);
    assert_eq!(names(&built, Kind::Listener, true), ["gateway/127.0.0.1:8080", "gateway/127.0.0.1:8081"]);
    assert_eq!(names(&built, Kind::Routes, true), ["gateway/127.0.0.1:8080"]);
    let api = names(&built, Kind::Listener, false);
    for name in ["cart", "cart:80", "cart.default", "cart.default:80", "cart-v2.default:80", "greeter:50051"] {
        assert!(api.contains(&name), "{name} of {api:?}");
    }
    assert_eq!(api.len(), 12, "nothing for redis, which is TCP, and for files, which is a name: {api:?}");
    assert_eq!(built.left_out.len(), 1);
    assert_eq!(built.left_out[0].what, "Service files as xds:///files");

    let routes = routes(&built, "gateway/127.0.0.1:8080");
    let domains: Vec<&str> = routes.virtual_hosts.iter().map(|host| &*host.domains[0]).collect();
    assert_eq!(domains, ["grpc.local", "shop.local", "*.shop.local", "*"]);
    let shop: Vec<&str> = routes.virtual_hosts[1].routes.iter().map(|route| &*route.name).collect();
    let expected = ["default/shop/old", "default/shop/files", "default/shop/cart-canary", "default/shop/cart"];
    assert_eq!(shop, expected);
    assert!(routes.virtual_hosts[3].routes.is_empty(), "no route is for other hosts: 404");

    let cart = &routes.virtual_hosts[1].routes[3];
    let Some(Target::Weighted(weighted)) = &action(cart).target else { panic!("{cart:?}") };
    let shares: Vec<_> = weighted.clusters.iter().map(|share| (&*share.name, share.weight.unwrap())).collect();
    assert_eq!(shares, [("default/cart:80", 90), ("default/cart-v2:80", 10)]);
    assert_eq!(action(cart).timeout.clone().unwrap().seconds, 2);
    let retry = action(cart).retry_policy.clone().unwrap();
    assert_eq!(retry.num_retries, Some(3));
    assert_eq!(retry.retry_on, "connect-failure,refused-stream,reset-before-request,retriable-status-codes");
    assert_eq!(retry.retriable_status_codes, [502, 503, 504]);
    assert_eq!(retry.per_try_timeout.unwrap().nanos, 300_000_000, "the policy's, which is shorter than the rule's");
    assert_eq!(cart.request_headers_to_remove, ["x-internal"]);
    assert_eq!(cart.request_headers_to_add[0].header.clone().unwrap().key, "x-shop");

    let Some(Action::Redirect(old)) = &routes.virtual_hosts[1].routes[0].action else { panic!() };
    assert_eq!((old.response_code, &old.path), (0, &Some(RedirectPath::Full("/cart".into()))));
    let files = action(&routes.virtual_hosts[1].routes[1]);
    assert_eq!(files.regex_rewrite.clone().unwrap().pattern.unwrap().regex, "^/files/?");
    assert_eq!(files.request_mirror_policies[0].cluster, "default/cart-v2:80");
    assert_eq!(files.hash_policy.len(), 1);
}

#[test]
fn the_contracts_mesh_keeps_what_a_policy_protects_to_itself() {
    let built = build(&config(MESH));
    assert_eq!(names(&built, Kind::Cluster, true), ["default/cart:80"]);
    assert!(names(&built, Kind::Listener, true).is_empty());
    assert_eq!(built.left_out.len(), 1);
    assert!(built.left_out[0].what == "Service redis" && built.left_out[0].why.contains("AccessPolicy"));
    // The route that is bound to the service is that of its callers.
    let routes = routes(&built, "service/default/cart:80");
    assert_eq!(routes.virtual_hosts[0].domains, ["*"]);
    let route = &routes.virtual_hosts[0].routes[0];
    assert_eq!(route.name, "default/cart/0");
    let whole = action(route).max_stream_duration.clone().unwrap().max_stream_duration.unwrap();
    assert_eq!(whole.seconds, 2);
}

#[test]
fn the_smallest_configuration_is_complete() {
    let built = build(&config(MINIMAL));
    let listener: Listener = get(&built, Kind::Listener, "gateway/127.0.0.1:8080");
    let filter = listener.filter_chains[0].filters[0].typed_config.clone().unwrap();
    assert_eq!(filter.type_url, HttpConnectionManager::type_url());
    let manager = HttpConnectionManager::decode(filter.value).unwrap();
    let rds = manager.rds.unwrap();
    assert!(rds.config_source.unwrap().ads.is_some());
    assert_eq!(rds.route_config_name, "gateway/127.0.0.1:8080");
    assert_eq!(manager.http_filters.last().unwrap().typed_config.clone().unwrap().type_url, Router::type_url());
    assert!(names(&built, Kind::Routes, true).contains(&rds.route_config_name.as_str()));
}

#[test]
fn two_builds_have_the_same_bytes_and_versions() {
    for text in [GATEWAY, MESH, MINIMAL] {
        let (first, second) = (build(&config(text)), build(&config(text)));
        assert_eq!(first, second);
        let versions = |built: &Built| built.resources.values().map(Resource::version).collect::<Vec<_>>();
        assert_eq!(versions(&first), versions(&second));
    }
    // Whoever moves an endpoint in a document has changed nothing.
    let mut turned = config(GATEWAY);
    turned.services.iter_mut().for_each(|service| std::sync::Arc::make_mut(service).endpoints.reverse());
    assert_eq!(build(&turned).resources, build(&config(GATEWAY)).resources);
    let version = build(&config(MINIMAL)).resources[&(Kind::Assignment, "default/hello:80".into())].version();
    assert_eq!(version, "f111ae0b30decf62", "a version is the same after an update of Weft that changes nothing");
}

#[test]
fn endpoints_are_by_zone_and_weight_without_those_that_take_nothing_new() {
    let mut config = config(GATEWAY);
    let cart = config.services.iter_mut().find(|service| &*service.key.name == "cart").unwrap();
    let mut more = cart.endpoints[0].clone();
    (more.port, more.weight) = (9100, 3);
    let mut draining = more.clone();
    (draining.port, draining.draining) = (9101, true);
    let mut unused = more.clone();
    (unused.port, unused.weight) = (9102, 0);
    std::sync::Arc::make_mut(cart).endpoints.extend([more.clone(), draining, unused, more]);
    let assignment: ClusterLoadAssignment = get(&build(&config), Kind::Assignment, "default/cart:80");
    let shown: Vec<_> = assignment
        .endpoints
        .iter()
        .map(|locality| {
            let endpoints = locality.endpoints.iter().map(|one| {
                let address = one.endpoint.clone().unwrap().address.unwrap().socket_address.unwrap();
                (address.port_value.unwrap(), one.load_balancing_weight.unwrap())
            });
            let zone = locality.locality.clone().unwrap().zone;
            (zone, locality.load_balancing_weight.unwrap(), endpoints.collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(shown, [("a".into(), 4, vec![(9001, 1), (9100, 3)]), ("b".into(), 1, vec![(9002, 1)])]);
}

#[test]
fn a_service_with_a_name_is_resolved_by_envoy() {
    let built = build(&config(GATEWAY));
    let files = cluster(&built, "default/files:80");
    assert_eq!(files.discovery(), Discovery::StrictDns);
    let address = files.load_assignment.unwrap().endpoints[0].endpoints[0].endpoint.clone().unwrap().address.unwrap();
    assert_eq!(address.socket_address.unwrap().address, "localhost");
    assert_eq!(cluster(&built, "default/cart:80").discovery(), Discovery::Eds);
    // One name among addresses is enough.
    let mut mixed = config(&web(""));
    let mut named = mixed.services[0].endpoints[0].clone();
    named.address = Address::Name("localhost".into());
    std::sync::Arc::make_mut(&mut mixed.services[0]).endpoints.push(named);
    let built = build(&mixed);
    assert_eq!(cluster(&built, "default/web:80").discovery(), Discovery::StrictDns);
    assert!(names(&built, Kind::Assignment, true).is_empty());
    assert!(assignments(&mixed.services[0]).is_empty());
}

#[test]
fn a_traffic_policy_decides_about_the_cluster() {
    for (kind, expected) in [
        ("PeakEWMA", vec![LeastRequest::NAME, WrrLocality::NAME]),
        ("LeastRequest", vec![LeastRequest::NAME, WrrLocality::NAME]),
        ("RoundRobin", vec![RoundRobin::NAME]),
        ("Random", vec![Random::NAME, WrrLocality::NAME]),
        ("RingHash", vec![RingHash::NAME]),
        ("Maglev", vec![Maglev::NAME, RingHash::NAME]),
    ] {
        let cluster = web_cluster(&format!("loadBalancer: {{type: {kind}}}"));
        let policies = cluster.load_balancing_policy.unwrap().policies;
        let names: Vec<String> =
            policies.into_iter().map(|policy| policy.typed_extension_config.unwrap().name).collect();
        assert_eq!(names, expected, "{kind}");
    }
    assert_eq!(web_cluster("timeouts: {connect: 250ms}").connect_timeout.unwrap().nanos, 250_000_000);
    assert!(web_cluster("timeouts: {connect: 0s}").connect_timeout.unwrap().seconds > 3600, "Envoy takes no 0");
    let pooled =
        web_cluster("connectionPool: {maxConnections: 7, maxPendingRequests: 8, maxRequests: 9, maxRetries: 0}");
    let limits = pooled.circuit_breakers.unwrap().thresholds[0].clone();
    assert_eq!((limits.max_connections, limits.max_pending_requests, limits.max_requests), (Some(7), Some(8), Some(9)));
    assert_eq!((limits.max_retries, limits.retry_budget), (Some(0), None), "a budget would allow some");
    assert_eq!(web_cluster("priority: 3").outlier_detection, None);
    let broken = web_cluster(
        "circuitBreaker: {consecutiveFailures: 4, baseEjectionTime: 2s, maxEjectionTime: 8s, maxEjectionPercent: 30}",
    );
    let outliers = broken.outlier_detection.unwrap();
    assert_eq!((outliers.consecutive_5xx, outliers.max_ejection_percent), (Some(4), Some(30)));
    assert_eq!(outliers.base_ejection_time.unwrap().seconds, 2);
    assert_eq!(outliers.failure_percentage_threshold, Some(50));
    for (check, expected) in
        [("{path: /healthz}", "http /healthz"), ("{grpc: web.Health}", "grpc web.Health"), ("{tcp: {}}", "tcp")]
    {
        let text = web(&policy(&format!("healthCheck: {check}"))).replace("appProtocol: http", "appProtocol: grpc");
        let check = cluster(&build(&config(&text)), "default/web:80").health_checks.remove(0);
        let shown = match check.checker.unwrap() {
            Checker::Http(http) => format!("http {}", http.path),
            Checker::Grpc(grpc) => format!("grpc {}", grpc.service_name),
            Checker::Tcp(()) => "tcp".to_owned(),
        };
        assert_eq!(shown, expected);
        assert_eq!((check.healthy_threshold, check.unhealthy_threshold), (Some(2), Some(3)));
    }
    let check = web_cluster("healthCheck: {grpc: web.Health}").health_checks;
    assert!(check.is_empty(), "Envoy takes no such cluster: its upstream speaks HTTP/1.1");
}

#[test]
fn an_upstream_is_spoken_to_in_its_protocol() {
    for (protocol, expected) in [("http", Some(false)), ("h2c", Some(true)), ("grpc", Some(true)), ("tcp", None)] {
        let text = web("").replace("appProtocol: http", &format!("appProtocol: {protocol}"));
        let cluster = cluster(&build(&config(&text)), "default/web:80");
        let options = cluster.typed_extension_protocol_options.get(UpstreamHttp::NAME);
        let version = options.map(|any| UpstreamHttp::decode(any.value.clone()).unwrap());
        let version = version.map(|options| options.explicit_http_config.unwrap().version.unwrap());
        assert_eq!(version.map(|version| matches!(version, HttpVersion::Http2(_))), expected, "{protocol}");
    }
}

#[test]
fn tls_is_handed_on_only_as_far_as_files_say_it() {
    let backend = |refs: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: web}}\nspec:\n  \
             targetRefs: [{{group: weft.dev, kind: Service, name: web}}]\n  validation: {{hostname: web.test, {refs}}}\n---\n\
             apiVersion: weft.dev/v1alpha1\nkind: Certificate\nmetadata: {{name: ca}}\nspec: {{caFile: /etc/weft/ca.pem}}\n"
        )
    };
    let built = build(&config(&web(&backend("caCertificateRefs: [{group: weft.dev, kind: Certificate, name: ca}]"))));
    let socket = cluster(&built, "default/web:80").transport_socket.unwrap().typed_config.unwrap();
    let context = UpstreamTlsContext::decode(socket.value).unwrap();
    assert_eq!(context.sni, "web.test");
    let validation = context.common_tls_context.unwrap().validation_context.unwrap();
    assert_eq!(validation.trusted_ca.unwrap().specifier, Some(Data::Filename("/etc/weft/ca.pem".into())));
    assert_eq!(validation.match_typed_subject_alt_names.len(), 1, "the name is checked");

    let built = build(&config(&web(&backend("wellKnownCACertificates: System"))));
    assert!(names(&built, Kind::Cluster, true).is_empty() && names(&built, Kind::Assignment, true).is_empty());
    assert!(names(&built, Kind::Listener, false).is_empty());
    assert_eq!(built.left_out[0].what, "Service web port 80");
}

#[test]
fn https_is_listened_to_only_with_certificates_in_files() {
    let text = |certificate: &str| {
        web(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
             gatewayClassName: weft\n  listeners:\n  \
             - {{name: a, port: 443, protocol: HTTPS, hostname: a.test, tls: {{certificateRefs: [{{group: weft.dev, kind: Certificate, name: a}}]}}}}\n  \
             - {{name: rest, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{group: weft.dev, kind: Certificate, name: a}}]}}}}\n---\n\
             apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: all}}\nspec:\n  \
             parentRefs: [{{name: edge}}]\n  rules: [{{backendRefs: [{{group: weft.dev, kind: Service, name: web, port: 80}}]}}]\n---\n\
             apiVersion: weft.dev/v1alpha1\nkind: Certificate\nmetadata: {{name: a}}\nspec: {{{certificate}}}\n"
        ))
    };
    let built = build(&config(&text("certFile: /etc/a.pem, keyFile: /etc/a.key")));
    let listener: Listener = get(&built, Kind::Listener, "gateway/[::]:443");
    assert!(listener.address.unwrap().socket_address.unwrap().ipv4_compat);
    assert_eq!(listener.listener_filters.len(), 1);
    let chains: Vec<_> = listener.filter_chains.iter().map(|chain| chain.filter_chain_match.clone()).collect();
    assert_eq!(chains[0].clone().unwrap().server_names, ["a.test"]);
    assert_eq!(chains[1], None);
    let own = routes(&built, "gateway/[::]:443/default/edge/a");
    assert_eq!(own.virtual_hosts.len(), 1);
    assert_eq!(own.virtual_hosts[0].domains, ["a.test"]);
    let rest = routes(&built, "gateway/[::]:443/default/edge/rest");
    let hosts: Vec<_> = rest.virtual_hosts.iter().map(|host| (&*host.domains[0], host.routes.len())).collect();
    assert_eq!(hosts, [("*", 1), ("a.test", 0)], "a.test belongs to the other listener");

    // A path that means something only beside the document.
    let built = build(&config(&text("certFile: a.pem, keyFile: a.key")));
    assert!(names(&built, Kind::Listener, true).is_empty());
    let what: Vec<&str> = built.left_out.iter().map(|one| &*one.what).collect();
    assert_eq!(what, ["Gateway edge listener a", "Gateway edge listener rest"]);
}

#[test]
fn what_is_called_alike_is_not_mixed_up() {
    let service = |namespace: &str, name: &str, ports: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
             ports: [{ports}]\n---\n"
        )
    };
    let text = [
        service("default", "web", "{port: 80}"),
        service("default", "web.other", "{port: 80}"),
        service("other", "web", "{port: 80}"),
        service("other", "two", "{name: a, port: 80}, {name: b, port: 81}"),
    ];
    let built = build(&config(&text.concat()));
    let of = |name: &str| {
        let listener: Listener = get(&built, Kind::Listener, name);
        let manager = listener.api_listener.unwrap().api_listener.unwrap().value;
        HttpConnectionManager::decode(manager).unwrap().rds.unwrap().route_config_name
    };
    assert_eq!(of("web"), "service/default/web:80");
    assert_eq!(of("web.other"), "service/other/web:80", "with its namespace it is meant");
    assert_eq!(of("web.other.default"), "service/default/web.other:80");
    assert_eq!(of("two.other:81"), "service/other/two:81");
    let all = names(&built, Kind::Listener, false);
    assert!(!all.contains(&"two.other") && !all.contains(&"two:80"), "{all:?}");
}

#[test]
fn requests_that_must_not_be_repeated_are_not() {
    let text = |spec: &str| {
        let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web}\nspec:\n  \
                     parentRefs: [{group: weft.dev, kind: Service, name: web}]\n  \
                     rules: [{backendRefs: [{group: weft.dev, kind: Service, name: web, port: 80}]}]\n";
        web(&format!("{}{route}", policy(spec)))
    };
    let config = |spec: &str| config(&text(spec));
    let repeatable = |spec: &str| {
        let config = config(spec);
        let policy = config.policy_for(config.services.first().map(|service| &service.key), None);
        retry::policy(&policy, None).map(|retry| {
            let headers = retry.retriable_request_headers.into_iter();
            let shown = headers.map(|header| match header.specifier {
                Some(HeaderMatch::Text(StringMatcher { pattern: Some(TextMatch::Exact(value)) })) => value,
                _ => header.name,
            });
            shown.collect::<Vec<_>>()
        })
    };
    let safe = ["DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE", "idempotency-key"];
    assert_eq!(repeatable("priority: 3"), None);
    assert_eq!(repeatable("retry: {retryOn: [503]}").unwrap(), safe);
    assert_eq!(repeatable("retry: {retryOn: [503], unsafeMethods: true}").unwrap(), [""; 0]);
    assert!(repeatable("retry: {retryOn: [503], methods: [POST]}").unwrap().contains(&"POST".to_owned()));
    assert!(repeatable("retry: {}").unwrap().contains(&"content-type".to_owned()), "the default has grpc:UNAVAILABLE");
    assert_eq!(repeatable("retry: {attempts: 0}"), None);
    // gRPC's client takes no policy without retries.
    let built = build(&config("retry: {attempts: 0, perTryTimeout: 1s}"));
    assert_eq!(action(&routes(&built, "service/default/web:80").virtual_hosts[0].routes[0]).retry_policy, None);
}
