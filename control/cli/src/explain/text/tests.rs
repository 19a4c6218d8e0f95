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
        "service": "cart", "port": 80, "weight": 90, "percent": 90.0, "problem": null, "filters": {"request_headers":
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
                "factor": 0.3, "remaining": null},
            {"name": "shop.2", "key": "header x-user", "value": "1", "requests": 50, "per_ms": 60000, "burst": 100,
                "factor": null, "remaining": 99}],
        "pool": {"requests_in_flight": 12, "max_requests": 1024, "connections": 3, "max_connections": 64,
            "pending": null, "max_pending_requests": 256},
        "retry": {"attempts": 3, "on": ["connect-failure", "503"], "allowed": true, "why": "GET is idempotent",
            "per_try_ms": 300, "backoff": {"base_ms": 25, "max_ms": 250, "jitter": "full"},
            "budget": {"percent": 20.0, "min_per_second": 10, "ttl_ms": 10000, "remaining": 17}},
        "timeouts": {"connect_ms": 1000, "request_ms": 2000, "request_covers": "the whole exchange",
            "attempt_ms": 500, "idle_ms": 300000, "client_ms": null},
        "circuit_breaker": {"consecutive_failures": 5, "failure_rate": {"percent": 50.0, "minimum_requests": 20,
            "window_ms": 10000}, "slow_calls": null, "base_ejection_ms": 5000, "max_ejection_ms": 60000,
            "max_ejection_percent": 50.0, "half_open_requests": 2},
        "fault": {"applies": true, "header": null, "delay": {"ms": 100, "percent": 5.0},
            "abort": {"status": 503, "percent": 0.5}},
        "hedge": {"after_ms": null, "after_quantile": "p95", "max_extra": 1},
        "concurrency": {"min": 3, "max": 1000, "limit": 40}, "priority": 3});
    let on = listener(json!({
        "rule": candidate("cart", json!([])),
        "others": [candidate("canary", json!(["header x-canary: wants \"1\", is absent"])),
            candidate("other", json!(["hostname a does not fit shop.local", "path /x is no prefix of /cart"]))],
        "filters": {"request_headers": {"set": [["x-shop", "true"]], "add": [], "remove": ["x-internal"]},
            "mirrors": [{"service": "audit", "port": 81, "percent": 50.0}]},
        "forwarded": {"host": "shop.local", "path": "/x?page=2", "rewritten": true},
        "backends": [backend, {"service": "gone", "port": 80, "weight": 10, "percent": 10.0, "filters": {},
            "problem": "the service or its port does not exist"}, {"service": "idle", "port": 80, "weight": 0,
            "percent": 0.0, "filters": {}}]}));
    assert_eq!(
        render(&answer("GET", "/cart", json!([on])), Look::default()),
        "\
GET http://shop.local:8080/cart?page=2

Listener edge/http on 127.0.0.1:8080 (HTTP)
  + HTTPRoute shop, rule cart    serves it: /cart/*
  - HTTPRoute shop, rule canary  header x-canary: wants \"1\", is absent
  - HTTPRoute shop, rule other   hostname a does not fit shop.local; and 1 more

Rule cart
  request  set x-shop: true; remove x-internal
  mirror   50 % of the requests to audit:81
  sent as  /x?page=2 to host shop.local

Backend cart:80, 90 %
  - 10.0.0.1:9000  zone a  weight 1  healthy  open, ejected for 3s100ms  0 in flight   1.25ms  5 of 5 failed: connect_failed
  + 10.0.0.2:9000          weight 1  healthy  closed                     12 in flight  30ms    <- this request's key leads here
  request    add x-backend: cart
  balancer   RingHash, slow start 10s
             by header x-user = \"1\"
  circuit    closed
             opens after 5 failures in a row, or 50 % of 20 or more failing in 10s
             ejects for 5s to 1m, at most 50 % of the endpoints
  limits     shop.1: 1000/1s, burst 2000, for everybody together, cut to 30 % by an open circuit
             shop.2: 50/1m, burst 100, for header x-user = \"1\", 99 left
  pool       12 of 1024 requests in flight, 3 of 64 connections, at most 256 waiting
  retries    3 more on connect-failure, 503
             GET is idempotent
             waits 25ms to 250ms (jitter full), 300ms per try
             budget 20 % of the requests of 10s and 10 per second, 17 left
  time-outs  connect 1s, request 2s (the whole exchange), attempt 500ms, idle 5m
  fault      5 % wait 100ms
             0.5 % are answered with 503
  hedging    1 more after p95, to another endpoint
  adaptive   40 now, between 3 and 1000 requests in flight
  priority   urgency 3 (0 is served first, 7 is shed first)

Backend gone:80, 10 %
  - the service or its port does not exist: 503 no_endpoint

Backend idle:80, 0 %
  gets nothing: its weight is 0"
    );
}

#[test]
fn nothing_matches() {
    let others: Vec<Value> = (0..25).map(|n| candidate(&n.to_string(), json!(["path /x is no prefix of /"]))).collect();
    let shown = render(
        &answer("GET", "/", json!([listener(json!({"outcome": "no_route", "others": others}))])),
        Look::default(),
    );
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[3], "  - no rule matches: 404 no_route");
    assert_eq!(lines[4], "  - HTTPRoute shop, rule 0   path /x is no prefix of /");
    assert_eq!(lines.last().unwrap(), &"    ... and 5 more that are further off (all of them: -o json)");
    assert_eq!(lines.len(), 25);

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
    balancer(&hash("header x-user", Value::Null), &mut sections);
    balancer(&hash("the client's address", json!("10.0.0.1")), &mut sections);
    limits(
        &json!([{"name": "a.1", "key": "header x-user", "value": null, "requests": 1, "per_ms": 1000, "burst": 1}]),
        &mut sections,
    );
    fault(&json!({"applies": false, "header": "x-fault=\"1\"", "delay": null, "abort": null}), &mut sections);
    let lines: Vec<&str> = sections.0.iter().map(|(_, line)| &**line).collect();
    assert_eq!(
        lines,
        [
            "Maglev",
            "by the client's address (say which: --client IP); the request has no header x-user",
            "Maglev",
            "by the client's address, 10.0.0.1",
            "a.1: 1/1s, burst 1, per header x-user; all without one share a budget",
            "not for this request: only with x-fault=\"1\"",
        ]
    );
}
