//! Virtual ports: what connections to a service's own addresses get.

use super::*;

fn address(text: &str) -> PortId {
    text.parse().unwrap()
}

fn virtual_service(name: &str, spec: &str) -> String {
    ours("Service", name, &format!("{spec}, endpoints: {TWO}"))
}

/// A route that is bound to a Service; `spec` goes on after its parents.
fn bound(kind: &str, metadata: &str, parent: &str, spec: &str) -> String {
    object(kind, metadata, &format!("parentRefs: [{{group: weft.dev, kind: Service, {parent}}}], {spec}"))
}

/// Route and rule that serve a GET on a virtual port.
fn rule<'s>(snapshot: &'s Snapshot, at: &str, host: &str, path: &str) -> Option<(&'s str, &'s str)> {
    let PortKind::Http { listeners, tls: None } = snapshot.port(address(at))? else { panic!("{at} is not HTTP") };
    let headers = HeaderMap::new();
    let view = View { host, method: &Method::GET, path, query: None, headers: &headers };
    match listeners.find(host)?.find(&view) {
        Found::Match(rule, _) => {
            let rule = &snapshot.rules[*rule as usize];
            Some((&rule.route, &rule.name))
        }
        _ => None,
    }
}

#[test]
fn mode_and_protocol_say_which_ports_come_here() {
    // Specification, what there is on port 80: `None` if the kernel leads connections to an endpoint.
    for (spec, expected) in [
        ("ports: [{port: 80, appProtocol: http}]", Some("HTTP")),
        ("ports: [{port: 80, appProtocol: grpc}]", Some("HTTP")),
        ("ports: [{port: 80}]", Some("unknown")),
        ("ports: [{port: 80, appProtocol: tcp}]", None),
        ("mode: Proxy, ports: [{port: 80, appProtocol: tcp}]", Some("TCP")),
        ("mode: Proxy, ports: [{port: 80}]", Some("unknown")),
        ("mode: Direct, ports: [{port: 80, appProtocol: http}]", None),
    ] {
        let with = |ips: &str| snapshot(&virtual_service("cart", &format!("clusterIPs: {ips}, {spec}")));
        let found = with("[10.96.0.10, 'fd00:96::10']");
        let shown = |at: &str| found.virtual_port(address(at)).map(VirtualPort::protocol);
        assert_eq!((shown("10.96.0.10:80"), shown("[fd00:96::10]:80")), (expected, expected), "{spec}");
        assert_eq!((shown("10.96.0.10:81"), shown("10.96.0.11:80")), (None, None), "{spec}");
        assert!(found.ports.is_empty(), "nothing is bound");
        assert!(with("[]").virtual_ports.is_empty(), "{spec}: nothing is captured");
    }
}

#[test]
fn without_a_route_everything_goes_to_the_service_itself() {
    let limits = "rateLimit: [{requests: 1, per: 1s}], timeouts: {request: 3s}";
    let text = [
        edge(),
        one_rule("r", &to("cart")),
        virtual_service("cart", "clusterIPs: [10.96.0.10, 'fd00::1'], ports: [{port: 80, appProtocol: http}]"),
        ours("TrafficPolicy", "p", &format!("targetRefs: [{{group: weft.dev, kind: Service, name: cart}}], {limits}")),
    ];
    let snapshot = snapshot(&text.concat());
    for at in ["10.96.0.10:80", "[fd00::1]:80"] {
        assert_eq!(rule(&snapshot, at, "whatever", "/a/b"), Some(("cart", "implicit")), "{at}");
    }
    let [one, other] = ["10.96.0.10:80", "[fd00::1]:80"].map(|at| &snapshot.virtual_ports[&address(at)]);
    assert!(Arc::ptr_eq(one, other), "the addresses of a service share what they serve");
    let written: Vec<_> = snapshot.written().map(|(route, ..)| route.key.to_string()).collect();
    assert_eq!(written, ["r"], "rules that nobody wrote come after those");
    assert_eq!(snapshot.rules.len(), 2);
    assert_eq!(one.implicit, Some(1));
    let target = target(&snapshot, "cart");
    assert_eq!((&*target.slot.route, &*target.slot.http_route, &*target.slot.service), ("cart", "/*", "cart"));
    assert_eq!(target.deadlines.request, Some(3 * S));
    let by_route = self::target(&snapshot, "r");
    assert!(Arc::ptr_eq(target.limits.as_ref().unwrap(), by_route.limits.as_ref().unwrap()), "one budget");
    assert!(Arc::ptr_eq(target.upstream.as_ref().unwrap(), by_route.upstream.as_ref().unwrap()));
}

#[test]
fn routes_are_bound_to_services() {
    let prefix =
        |path: &str, service: &str| format!("rules: [{{matches: [{{path: {{value: {path}}}}}], {}}}]", to(service));
    let old = "creationTimestamp: '2025-01-01T00:00:00Z'";
    let text = [
        virtual_service(
            "cart",
            "clusterIPs: [10.96.0.10], ports: [{name: a, port: 80, appProtocol: http}, {name: b, port: 81, appProtocol: http}]",
        ),
        virtual_service("other", "clusterIPs: [10.96.0.11], ports: [{port: 80, appProtocol: http}]"),
        bound("HTTPRoute", "name: all", "name: cart", &prefix("/x", "other")),
        bound("HTTPRoute", "name: one", "name: cart, port: 81", &prefix("/y", "other")),
        bound("HTTPRoute", &format!("name: z, {old}"), "name: cart, port: 81", &prefix("/x", "cart")),
        bound(
            "HTTPRoute",
            "name: host",
            "name: cart, port: 80",
            &format!("hostnames: [shop.local], {}", prefix("/", "cart")),
        ),
        // Nobody leads the clients of another namespace elsewhere.
        bound(
            "HTTPRoute",
            "name: foreign, namespace: evil",
            "name: other, namespace: default",
            "rules: [{backendRefs: [{name: cart, namespace: default, port: 80}]}]",
        ),
    ];
    let snapshot = snapshot(&text.concat());
    for (at, host, path, expected) in [
        ("10.96.0.10:80", "cart", "/x/1", Some("all")),
        ("10.96.0.10:80", "cart", "/y", None),
        ("10.96.0.10:80", "shop.local", "/y", Some("host")),
        ("10.96.0.10:81", "cart", "/y", Some("one")),
        // The oldest of equal matches.
        ("10.96.0.10:81", "cart", "/x", Some("z")),
        ("10.96.0.10:81", "cart", "/", None),
        ("10.96.0.11:80", "other", "/x", Some("other")),
    ] {
        assert_eq!(rule(&snapshot, at, host, path).map(|(route, _)| route), expected, "{at} {host} {path}");
    }
    assert_eq!(snapshot.virtual_port(address("10.96.0.10:80")).unwrap().implicit, None);
}

#[test]
fn opaque_connections_go_to_the_service_or_where_a_route_leads_them() {
    let tcp = |name: &str, service: &str| {
        bound(
            "TCPRoute",
            &format!("name: {name}"),
            &format!("name: {service}"),
            &format!("rules: [{{{}}}]", to("other")),
        )
    };
    let text = [
        virtual_service("db", "clusterIPs: [10.96.0.1], mode: Proxy, ports: [{port: 80, appProtocol: tcp}]"),
        virtual_service("routed", "clusterIPs: [10.96.0.2], mode: Proxy, ports: [{port: 80, appProtocol: tcp}]"),
        virtual_service("unknown", "clusterIPs: [10.96.0.3], ports: [{port: 80}]"),
        virtual_service("both", "clusterIPs: [10.96.0.4], ports: [{port: 80}]"),
        virtual_service("other", "ports: [{port: 80}]"),
        tcp("b", "routed"),
        tcp("a", "routed"),
        tcp("c", "both"),
    ];
    let snapshot = snapshot(&text.concat());
    let leads = |target: &TcpTarget| (target.route.to_string(), target.backends.get(0).unwrap().service.to_string());
    for (at, route, service) in [("10.96.0.1:80", "db", "db"), ("10.96.0.2:80", "a", "other")] {
        let PortKind::Tcp(Some(target)) = snapshot.port(address(at)).unwrap() else { panic!("{at} is not TCP") };
        assert_eq!(leads(target), (route.to_owned(), service.to_owned()), "{at}");
    }
    for (at, route, service) in [("10.96.0.3:80", "unknown", "unknown"), ("10.96.0.4:80", "c", "other")] {
        let target = snapshot.virtual_port(address(at)).unwrap().unknown.as_ref().unwrap();
        assert_eq!(leads(target), (route.to_owned(), service.to_owned()), "{at}");
        assert_eq!(rule(&snapshot, at, "x", "/").unwrap().1, "implicit", "{at} serves HTTP, too");
    }
}

#[test]
fn access_policies_belong_to_services_and_identities_to_workloads() {
    let text = [
        service("cart", TWO),
        service("db", TWO),
        ours("Workload", "web", "selector: {cgroup: web}, serviceAccount: shop"),
        ours("Workload", "batch", "selector: {cgroup: batch}"),
        ours(
            "AccessPolicy",
            "p",
            "targetRefs: [{group: weft.dev, kind: Service, name: db}], action: Allow, rules: [{from: [{workloads: [web]}]}]",
        ),
    ];
    let snapshot = snapshot(&text.concat());
    assert!(live(&snapshot, "cart").access.is_none());
    assert_eq!(live(&snapshot, "db").access.as_ref().unwrap().names().collect::<Vec<_>>(), ["p"]);
    assert_eq!(snapshot.identities.len(), 1);
    assert_eq!(&*snapshot.identities["web"], "spiffe://mesh.local/ns/default/sa/shop");
}
