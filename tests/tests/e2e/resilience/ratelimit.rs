//! `rateLimit`: budgets of the whole node, and what clients are told of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tonic::{Code, Request};
use weft_tests::{
    Client, Options, SOON, Upstream, Weft, Wire, client, eventually,
    grpc::{self, GreeterClient, Msg},
    ports, yaml,
};

use crate::{Stage, local};

/// An upstream with limits on its service, on one worker.
async fn limited(limits: &str) -> Stage<Upstream> {
    let upstream = Upstream::h1("app").await;
    Stage::with_policy(upstream, "http", |upstream| upstream.addr, &format!("rateLimit:\n{limits}")).await
}

async fn get(client: &mut Client, headers: &[(&str, &str)]) -> client::Reply {
    client.send(client::get_with("a", "/", headers)).await.unwrap()
}

/// A policy on the route `all`.
fn on_route(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: all}}]\n  {spec}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_one_budget() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let policy = yaml::policy("app", "rateLimit: [{requests: 100, per: 1s, burst: 10}]");
    let options = Options { workers: 2, ..Options::default() };
    let config = yaml::docs(&[yaml::simple(port, "http", upstream.addr), policy]);
    let weft = Weft::start_with(&config, options).await;

    let stop = Arc::new(AtomicBool::new(false));
    let (passed, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (stop, passed, refused) = (stop.clone(), passed.clone(), refused.clone());
            tokio::spawn(async move {
                let mut client = Client::h1(local(port)).await.unwrap();
                while !stop.load(Ordering::Relaxed) {
                    match client.get("a", "/status/200").await.unwrap().status.as_u16() {
                        200 => passed.fetch_add(1, Ordering::Relaxed),
                        429 => refused.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other}"),
                    };
                    // A few times more than may pass, and not all that the machine has.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    // The first burst is not the rate.
    eventually("something is refused", SOON, async || refused.load(Ordering::Relaxed) > 0).await;
    let (before, start) = (passed.load(Ordering::Relaxed), Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, time) = (passed.load(Ordering::Relaxed), start.elapsed());
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let expected = time.as_secs_f64() * 100.0;
    let passed_meanwhile = (after - before) as f64;
    assert!((0.95..=1.05).contains(&(passed_meanwhile / expected)), "{passed_meanwhile} of {expected}");
    let refused = refused.load(Ordering::Relaxed);
    assert!(refused > passed.load(Ordering::Relaxed), "{refused} refused");
    assert_eq!(upstream.seen.count(), passed.load(Ordering::Relaxed), "no refused request reaches the upstream");

    let tasks = weft.admin_json("/debug/tasks").await;
    assert_eq!(tasks.as_array().unwrap().len(), 2);
    let metrics = weft.metrics().await;
    let counted = metrics.sum("weft_rate_limited_total", &[("route", "all"), ("policy", "app-policy.1")]);
    assert!((counted - refused as f64).abs() < 0.5, "{counted} of {refused}");
    let limits = weft.admin_json("/limits").await;
    assert_eq!(limits[0]["refused"], refused, "{limits}");
    assert_eq!(limits[0]["name"], "app-policy.1");
    assert_eq!((&limits[0]["target"], &limits[0]["key"]), (&"Service default/app".into(), &"global".into()));
    assert_eq!(
        (&limits[0]["requests"], &limits[0]["per_ms"], &limits[0]["burst"]),
        (&100.into(), &1000.into(), &10.into())
    );
    assert_eq!((&limits[0]["scope"], &limits[0]["factor"]), (&"node".into(), &1.0.into()));
    assert!(limits[0]["remaining"].is_u64(), "{limits}");
}

#[tokio::test]
async fn every_response_of_a_limited_route_tells_what_is_left() {
    let stage = limited("- {requests: 60, per: 1m, burst: 2, key: {header: x-user}}\n- {requests: 5, per: 1h}").await;
    let mut client = stage.client_h1().await;
    let policy = Some(r#""app-policy.1";q=60;w=60, "app-policy.2";q=5;w=3600"#);
    let reply = get(&mut client, &[("x-user", "ann")]).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("ratelimit-policy"), policy);
    assert_eq!(reply.header("ratelimit"), Some(r#""app-policy.1";r=1;t=1, "app-policy.2";r=4;t=720"#));

    // Weft's own replies too: here nobody answers any more.
    stage.upstream.stop().await;
    let reply = get(&mut client, &[("x-user", "ann")]).await;
    assert!(reply.status.is_server_error(), "{reply:?}");
    assert_eq!(reply.header("ratelimit-policy"), policy);
    assert!(reply.header("ratelimit").unwrap().contains(r#""app-policy.2";r=3;"#), "{reply:?}");

    let reply = get(&mut client, &[("x-user", "ann")]).await;
    reply.assert_refused(429, "rate_limited");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.header("ratelimit-policy"), policy);
    assert!(reply.header("ratelimit").unwrap().starts_with(r#""app-policy.1";r=0;t=1, "app-policy.2";r=3;"#));
    let detail = "limit app-policy.1 (60 per 1m, burst 2, key header x-user) is used up";
    assert!(reply.text().contains(detail), "{}", reply.text());
}

#[tokio::test]
async fn keys_are_separate_and_none_is_charged_when_another_refuses() {
    let stage = limited("- {requests: 2, per: 1h, key: {cookie: id}}\n- {requests: 3, per: 1h, key: path}").await;
    let mut client = stage.client_h1().await;
    let mut status = async |path: &str, cookie: &str| {
        let request = client::get_with("a", path, &[("cookie", cookie)]);
        client.send(request).await.unwrap().status.as_u16()
    };
    assert_eq!(status("/one", "id=ann").await, 200);
    assert_eq!(status("/one?again", "x=1; id=ann").await, 200);
    // Ann's budget is used up, whatever she asks for, and the path has not paid for it.
    assert_eq!(status("/one", "id=ann").await, 429);
    assert_eq!(status("/two", "id=ann").await, 429);
    assert_eq!(status("/%6fne", "id=bob").await, 200);
    // The path's budget is used up, and Bob has not paid for it.
    assert_eq!(status("/./one", "id=bob").await, 429);
    assert_eq!(status("/two", "id=bob").await, 200);
    // Those without the cookie are limited by the path alone.
    assert_eq!(status("/two", "").await, 200);
    for expected in [200, 200, 200, 429] {
        assert_eq!(status("/three", "other=1").await, expected);
    }
}

#[tokio::test]
async fn a_request_without_the_key_is_not_limited_by_it_but_by_the_others() {
    let stage = limited(
        "- {requests: 1, per: 1h, key: {header: x-user}}\n- {requests: 4, per: 1h}\n- {requests: 1, per: 1h, key: identity}",
    )
    .await;
    let mut client = stage.client_h1().await;
    let policy = Some(r#""app-policy.1";q=1;w=3600, "app-policy.2";q=4;w=3600, "app-policy.3";q=1;w=3600"#);
    for left in [3, 2] {
        let reply = get(&mut client, &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("ratelimit-policy")), (200, policy));
        let told = reply.header("ratelimit").unwrap();
        assert!(told.starts_with(&format!("\"app-policy.2\";r={left};t=")) && !told.contains(','), "{told}");
    }
    // Nobody else has used up what Ann has for herself.
    let reply = get(&mut client, &[("x-user", "ann")]).await;
    let told = reply.header("ratelimit").unwrap();
    assert!(told.starts_with("\"app-policy.1\";r=0;t=3600, \"app-policy.2\";r=1;t="), "{told}");
    let reply = get(&mut client, &[("x-user", "ann")]).await;
    reply.assert_refused(429, "rate_limited");
    assert!(reply.text().contains("limit app-policy.1 (1 per 1h, burst 1, key header x-user)"), "{}", reply.text());

    assert_eq!(get(&mut client, &[]).await.status, 200);
    let reply = get(&mut client, &[]).await;
    reply.assert_refused(429, "rate_limited");
    assert!(reply.text().contains("limit app-policy.2 (4 per 1h, burst 4, key global)"), "{}", reply.text());
    assert!(reply.header("ratelimit").unwrap().starts_with("\"app-policy.2\";r=0;t="), "{reply:?}");
    assert_eq!(stage.upstream.seen.count(), 4);
}

#[tokio::test]
async fn where_no_limit_applies_only_the_policy_is_told() {
    let stage = limited("- {requests: 1, per: 1h, key: {header: x-user}}").await;
    let mut client = stage.client_h1().await;
    for _ in 0..3 {
        let reply = get(&mut client, &[]).await;
        assert_eq!((reply.status.as_u16(), reply.header("ratelimit")), (200, None));
        assert_eq!(reply.header("ratelimit-policy"), Some(r#""app-policy.1";q=1;w=3600"#));
    }
}

#[tokio::test]
async fn an_upstreams_own_limits_are_passed_on() {
    let answer = b"HTTP/1.1 200 OK\r\nRateLimit: \"theirs\";r=7\r\nContent-Length: 0\r\n\r\n";
    let upstream = weft_tests::RawUpstream::answering(answer).await;
    let spec = "rateLimit: [{requests: 2, per: 1h}]";
    let stage = Stage::with_policy(upstream, "http", |upstream| upstream.addr, spec).await;
    let mut wire = Wire::connect(stage.addr).await;
    let response = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(response.all("ratelimit"), [r#""theirs";r=7"#, r#""app-policy.1";r=1;t=1800"#]);
}

#[tokio::test]
async fn a_reload_does_not_refill_a_budget() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let config = |requests: u32, more: &str| {
        let policy = on_route("shop", &format!("rateLimit: [{more}{{requests: {requests}, per: 1h, burst: 3}}]"));
        yaml::docs(&[yaml::simple(port, "http", upstream.addr), policy])
    };
    let weft = Weft::start(&config(3, "")).await;
    let mut client = Client::h1(local(port)).await.unwrap();
    for expected in [200, 200, 200, 429] {
        assert_eq!(get(&mut client, &[]).await.status.as_u16(), expected);
    }
    // Another quota, and another limit before it: what was used stays used.
    weft.apply(&config(4, "{requests: 1000, per: 1s, key: sourceIP}, ")).await;
    let reply = get(&mut client, &[]).await;
    reply.assert_refused(429, "rate_limited");
    assert!(reply.text().contains("shop.2 (4 per 1h, burst 3, key global)"), "{}", reply.text());
    // Without a limit there is none, and no headers.
    weft.apply(&yaml::simple(port, "http", upstream.addr)).await;
    let reply = get(&mut client, &[]).await;
    assert_eq!((reply.status.as_u16(), reply.header("ratelimit")), (200, None));
    assert_eq!(weft.admin_json("/limits").await, serde_json::json!([]));
    assert_eq!(upstream.seen.count(), 4);
}

#[tokio::test]
async fn a_routes_list_replaces_that_of_its_service() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let route = |name: &str| {
        let rules = format!("hostnames: [{name}.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("app"));
        yaml::http_route(name, &rules)
    };
    let config = yaml::docs(&[
        yaml::gateway(port),
        route("one"),
        route("two"),
        route("all"),
        yaml::service("app", "http", &[upstream.addr]),
        yaml::policy("app", "rateLimit: [{requests: 2, per: 1h}]"),
        on_route("own", "rateLimit: [{requests: 1, per: 1h}]"),
    ]);
    let weft = Weft::start(&config).await;
    let mut client = Client::h1(local(port)).await.unwrap();
    let mut status = async |host: &str| client.get(host, "/").await.unwrap().status.as_u16();
    assert_eq!((status("one.local").await, status("two.local").await), (200, 200));
    // Both share the service's budget; the third has its own.
    assert_eq!((status("one.local").await, status("two.local").await), (429, 429));
    assert_eq!((status("all.local").await, status("all.local").await), (200, 429));
    let metrics = weft.metrics().await;
    for (route, policy) in [("one", "app-policy.1"), ("two", "app-policy.1"), ("all", "own.1")] {
        let count = metrics.sum("weft_rate_limited_total", &[("route", route), ("policy", policy)]);
        assert!((count - 1.0).abs() < 0.5, "{route}: {count}");
    }
}

#[tokio::test]
async fn grpc_clients_get_a_status() {
    let (upstream, _calls) = grpc::start().await;
    let port = ports::free();
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::grpc_route("greeter", &format!("rules: [{{backendRefs: [{}]}}]", yaml::backend("greeter"))),
        yaml::service("greeter", "grpc", &[upstream.addr]),
        yaml::policy("greeter", "rateLimit: [{requests: 1, per: 1m}]"),
    ]);
    let _weft = Weft::start(&config).await;
    let mut greeter = GreeterClient::connect(local(port), "grpc.local").await;
    let reply = greeter.unary(Request::new(Msg::new("a", 1))).await.unwrap();
    assert_eq!(reply.metadata().get("ratelimit").unwrap(), r#""greeter-policy.1";r=0;t=60"#);
    let status = greeter.unary(Request::new(Msg::new("b", 1))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("greeter-policy.1 (1 per 1m, burst 1, key global) is used up"), "{status:?}");
    let metadata = status.metadata();
    assert_eq!(metadata.get("x-weft-reason").unwrap(), "rate_limited");
    let after: u32 = metadata.get("retry-after").unwrap().to_str().unwrap().parse().unwrap();
    assert!((30..=60).contains(&after), "{after}");
    assert_eq!(metadata.get("ratelimit-policy").unwrap(), r#""greeter-policy.1";q=1;w=60"#);
    assert!(metadata.get("ratelimit").unwrap().to_str().unwrap().starts_with(r#""greeter-policy.1";r=0;t="#));
    assert_eq!(upstream.seen.count(), 1);
}
