#![allow(clippy::unwrap_used)]

mod live;

use std::time::Duration;

use super::*;
use crate::{
    balance::hash_str,
    snapshot::fixture::{gateway, object, ours, snapshot},
};

/// The shop of the contract, with a second listener and what else there is to explain.
fn shop() -> String {
    let backend = |name: &str, weight: u32| {
        format!("{{group: weft.dev, kind: Service, name: {name}, port: 80, weight: {weight}}}")
    };
    let cart = "[{path: {type: PathPrefix, value: /cart}}]";
    let rules = [
        format!(
            "{{name: canary, matches: [{{path: {{type: PathPrefix, value: /cart}}, headers: [{{name: x-canary, value: '1'}}]}}], \
             backendRefs: [{}]}}",
            backend("next", 1)
        ),
        format!(
            "{{name: cart, matches: {cart}, retry: {{attempts: 4, codes: [500]}}, timeouts: {{request: 2s}}, \
             filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{set: [{{name: x-shop, value: a}}]}}}}], \
             backendRefs: [{}, {}, {}]}}",
            backend("cart", 3),
            backend("idle", 0),
            backend("next", 1)
        ),
        "{name: old, matches: [{path: {type: Exact, value: /old}, method: GET}], filters: [{type: RequestRedirect, \
         requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /cart}, statusCode: 301}}]}"
            .to_owned(),
        format!(
            "{{name: files, matches: [{{path: {{type: PathPrefix, value: /files}}}}], filters: [{{type: URLRewrite, \
             urlRewrite: {{hostname: files.local, path: {{type: ReplacePrefixMatch, replacePrefixMatch: /}}}}}}], backendRefs: [{}]}}",
            backend("files", 1)
        ),
    ];
    let route =
        format!("parentRefs: [{{name: edge}}], hostnames: [shop.local, '*.shop.local'], rules: [{}]", rules.join(", "));
    let service = |name: &str| {
        let endpoints =
            "[{address: 10.0.0.1, port: 9000}, {address: 10.0.0.2, port: 9000}, {address: 10.0.0.3, port: 9000}]";
        ours("Service", name, &format!("ports: [{{port: 80}}], endpoints: {endpoints}"))
    };
    let policy = |name: &str, group: &str, kind: &str, target: &str, spec: &str| {
        ours("TrafficPolicy", name, &format!("targetRefs: [{{group: {group}, kind: {kind}, name: {target}}}], {spec}"))
    };
    [
        gateway("edge", "[{name: http, port: 8001, protocol: HTTP}, {name: shop, port: 8002, protocol: HTTP, hostname: '*.local'}, {name: raw, port: 8003, protocol: TCP}]"),
        object("HTTPRoute", "name: shop", &route),
        ["cart", "idle", "next", "files"].map(service).concat(),
        policy("shop-limits", "gateway.networking.k8s.io", "HTTPRoute", "shop",
            "rateLimit: [{requests: 10, per: 1s, key: global}, {requests: 5, per: 1m, key: {header: x-user}}]"),
        policy("cart", "weft.dev", "Service", "cart", "retry: {}, fault: {abort: {status: 503}, header: {name: x-fault, value: '1'}}"),
        policy("files", "weft.dev", "Service", "files", "loadBalancer: {type: RingHash, hash: {header: x-user}}"),
    ]
    .concat()
}

fn ask(question: &str) -> Value {
    explain(&snapshot(&shop()), &Shed::new(1), &Question::parse(question).unwrap(), Instant::now())
}

fn reasons(listener: &Value) -> Vec<String> {
    let text =
        |other: &Value| format!("{}: {}", other["rule"].as_str().unwrap(), other["reasons"][0].as_str().unwrap());
    listener["others"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn the_rule_that_serves_and_those_that_do_not() {
    let answer = ask("url=http://Shop.local:8001/cart/../cart");
    let listener = &answer["listeners"][0];
    assert_eq!((&answer["matched"], answer["listeners"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!((&answer["request"]["host"], &answer["request"]["path"]), (&json!("shop.local"), &json!("/cart")));
    assert_eq!(
        (&listener["gateway"], &listener["listener"], &listener["address"], &listener["protocol"]),
        (&json!("edge"), &json!("http"), &json!("127.0.0.1:8001"), &json!("HTTP"))
    );
    assert_eq!(
        listener["rule"],
        json!({"kind": "HTTPRoute", "route": "shop", "rule": "cart", "match": "/cart/*", "hostnames": ["shop.local", "*.shop.local"]})
    );
    assert_eq!(
        reasons(listener),
        [
            "canary: header x-canary: wants \"1\", is absent",
            "old: path: wants /old exactly, is /cart",
            "files: path /files is no prefix of /cart",
        ]
    );
    let canary = ask("url=http://shop.local:8001/cart&header=x-canary:1");
    assert_eq!(canary["listeners"][0]["rule"]["rule"], "canary");
    assert_eq!(canary["listeners"][0]["others"][0]["fits"], true);
    assert_eq!(reasons(&canary["listeners"][0])[0], "cart: fits, but the winner has more header conditions");
}

#[test]
fn listeners_are_chosen_by_port_scheme_and_hostname() {
    let taken = |question: &str| {
        let answer = ask(question);
        let names = |list: &str, field: &str| {
            let all = answer[list].as_array().unwrap().iter();
            all.map(|listener| listener[field].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        (names("listeners", "listener"), names("skipped", "why"))
    };
    let tcp = "carries TCP, without a look at requests";
    assert_eq!(taken("url=http://shop.local/"), (vec!["http".into(), "shop".into()], vec![tcp.into()]));
    let (listeners, skipped) = taken("url=http://shop.org/");
    assert_eq!((listeners, &*skipped[0]), (vec!["http".into()], "hostname *.local does not fit shop.org"));
    let (listeners, skipped) = taken("url=http://shop.local:8002/");
    assert_eq!((listeners, &*skipped[0]), (vec!["shop".into()], "the URL asks for port 8002"));
    let (listeners, skipped) = taken("url=https://shop.local/");
    assert_eq!((listeners.len(), &*skipped[0]), (0, "speaks http, the URL asks for https"));
}

#[test]
fn nothing_matches() {
    let other = ask("url=http://other.local:8001/cart");
    assert_eq!((&other["matched"], &other["listeners"][0]["outcome"]), (&json!(false), &json!("no_route")));
    assert_eq!(reasons(&other["listeners"][0])[0], "cart: hostnames shop.local, *.shop.local do not fit other.local");
    let post = ask("method=POST&url=http://shop.local:8001/old");
    assert_eq!(post["listeners"][0]["outcome"], "method_not_allowed");
    assert_eq!(post["listeners"][0]["allow"], json!(["GET"]));
}

#[test]
fn filters_and_where_they_lead() {
    let redirect = ask("url=http://shop.local:8001/old?q=1");
    assert_eq!(
        redirect["listeners"][0]["redirect"],
        json!({"status": 301, "location": "http://shop.local:8001/cart?q=1"})
    );
    assert_eq!(redirect["listeners"][0]["backends"], Value::Null);
    let files = ask("url=http://shop.local:8001/files/a/b?v=2");
    assert_eq!(
        files["listeners"][0]["forwarded"],
        json!({"host": "files.local", "path": "/a/b?v=2", "rewritten": true})
    );
    let cart = ask("url=http://shop.local:8001/cart");
    let changed = json!({"request_headers": {"set": [["x-shop", "a"]], "add": [], "remove": []}});
    assert_eq!(cart["listeners"][0]["filters"], changed);
}

#[test]
fn backends_with_their_policies() {
    let answer = ask("method=POST&url=http://shop.local:8001/cart&header=x-user:7");
    let backends = answer["listeners"][0]["backends"].as_array().unwrap();
    let shares: Vec<_> =
        backends.iter().map(|one| (one["service"].as_str().unwrap(), one["percent"].as_f64().unwrap())).collect();
    assert_eq!(shares, [("cart", 75.0), ("idle", 0.0), ("next", 25.0)]);
    assert!(backends[1]["endpoints"].is_null() && backends[2]["endpoints"].as_array().unwrap().len() == 3);

    let cart = &backends[0];
    let retry = &cart["retry"];
    assert_eq!((&retry["attempts"], &retry["allowed"]), (&json!(4), &json!(false)), "{retry}");
    assert!(
        retry["retry_on"].as_array().unwrap().contains(&json!("500"))
            && retry["retry_on"].as_array().unwrap().contains(&json!("connect-failure"))
    );
    assert!(retry["why"].as_str().unwrap().starts_with("POST is not idempotent"), "{retry}");
    assert_eq!(cart["timeouts"]["request_ms"], 2000);
    assert_eq!((&cart["fault"]["applies"], &cart["fault"]["abort"]["status"]), (&json!(false), &json!(503)));

    let limits = cart["rate_limits"].as_array().unwrap();
    let shown: Vec<_> =
        limits.iter().map(|limit| (&limit["name"], &limit["target"], &limit["key"], &limit["value"])).collect();
    let target = json!("HTTPRoute default/shop");
    assert_eq!(
        shown,
        [
            (&json!("shop-limits.1"), &target, &json!("global"), &Value::Null),
            (&json!("shop-limits.2"), &target, &json!("header x-user"), &json!("7")),
        ]
    );
}

#[test]
fn a_method_may_be_repeated_for_a_reason() {
    let why = |question: &str| {
        let answer = ask(question);
        let retry = answer["listeners"][0]["backends"][0]["retry"].clone();
        (retry["allowed"].as_bool().unwrap(), retry["why"].as_str().unwrap().to_owned())
    };
    assert_eq!(why("url=http://shop.local:8001/cart"), (true, "GET is idempotent".into()));
    let keyed = why("method=POST&url=http://shop.local:8001/cart&header=idempotency-key:1");
    assert_eq!(keyed, (true, "the request has an Idempotency-Key".into()));
    let grpc = why("method=POST&url=http://shop.local:8001/cart&header=content-type:application/grpc");
    assert_eq!(grpc, (true, "retryOn has a condition for gRPC".into()));
}

#[test]
fn a_key_leads_where_requests_with_it_go() {
    let snapshot = snapshot(&shop());
    for user in 0..20 {
        let question = Question::parse(&format!("url=http://shop.local:8001/files&header=x-user:{user}")).unwrap();
        let answer = explain(&snapshot, &Shed::new(1), &question, Instant::now());
        let hash = &answer["listeners"][0]["backends"][0]["balancer"]["hash"];
        let rule = snapshot.rules.iter().find(|rule| &*rule.name == "files").unwrap();
        let balancer = &rule.backends.get(0).unwrap().upstream.as_ref().unwrap().balancer;
        let key = hash_str(user.to_string().as_bytes());
        let picked = balancer.pick(key, &[], Instant::now(), &mut fastrand::Rng::with_seed(1)).unwrap();
        assert_eq!((&hash["value"], &hash["endpoint"]), (&json!(user.to_string()), &json!(&*picked.label)));
    }
    let unknown = ask("url=http://shop.local:8001/files");
    let hash = &unknown["listeners"][0]["backends"][0]["balancer"]["hash"];
    assert_eq!(*hash, json!({"key": "header x-user", "value": null, "by_address": true, "endpoint": null}));
    let known = ask("url=http://shop.local:8001/files&client=10.9.9.9");
    let hash = &known["listeners"][0]["backends"][0]["balancer"]["hash"];
    assert_eq!(hash["value"], "10.9.9.9");
    assert!(hash["endpoint"].is_string());
}

#[test]
fn asking_changes_nothing() {
    let snapshot = snapshot(&shop());
    let question = Question::parse("url=http://shop.local:8001/cart").unwrap();
    let now = Instant::now() + Duration::from_secs(1);
    let before = explain(&snapshot, &Shed::new(1), &question, now);
    for _ in 0..20 {
        assert_eq!(explain(&snapshot, &Shed::new(1), &question, now), before);
    }
    let endpoint = &before["listeners"][0]["backends"][0]["endpoints"][0];
    assert_eq!(
        (&endpoint["requests"], &endpoint["in_flight"], &endpoint["usable"]),
        (&json!(0), &json!(0), &json!(true))
    );
}

#[test]
fn an_unhealthy_service_has_a_problem() {
    let snapshot = snapshot(&shop().replace("loadBalancer: {", "loadBalancer: {panicThresholdPercent: 0, "));
    let rule = snapshot.rules.iter().find(|rule| &*rule.name == "files").unwrap();
    let upstream = rule.backends.get(0).unwrap().upstream.as_ref().unwrap();
    for endpoint in upstream.service.endpoints() {
        endpoint.set_health(crate::endpoint::Health::Unhealthy, Instant::now());
    }
    let answer = explain(
        &snapshot,
        &Shed::new(1),
        &Question::parse("url=http://shop.local:8001/files").unwrap(),
        Instant::now(),
    );
    let backend = &answer["listeners"][0]["backends"][0];
    assert_eq!(backend["problem"], "none of the 3 endpoints is usable: 3 unhealthy, 0 ejected");
    assert_eq!(backend["refusal"]["reason"], "no_endpoint");
    assert_eq!(backend["endpoints"][0]["usable"], false);
}

#[test]
fn rules_are_listed() {
    let all = routes::list(&snapshot(&shop()), |route| if route == "shop" { 7 } else { 0 });
    assert_eq!(
        all[2],
        json!({"kind": "HTTPRoute", "route": "shop", "rule": "old", "parents": ["edge"],
            "hostnames": ["shop.local", "*.shop.local"], "matches": ["GET /old"], "backends": [], "redirect": true, "requests": 7})
    );
    assert_eq!(all[1]["backends"][1], json!({"service": "idle", "port": 80, "weight": 0}));
}

#[test]
fn addresses_of_services_are_explained() {
    let text = [
        gateway("edge", "[{name: http, port: 80, protocol: HTTP}]"),
        ours(
            "Service",
            "cart",
            "clusterIPs: [10.96.0.10, 'fd00::1'], ports: [{port: 80, appProtocol: http}], endpoints: [{address: 10.0.0.1, port: 9000}]",
        ),
        ours("Service", "shop", "clusterIPs: [10.96.0.11], ports: [{port: 8080, appProtocol: http}]"),
        ours("Service", "db", "clusterIPs: [10.96.0.12], mode: Proxy, ports: [{port: 80, appProtocol: tcp}]"),
        object(
            "HTTPRoute",
            "name: r",
            "parentRefs: [{name: edge}, {group: weft.dev, kind: Service, name: shop}], \
             rules: [{matches: [{path: {value: /x}}], backendRefs: [{group: weft.dev, kind: Service, name: cart, port: 80}]}]",
        ),
        ours(
            "AccessPolicy",
            "p",
            "targetRefs: [{group: weft.dev, kind: Service, name: cart}], action: Deny, rules: [{from: [{ipBlocks: [10.1.0.0/16]}]}]",
        ),
    ];
    let snapshot = snapshot(&text.concat());
    let ask = |query: &str| explain(&snapshot, &Shed::new(1), &Question::parse(query).unwrap(), Instant::now());

    let answer = ask("url=http://10.96.0.10/a&header=host:cart.local");
    let listener = &answer["listeners"][0];
    assert_eq!((&answer["matched"], answer["listeners"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!(
        (&listener["gateway"], &listener["listener"], &listener["address"]),
        (&json!("Service cart"), &json!("80"), &json!("10.96.0.10:80"))
    );
    assert_eq!(
        (&listener["rule"]["kind"], &listener["rule"]["route"], &listener["rule"]["rule"]),
        (&json!("Service"), &json!("cart"), &json!("implicit"))
    );
    let backend = &listener["backends"][0];
    assert_eq!(
        (&backend["service"], &backend["percent"], &backend["refusal"]),
        (&json!("cart"), &json!(100.0), &Value::Null)
    );
    assert_eq!(backend["access_policies"], json!(["p"]));
    assert_eq!(answer["skipped"][0]["why"], "the URL asks for an address of service cart");
    assert_eq!(ask("url=http://[fd00::1]:80/")["listeners"][0]["address"], "[fd00::1]:80");

    let routed = ask("url=http://10.96.0.11:8080/x");
    assert_eq!(routed["listeners"][0]["rule"]["route"], "r");
    assert_eq!(ask("url=http://10.96.0.11:8080/")["listeners"][0]["refusal"]["reason"], "no_route");
    assert_eq!(ask("url=http://10.96.0.12/")["skipped"][0]["why"], "carries TCP, without a look at requests");
    assert_eq!(ask("url=https://10.96.0.10:80/")["skipped"][0]["why"], "speaks http, the URL asks for https");
    assert_eq!(ask("url=http://10.96.0.99/x")["listeners"][0]["gateway"], "edge", "nobody's address");

    // A policy by address is asked if the question says whose request it is.
    let refusal = |client: &str| {
        ask(&format!("url=http://a/x{client}"))["listeners"][0]["backends"][0]["refusal"]["reason"].clone()
    };
    assert_eq!(
        (refusal("&client=10.1.2.3"), refusal("&client=10.2.2.3"), refusal("")),
        (json!("access_denied"), json!(null), json!(null))
    );

    let all = routes::list(&snapshot, |_| 0);
    let named: Vec<_> =
        all.as_array().unwrap().iter().map(|rule| (rule["kind"].as_str().unwrap(), rule["parents"].clone())).collect();
    assert_eq!(named, [("HTTPRoute", json!(["edge", "Service shop"])), ("Service", json!(["Service cart:80"]))]);
}
