//! What explanations take from live state: breakers, budgets, limits, pressure.

use std::sync::Arc;

use fastrand::Rng;

use super::*;
use crate::{
    endpoint::Health,
    layer::ratelimit::key_of,
    resilience::{
        limiter::CircuitView,
        outcome::{Failure, Outcome},
        shed::Pressure,
    },
    snapshot::{Target, Upstream},
};

/// One route to one service of `count` endpoints, under the service's own policy.
struct World {
    snapshot: Snapshot,
    shed: Shed,
    now: Instant,
}

impl World {
    fn new(count: usize, policy: &str) -> Self {
        let endpoints: Vec<String> = (1..=count).map(|n| format!("{{address: 10.0.0.{n}, port: 9000}}")).collect();
        let text = [
            gateway("edge", "[{name: http, port: 8001, protocol: HTTP}]"),
            object(
                "HTTPRoute",
                "name: r",
                "parentRefs: [{name: edge}], rules: [{backendRefs: [{group: weft.dev, kind: Service, name: cart, port: 80}]}]",
            ),
            ours("Service", "cart", &format!("ports: [{{port: 80}}], endpoints: [{}]", endpoints.join(", "))),
            ours(
                "TrafficPolicy",
                "p",
                &format!("targetRefs: [{{group: weft.dev, kind: Service, name: cart}}], {policy}"),
            ),
        ];
        let snapshot = snapshot(&text.concat());
        let now = Instant::now();
        snapshot.enforce(&Snapshot::empty(), now);
        Self { snapshot, shed: Shed::new(1), now }
    }

    fn target(&self) -> &Target {
        self.snapshot.rules[0].backends.get(0).unwrap()
    }

    fn upstream(&self) -> &Arc<Upstream> {
        self.target().upstream.as_ref().unwrap()
    }

    fn fail(&self, endpoints: &[usize]) {
        for endpoint in endpoints {
            let endpoint = &self.upstream().service.endpoints()[*endpoint];
            let outcome = Outcome::failure(Failure::ConnectFailed, Duration::ZERO);
            for _ in 0..2 {
                endpoint.record(outcome, None, self.now, &mut Rng::with_seed(1));
            }
        }
    }

    /// The backend, as a request with these headers meets it.
    fn ask(&self, more: &str) -> Value {
        let question = Question::parse(&format!("url=http://shop.local/cart{more}")).unwrap();
        let answer = explain(&self.snapshot, &self.shed, &question, self.now);
        answer["listeners"][0]["backends"][0].clone()
    }

    /// Status and reason of the refusal, if there is one.
    fn refused(&self, more: &str) -> Option<(u64, String)> {
        let refusal = &self.ask(more)["refusal"];
        Some((refusal["status"].as_u64()?, refusal["reason"].as_str()?.to_owned()))
    }
}

fn usable(backend: &Value) -> Vec<bool> {
    backend["endpoints"].as_array().unwrap().iter().map(|each| each["usable"].as_bool().unwrap()).collect()
}

const BREAKER: &str =
    "circuitBreaker: {consecutiveFailures: 2, baseEjectionTime: 10s, maxEjectionTime: 10s, maxEjectionPercent: 50}";

#[test]
fn an_ejected_endpoint_is_not_usable() {
    let world = World::new(3, BREAKER);
    world.fail(&[1]);
    let backend = world.ask("");
    assert_eq!((&backend["circuit"], &backend["problem"]), (&json!("closed"), &Value::Null));
    assert_eq!((usable(&backend), &backend["refusal"]), (vec![true, false, true], &Value::Null));
    assert_eq!(backend["endpoints"][1]["evidence"], "2 of 2 failed: connect_failed ×2");
    assert!(backend["next_probe_ms"].as_f64().unwrap() > 8_000.0, "{backend}");
    assert_eq!(World::new(1, "retry: {}").ask("")["circuit"], Value::Null, "without a breaker");
}

#[test]
fn an_open_circuit_refuses_until_a_probe_is_due() {
    let mut world = World::new(2, &format!("{BREAKER}, rateLimit: [{{requests: 10, per: 1s, key: global}}]"));
    world.fail(&[0, 1]);
    let backend = world.ask("");
    let problem = backend["problem"].as_str().unwrap();
    assert!(problem.starts_with("circuit open, next probe in ") && problem.ends_with(" s"), "{problem}");
    assert_eq!((&backend["circuit"], usable(&backend)), (&json!("open"), vec![false, false]));
    assert_eq!((&backend["refusal"]["status"], &backend["refusal"]["reason"]), (&json!(503), &json!("circuit_open")));
    assert!(backend["refusal"]["retry_after_ms"].as_f64().unwrap() > 8_000.0, "{backend}");
    assert_eq!(
        (&backend["rate_limits"][0]["factor"], &backend["rate_limits"][0]["remaining"]),
        (&json!(0.3), &json!(3))
    );
    assert_eq!(backend["balancer"]["panicking"], false);

    world.now += Duration::from_secs(12);
    for _ in 0..3 {
        let backend = world.ask("");
        assert_eq!((&backend["refusal"], &backend["problem"]), (&Value::Null, &Value::Null));
        let probe = backend["probe"].as_str().unwrap().to_owned();
        let place = backend["endpoints"].as_array().unwrap().iter().position(|each| each["address"] == *probe).unwrap();
        assert_eq!(usable(&backend), [place == 0, place == 1]);
    }
    // Looking has taken no probe away.
    let pick = world.upstream().pick(0, &[], world.now, &mut Rng::with_seed(1)).unwrap();
    assert!(pick.probe.is_some());
    assert_eq!(world.ask("")["probe"].as_str().is_some(), world.upstream().foresee(world.now).unwrap().is_some());
}

#[test]
fn panic_makes_all_usable() {
    let world = World::new(4, "retry: {}");
    let endpoints = world.upstream().service.endpoints();
    endpoints[..3].iter().for_each(|endpoint| endpoint.set_health(Health::Unhealthy, world.now));
    let backend = world.ask("");
    assert_eq!((&backend["balancer"]["panicking"], usable(&backend)), (&json!(true), vec![true; 4]));
    assert_eq!(world.refused(""), None);
}

#[test]
fn a_limit_is_the_very_one_that_requests_are_charged_to() {
    let world = World::new(
        1,
        "rateLimit: [{requests: 100, per: 1s, key: global}, {requests: 2, per: 1m, key: {header: x-user}}]",
    );
    let limits = world.target().limits.as_ref().unwrap();
    let headers: HeaderMap = [("x-user".parse().unwrap(), http::HeaderValue::from_static("7"))].into_iter().collect();
    let charge =
        || limits.admit(|key| key_of(key, &headers, b"", None, "/cart"), CircuitView::Steady, world.now).is_ok();
    assert!(charge() && charge());
    let backend = world.ask("&header=x-user:7");
    let shown = &backend["rate_limits"];
    assert_eq!((&shown[0]["remaining"], &shown[0]["wait_ms"]), (&json!(98), &json!(0)));
    assert_eq!(
        (&shown[1]["remaining"], &shown[1]["value"], &shown[1]["target"]),
        (&json!(0), &json!("7"), &json!("Service default/cart"))
    );
    assert!(shown[1]["wait_ms"].as_f64().unwrap() > 29_000.0, "{shown}");
    assert_eq!(world.refused("&header=x-user:7"), Some((429, "rate_limited".into())));
    assert!(backend["refusal"]["detail"].as_str().unwrap().starts_with("limit p.2 (2 per 1m"), "{backend}");
    assert_eq!(world.refused("&header=x-user:8"), None);
    assert_eq!(world.ask("&header=x-user:8")["rate_limits"][1]["remaining"], 2, "asking charges nothing");
    assert!(!charge());
}

#[test]
fn a_limit_by_what_the_request_lacks_does_not_apply() {
    let list = "{requests: 1, per: 1m, key: {header: x-user}}, {requests: 1, per: 1m, key: identity}, \
                {requests: 3, per: 1h, key: global}";
    let world = World::new(1, &format!("rateLimit: [{list}]"));
    let limits = world.target().limits.as_ref().unwrap();
    let headers = HeaderMap::new();
    let charge =
        || limits.admit(|key| key_of(key, &headers, b"", None, "/cart"), CircuitView::Steady, world.now).is_ok();
    let shown = |more: &str| {
        let limits = world.ask(more)["rate_limits"].clone();
        let fields = |limit: &Value| json!([limit["applies"], limit["remaining"], limit["wait_ms"]]);
        limits.as_array().unwrap().iter().map(fields).collect::<Vec<_>>()
    };
    let off = json!([false, null, null]);
    assert!(charge() && charge());
    assert_eq!(shown(""), [off.clone(), off.clone(), json!([true, 1, 0])]);
    assert_eq!(shown("&header=x-user:7"), [json!([true, 1, 0]), off.clone(), json!([true, 1, 0])]);
    assert_eq!(world.refused(""), None);
    assert!(charge() && !charge());
    let detail = world.ask("")["refusal"]["detail"].clone();
    assert!(detail.as_str().unwrap().starts_with("limit p.3 (3 per 1h"), "{detail}");
}

#[test]
fn whose_budget_it_is_may_be_unknown() {
    let world = World::new(1, "rateLimit: [{requests: 2, per: 1m, key: {sourceIP: {}}}]");
    let limits = |more: &str| world.ask(more)["rate_limits"][0].clone();
    assert_eq!((limits("")["value"].clone(), limits("")["remaining"].clone()), (Value::Null, Value::Null));
    assert_eq!(limits("")["applies"], true);
    let known = limits("&client=::ffff:10.0.0.1");
    assert_eq!((&known["value"], &known["remaining"]), (&json!("10.0.0.1"), &json!(2)));
}

#[test]
fn pressure_sheds_the_less_urgent() {
    let world = World::new(1, "priority: 2");
    let urgency = |more: &str| world.ask(more)["priority"].clone();
    assert_eq!(urgency(""), json!({"policy": 2, "request": null, "urgency": 2, "shed_from": null}));
    world.shed.publish(4, &Pressure { memory: Some((950 << 20, 1_000 << 20)), lag: None });
    assert_eq!(urgency("&header=priority:u%3D5"), json!({"policy": 2, "request": 5, "urgency": 5, "shed_from": 4}));
    assert_eq!(urgency("&header=priority:u%3D0")["urgency"], 2, "a request cannot raise it");
    assert_eq!(world.refused("&header=priority:u%3D5"), Some((503, "overloaded".into())));
    assert_eq!(world.refused(""), None);
}

#[test]
fn what_else_refuses() {
    let full = World::new(1, "connectionPool: {maxRequests: 1}");
    assert_eq!(full.refused(""), None);
    full.upstream().service.in_flight.enter();
    let refusal = &full.ask("")["refusal"];
    assert_eq!(refusal["detail"], "service cart has maxRequests: 1 in flight");

    let fault = World::new(1, "fault: {abort: {status: 418, percent: 100}, header: {name: x-fault, value: '1'}}");
    assert_eq!(fault.refused(""), None);
    assert_eq!(fault.refused("&header=x-fault:1"), Some((418, "fault_injected".into())));
    let some = World::new(1, "fault: {abort: {status: 418, percent: 99}}");
    assert_eq!(some.refused(""), None);

    let none = World::new(0, "retry: {}");
    assert_eq!(none.refused(""), Some((503, "no_endpoint".into())));
    assert_eq!(none.ask("")["problem"], "the service has no endpoints");
    let grpc = none.ask("&header=content-type:application/grpc");
    assert_eq!(grpc["refusal"]["grpc_status"], "UNAVAILABLE");
    let late = World::new(1, "retry: {}");
    assert_eq!(late.refused("&header=x-envoy-expected-rq-timeout-ms:0"), Some((504, "deadline_exceeded".into())));
}

#[test]
fn the_shortest_time_out_wins() {
    let world = World::new(1, "timeouts: {request: 2s}");
    let timeouts = |more: &str| {
        let timeouts = world.ask(more)["timeouts"].clone();
        let client: Vec<_> =
            timeouts["client"].as_array().unwrap().iter().map(|word| word["why_not"].clone()).collect();
        (timeouts["request_ms"].as_u64().unwrap(), timeouts["request_by"].as_str().unwrap().to_owned(), client)
    };
    let (route, client) = ("the route".to_owned(), "the client".to_owned());
    let (grpc, envoy) =
        ("&header=content-type:application/grpc&header=grpc-timeout:", "&header=x-envoy-expected-rq-timeout-ms:");
    assert_eq!(timeouts(""), (2000, route.clone(), vec![]));
    assert_eq!(timeouts(&format!("{envoy}500")), (500, client.clone(), vec![Value::Null]));
    assert_eq!(timeouts(&format!("{envoy}5000")), (2000, route.clone(), vec![json!("the route's is shorter")]));
    assert_eq!(timeouts(&format!("{envoy}soon")), (2000, route.clone(), vec![json!("not a time-out")]));
    let both = timeouts(&format!("{grpc}1S{envoy}300"));
    assert_eq!(both, (300, client.clone(), vec![json!("the client's other one is shorter"), Value::Null]));
    assert_eq!(timeouts(&format!("{grpc}1S")), (1000, client, vec![Value::Null]));
    assert_eq!(timeouts("&header=grpc-timeout:1S"), (2000, route, vec![json!("only gRPC requests have one")]));
}

#[test]
fn budgets_and_bounds() {
    let world = World::new(
        1,
        "retry: {}, retryBudget: {percent: 0, minPerSecond: 1, ttl: 10s}, concurrency: {adaptive: {min: 3, max: 50}}, hedge: {after: p95}",
    );
    assert_eq!(world.ask("")["retry"]["budget"]["remaining"], 10);
    assert!(world.upstream().service.budget.withdraw(world.now));
    assert_eq!(world.ask("")["retry"]["budget"]["remaining"], 9);
    let limit = world.ask("")["concurrency"]["limit"].as_u64().unwrap();
    assert!((3..=50).contains(&limit), "{limit}");
    assert_eq!(world.ask("")["hedge"]["allowed"], true);
    assert_eq!(world.ask("&method=POST")["hedge"]["allowed"], false);
    let pool = world.ask("")["pool"].clone();
    assert_eq!((&pool["connections"], &pool["pending"]), (&json!(0), &json!(0)));
}
