//! Which endpoint a request goes to.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use weft_tests::{Client, SOON, Upstream, Weft, client, eventually, ports, soon, yaml};

use crate::local;

struct Balanced {
    weft: Weft,
    addr: SocketAddr,
    upstreams: Vec<Upstream>,
}

impl Balanced {
    async fn new(weights: &[u32], spec: &str) -> Self {
        let mut upstreams = Vec::new();
        for number in 0..weights.len() {
            upstreams.push(Upstream::h1(&number.to_string()).await);
        }
        let port = ports::free();
        let endpoints: Vec<_> = upstreams
            .iter()
            .zip(weights)
            .map(|(upstream, weight)| {
                format!("{{address: 127.0.0.1, port: {}, weight: {weight}}}", upstream.addr.port())
            })
            .collect();
        let config = yaml::docs(&[
            yaml::gateway(port),
            yaml::all_to("app"),
            yaml::service_with("app", "http", 80, &endpoints),
            yaml::policy("app", spec),
        ]);
        Self { weft: Weft::start(&config).await, addr: local(port), upstreams }
    }

    async fn spread(&self, requests: usize, path: &str) -> Vec<usize> {
        let mut client = Client::h1(self.addr).await.unwrap();
        for _ in 0..requests {
            assert_eq!(client.get("a", path).await.unwrap().status, 200);
        }
        self.upstreams.iter().map(|upstream| upstream.seen.to_path(path).len()).collect()
    }
}

/// Peak EWMA avoids, for seconds, an endpoint that this machine has made slow for a moment. That it leans as the weights
/// say when latencies are equal is a matter for the picker's own tests, where time is passed in.
fn at_least(kind: &str, share: usize) -> usize {
    if kind == "PeakEWMA" { 1 } else { share }
}

#[tokio::test]
async fn every_algorithm_uses_every_endpoint() {
    for kind in ["PeakEWMA", "RoundRobin", "LeastRequest", "Random", "RingHash", "Maglev"] {
        let stage =
            Balanced::new(&[1, 1, 1], &format!("loadBalancer: {{type: {kind}, hash: {{header: x-user}}}}")).await;
        let mut client = Client::h1(stage.addr).await.unwrap();
        for number in 0..300 {
            let user = format!("user-{number}");
            client.send(client::get_with("a", "/", &[("x-user", user.as_str())])).await.unwrap();
        }
        let counts: Vec<_> = stage.upstreams.iter().map(|upstream| upstream.seen.count()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 300);
        assert!(counts.iter().all(|count| *count >= at_least(kind, 20)), "{kind}: {counts:?}");
    }
}

#[tokio::test]
async fn weights_are_shares() {
    for kind in ["RoundRobin", "Random", "LeastRequest", "PeakEWMA"] {
        let stage = Balanced::new(&[3, 1, 0], &format!("loadBalancer: {{type: {kind}}}")).await;
        let counts = stage.spread(800, "/").await;
        assert_eq!(counts[2], 0, "{kind}: weight 0 gets nothing: {counts:?}");
        // Load-aware algorithms need not hit 3 : 1 exactly, but everybody with a weight takes part.
        assert!(counts[..2].iter().all(|count| *count >= at_least(kind, 50)), "{kind}: {counts:?}");
        if kind == "LeastRequest" {
            assert!(counts[0] > counts[1], "{kind}: {counts:?}");
        }
        if kind == "RoundRobin" || kind == "Random" {
            assert!((520..=680).contains(&counts[0]), "{kind}: {counts:?}");
        }
    }
}

#[tokio::test]
async fn one_user_stays_on_one_endpoint() {
    for kind in ["RingHash", "Maglev"] {
        let stage =
            Balanced::new(&[1, 1, 1], &format!("loadBalancer: {{type: {kind}, hash: {{header: x-user}}}}")).await;
        let mut where_to = HashMap::new();
        for round in 0..5 {
            let mut client = Client::h1(stage.addr).await.unwrap();
            for user in 0..40 {
                let name = format!("user-{user}");
                let reply = client.send(client::get_with("a", "/", &[("x-user", name.as_str())])).await.unwrap();
                let upstream = reply.upstream();
                let first = where_to.entry(user).or_insert_with(|| upstream.clone());
                assert_eq!(*first, upstream, "{kind}: {name} moved in round {round}");
            }
        }
    }
}

#[tokio::test]
async fn only_the_leavers_users_move() {
    let stage = Balanced::new(&[1, 1, 1], "loadBalancer: {type: RingHash, hash: {cookie: session}}").await;
    let ask = async |user: usize| {
        let cookie = format!("a=b; session=user-{user}; c=d");
        let mut client = Client::h1(stage.addr).await.unwrap();
        client.send(client::get_with("a", "/", &[("cookie", cookie.as_str())])).await.unwrap().upstream()
    };
    let mut before = Vec::new();
    for user in 0..100 {
        before.push(ask(user).await);
    }
    let config = std::fs::read_to_string(&stage.weft.config).unwrap();
    let leaver = format!("{{address: 127.0.0.1, port: {}, weight: 1}}", stage.upstreams[2].addr.port());
    stage.weft.apply(&config.replace(&format!(", {leaver}"), "")).await;
    for (user, old) in before.iter().enumerate() {
        let new = ask(user).await;
        assert!(new != "2" && (old == "2" || *old == new), "user {user} moved from {old} to {new}");
    }
    assert!(before.iter().any(|old| old == "2"), "the leaver had users");
}

#[tokio::test]
async fn a_slow_endpoint_gets_less() {
    let (fast, slow) = (Upstream::h1("fast").await, slow_upstream().await);
    let port = ports::free();
    let config =
        yaml::docs(&[yaml::gateway(port), yaml::all_to("app"), yaml::service("app", "http", &[fast.addr, slow.addr])]);
    let _weft = Weft::start(&config).await;
    let clients = (0..4).map(|_| async {
        let mut client = Client::h1(local(port)).await.unwrap();
        for _ in 0..100 {
            assert_eq!(client.get("a", "/").await.unwrap().status, 200);
        }
    });
    futures_util::future::join_all(clients).await;
    let (fast, slow) = (fast.seen.count(), slow.seen.count());
    assert!(slow * 3 < fast, "fast {fast}, slow {slow}");
}

async fn slow_upstream() -> Upstream {
    Upstream::h1_with(std::sync::Arc::new(|_, _| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(http::Response::new(weft_tests::upstream::full("slow")))
        })
    }))
    .await
}

/// Healthy as long as told so.
async fn moody(name: &'static str) -> (Upstream, std::sync::Arc<std::sync::atomic::AtomicBool>) {
    let well = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let state = well.clone();
    let upstream = Upstream::h1_with(std::sync::Arc::new(move |request, _| {
        let well = state.load(std::sync::atomic::Ordering::SeqCst);
        Box::pin(async move {
            let healthz = request.uri().path() == "/healthz";
            let status = if healthz && !well { 503 } else { 200 };
            http::Response::builder().status(status).body(weft_tests::upstream::full(name)).map_err(Into::into)
        })
    }))
    .await;
    (upstream, well)
}

#[tokio::test]
async fn a_health_check_takes_an_endpoint_out_and_back() {
    let ((one, well), (two, _)) = (moody("one").await, moody("two").await);
    let port = ports::free();
    let check = "healthCheck: {path: /healthz, interval: 100ms, timeout: 1s, healthy: 2, unhealthy: 2}\n\
                 loadBalancer: {type: RoundRobin, panicThresholdPercent: 0}";
    let config = yaml::docs(&[
        yaml::gateway(port),
        yaml::all_to("app"),
        yaml::service("app", "http", &[one.addr, two.addr]),
        yaml::policy("app", check),
    ]);
    let weft = Weft::start(&config).await;
    let served_by = async || {
        let mut client = Client::h1(local(port)).await.unwrap();
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..10 {
            names.insert(client.get("a", "/").await.unwrap().text());
        }
        names.into_iter().collect::<Vec<_>>().join(" ")
    };
    eventually("both serve", SOON, async || served_by().await == "one two").await;
    well.store(false, std::sync::atomic::Ordering::SeqCst);
    eventually("only the healthy one serves", SOON, async || served_by().await == "two").await;
    let states = weft.admin_json("/endpoints").await.to_string();
    assert!(states.contains("unhealthy"), "{states}");
    well.store(true, std::sync::atomic::Ordering::SeqCst);
    eventually("it is back", SOON, async || served_by().await == "one two").await;
    let probe = &one.seen.to_path("/healthz")[0];
    assert_eq!(probe.method, "GET");
    let metrics = weft.metrics().await;
    let counted = metrics.sum("weft_requests_total", &[]);
    let requests = one.seen.to_path("/").len() + two.seen.to_path("/").len();
    assert!((counted - requests as f64).abs() < 0.5, "probes are no requests");
}

#[tokio::test]
async fn when_nearly_all_are_unhealthy_health_is_ignored() {
    let upstream = Upstream::h1("only").await;
    let port = ports::free();
    let check = "healthCheck: {path: /status/500, interval: 100ms, timeout: 1s, healthy: 1, unhealthy: 1}";
    let config = yaml::docs(&[yaml::simple(port, "http", upstream.addr), yaml::policy("app", check)]);
    let weft = Weft::start(&config).await;
    eventually("it is unhealthy", SOON, async || weft.admin_json("/endpoints").await.to_string().contains("unhealthy"))
        .await;
    assert_eq!(client::get_once(local(port), "a", "/").await.unwrap().status, 200, "panic threshold 50 %");
}

#[tokio::test]
async fn a_tcp_health_check_asks_for_a_connection() {
    let upstream = Upstream::h1("app").await;
    let port = ports::free();
    let check = "healthCheck: {tcp: {}, interval: 100ms, timeout: 1s, healthy: 1, unhealthy: 1}";
    let config = yaml::docs(&[yaml::simple(port, "http", upstream.addr), yaml::policy("app", check)]);
    let weft = Weft::start(&config).await;
    let states = async || weft.admin_json("/endpoints").await.to_string();
    eventually("it is healthy", SOON, async || states().await.contains("\"healthy\"")).await;
    upstream.stop().await;
    eventually("it is unhealthy", SOON, async || states().await.contains("unhealthy")).await;
}

#[tokio::test]
async fn an_endpoint_by_name_is_resolved() {
    let upstream = Upstream::h1("named").await;
    let port = ports::free();
    let endpoints = [format!("{{address: localhost, port: {}}}", upstream.addr.port())];
    let config =
        yaml::docs(&[yaml::gateway(port), yaml::all_to("app"), yaml::service_with("app", "http", 80, &endpoints)]);
    let weft = Weft::start(&config).await;
    eventually("the name is resolved", SOON, async || {
        client::get_once(local(port), "shop.local", "/").await.is_ok_and(|reply| reply.status == 200)
    })
    .await;
    let echo = client::get_once(local(port), "shop.local", "/").await.unwrap().json();
    assert_eq!(crate::echoed(&echo, "host"), Some("shop.local"));
    drop(weft);

    let nobody = [String::from("{address: nobody.invalid, port: 80}")];
    let config =
        yaml::docs(&[yaml::gateway(port), yaml::all_to("app"), yaml::service_with("app", "http", 80, &nobody)]);
    let _weft = Weft::start(&config).await;
    let reply = soon("an answer", client::get_once(local(port), "a", "/")).await.unwrap();
    reply.assert_refused(503, "no_endpoint");
}
