#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn listener(more: Value) -> Value {
    let mut listener = json!({"gateway": "edge", "listener": "http", "address": "127.0.0.1:8080", "protocol": "HTTP",
        "hostname": null, "outcome": "match", "others": []});
    listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    listener
}

fn answer(method: &str, path: &str, listeners: Value) -> Value {
    json!({"request": {"method": method, "scheme": "http", "port": 8080, "host": "shop.local", "path": path,
        "query": "page=2", "headers": [], "client": null}, "listeners": listeners, "skipped": []})
}

fn candidate(rule: &str, reasons: Value) -> Value {
    json!({"kind": "HTTPRoute", "route": "shop", "rule": rule, "match": "/cart/*", "reasons": reasons, "fits": false})
}

#[test]
fn a_request_that_is_served() {
    let backend = json!({
        "service": "cart", "port": 80, "weight": 90, "percent": 90.0, "problem": null, "refusal": null, "next_probe_ms": 3100, "filters": {"request_headers":
            {"set": [], "add": [["x-backend", "cart"]], "remove": []}},
        "balancer": {"type": "RingHash", "slow_start_ms": 10000, "zone_aware": true, "panicking": false,
            "panic_threshold_percent": 50.0,
            "hash": {"key": "header x-user", "value": "1", "by_address": false, "endpoint": "10.0.0.2:9000"}},
        "circuit": "closed",
        "endpoints": [
            {"address": "10.0.0.1:9000", "zone": "a", "weight": 1, "health": "healthy", "breaker": "open",
                "ejected": true, "ejection_ms_left": 3100, "evidence": "5 of 5 failed: connect_failed",
                "in_flight": 0, "ewma_ms": 1.25, "usable": false},
            {"address": "10.0.0.2:9000", "zone": null, "weight": 1, "health": "healthy", "breaker": "closed",
                "ejected": false, "ejection_ms_left": null, "evidence": null, "in_flight": 12, "ewma_ms": 30.0,
                "usable": true}],
        "rate_limits": [
            {"name": "shop.1", "key": "global", "value": null, "requests": 1000, "per_ms": 1000, "burst": 2000,
                "applies": true, "factor": 0.3, "remaining": 500, "wait_ms": 0},
            {"name": "shop.2", "key": "header x-user", "value": "1", "requests": 50, "per_ms": 60000, "burst": 100,
                "applies": true, "factor": 1.0, "remaining": 0, "wait_ms": 320.5}],
        "pool": {"requests_in_flight": 12, "max_requests": 1024, "connections": 3, "max_connections": 64,
            "pending": 2, "max_pending_requests": 256},
        "retry": {"attempts": 3, "retry_on": ["connect-failure", "503"], "max_body_bytes": 65536, "in_flight": 2,
            "max_retries": 1024, "allowed": true, "why": "GET is idempotent",
            "backoff": {"base_ms": 25.0, "max_ms": 250.0, "least_ms": 0.0, "jitter": "Full"},
            "budget": {"percent": 20.0, "min_per_second": 10, "ttl_ms": 10000, "remaining": 17}},
        "timeouts": {"connect_ms": 1000, "request_ms": 2000, "request_covers": "the whole exchange",
            "attempt_ms": 500, "idle_ms": 300000, "client": [{"header": "grpc-timeout", "value": "1S", "ms": 1000,
                "wins": false, "why_not": "only gRPC requests have one"}]},
        "circuit_breaker": {"consecutive_failures": 5, "failure_rate": {"percent": 50.0, "minimum_requests": 20,
            "window_ms": 10000}, "slow_calls": null, "base_ejection_ms": 5000, "max_ejection_ms": 60000,
            "max_ejection_percent": 50.0, "half_open_requests": 2},
        "fault": {"applies": true, "header": null, "delay": {"ms": 100, "percent": 5.0},
            "abort": {"status": 503, "percent": 0.5}},
        "hedge": {"after_ms": null, "after_quantile": "p95", "now_ms": 12.5, "max_extra": 1, "allowed": true},
        "concurrency": {"min": 3, "max": 1000, "limit": 40}, "priority": {"policy": 2, "request": 5, "urgency": 5, "shed_from": 6}});
    let on = listener(json!({
        "rule": candidate("cart", json!([])),
        "others": [candidate("canary", json!(["header x-canary: wants \"1\", is absent"])),
            candidate("other", json!(["hostname a does not fit shop.local", "path /x is no prefix of /cart"]))],
        "filters": {"request_headers": {"set": [["x-shop", "true"]], "add": [], "remove": ["x-internal"]},
            "mirrors": [{"service": "audit", "port": 81, "percent": 50.0}]},
        "forwarded": {"host": "shop.local", "path": "/x?page=2", "rewritten": true},
        "backends": [backend, {"service": "gone", "port": 80, "weight": 10, "percent": 10.0, "filters": {},
            "problem": "the service or its port does not exist", "refusal": {"status": 503, "reason": "no_endpoint",
                "grpc_status": null, "detail": "the service or its port does not exist", "retry_after_ms": null}},
            {"service": "idle", "port": 80, "weight": 0,
            "percent": 0.0, "filters": {}}]}));
    assert_eq!(
        render(&answer("GET", "/cart", json!([on])), Look::default()),
        "\
GET http://shop.local:8080/cart?page=2
-> cart (90 %), but 0.5 % get 503 fault_injected or 503 no_endpoint for gone (10 %)

Listener edge/http on 127.0.0.1:8080 (HTTP)
  + HTTPRoute shop, rule cart    serves it: /cart/*
  - HTTPRoute shop, rule canary  header x-canary: wants \"1\", is absent
  - HTTPRoute shop, rule other   hostname a does not fit shop.local; and 1 more

Rule cart
  request  set x-shop: true; remove x-internal
  mirror   50 % of the requests to audit:81
  sent as  /x?page=2 to host shop.local

Backend cart:80, 90 %
  - 10.0.0.1:9000  zone a  weight 1  healthy  open, ejected for 3.1s  0 in flight   1.25ms  5 of 5 failed: connect_failed
  + 10.0.0.2:9000          weight 1  healthy  closed                  12 in flight  30ms    <- this request's key leads here
  request    add x-backend: cart
  balancer   RingHash, slow start 10s
             by header x-user = \"1\"
  circuit    closed, next probe in 3.1s
             opens after 5 failures in a row, or 50 % of 20 or more failing in 10s
             ejects for 5s to 1m, at most 50 % of the endpoints
  limits     shop.1: 1000/1s, burst 2000, for everybody together, 500 left, cut to 30 % until the circuit has recovered
             shop.2: 50/1m, burst 100, for header x-user = \"1\", USED UP: next in 321ms
  pool       12 of 1024 requests in flight, 3 of 64 connections, 2 of 256 waiting
  retries    3 more on connect-failure, 503
             GET is idempotent
             waits 25ms to 250ms (jitter full); keeps bodies up to 64KiB
             budget 20 % of the requests of 10s and 10 per second, 17 left; 2 of 1024 in flight
  time-outs  connect 1s, request 2s (the whole exchange), attempt 500ms, idle 5m
             grpc-timeout: 1S does not count: only gRPC requests have one
  fault      5 % wait 100ms
             0.5 % are answered with 503
  hedging    1 more to another endpoint after p95, 12.5ms now
  adaptive   40 requests in flight now, between 3 and 1000
  priority   urgency 5 of 0 to 7 (its policy says 2, the request says u=5); the node sheds from urgency 6 on

Backend gone:80, 10 %
  - 503 no_endpoint: the service or its port does not exist

Backend idle:80, 0 %
  gets nothing: its weight is 0"
    );
}

#[test]
fn nothing_matches() {
    let others: Vec<Value> = (0..25).map(|n| candidate(&n.to_string(), json!(["path /x is no prefix of /"]))).collect();
    let shown = render(
        &answer(
            "GET",
            "/",
            json!([listener(json!({"outcome": "no_route", "others": others,
                "refusal": {"status": 404, "reason": "no_route", "detail": "no rule matches"}}))]),
        ),
        Look::default(),
    );
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[4], "  - no rule matches: 404 no_route");
    assert_eq!(lines[5], "  - HTTPRoute shop, rule 0   path /x is no prefix of /");
    assert_eq!(lines.last().unwrap(), &"    ... and 5 more that are further off (all of them: -o json)");
    assert_eq!(lines.len(), 26);

    let refused = listener(json!({"outcome": "method_not_allowed", "allow": ["GET", "PUT"]}));
    let shown = render(&answer("POST", "/", json!([refused])), Look::default());
    assert!(shown.ends_with("  - no rule matches: 405 method_not_allowed, allowed: GET, PUT"), "{shown}");
}

#[test]
fn no_listener() {
    let mut answer = answer("GET", "/", json!([]));
    answer["skipped"] = json!([{"gateway": "edge", "listener": "tls", "address": "127.0.0.1:8443", "protocol": "HTTPS",
        "why": "speaks https, the URL asks for http"}]);
    let marked = Look { unicode: true, color: true, ..Look::default() };
    assert_eq!(
        render(&answer, marked),
        "\x1b[1mGET http://shop.local:8080/?page=2\x1b[0m\n\n\x1b[31m×\x1b[0m no listener takes this request\n  \
         listener  edge/tls on 127.0.0.1:8443 (HTTPS)  speaks https, the URL asks for http"
    );
}

#[test]
fn a_redirect() {
    let on = listener(json!({"rule": candidate("old", json!([])), "filters": {},
        "redirect": {"status": 301, "location": "http://shop.local/\x1b[2Jcart"}}));
    let shown = render(&answer("GET", "/old", json!([on])), Look::default());
    assert!(shown.ends_with("\nRule old\n  redirect  301 to http://shop.local/\u{fffd}[2Jcart"), "{shown}");
}

#[test]
fn keys_that_are_missing() {
    let mut sections = Sections::default();
    let hash =
        |key: &str, value: Value| json!({"type": "Maglev", "hash": {"key": key, "value": value, "by_address": true}});
    backend::balancer(&hash("header x-user", Value::Null), &mut sections);
    backend::balancer(&hash("the client's address", json!("10.0.0.1")), &mut sections);
    let limit = |key: &str, applies: bool| {
        json!({"name": "a.1", "key": key, "value": null, "requests": 1, "per_ms": 1000, "burst": 1,
            "applies": applies, "factor": 0.3, "remaining": null, "wait_ms": null})
    };
    backend::limits(
        &json!([limit("header x-user", false), limit("identity", false), limit("sourceIP", true)]),
        &json!("open"),
        &mut sections,
    );
    backend::fault(&json!({"applies": false, "header": "x-fault=\"1\"", "delay": null, "abort": null}), &mut sections);
    let lines: Vec<&str> = sections.0.iter().map(|(_, line)| &**line).collect();
    assert_eq!(
        lines,
        [
            "Maglev",
            "by the client's address (say which: --client IP); the request has no header x-user",
            "Maglev",
            "by the client's address, 10.0.0.1",
            "a.1: 1/1s, burst 1, does not apply: the request has no header x-user",
            "a.1: 1/1s, burst 1, does not apply: no listener knows client identities yet",
            "a.1: 1/1s, burst 1, per client address (say which: --client IP), cut to 30 % by the open circuit",
            "not for this request: only with x-fault=\"1\"",
        ]
    );
}

/// The line under the request.
fn verdict_of(listeners: Value, look: Look) -> String {
    render(&answer("GET", "/", listeners), look).lines().nth(1).unwrap_or_default().to_owned()
}

fn refused(status: u16, reason: &str, detail: &str) -> Value {
    json!({"status": status, "grpc_status": null, "reason": reason, "detail": detail, "retry_after_ms": 2100})
}

fn backend_of(service: &str, percent: u32, more: Value) -> Value {
    let mut backend = json!({"service": service, "port": 80, "weight": percent, "percent": percent, "refusal": null});
    backend.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    backend
}

#[test]
fn what_would_happen_is_said_in_one_line() {
    let sent = |name: &str, percent| backend_of(name, percent, json!({}));
    let open = |name: &str, percent| {
        let refusal = refused(503, "circuit_open", "all 2 endpoints of service cart are open");
        backend_of(name, percent, json!({"refusal": refusal, "problem": "circuit open, next probe in 2.1 s"}))
    };
    let limited = |percent| {
        let refusal = refused(429, "rate_limited", "limit shop.2 (50 per 1s) is used up");
        backend_of("cart", percent, json!({"refusal": refusal}))
    };
    let fault = json!({"fault": {"applies": true, "abort": {"status": 418, "percent": 5.0}}});
    let call = json!({"refusal": {"status": 503, "grpc_status": "UNAVAILABLE", "reason": "circuit_open",
        "detail": "the only endpoint of service cart is open", "retry_after_ms": 0}});
    for (backends, expected) in [
        (vec![sent("cart", 90), sent("cart-v2", 10), sent("idle", 0)], "-> cart (90 %) or cart-v2 (10 %)"),
        (vec![sent("cart", 100)], "-> cart"),
        (vec![open("cart", 100)], "503 circuit_open: circuit open, next probe in 2.1 s"),
        (vec![open("cart", 90), sent("cart-v2", 10)], "-> cart-v2 (10 %) or 503 circuit_open for cart (90 %)"),
        (vec![limited(90), limited(10)], "429 rate_limited: limit shop.2 (50 per 1s) is used up; try again in 2.1s"),
        (
            vec![limited(90), open("cart-v2", 10)],
            "429 rate_limited for cart (90 %) or 503 circuit_open for cart-v2 (10 %)",
        ),
        (vec![backend_of("cart", 100, json!({"probe": "10.0.0.1:80"}))], "-> cart, as a probe of 10.0.0.1:80"),
        (vec![backend_of("cart", 100, fault)], "-> cart, but 5 % get 418 fault_injected"),
        (vec![backend_of("cart", 100, call)], "UNAVAILABLE circuit_open: the only endpoint of service cart is open"),
    ] {
        assert_eq!(verdict_of(json!([listener(json!({"backends": backends}))]), Look::default()), expected);
    }
    let no_route = || listener(json!({"refusal": {"status": 404, "reason": "no_route", "detail": "no rule matches"}}));
    let redirect = listener(json!({"redirect": {"status": 301, "location": "http://shop.local/cart"}}));
    assert_eq!(verdict_of(json!([no_route()]), Look::default()), "404 no_route: no rule matches");
    assert_eq!(verdict_of(json!([redirect]), Look::default()), "301 to http://shop.local/cart");
    let colored = Look { unicode: true, color: true, wide: false };
    let serves = || listener(json!({"backends": [sent("cart", 100)]}));
    assert_eq!(verdict_of(json!([serves()]), colored), "\x1b[32m→ cart\x1b[0m");
    assert_eq!(verdict_of(json!([serves(), serves()]), Look::default()), "-> cart", "listeners agree");
    let shown = render(&answer("GET", "/", json!([serves(), no_route()])), Look::default());
    let lines: Vec<&str> = shown.lines().skip(1).take(2).collect();
    assert_eq!(lines, ["on 127.0.0.1:8080: -> cart", "on 127.0.0.1:8080: 404 no_route: no rule matches"]);
}
