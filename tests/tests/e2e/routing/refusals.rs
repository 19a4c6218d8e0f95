//! Requests that no route takes, and routes that lead nowhere.

use weft_tests::{client, yaml};

use super::{Routes, rule};

#[tokio::test]
async fn no_route_says_so_and_keeps_the_connection() {
    let route = format!("hostnames: [shop.local]\nrules:\n{}", rule("{path: {type: PathPrefix, value: /a}}", "app"));
    let routes = Routes::new(&["app"], &[yaml::http_route("r", &route)]).await;
    let mut client = weft_tests::Client::h1(routes.addr).await.unwrap();
    client.get("shop.local", "/b").await.unwrap().assert_refused(404, "no_route");
    client.get("other.local", "/a").await.unwrap().assert_refused(404, "no_route");
    assert_eq!(client.get("shop.local", "/a").await.unwrap().upstream(), "app", "on the same connection");
    let mut client = weft_tests::Client::h2(routes.addr).await.unwrap();
    client.get("shop.local", "/b").await.unwrap().assert_refused(404, "no_route");
    assert_eq!(client.get("shop.local", "/a").await.unwrap().upstream(), "app");
    assert_eq!(routes.counts(), [2]);
    let metrics = routes.weft.metrics().await;
    assert!((metrics.sum("weft_requests_total", &[("reason", "no_route")]) - 3.0).abs() < 0.5);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let rules = format!(
        "rules:\n{}{}",
        rule(
            "{path: {type: PathPrefix, value: /a}, method: GET}, {path: {type: PathPrefix, value: /a}, method: PUT}",
            "app"
        ),
        rule("{path: {type: Exact, value: /a/b}, method: DELETE}", "app"),
    );
    let routes = Routes::new(&["app"], &[yaml::http_route("r", &rules)]).await;
    let mut client = weft_tests::Client::h1(routes.addr).await.unwrap();
    let reply = client.post("a", "/a/x", "body").await.unwrap();
    reply.assert_refused(405, "method_not_allowed");
    let mut allowed: Vec<_> = reply.header("allow").expect("RFC 9110 section 15.5.6").split(", ").collect();
    allowed.sort_unstable();
    assert_eq!(allowed, ["GET", "PUT"]);
    assert_eq!(routes.counts(), [0]);
    let mut client = weft_tests::Client::h1(routes.addr).await.unwrap();
    assert_eq!(client.get("a", "/a/b").await.unwrap().upstream(), "app", "the prefix rule takes a GET");
}

#[tokio::test]
async fn routes_that_lead_nowhere() {
    let rules = format!(
        "rules:\n{}{}{}",
        rule("{path: {type: PathPrefix, value: /empty}}", "empty"),
        "- {matches: [{path: {type: PathPrefix, value: /zero}}], backendRefs: [{group: weft.dev, kind: Service, name: app, port: 80, weight: 0}]}\n",
        "- {matches: [{path: {type: PathPrefix, value: /none}}]}\n",
    );
    let empty = yaml::service("empty", "http", &[]);
    let routes = Routes::new(&["app"], &[yaml::http_route("r", &rules), empty]).await;
    routes.get("a", "/empty").await.assert_refused(503, "no_endpoint");
    for path in ["/zero", "/none"] {
        let reply = routes.get("a", path).await;
        assert!(reply.status.is_server_error() && reply.header("x-weft-reason").is_some(), "{path}: {reply:?}");
    }
    assert_eq!(routes.counts(), [0]);
}

#[tokio::test]
async fn a_refusal_is_readable_and_complete_over_every_version() {
    let routes = Routes::new(&[], &[]).await;
    for mut client in
        [weft_tests::Client::h1(routes.addr).await.unwrap(), weft_tests::Client::h2(routes.addr).await.unwrap()]
    {
        for _ in 0..3 {
            let reply = client.get("a", "/").await.unwrap();
            reply.assert_refused(404, "no_route");
            assert!(reply.header("content-length").is_some() || client.is_h2(), "{reply:?}");
            let head = client::request("HEAD", "a", "/", weft_tests::upstream::empty());
            let head = client.send(head).await.unwrap();
            head.assert_refused(404, "no_route");
            assert!(head.body.is_empty());
        }
    }
}
