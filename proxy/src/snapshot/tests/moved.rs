//! Snapshots that differ from the one before in endpoints only, or hardly at all.

use weft_model::config::{self, Address, Config};

use super::*;
use crate::snapshot::compile::{self, Input, Moved, moved};

/// Everything that leads to a service: routes with filters and mirrors, a route with its own policy, TCP, captured ports of
/// every sort.
fn text() -> String {
    let hello = "clusterIPs: [10.96.0.1, 10.96.0.2], \
                 ports: [{name: a, port: 80, appProtocol: http}, {name: b, port: 81}, {name: c, port: 82, appProtocol: tcp}]";
    let policy = |group: &str, kind: &str, name: &str, spec: &str| {
        ours("TrafficPolicy", name, &format!("targetRefs: [{{group: {group}, kind: {kind}, name: {name}}}], {spec}"))
    };
    let mirror =
        "type: RequestMirror, requestMirror: {backendRef: {group: weft.dev, kind: Service, name: other, port: 80}}";
    [
        gateway("edge", "[{name: http, port: 8001, protocol: HTTP}, {name: tcp, port: 8002, protocol: TCP}]"),
        ours("Service", "app", &format!("{hello}, endpoints: {TWO}")),
        ours("Service", "other", &format!("ports: [{{port: 80}}], endpoints: {TWO}")),
        one_rule("a", &format!("matches: [{{path: {{value: /a}}}}], filters: [{{{mirror}}}], {}", to("app"))),
        one_rule("b", &format!("matches: [{{path: {{value: /b}}}}], {}", to("app"))),
        one_rule("c", &format!("matches: [{{path: {{value: /c}}}}], {}", to("other"))),
        object(
            "TCPRoute",
            "name: raw",
            "parentRefs: [{name: edge, sectionName: tcp}], \
             rules: [{backendRefs: [{group: weft.dev, kind: Service, name: app, port: 82}]}]",
        ),
        policy(
            "gateway.networking.k8s.io",
            "HTTPRoute",
            "b",
            "timeouts: {request: 3s}, rateLimit: [{requests: 5, per: 1s}]",
        ),
        policy("weft.dev", "Service", "app", "circuitBreaker: {consecutiveFailures: 5}, retry: {attempts: 2}"),
    ]
    .concat()
}

fn config_with(text: &str, service: &str, change: impl FnOnce(&mut config::Service)) -> Config {
    let mut config = config(text);
    let found = config.services.iter_mut().find(|one| &*one.key.name == service).unwrap();
    change(Arc::make_mut(found));
    config
}

fn weigh(weight: u32) -> impl FnOnce(&mut config::Service) {
    move |service| service.endpoints[0].weight = weight
}

/// By the short way, which there has to be.
fn short(node: &Node, config: Config, previous: &Snapshot) -> Snapshot {
    let moved = moved(&previous.config, &config).unwrap();
    compile(node, config, previous, |input, previous| moved.compile(input, previous))
}

fn compile(
    node: &Node,
    config: Config,
    previous: &Snapshot,
    how: impl FnOnce(&Input<'_>, &Snapshot) -> Result<Snapshot, compile::CompileError>,
) -> Snapshot {
    let input = Input {
        config: Arc::new(config),
        revision: previous.revision + 1,
        zone: node.zone.clone(),
        resolved: &node.resolved,
        identities: &node.identities,
        telemetry: &node.telemetry,
        now: Instant::now(),
    };
    how(&input, previous).unwrap()
}

/// The shares of the endpoints that everything in a snapshot leads to, by what leads there.
fn reached(snapshot: &Snapshot) -> Vec<(String, Vec<(String, u32)>)> {
    let shares = |upstream: &Upstream| -> Vec<(String, u32)> {
        let set = upstream.balancer.set();
        assert!(Arc::ptr_eq(set, &upstream.service.endpoints));
        set.weighted().map(|(endpoint, weight)| (endpoint.label.to_string(), weight)).collect()
    };
    let mut all = Vec::new();
    let mut target = |name: String, target: &Target| all.push((name, shares(target.upstream.as_ref().unwrap())));
    for rule in &snapshot.rules {
        rule.backends.iter().for_each(|one| target(format!("rule {} {}", rule.route, rule.name), one));
    }
    for port in &*snapshot.ports {
        if let PortKind::Tcp(Some(tcp)) = &port.kind {
            tcp.backends.iter().for_each(|one| target(format!("port {}", port.id), one));
        }
    }
    let mut virtual_ports: Vec<_> = snapshot.virtual_ports.iter().collect();
    virtual_ports.sort_by_key(|(id, _)| **id);
    for (id, port) in virtual_ports {
        if let PortKind::Tcp(Some(tcp)) = &port.kind {
            tcp.backends.iter().for_each(|one| target(format!("virtual {id}"), one));
        }
        let unknown = port.unknown.iter().flat_map(|tcp| tcp.backends.iter());
        unknown.for_each(|one| target(format!("unknown {id} {:?}", port.implicit), one));
    }
    for rule in &snapshot.rules {
        for mirror in &rule.mirrors {
            all.push((format!("mirror {}", rule.route), shares(&mirror.upstream)));
        }
    }
    let mut services: Vec<_> = snapshot.services.values().collect();
    services.sort_by_key(|service| (&service.key, service.port));
    for service in services {
        let set = service.endpoints.weighted();
        let set = set.map(|(endpoint, weight)| (endpoint.label.to_string(), weight));
        all.push((format!("service {}:{}", service.key, service.port), set.collect()));
    }
    all
}

#[test]
fn the_short_way_leads_where_the_long_one_does() {
    let node = Node::new();
    let text = text();
    let first = node.next(&text, &Snapshot::empty());
    for service in ["app", "other"] {
        let changed = |weight| config_with(&text, service, weigh(weight));
        let quick = short(&node, changed(7), &first);
        let slow = node.compile(changed(7), &Node::new().next(&text, &Snapshot::empty())).unwrap();
        assert_eq!(reached(&quick), reached(&slow), "{service}");
        assert_ne!(reached(&quick), reached(&first), "{service}");
        for path in ["/a", "/b", "/c", "/x"] {
            assert_eq!(route(&quick, 8001, "x", path), route(&first, 8001, "x", path));
        }
        // Once more on top of that, and back.
        let back = short(&node, config(&text), &short(&node, changed(9), &quick));
        assert_eq!(reached(&back), reached(&first));
    }
}

#[test]
fn what_did_not_change_is_the_very_same() {
    let node = Node::new();
    let text = text();
    let first = node.next(&text, &Snapshot::empty());
    let app = |snapshot: &Snapshot| live(snapshot, "app").clone();
    let kept = app(&first).endpoints()[1].clone();
    kept.latency.observe(S, Instant::now());
    app(&first).in_flight.enter();
    let second = short(
        &node,
        config_with(&text, "app", |app| {
            app.endpoints.remove(0);
            let new = config::Endpoint { address: Address::Ip([10, 0, 0, 9].into()), ..app.endpoints[0].clone() };
            app.endpoints.push(new);
        }),
        &first,
    );
    assert!(Arc::ptr_eq(live(&first, "other"), live(&second, "other")));
    assert!(Arc::ptr_eq(upstream(&first, "c"), upstream(&second, "c")));
    assert!(!Arc::ptr_eq(upstream(&first, "a"), upstream(&second, "a")));
    // Live state goes on, as with a new configuration of any sort.
    assert!(Arc::ptr_eq(&app(&second).endpoints()[0], &kept));
    assert_eq!(app(&second).in_flight.get(), 1);
    assert!(Arc::ptr_eq(&app(&first).circuit, &app(&second).circuit));
    assert!(Arc::ptr_eq(&app(&first).places, &app(&second).places));
    assert!(Arc::ptr_eq(&app(&first).budget, &app(&second).budget));
    let limits = |snapshot: &Snapshot| target(snapshot, "b").limits.clone().unwrap();
    assert!(Arc::ptr_eq(&limits(&first), &limits(&second)));
    // Which of them are gone; ports of the service have endpoints of their own.
    let removed: Vec<_> = second.removed(&first).map(|endpoint| endpoint.label.to_string()).collect();
    assert_eq!(removed, ["10.0.0.1:9000"; 3]);
    let (untouched, now) = (live(&first, "other").endpoints()[0].clone(), Instant::now());
    untouched.set_weight(77, now);
    second.enforce(&first, now);
    assert_eq!(untouched.weight(), 77, "nobody has to look at it");
    assert_eq!(app(&second).endpoints()[1].weight(), 3);
}

#[test]
fn a_full_compilation_takes_over_what_did_not_change_and_nothing_else() {
    let node = Node::new();
    let text = text();
    let first = node.next(&text, &Snapshot::empty());
    let same = |one: &Snapshot, other: &Snapshot, name: &str| Arc::ptr_eq(live(one, name), live(other, name));
    // Another route.
    let more = [&text, &*one_rule("d", &to("app"))].concat();
    let second = node.next(&more, &first);
    assert!(same(&first, &second, "app") && same(&first, &second, "other"));
    assert!(Arc::ptr_eq(upstream(&first, "a"), upstream(&second, "a")));
    assert!(Arc::ptr_eq(upstream(&second, "a"), upstream(&second, "d")));
    // Another policy of the service, of the route, and of who may come.
    let third = node.next(&text.replace("consecutiveFailures: 5", "consecutiveFailures: 6"), &second);
    assert!(!same(&second, &third, "app") && same(&second, &third, "other"));
    assert_eq!(live(&third, "app").common.breaker.as_ref().unwrap().consecutive_failures, 6);
    assert_eq!(upstream(&third, "a").service.policy, live(&third, "app").policy);
    let fourth = node.next(&text.replace("request: 3s", "request: 4s"), &third);
    assert_eq!(target(&fourth, "b").deadlines.request, Some(4 * S));
    assert!(Arc::ptr_eq(upstream(&fourth, "c"), upstream(&third, "c")));
    let access = ours(
        "AccessPolicy",
        "p",
        "targetRefs: [{group: weft.dev, kind: Service, name: other}], action: Deny, \
         rules: [{from: [{ipBlocks: [10.0.0.0/8]}]}]",
    );
    let fifth = node.next(&[&text, &*access].concat(), &fourth);
    assert!(!same(&fourth, &fifth, "other") && live(&fifth, "other").access.is_some());
    assert!(upstream(&fifth, "c").service.access.is_some());
    let sixth = node.next(&[&text, &*access].concat(), &fifth);
    assert!(same(&fifth, &sixth, "other") && same(&fifth, &sixth, "app"));
    let seventh = node.next(&text, &sixth);
    assert!(live(&seventh, "other").access.is_none());
}

#[test]
fn the_short_way_is_only_for_endpoints() {
    let text = text();
    let before = config(&text);
    let way = |after: &Config| moved(&before, after).is_some();
    assert!(way(&config_with(&text, "app", weigh(9))));
    assert!(way(&config_with(&text, "app", |app| app.endpoints.clear())));
    assert!(way(&config_with(&text, "app", |app| app.endpoints[0].draining = true)));
    assert!(!way(&before), "who applies the same once more wants it looked at");
    let named = |app: &mut config::Service| app.endpoints[0].address = Address::Name("a.example".into());
    assert!(!way(&config_with(&text, "app", named)));
    assert!(!way(&config_with(&text, "app", |app| app.fail_open = !app.fail_open)));
    assert!(!way(&config_with(&text, "app", |app| app.ports.truncate(2))));
    assert!(!way(&config_with(&text, "app", |app| app.cluster_ips.truncate(1))));
    let with = |change: fn(&mut Config)| {
        let mut config = config_with(&text, "app", weigh(9));
        change(&mut config);
        way(&config)
    };
    assert!(with(|_| {}));
    assert!(!with(|config| config.http_routes.truncate(1)));
    assert!(!with(|config| config.tcp_routes.clear()));
    assert!(!with(|config| config.gateways.clear()));
    assert!(!with(|config| config.traffic_policies.clear()));
    assert!(!with(|config| drop(config.services.pop())));
    assert!(!with(|config| config.services.reverse()));
    assert!(!with(|config| config.telemetry.sample_percent = 3.0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any sequence of endpoints, by either way, leads to the same.
    #[test]
    fn both_ways_agree(steps in proptest::collection::vec((0..2_usize, proptest::collection::vec((1..6_u8, 0..4_u32, any::<bool>()), 0..5)), 1..8)) {
        let text = text();
        let (quick_node, slow_node) = (Node::new(), Node::new());
        let mut quick = quick_node.next(&text, &Snapshot::empty());
        let mut slow = slow_node.next(&text, &Snapshot::empty());
        let mut now = config(&text);
        for (service, endpoints) in steps {
            let endpoints = endpoints.into_iter().map(|(host, weight, draining)| config::Endpoint {
                address: Address::Ip([10, 0, 0, host].into()),
                port: 9000,
                weight,
                zone: None,
                draining,
            });
            Arc::make_mut(&mut now.services[service]).endpoints = endpoints.collect();
            let step: Option<Moved> = moved(&quick.config, &now);
            let Some(step) = step else { continue };
            let next = compile(&quick_node, now.clone(), &quick, |input, previous| step.compile(input, previous));
            let removed: Vec<_> = next.removed(&quick).map(|endpoint| endpoint.id).collect();
            let ids = |snapshot: &Snapshot| -> HashSet<u64> {
                snapshot.services.values().flat_map(|service| service.endpoints()).map(|endpoint| endpoint.id).collect()
            };
            prop_assert_eq!(removed.into_iter().collect::<HashSet<_>>(), &ids(&quick) - &ids(&next));
            quick = next;
            slow = compile(&slow_node, now.clone(), &slow, compile::compile);
            prop_assert_eq!(reached(&quick), reached(&slow));
        }
    }
}

/// 1,000 services of 100 endpoints, each with a route of its own and captured connections.
fn large() -> Config {
    let one = |n: u32| {
        let name = format!("s{n}");
        let rule = format!(
            "matches: [{{path: {{value: /{name}}}, headers: [{{name: x, value: '{n}'}}]}}], \
             filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: a, value: b}}]}}}}], {}",
            to(&name)
        );
        let spec =
            format!("clusterIPs: [10.{}.{}.1], ports: [{{port: 80, appProtocol: http}}]", 100 + n / 250, n % 250);
        let policy = format!(
            "targetRefs: [{{group: weft.dev, kind: Service, name: {name}}}], circuitBreaker: {{consecutiveFailures: 5}}"
        );
        let policy = if n.is_multiple_of(5) { ours("TrafficPolicy", &name, &policy) } else { String::new() };
        [ours("Service", &name, &spec), one_rule(&name, &rule), policy].concat()
    };
    let text: String = std::iter::once(edge()).chain((0..1000).map(one)).collect();
    let mut config = config(&text);
    for (n, service) in config.services.iter_mut().enumerate() {
        Arc::make_mut(service).endpoints = (0..100_u8)
            .map(|m| config::Endpoint {
                address: Address::Ip([10, (n / 250) as u8, (n % 250) as u8, m + 1].into()),
                port: 9000,
                weight: 1,
                zone: None,
                draining: false,
            })
            .collect();
    }
    config
}

/// Prints what one endpoint costs among 100,000. Run it optimised:
/// `cargo test -p weft-proxy --config 'profile.dev.package.weft-proxy.opt-level=3' one_endpoint -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout, reason = "a measurement")]
async fn one_endpoint_among_many() {
    let options = crate::options::Options { workers: 1, pin_workers: false, ..Default::default() };
    let mut app = crate::app::App::start(options, None).unwrap();
    let mut config = large();
    // No port is needed for this.
    config.gateways[0].listeners[0].port = 0;
    // Of this thread: other work on the machine does not count.
    let cpu = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap())
    };
    let mut apply = async |config: &Config| {
        let (config, began) = (Arc::new(config.clone()), cpu());
        app.apply(config).await.unwrap();
        cpu() - began
    };
    println!("all of it at first: {:?}", apply(&config).await);
    let mut times = Vec::new();
    for round in 0..50_u32 {
        Arc::make_mut(&mut config.services[500]).endpoints[0].weight = 2 + round;
        times.push(apply(&config).await);
    }
    times.sort();
    println!("one endpoint: median {:?}, longest {:?}", times[25], times[49]);
    config.telemetry.sample_percent = 7.0;
    println!("something else: {:?}", apply(&config).await);
    // As every change was before: each service is made anew.
    config.services.iter_mut().for_each(|service| Arc::make_mut(service).fail_open = true);
    println!("every service: {:?}", apply(&config).await);
}
