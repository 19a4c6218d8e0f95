//! `weft explain` against the configuration of the contract: what it says, and that it sends nothing.

use serde_json::Value;
use weft_tests::{Client, SOON, Unruly, Upstream, Weft, client, eventually, ports, unruly::Mood, weft::run};

use super::Scene;
use crate::local;

/// The shop of the contract; its services in the order cart, cart, cart-v2, files.
struct Shop {
    weft: Weft,
    port: u16,
    upstreams: Vec<Upstream>,
}

impl Shop {
    async fn start() -> Self {
        let mut upstreams = Vec::new();
        for name in ["cart", "cart", "cart-v2", "files"] {
            upstreams.push(Upstream::h1(name).await);
        }
        let port = ports::free();
        let mut replaced = vec![(8080, port), (8081, ports::free()), (9005, ports::free()), (9006, ports::free())];
        replaced.extend((9001..).zip(upstreams.iter().map(|upstream| upstream.addr.port())));
        let mut config = include_str!("../routing/gateway.yaml").to_owned();
        for (from, to) in replaced {
            config = config.replace(&format!("port: {from}"), &format!("port: {to}"));
        }
        // Probes would be traffic too.
        config = config
            .replace("  healthCheck: {path: /healthz, interval: 5s, timeout: 1s, healthy: 2, unhealthy: 3}\n", "");
        Self { weft: Weft::start(&config).await, port, upstreams }
    }

    /// Exit code, stdout.
    async fn explain(&self, args: &[&str]) -> (i32, String) {
        let admin = self.weft.admin.to_string();
        let output = run(&[&["explain", "--admin", &admin], args].concat()).await;
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    }
}

#[tokio::test]
async fn the_shop_is_explained_without_sending_anything() {
    let shop = Shop::start().await;
    let url = format!("http://shop.local:{}/cart/7", shop.port);
    let (code, text) = shop.explain(&["GET", &url]).await;
    assert_eq!(code, 0, "{text}");
    for line in [
        "-> cart (90 %) or cart-v2 (10 %)",
        "  + HTTPRoute shop, rule cart         serves it: /cart/*",
        "  - HTTPRoute shop, rule cart-canary  header x-canary: wants \"1\", is absent",
        "  - HTTPRoute shop, rule old          path: wants /old exactly, is /cart/7",
        "  request  set x-shop: true; remove x-internal",
        "Backend cart:80, 90 %",
        "Backend cart-v2:80, 10 %",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} is missing in\n{text}");
    }
    assert!(text.contains(&shop.upstreams[0].addr.to_string()) && text.contains("GET is idempotent"), "{text}");

    let (code, text) = shop.explain(&["GET", &url, "-H", "x-canary: 1", "-o", "json"]).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    let listener = &answer["listeners"][0];
    assert_eq!((code, &listener["rule"]["rule"]), (0, &Value::from("cart-canary")));
    assert_eq!(listener["others"][0]["reasons"][0], "fits, but the winner has more header conditions");
    assert_eq!(listener["backends"][0]["service"], "cart-v2");
    assert_eq!(listener["backends"][0]["rate_limits"][1]["key"], "header x-user");

    let (code, text) = shop.explain(&["GET", "http://nowhere.local/cart"]).await;
    assert!(code == 1 && text.contains("\n404 no_route: no rule matches\n"), "{text}");

    for upstream in &shop.upstreams {
        assert_eq!(upstream.seen.count(), 0);
    }
    let metrics = shop.weft.metrics().await;
    assert_eq!(metrics.sum("weft_requests_total", &[]), 0.0);
}

#[tokio::test]
async fn what_is_explained_is_what_happens() {
    let shop = Shop::start().await;
    let mut client = Client::h1(local(shop.port)).await.unwrap();
    for (method, path, headers) in [
        ("GET", "/cart", &[("x-canary", "1")][..]),
        ("GET", "/files/a/../b?c=d", &[("x-user", "7")]),
        ("POST", "/old", &[]),
        ("GET", "/old", &[]),
        ("GET", "/carts", &[]),
    ] {
        let url = format!("http://shop.local:{}{path}", shop.port);
        let headers_args: Vec<String> = headers.iter().map(|(name, value)| format!("-H{name}:{value}")).collect();
        let mut args = vec![method, &*url, "-ojson"];
        args.extend(headers_args.iter().map(String::as_str));
        let (code, text) = shop.explain(&args).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        let listener = &answer["listeners"][0];
        let reply = if method == "POST" {
            client.post("shop.local", path, "").await.unwrap()
        } else {
            client.send(client::get_with("shop.local", path, headers)).await.unwrap()
        };
        match listener["outcome"].as_str() {
            Some("match") if listener["redirect"].is_object() => {
                assert_eq!(listener["redirect"]["location"], reply.header("location").unwrap());
            }
            Some("match") => {
                assert_eq!((reply.status.as_u16(), code), (200, 0));
                assert_eq!(listener["backends"][0]["service"], reply.upstream());
                assert_eq!(listener["forwarded"]["path"], reply.json()["uri"]);
            }
            Some("method_not_allowed") => assert_eq!((reply.status.as_u16(), code), (405, 1)),
            _ => assert_eq!((reply.status.as_u16(), code), (404, 1)),
        }
    }
    // Three of the five have been given a rule.
    eventually("the route's requests are listed", SOON, async || {
        let routes = run(&["routes", "--admin", &shop.weft.admin.to_string()]).await;
        let routes = String::from_utf8(routes.stdout).unwrap();
        routes.lines().nth(1).is_some_and(|line| line.starts_with("shop ") && line.ends_with("  3"))
    })
    .await;
}

impl Scene<Unruly> {
    /// Stdout of a verb that asks this node.
    async fn verb(&self, args: &[&str]) -> String {
        let output = run(&[args, &["--admin", &self.weft.admin.to_string()]].concat()).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What `weft explain` says of a GET, and its line under the request.
    async fn explained(&self, headers: &[&str]) -> (String, String) {
        let url = format!("http://shop.local:{}/buy", self.addr.port());
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        let text = self.verb(&["explain", "GET", &url].into_iter().chain(headers).collect::<Vec<_>>()).await;
        (text.lines().nth(1).unwrap().to_owned(), text)
    }
}

/// Cells of the first row.
fn first_row(table: &str) -> Vec<&str> {
    table.lines().nth(1).unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[tokio::test]
async fn a_tripped_breaker_is_explained() {
    let policy = "circuitBreaker: {consecutiveFailures: 3, failureRate: {minimumRequests: 10000}, \
                  baseEjectionTime: 30s, maxEjectionPercent: 50}";
    let scene = Scene::new(2, policy).await;
    assert_eq!(scene.explained(&[]).await.0, "-> app");
    for upstream in &scene.upstreams {
        upstream.set(Mood::Answer(503, ""));
    }
    eventually("the circuit is open", SOON, async || scene.get().await.header("x-weft-reason") == Some("circuit_open"))
        .await;

    let (line, text) = scene.explained(&[]).await;
    let wait =
        line.strip_prefix("503 circuit_open: circuit open, next probe in ").and_then(|rest| rest.strip_suffix(" s"));
    let wait: f64 = wait.unwrap_or_else(|| panic!("{text}")).parse().unwrap();
    // 30 seconds, spread by a tenth, less what has passed.
    assert!((20.0..=33.0).contains(&wait), "{text}");
    for part in [
        "  - 503 circuit_open: all 2 endpoints of service app are open; last: ",
        "open, ejected for ",
        "kept in rotation",
        "3 of 3 failed: 503 ×3",
        "circuit    open, next probe in ",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let reply = scene.get().await;
    assert_eq!((reply.status.as_u16(), reply.header("x-weft-reason")), (503, Some("circuit_open")));

    let table = scene.verb(&["breakers"]).await;
    let row = first_row(&table);
    assert_eq!(
        (&row[0..2], row[3], row.last()),
        (&["app:80", "open"][..], "open", Some(&"3 of 3 failed: 503 ×3")),
        "{table}"
    );
    let table = scene.verb(&["endpoints"]).await;
    assert_eq!(first_row(&table)[3].split(' ').next(), Some("open"), "{table}");
}

#[tokio::test]
async fn a_used_up_limit_is_explained() {
    let scene = Scene::new(1, "rateLimit: [{requests: 2, per: 1h, key: {header: x-user}}]").await;
    let spend = async || scene.ask("GET", weft_tests::upstream::empty(), &[("x-user", "7")]).await.1;
    assert_eq!(spend().await.status, 200);
    let (line, text) = scene.explained(&["x-user: 7"]).await;
    assert!(line == "-> app" && text.contains("for header x-user = \"7\", 1 left"), "{text}");
    assert_eq!(spend().await.status, 200);

    let (line, text) = scene.explained(&["x-user: 7"]).await;
    assert!(line.starts_with("429 rate_limited: limit app-policy.1 (2 per 1h, burst 2, key header x-user)"), "{text}");
    assert!(text.contains("for header x-user = \"7\", USED UP: next in "), "{text}");
    assert_eq!(scene.explained(&["x-user: 8"]).await.0, "-> app", "another key has its own budget");
    let (line, text) = scene.explained(&[]).await;
    assert!(line == "-> app" && text.contains(", does not apply: the request has no header x-user"), "{text}");
    assert_eq!(spend().await.status, 429);

    let table = scene.verb(&["limits"]).await;
    let row = first_row(&table);
    assert_eq!((row[1], row[2], row.last()), ("Service default/app", "header x-user", Some(&"1")), "{table}");
    let table = scene.verb(&["endpoints"]).await;
    assert_eq!(first_row(&table)[3], "-", "no breaker is configured\n{table}");
    assert!(scene.weft.service("app").await["circuit"].is_null());
}
