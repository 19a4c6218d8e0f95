//! What a policy says without effect is told.
#![allow(clippy::unwrap_used, clippy::panic)]

use weft_model::{Options, load_str};

const BASE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec: {gatewayClassName: weft, listeners: [{name: http, port: 80, protocol: HTTP}, {name: raw, port: 81, protocol: TCP}]}
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {name: cart}
spec: {ports: [{name: a, port: 80}, {name: b, port: 81}]}
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {name: db}
spec: {ports: [{port: 80}]}
";

fn policy(name: &str, targets: &[(&str, &str)], fields: &str) -> String {
    let targets: Vec<String> = targets.iter().map(|(kind, name)| format!("{{kind: {kind}, name: {name}}}")).collect();
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{targetRefs: [{}], {fields}}}\n",
        targets.join(", ")
    )
}

/// A route of this kind and name to a port of a service.
fn route(kind: &str, name: &str, service: &str, port: u16) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    let section = if kind == "TCPRoute" { "raw" } else { "http" };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: {name}}}\n\
         spec: {{parentRefs: [{{name: edge, sectionName: {section}}}], rules: [{{backendRefs: [{{name: {service}, port: {port}}}]}}]}}\n"
    )
}

/// Warnings without their hints.
fn warnings(documents: &[String]) -> Vec<String> {
    let text = format!("{BASE}{}", documents.concat());
    let checked = load_str("test.yaml", &text, Options::default()).unwrap_or_else(|problems| panic!("{problems}"));
    checked.warnings.into_iter().map(|warning| warning.message).collect()
}

const SHARED: [(&str, &str); 5] = [
    ("circuitBreaker", "circuitBreaker: {}"),
    ("retryBudget", "retryBudget: {percent: 10}"),
    ("concurrency", "concurrency: {adaptive: {}}"),
    ("connectionPool.maxConnections", "connectionPool: {maxConnections: 10}"),
    ("connectionPool.maxPendingRequests", "connectionPool: {maxPendingRequests: 10}"),
];

#[test]
fn what_another_policy_decides_is_told() {
    for (field, text) in SHARED {
        let routes = [route("HTTPRoute", "q", "cart", 80), route("HTTPRoute", "r", "cart", 80)].concat();
        let of = |route: &str| policy(route, &[("HTTPRoute", route)], text);
        assert_eq!(warnings(&[routes.clone(), of("r")]), Vec::<String>::new(), "{field}: nobody else says it");
        let told = format!("{field} has no effect on port 80 of Service cart");
        assert_eq!(
            warnings(&[routes.clone(), of("q"), of("r")]),
            std::slice::from_ref(&told),
            "{field} of the second route"
        );
        let own = policy("own", &[("Service", "cart")], text);
        assert_eq!(warnings(&[routes.clone(), own, of("r")]), [told], "{field} of the service");
        let other = policy("own", &[("Service", "cart")], "timeouts: {connect: 2s}");
        assert_eq!(warnings(&[routes.clone(), other, of("r")]), Vec::<String>::new(), "{field} is not what it says");
        let both = policy("both", &[("HTTPRoute", "q"), ("HTTPRoute", "r")], text);
        assert_eq!(warnings(&[routes, both]), Vec::<String>::new(), "{field}: they say the same");
    }
}

#[test]
fn ports_of_a_service_have_breakers_of_their_own() {
    let routes = [route("HTTPRoute", "q", "cart", 80), route("HTTPRoute", "r", "cart", 81)];
    let breakers = ["q", "r"].map(|route| policy(route, &[("HTTPRoute", route)], "circuitBreaker: {}"));
    assert_eq!(warnings(&[routes.concat(), breakers.concat()]), Vec::<String>::new());
}

#[test]
fn what_counts_for_each_route_is_not_told() {
    let routes = [route("HTTPRoute", "q", "cart", 80), route("HTTPRoute", "r", "cart", 80)].concat();
    let fields = "connectionPool: {maxRequests: 5, maxRetries: 5}, retry: {}";
    let policies = ["q", "r"].map(|route| policy(route, &[("HTTPRoute", route)], fields)).concat();
    assert_eq!(warnings(&[routes, policies]), Vec::<String>::new());
}

#[test]
fn what_needs_requests_has_no_effect_on_tcp() {
    let fields = "rateLimit: [{requests: 1, per: 1s}], retry: {}, hedge: {}, fault: {delay: {fixed: 1s}}, \
                  concurrency: {adaptive: {}}, connectionPool: {maxRequests: 5, maxConnections: 9}, \
                  circuitBreaker: {}, loadBalancer: {type: Random}";
    let (tcp, http) = (route("TCPRoute", "t", "db", 80), route("HTTPRoute", "h", "db", 80));
    let on_db = policy("p", &[("Service", "db")], fields);
    let told = ["rateLimit", "retry", "hedge", "fault", "concurrency", "connectionPool.maxRequests"]
        .map(|field| format!("{field} has no effect on TCP, and only TCPRoutes lead to Service db"));
    assert_eq!(warnings(&[tcp.clone(), on_db.clone()]), told);
    let none = Vec::<String>::new();
    assert_eq!(warnings(&[tcp.clone(), http, on_db.clone()]), none, "an HTTPRoute leads to it, too");
    assert_eq!(warnings(&[on_db]), none, "no route does");
    let mirror = route("HTTPRoute", "h", "cart", 80).replace(
        "rules: [{",
        "rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: db, port: 80}}}], ",
    );
    let on_db = policy("p", &[("Service", "db")], "retry: {}");
    assert_eq!(warnings(&[tcp.clone(), mirror, on_db]), none, "copies of requests");
    let on_both = policy("p", &[("Service", "db"), ("Service", "cart")], "retry: {}");
    assert_eq!(warnings(&[tcp, route("HTTPRoute", "h", "cart", 80), on_both]), none, "requests of the other");
}

#[test]
fn a_route_of_connections_that_nobody_captures_is_told() {
    // Specification of the service, kind of the route, port of the parent, what is told and what to do.
    let ips = "clusterIPs: [10.96.0.10]";
    let table = [
        ("ports: [{port: 80}]", "HTTPRoute", "", "Service cart has no clusterIPs", "add clusterIPs"),
        ("IPS, ports: [{port: 80}]", "HTTPRoute", "", "", ""),
        ("IPS, ports: [{port: 80}]", "TCPRoute", "", "", ""),
        ("IPS, mode: Direct, ports: [{port: 80}]", "HTTPRoute", "", "go directly to its endpoints", "mode: Proxy"),
        ("IPS, ports: [{port: 80, appProtocol: tcp}]", "HTTPRoute", "", "go directly", "set appProtocol: http"),
        ("IPS, ports: [{port: 80, appProtocol: tcp}]", "TCPRoute", "", "go directly", "set mode: Proxy"),
        ("IPS, mode: Proxy, ports: [{port: 80, appProtocol: tcp}]", "TCPRoute", "", "", ""),
        ("IPS, mode: Proxy, ports: [{port: 80, appProtocol: tcp}]", "HTTPRoute", "", "passed on as TCP", "http"),
        ("IPS, ports: [{port: 80, appProtocol: http}]", "TCPRoute", "", "speaks HTTP", "use an HTTPRoute"),
        ("IPS, ports: [{name: a, port: 80}, {name: b, port: 81, appProtocol: tcp}]", "HTTPRoute", "", "", ""),
        (
            "IPS, ports: [{name: a, port: 80}, {name: b, port: 81, appProtocol: tcp}]",
            "HTTPRoute",
            ", port: 81",
            "go directly",
            "http",
        ),
    ];
    for (spec, kind, port, told, hint) in table {
        let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: cart}}\nspec: {{{}}}\n---\n\
             apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r}}\n\
             spec:\n  parentRefs: [{{group: weft.dev, kind: Service, name: cart{port}}}]\n  \
             rules: [{{backendRefs: [{{name: cart, port: 80}}]}}]\n",
            spec.replace("IPS", ips)
        );
        let checked = load_str("test.yaml", &text, Options::default()).unwrap_or_else(|problems| panic!("{problems}"));
        match checked.warnings.as_slice() {
            [] => assert_eq!(told, "", "{spec} {kind}"),
            [one] => {
                assert!(!told.is_empty() && one.message.contains(told), "{spec} {kind}: {one}");
                assert!(one.hint.as_ref().unwrap().contains(hint), "{spec} {kind}: {one}");
                assert_eq!(one.line, 10, "{one}");
            }
            more => panic!("{spec} {kind}: {more:?}"),
        }
    }
}

#[test]
fn a_route_of_another_namespace_is_not_bound() {
    let text = "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {name: cart}\n\
                spec: {clusterIPs: [10.96.0.10], ports: [{port: 80}]}\n---\n\
                apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: other}\n\
                spec: {parentRefs: [{group: weft.dev, kind: Service, name: cart, namespace: default}]}\n";
    let checked = load_str("test.yaml", text, Options::default()).unwrap_or_else(|problems| panic!("{problems}"));
    let [warning] = checked.warnings.as_slice() else { panic!("{:?}", checked.warnings) };
    assert!(warning.message.contains("this one has no effect on it"), "{warning}");
}
