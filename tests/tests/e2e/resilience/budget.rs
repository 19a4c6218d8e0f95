//! The retry budget: a dead service gets little more than its usual load.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use weft_tests::{Client, Options, Unruly, soon, unruly::Mood, upstream::empty, yaml};

use super::{Scene, by, tagged};

const TTL: f64 = 2.0;
const MIN_PER_SECOND: f64 = 5.0;
const POLICY: &str = "retry: {attempts: 3, backoff: {base: 1ms, max: 1ms}}\n\
                      retryBudget: {percent: 20, minPerSecond: 5, ttl: 2s}";

/// What the budget allows for so many requests within `took`. A window that slides may hold a retry just before it
/// leaves, so one more window's worth of the minimum is allowed.
fn allowed(requests: usize, took: Duration) -> usize {
    let windows = took.as_secs_f64() / TTL + 1.0;
    (requests as f64 * 0.2 + MIN_PER_SECOND * TTL * windows).ceil() as usize
}

async fn hammer(scene: &Scene<Unruly>, host: &str, requests: usize) {
    let mut client = scene.client().await;
    for _ in 0..requests {
        let (_, mut request) = tagged("GET", empty(), &[]);
        request.headers_mut().insert("host", host.parse().unwrap());
        let reply = soon("an answer", client.send(request)).await.unwrap();
        assert_eq!((reply.status.as_u16(), by(&reply)), (503, Some("app0")), "the upstream's own answer: {reply:?}");
    }
}

#[tokio::test]
async fn retries_of_a_dead_service_are_bounded() {
    const REQUESTS: usize = 300;
    let scene = Scene::new(1, POLICY).await;
    scene.upstreams[0].set(Mood::Answer(503, ""));
    let start = Instant::now();
    hammer(&scene, "shop.local", REQUESTS).await;
    let (retries, allowed) = (scene.count() - REQUESTS, allowed(REQUESTS, start.elapsed()));
    assert!((10..=allowed).contains(&retries), "{retries} retries, {allowed} are allowed");
    let service = scene.weft.service("app").await;
    let remaining = service["retry_budget"]["remaining"].as_f64().unwrap_or_else(|| panic!("{service}"));
    assert!((0.0..=allowed as f64).contains(&remaining), "{service}");
    let metrics = scene.weft.metrics().await;
    assert!(metrics.sum("weft_retries_total", &[("service", "app"), ("outcome", "budget_exhausted")]) > 50.0);
    let shown = metrics.samples.iter().any(|s| s.name == "weft_retry_budget_remaining" && s.labels["service"] == "app");
    assert!(shown, "weft_retry_budget_remaining is shown");
}

#[tokio::test]
async fn workers_and_routes_share_a_budget() {
    const CLIENTS: usize = 10;
    const EACH: usize = 30;
    let route = |name: &str| {
        let spec = format!("hostnames: [{name}.local]\nrules: [{{backendRefs: [{}]}}]", yaml::backend("app"));
        yaml::http_route(name, &spec)
    };
    let options = Options { workers: 2, ..Options::default() };
    let scene = Scene::routed(1, POLICY, options, |_| vec![route("one"), route("two")]).await;
    scene.upstreams[0].set(Mood::Answer(503, ""));
    let start = Instant::now();
    let hosts = ["one.local", "two.local"];
    join_all((0..CLIENTS).map(|number| hammer(&scene, hosts[number % 2], EACH))).await;
    let requests = CLIENTS * EACH;
    let (retries, allowed) = (scene.count() - requests, allowed(requests, start.elapsed()));
    assert!((10..=allowed).contains(&retries), "{retries} retries, {allowed} are allowed");
}

#[tokio::test]
async fn out_of_budget_and_without_an_answer_is_a_refusal_by_name() {
    let policy = "retry: {attempts: 3, retryOn: [connect-failure, reset], backoff: {base: 1ms, max: 1ms}}\n\
                  retryBudget: {percent: 0, minPerSecond: 0}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::ResetAfterRequest);
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    reply.assert_refused(503, "retry_budget_exhausted");
    assert_eq!(scene.received(&id), 1);
    upstream.stop().await;
    scene.get().await.assert_refused(503, "retry_budget_exhausted");
    scene.weft.until_metric("weft_retries_total", &[("outcome", "budget_exhausted")], 2).await;
    scene.weft.until_metric("weft_requests_total", &[("reason", "retry_budget_exhausted")], 2).await;
}

#[tokio::test]
async fn a_budget_refills() {
    let policy =
        "retry: {attempts: 1, backoff: {base: 1ms, max: 1ms}}\nretryBudget: {percent: 0, minPerSecond: 2, ttl: 1s}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::Answer(503, ""));
    for _ in 0..20 {
        scene.get().await;
    }
    assert!(scene.count() > 20, "some were retried");
    weft_tests::eventually("there is budget again", weft_tests::SOON, async || {
        upstream.script([Mood::Answer(503, ""), Mood::Well]);
        let reply = scene.get().await;
        upstream.set(Mood::Answer(503, ""));
        reply.status == 200
    })
    .await;
}

#[tokio::test]
async fn retries_in_flight_are_limited() {
    let policy = "retry: {attempts: 1, backoff: {base: 1ms, max: 1ms}}\nretryBudget: {percent: 100, minPerSecond: 1000}\n\
                  connectionPool: {maxRetries: 1}";
    let scene = Scene::with(1, policy, Options { workers: 2, ..Options::default() }).await;
    scene.upstreams[0].set(Mood::Slow(Duration::from_millis(400), 503));
    let replies = soon("all answers", join_all((0..12).map(|_| scene.get()))).await;
    assert!(replies.iter().all(|reply| reply.status == 503 && by(reply).is_some()), "{replies:?}");
    // All first attempts end at about the same time.
    let retries = scene.count() - 12;
    assert!((1..=3).contains(&retries), "{retries} retries");
    scene.upstreams[0].set(Mood::Well);
    scene.upstreams[0].script([Mood::Answer(503, "")]);
    let mut client = Client::h1(scene.addr).await.unwrap();
    assert_eq!(client.get("a", "/").await.unwrap().status, 200, "its place is free again");
}
