//! `weft explain` against the configuration of the contract: what it says, and that it sends nothing.

use serde_json::Value;
use weft_tests::{Client, SOON, Upstream, Weft, client, eventually, ports, weft::run};

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
    assert!(code == 1 && text.contains("no rule matches: 404 no_route"), "{text}");

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
