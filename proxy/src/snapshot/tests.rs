#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::IpAddr;

use http::{HeaderMap, Method};
use proptest::{prelude::*, sample::select};
use weft_model::{Options, load_str};

use super::{fixture::*, *};
use crate::{
    resilience::{
        breaker::State,
        limiter::CircuitView,
        outcome::{Failure, Outcome},
    },
    route::{Found, View},
};

mod captured;
mod moved;

const S: Duration = Duration::from_secs(1);

fn local(port: u16) -> PortId {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The rule that a GET is served by.
fn served<'s>(snapshot: &'s Snapshot, port: u16, host: &str, path: &str) -> Option<&'s Rule> {
    let PortKind::Http { listeners, .. } = snapshot.port(local(port))? else { panic!("{port} is not HTTP") };
    let headers = HeaderMap::new();
    let view = View { host, method: &Method::GET, path, query: None, headers: &headers };
    match listeners.find(host)?.find(&view) {
        Found::Match(rule, _) => Some(&snapshot.rules[*rule as usize]),
        _ => None,
    }
}

/// The name of its route; empty when there is none.
fn route<'s>(snapshot: &'s Snapshot, port: u16, host: &str, path: &str) -> &'s str {
    served(snapshot, port, host, path).map_or("", |rule| &*rule.route)
}

fn service(name: &str, endpoints: &str) -> String {
    ours("Service", name, &format!("ports: [{{port: 80}}], endpoints: {endpoints}"))
}

const TWO: &str = "[{address: 10.0.0.1, port: 9000}, {address: 10.0.0.2, port: 9000, weight: 3}]";

/// An HTTPRoute of the Gateway `edge` with one rule, which is the text of a mapping without its braces.
fn one_rule(name: &str, rule: &str) -> String {
    object("HTTPRoute", &format!("name: {name}"), &format!("parentRefs: [{{name: edge}}], rules: [{{{rule}}}]"))
}

fn to(service: &str) -> String {
    format!("backendRefs: [{{group: weft.dev, kind: Service, name: {service}, port: 80}}]")
}

fn edge() -> String {
    gateway("edge", "[{name: http, port: 8001, protocol: HTTP}]")
}

/// The first backend of a route's first rule.
fn target<'s>(snapshot: &'s Snapshot, route: &str) -> &'s Target {
    let rule = snapshot.rules.iter().find(|rule| &*rule.route == route).unwrap();
    rule.backends.get(0).unwrap()
}

fn upstream<'s>(snapshot: &'s Snapshot, route: &str) -> &'s Arc<Upstream> {
    target(snapshot, route).upstream.as_ref().unwrap()
}

fn live<'s>(snapshot: &'s Snapshot, name: &str) -> &'s Arc<Service> {
    &snapshot.services[&(Key::new("default", name), 80)]
}

#[test]
fn routes_attach_by_name_section_and_port() {
    let at = |name: &str, parent: &str| {
        let spec = format!("parentRefs: [{{{parent}}}], rules: [{{matches: [{{path: {{value: /{name}}}}}]}}]");
        object("HTTPRoute", &format!("name: {name}"), &spec)
    };
    let snapshot = snapshot(
        &[
            gateway("edge", "[{name: a, port: 8001, protocol: HTTP}, {name: b, port: 8002, protocol: HTTP}]"),
            gateway("other", "[{name: a, port: 8003, protocol: HTTP}]"),
            service("mesh", "[]"),
            at("gateway", "name: edge"),
            at("section", "name: edge, sectionName: a"),
            at("port", "name: edge, port: 8002"),
            at("both", "name: edge, sectionName: b, port: 8002"),
            at("other", "name: other"),
            at("mesh", "group: weft.dev, kind: Service, name: mesh"),
        ]
        .concat(),
    );
    let names = ["gateway", "section", "port", "both", "other", "mesh"];
    let attached = |port| names.map(|name| route(&snapshot, port, "x", &format!("/{name}")) == name);
    assert_eq!(attached(8001), [true, true, false, false, false, false]);
    assert_eq!(attached(8002), [true, false, true, true, false, false]);
    assert_eq!(attached(8003), [false, false, false, false, true, false]);
    assert!(snapshot.port(local(8004)).is_none());
}

#[test]
fn listeners_choose_the_namespaces_of_their_routes() {
    let all = "allowedRoutes: {namespaces: {from: All}}";
    let snapshot = snapshot(
        &[
            gateway(
                "edge",
                &format!("[{{name: a, port: 8001, protocol: HTTP}}, {{name: b, port: 8002, protocol: HTTP, {all}}}]"),
            ),
            object(
                "HTTPRoute",
                "name: mine",
                "parentRefs: [{name: edge}], rules: [{matches: [{path: {value: /mine}}]}]",
            ),
            object("HTTPRoute", "name: theirs, namespace: team", "parentRefs: [{name: edge, namespace: default}]"),
        ]
        .concat(),
    );
    let found = |port, path| route(&snapshot, port, "x", path);
    assert_eq!((found(8001, "/mine"), found(8001, "/x")), ("mine", ""));
    assert_eq!((found(8002, "/mine"), found(8002, "/x")), ("mine", "team/theirs"));
}

#[test]
fn hostnames_of_routes_and_listeners_are_intersected() {
    let snapshot = snapshot(
        &[
            gateway(
                "edge",
                "[{name: wild, port: 8001, protocol: HTTP, hostname: '*.shop.local'}, \
                 {name: api, port: 8002, protocol: HTTP, hostname: api.local}, {name: rest, port: 8002, protocol: HTTP}]",
            ),
            object(
                "HTTPRoute",
                "name: named",
                "hostnames: [a.shop.local, other.local], parentRefs: [{name: edge, sectionName: wild}], \
                 rules: [{matches: [{path: {value: /named}}]}]",
            ),
            object("HTTPRoute", "name: every", "parentRefs: [{name: edge, sectionName: wild}]"),
            object(
                "HTTPRoute",
                "name: api",
                "parentRefs: [{name: edge, sectionName: api}], rules: [{matches: [{path: {value: /v1}}]}]",
            ),
            object("HTTPRoute", "name: rest", "parentRefs: [{name: edge, sectionName: rest}]"),
        ]
        .concat(),
    );
    for (port, host, path, expected) in [
        (8001, "a.shop.local", "/named", "named"),
        (8001, "b.shop.local", "/named", "every"),
        (8001, "a.shop.local", "/x", "every"),
        (8001, "shop.local", "/", ""),
        (8001, "other.local", "/named", ""),
        (8002, "api.local", "/v1", "api"),
        // The more specific listener takes the request, and it alone.
        (8002, "api.local", "/v2", ""),
        (8002, "x.local", "/v1", "rest"),
        (8002, "", "/", "rest"),
    ] {
        assert_eq!(route(&snapshot, port, host, path), expected, "{port} {host} {path}");
    }
}

#[test]
fn a_route_with_a_policy_of_its_own_has_its_own_upstream() {
    let policy = |name: &str, target: &str, fields: &str| {
        ours("TrafficPolicy", name, &format!("targetRefs: [{{{target}}}], {fields}"))
    };
    let grpc = object("GRPCRoute", "name: own", &format!("parentRefs: [{{name: edge}}], rules: [{{{}}}]", to("app")));
    let snapshot = snapshot(
        &[
            edge(),
            service("app", TWO),
            one_rule("one", &to("app")),
            one_rule("two", &to("app")),
            one_rule("own", &to("app")),
            policy(
                "service",
                "group: weft.dev, kind: Service, name: app",
                "connectionPool: {maxRequestsPerConnection: 7, idleTimeout: 9s}, timeouts: {connect: 2s}",
            ),
            policy(
                "route",
                "group: gateway.networking.k8s.io, kind: HTTPRoute, name: own",
                "connectionPool: {maxRequestsPerConnection: 8}, timeouts: {request: 3s}",
            ),
        ]
        .concat(),
    );
    let [one, two, own] = ["one", "two", "own"].map(|name| upstream(&snapshot, name));
    assert!(Arc::ptr_eq(one, two) && !Arc::ptr_eq(one, own));
    assert!(Arc::ptr_eq(&one.service, &own.service), "load and health are those of the service");
    let fields = |policy: &Policy| {
        let pool = &policy.connection_pool;
        (pool.max_requests_per_connection, pool.idle_timeout, policy.timeouts.connect, policy.timeouts.request)
    };
    assert_eq!(fields(&one.policy), (7, 9 * S, 2 * S, None));
    assert_eq!(fields(&own.policy), (8, 9 * S, 2 * S, Some(3 * S)));
    assert_eq!(fields(&live(&snapshot, "app").policy), fields(&one.policy));
    snapshot.enforce(&Snapshot::empty(), Instant::now());
    assert_eq!(one.service.endpoints()[0].idle_timeout(), 9 * S);
    assert_eq!(snapshot.upstreams.len(), 2);

    // A GRPCRoute of the same name is another route.
    let text =
        [edge(), service("app", TWO), grpc, policy("r", "kind: HTTPRoute, name: own", "timeouts: {request: 3s}")];
    let config = load_str("test.yaml", &text.concat(), Options { require_refs: false }).unwrap().config;
    let snapshot = Node::new().compile(config, &Snapshot::empty()).unwrap();
    assert_eq!(upstream(&snapshot, "own").policy.timeouts.request, None);
}

#[test]
fn live_state_outlives_a_configuration() {
    let node = Node::new();
    let with = |protocol: &str, endpoints: &str, more: &str| {
        let service =
            ours("Service", "app", &format!("ports: [{{port: 80, appProtocol: {protocol}}}], endpoints: {endpoints}"));
        [edge(), service, one_rule("r", &to("app")), more.to_owned()].concat()
    };
    let first = node.next(&with("http", TWO, ""), &Snapshot::empty());
    let kept = |before: &Snapshot, after: &Snapshot| -> Vec<bool> {
        let pairs = live(before, "app").endpoints().iter().zip(live(after, "app").endpoints());
        pairs.map(|(before, after)| Arc::ptr_eq(before, after)).collect()
    };
    live(&first, "app").in_flight.enter();

    let policy = ours(
        "TrafficPolicy",
        "p",
        "targetRefs: [{group: weft.dev, kind: Service, name: app}], connectionPool: {idleTimeout: 7s}",
    );
    let changed = "[{address: 10.0.0.1, port: 9000, weight: 5}, {address: 10.0.0.3, port: 9000}]";
    let second = node.next(&with("http", changed, &policy), &first);
    let endpoints = live(&second, "app").endpoints();
    assert_eq!(kept(&first, &second), [true, false]);
    second.enforce(&first, Instant::now());
    assert_eq!((endpoints[0].weight(), endpoints[0].idle_timeout()), (5, 7 * S));
    let (one, two) = (live(&first, "app"), live(&second, "app"));
    assert!(Arc::ptr_eq(&one.in_flight, &two.in_flight) && Arc::ptr_eq(&one.circuit, &two.circuit));
    assert_eq!((one.since, two.in_flight.get()), (two.since, 1));
    assert_eq!((first.revision, second.revision), (1, 2));

    let zoned = "[{address: 10.0.0.1, port: 9000, weight: 5, zone: a}, {address: 10.0.0.3, port: 9000}]";
    let third = node.next(&with("http", zoned, ""), &second);
    assert_eq!(kept(&second, &third), [false, true]);
    assert_eq!(live(&third, "app").endpoints()[0].zone.as_deref(), Some("a"));

    // Pooled connections belong to endpoints, and speak one protocol.
    let fourth = node.next(&with("grpc", zoned, ""), &third);
    assert_eq!(kept(&third, &fourth), [false, false]);
    assert_eq!(upstream(&fourth, "r").protocol, AppProtocol::Grpc);
    assert!(!Arc::ptr_eq(&live(&third, "app").circuit, &live(&fourth, "app").circuit));
}

#[test]
fn endpoints_by_name_appear_once_they_are_resolved() {
    let mut node = Node::new();
    let names =
        "[{address: A.local, port: 9000, weight: 2}, {address: b.local, port: 9000}, {address: 10.0.0.3, port: 9000}]";
    let text = [edge(), service("app", names), one_rule("r", &to("app"))].concat();
    let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
    let addresses = |snapshot: &Snapshot| {
        let endpoints = live(snapshot, "app").endpoints().iter();
        endpoints.map(|endpoint| (endpoint.address.ip(), endpoint.weight())).collect::<Vec<_>>()
    };
    let first = node.next(&text, &Snapshot::empty());
    assert_eq!(addresses(&first), [(ip(3), 1)]);
    node.resolved.insert("a.local".into(), vec![ip(1), ip(2)]);
    let second = node.next(&text, &first);
    assert_eq!(addresses(&second), [(ip(1), 2), (ip(2), 2), (ip(3), 1)]);
    assert_eq!(live(&second, "app").endpoints()[0].hostname.as_deref(), Some("a.local"));
    // What two entries lead to is one endpoint, as the first says, and stays the same one.
    node.resolved.insert("b.local".into(), vec![ip(2), ip(3)]);
    let third = node.next(&text, &second);
    let fourth = node.next(&text, &third);
    assert_eq!(addresses(&third), [(ip(1), 2), (ip(2), 2), (ip(3), 1)]);
    assert_eq!(addresses(&fourth), addresses(&third));
    for (before, after) in [(&second, &third), (&third, &fourth)] {
        assert!(Arc::ptr_eq(&live(before, "app").endpoints()[1], &live(after, "app").endpoints()[1]));
    }
    assert!(Arc::ptr_eq(&live(&third, "app").endpoints()[2], &live(&fourth, "app").endpoints()[2]));
}

#[test]
fn services_that_do_not_exist_are_noticed_per_request() {
    let mirror = "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}]";
    let text = [
        edge(),
        service("app", TWO),
        one_rule("r", &format!("{}, {mirror}", to("nobody"))),
        one_rule("p", &to("app").replace("80", "81")),
    ];
    let config = load_str("test.yaml", &text.concat(), Options { require_refs: false }).unwrap().config;
    let snapshot = Node::new().compile(config, &Snapshot::empty()).unwrap();
    let missing = target(&snapshot, "r");
    assert!(missing.upstream.is_none() && target(&snapshot, "p").upstream.is_none());
    assert_eq!((&*missing.service, &*missing.slot.service, &*missing.slot.route), ("nobody", "nobody", "r"));
    assert_eq!(missing.deadlines.request, Some(15 * S));
    assert!(snapshot.rules.iter().all(|rule| rule.mirrors.is_empty()));
}

#[test]
fn a_budget_belongs_to_its_target_and_survives_the_snapshot() {
    let policy = |name: &str, target: &str, limits: &str| {
        ours("TrafficPolicy", name, &format!("targetRefs: [{{{target}}}], rateLimit: [{limits}]"))
    };
    let of_service = |limits: &str| policy("s", "kind: Service, group: weft.dev, name: app", limits);
    let of_route = policy("r", "kind: HTTPRoute, name: own", "{requests: 5, per: 1h}");
    let with = |policies: &[String]| {
        let routes = ["one", "two", "own"].map(|name| one_rule(name, &to("app")));
        [edge(), service("app", TWO), routes.concat(), policies.concat()].concat()
    };
    let limits = |snapshot: &Snapshot, route: &str| target(snapshot, route).limits.clone();
    let charge = |limits: &RateLimits| limits.admit(|_| None, CircuitView::Steady, Instant::now()).is_ok();

    let node = Node::new();
    let first = node.next(&with(&[of_service("{requests: 2, per: 1h}"), of_route.clone()]), &Snapshot::empty());
    let (one, two) = (limits(&first, "one").unwrap(), limits(&first, "two").unwrap());
    assert!(Arc::ptr_eq(&one, &two));
    let own = limits(&first, "own").unwrap();
    assert!(charge(&one) && charge(&two) && !charge(&one) && charge(&own));
    let targets: Vec<String> = first.limits.keys().map(ToString::to_string).collect();
    assert_eq!(targets.len(), 2, "{targets:?}");

    let second = node.next(&with(&[of_service("{requests: 3, burst: 2, per: 1h}"), of_route]), &first);
    assert!(!charge(&limits(&second, "two").unwrap()));
    assert_eq!((0..9).filter(|_| charge(&limits(&second, "own").unwrap())).count(), 4);
    let third = node.next(&with(&[of_service("")]), &second);
    assert!(limits(&third, "one").is_none() && limits(&third, "own").is_none() && third.limits.is_empty());
}

#[test]
fn time_outs_come_from_the_rule_then_the_policy_then_the_default() {
    let idle = Some(300 * S);
    let ms = |ms| Some(Duration::from_millis(ms));
    for (rule, policy, request, whole, attempt, expected_idle) in [
        ("", "", Some(15 * S), false, None, idle),
        ("", "request: 3s", Some(3 * S), true, None, idle),
        ("request: 2s", "request: 3s", Some(2 * S), true, None, idle),
        ("request: 2s, backendRequest: 500ms", "", Some(2 * S), true, ms(500), idle),
        ("backendRequest: 500ms", "request: 3s", Some(3 * S), true, ms(500), idle),
        ("request: 0s", "request: 3s", None, true, None, idle),
        ("", "request: 0s", None, true, None, idle),
        ("backendRequest: 0s", "", Some(15 * S), false, None, idle),
        ("", "idle: 1m", Some(15 * S), false, None, Some(60 * S)),
        ("", "idle: 0s", Some(15 * S), false, None, None),
    ] {
        let policy = match policy {
            "" => String::new(),
            timeouts => {
                let spec =
                    format!("targetRefs: [{{kind: Service, group: weft.dev, name: app}}], timeouts: {{{timeouts}}}");
                ours("TrafficPolicy", "p", &spec)
            }
        };
        let rule = format!("{}, timeouts: {{{rule}}}", to("app"));
        let snapshot = snapshot(&[edge(), service("app", TWO), one_rule("r", &rule), policy.clone()].concat());
        let found = target(&snapshot, "r").deadlines;
        let found = (found.request, found.whole, found.attempt, found.idle);
        assert_eq!(found, (request, whole, attempt, expected_idle), "{rule} {policy}");
    }
}

#[test]
fn the_oldest_tcp_route_gets_a_listeners_connections() {
    let tcp = |name: &str, created: &str, service: &str| {
        let spec = format!("parentRefs: [{{name: edge, sectionName: raw}}], rules: [{{{}}}]", to(service));
        object("TCPRoute", &format!("name: {name}, {created}"), &spec)
    };
    let snapshot = snapshot(
        &[
            gateway("edge", "[{name: raw, port: 8001, protocol: TCP}, {name: idle, port: 8002, protocol: TCP}]"),
            service("app", TWO),
            service("old", TWO),
            tcp("a", "", "app"),
            tcp("b", "creationTimestamp: '2026-01-01T00:00:00Z'", "app"),
            tcp("c", "creationTimestamp: '2025-01-01T00:00:00Z'", "old"),
        ]
        .concat(),
    );
    let PortKind::Tcp(Some(target)) = snapshot.port(local(8001)).unwrap() else { panic!("no TCP") };
    let backend = target.backends.get(0).unwrap();
    assert_eq!((&*target.route, &*backend.service), ("c", "old"));
    assert_eq!(backend.upstream.as_ref().unwrap().service.endpoints().len(), 2);
    assert!(matches!(snapshot.port(local(8002)).unwrap(), PortKind::Tcp(None)));
}

#[test]
fn rules_have_names_and_templates() {
    let snapshot = snapshot(
        &[
            edge(),
            object(
                "HTTPRoute",
                "name: r, namespace: default",
                "parentRefs: [{name: edge}], rules: [{}, {name: cart, matches: [{path: {value: /cart/}}, {path: {value: /x}}]}, \
                 {matches: [{path: {type: Exact, value: /e}}]}, {matches: [{path: {type: RegularExpression, value: '/r\\d+'}}]}]",
            ),
        ]
        .concat(),
    );
    let found: Vec<_> = snapshot.rules.iter().map(|rule| (&*rule.name, &*rule.template)).collect();
    assert_eq!(found, [("0", "/*"), ("cart", "/cart/*"), ("2", "/e"), ("3", r"/r\d+")]);
    let slot = &snapshot.rules[1].slot;
    assert_eq!((&*slot.route, &*slot.http_route, &*slot.service), ("r", "/cart/*", ""));
}

#[test]
fn gateways_bind_their_addresses() {
    let with = |addresses: &str| {
        let spec = format!(
            "gatewayClassName: weft, {addresses} listeners: [{{name: a, port: 81, protocol: HTTP}}, {{name: b, port: 80, protocol: TCP}}]"
        );
        let snapshot = snapshot(&object("Gateway", "name: edge", &spec));
        snapshot.ports.iter().map(|port| port.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(with(""), ["[::]:80", "[::]:81"]);
    assert_eq!(
        with("addresses: [{value: '::1'}, {value: 127.0.0.2}],"),
        ["127.0.0.2:80", "127.0.0.2:81", "[::1]:80", "[::1]:81"]
    );
    assert_eq!(with("addresses: [{value: 0.0.0.0}],"), ["0.0.0.0:80", "0.0.0.0:81"]);
}

/// Text that stands for itself in YAML.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

proptest! {
    /// What `weft validate` lets pass can be put in force.
    #[test]
    fn what_is_valid_compiles(
        kind in select(vec!["Exact", "PathPrefix", "RegularExpression"]),
        path in proptest::collection::vec(select(vec![
            "/", ".", "..", "%2e", "%2E", "%2f", "%00", "%41", "%c3%a9", "a", "b", "(", ")", "|", "(?x)", "#", "*", "+", "[", "]", "\\", "{9}", "é",
        ]), 0..8),
        header in select(vec!["x-a", "Host", "TE", "trailer", "Upgrade", "Keep-Alive", "proxy-connection", "connection", "!#", "x:y", "é"]),
        value in select(vec!["", "a", "a b", "é", "a\tb", "\u{7f}", "a)|(b", "\u{2028}"]),
    ) {
        let path = format!("/{}", path.concat());
        let name = quoted(header);
        let value = quoted(value);
        let modifier = format!("set: [{{name: {name}, value: {value}}}], remove: [{name}]");
        for rule in [
            format!("matches: [{{path: {{type: {kind}, value: {}}}}}]", quoted(&path)),
            format!("matches: [{{headers: [{{type: RegularExpression, name: {name}, value: {value}}}]}}]"),
            format!("filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{modifier}}}}}]"),
            format!("filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplaceFullPath, replaceFullPath: {}}}}}}}]", quoted(&path)),
            format!("filters: [{{type: RequestRedirect, requestRedirect: {{hostname: {value}}}}}]"),
        ] {
            let text = [edge(), one_rule("r", &rule)].concat();
            if let Ok(checked) = load_str("test.yaml", &text, Options::default()) {
                let compiled = Node::new().compile(checked.config, &Snapshot::empty());
                prop_assert!(compiled.is_ok(), "{}: {}", rule, compiled.unwrap_err());
            }
        }
    }
}

/// `consecutiveFailures` of the breaker in force.
fn breaker(snapshot: &Snapshot) -> Option<u32> {
    live(snapshot, "app").common.breaker.as_ref().map(|breaker| breaker.consecutive_failures)
}

#[test]
fn a_breaker_is_the_services_own_or_that_of_the_first_route() {
    let policy = |name: &str, target: &str, failures: u32| {
        let spec = format!("targetRefs: [{{{target}}}], circuitBreaker: {{consecutiveFailures: {failures}}}");
        ours("TrafficPolicy", name, &spec)
    };
    let base = [edge(), service("app", TWO), one_rule("b", &to("app")), one_rule("c", &to("app"))].concat();
    let route = |name: &str| format!("group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}");
    let other = ours("TrafficPolicy", "x", &format!("targetRefs: [{{{}}}], timeouts: {{request: 1s}}", route("b")));
    let of_service = policy("s", "group: weft.dev, kind: Service, name: app", 3);
    let table = [
        (String::new(), None),
        (policy("c", &route("c"), 7), Some(7)),
        ([policy("b", &route("b"), 6), policy("c", &route("c"), 7)].concat(), Some(6)),
        ([other, policy("c", &route("c"), 7)].concat(), Some(7)),
        ([of_service, policy("b", &route("b"), 6)].concat(), Some(3)),
    ];
    for (policies, expected) in table {
        let snapshot = snapshot(&[base.clone(), policies.clone()].concat());
        assert_eq!(breaker(&snapshot), expected, "{policies}");
    }
}

#[test]
fn breakers_survive_a_configuration_and_end_with_their_policy() {
    let node = Node::new();
    let text = |endpoints: &str, failures: &str| {
        let spec = format!("targetRefs: [{{group: weft.dev, kind: Service, name: app}}]{failures}");
        [edge(), service("app", endpoints), one_rule("r", &to("app")), ours("TrafficPolicy", "p", &spec)].concat()
    };
    let one = ", circuitBreaker: {consecutiveFailures: 1}";
    let now = Instant::now();
    let fail = |endpoint: &Endpoint| {
        let outcome = Outcome::failure(Failure::Reset, Duration::ZERO);
        endpoint.record(outcome, None, now, &mut fastrand::Rng::with_seed(1))
    };
    let first = node.next(&text(TWO, one), &Snapshot::empty());
    // Compiling alone changes nothing: the configuration may still be refused.
    let failing = &live(&first, "app").endpoints()[0];
    assert!(fail(failing).is_none());
    first.enforce(&Snapshot::empty(), now);
    assert!(fail(failing).unwrap().ejected);

    let second = node.next(&text(TWO, ", circuitBreaker: {consecutiveFailures: 9}, timeouts: {idle: 9s}"), &first);
    second.enforce(&first, now);
    assert_eq!(live(&second, "app").endpoints()[0].guard().state(), State::Open);
    assert!(fail(&live(&second, "app").endpoints()[1]).is_none(), "the new policy counts");

    // One of weight 0 gets no requests, and has no breaker.
    let weightless = "[{address: 10.0.0.1, port: 9000}, {address: 10.0.0.2, port: 9000, weight: 0}]";
    let third = node.next(&text(weightless, one), &second);
    third.enforce(&second, now);
    let app = live(&third, "app");
    assert!(app.circuit.is_open() && !app.endpoints()[1].guard().enabled());

    let fourth = node.next(&text(TWO, ""), &third);
    fourth.enforce(&third, now);
    let app = live(&fourth, "app");
    assert!(app.circuit.quiet() && app.circuit.unusable() == 0 && app.endpoints()[0].usable());
    assert!(fail(&app.endpoints()[0]).is_none());
    let last = app.circuit.events().pop().unwrap();
    assert_eq!((last.to, &*last.evidence), (State::Closed, "the circuitBreaker policy is gone"));
}

#[test]
fn a_service_has_one_limit_of_connections_whatever_its_routes_say() {
    let policy = |name: &str, target: &str, pool: &str| {
        let spec = format!("targetRefs: [{{{target}}}], connectionPool: {{{pool}}}");
        ours("TrafficPolicy", name, &spec)
    };
    let route = |name: &str| format!("group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}");
    let service_target = "group: weft.dev, kind: Service, name: app";
    let base = [edge(), service("app", TWO), one_rule("b", &to("app")), one_rule("c", &to("app"))].concat();
    let of_c = policy("c", &route("c"), "maxConnections: 100, maxPendingRequests: 3, maxRequests: 5");
    let table = [
        (String::new(), (1024, 1024)),
        (of_c.clone(), (100, 3)),
        ([policy("b", &route("b"), "maxConnections: 10"), of_c.clone()].concat(), (10, 3)),
        ([policy("s", service_target, "maxPendingRequests: 7"), of_c.clone()].concat(), (100, 7)),
    ];
    for (policies, expected) in table {
        let snapshot = snapshot(&[base.clone(), policies.clone()].concat());
        let limits = live(&snapshot, "app").places.limits();
        assert_eq!((limits.connections, limits.pending), expected, "{policies}");
        let requests = ["b", "c"].map(|route| upstream(&snapshot, route).policy.connection_pool.max_requests);
        assert_eq!(requests, [1024, if policies.is_empty() { 1024 } else { 5 }], "those are each route's own");
    }
}

#[test]
fn a_refused_configuration_leaves_live_limits_alone() {
    let node = Node::new();
    let text = |endpoints: &str, pool: &str| {
        let spec = format!("targetRefs: [{{group: weft.dev, kind: Service, name: app}}], connectionPool: {{{pool}}}");
        [edge(), service("app", endpoints), one_rule("r", &to("app")), ours("TrafficPolicy", "p", &spec)].concat()
    };
    let in_force = |snapshot: &Snapshot| {
        let app = live(snapshot, "app");
        let (endpoint, limits) = (&app.endpoints()[1], app.places.limits());
        (limits.connections, limits.pending, endpoint.idle_timeout(), endpoint.weight())
    };
    let first = node.next(&text(TWO, "maxConnections: 100, idleTimeout: 60s"), &Snapshot::empty());
    first.enforce(&Snapshot::empty(), Instant::now());
    let other = TWO.replace("weight: 3", "weight: 7");
    let next = node.next(&text(&other, "maxConnections: 1, maxPendingRequests: 0, idleTimeout: 1ms"), &first);
    assert_eq!(in_force(&first), (100, 1024, 60 * S, 3), "the next one may still be refused");
    assert_eq!(live(&next, "app").endpoints.weighted().map(|(_, weight)| weight).collect::<Vec<_>>(), [1, 7]);
    assert!(next.review_places().is_empty());
    next.enforce(&first, Instant::now());
    assert_eq!(in_force(&first), (1, 0, S / 1000, 7));
}
