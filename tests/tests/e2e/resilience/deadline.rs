//! Deadlines that clients state, and what is left of them upstream.

use std::time::{Duration, Instant};

use tonic::Code;
use weft_tests::{
    Client, Reply, soon,
    unruly::{
        Mood,
        grpc::{GrpcMood, UnrulyGrpc},
    },
    upstream::empty,
};

use super::{Scene, grpc_request, grpc_status, until};

const MS: &str = "x-envoy-expected-rq-timeout-ms";
const RETRIES: &str = "timeouts: {request: 60s}\nretryBudget: {minPerSecond: 1000}\n\
                       retry: {attempts: 1, retryOn: [503, \"grpc:UNAVAILABLE\"], backoff: {base: 5ms, max: 5ms}}";

/// Milliseconds of a `grpc-timeout`.
fn grpc_ms(text: &str) -> f64 {
    let (number, unit) = text.split_at(text.len() - 1);
    assert!((1..=8).contains(&number.len()), "{text}: at most eight digits");
    let number: f64 = number.parse().unwrap();
    let unit = match unit {
        "H" => 3_600_000.0,
        "M" => 60_000.0,
        "S" => 1000.0,
        "m" => 1.0,
        "u" => 1e-3,
        "n" => 1e-6,
        other => panic!("unit {other}"),
    };
    number * unit
}

async fn call(scene: &Scene<UnrulyGrpc>, headers: &[(&str, &str)]) -> Reply {
    let (_, request) = grpc_request(headers);
    let mut client = Client::h2(scene.addr).await.unwrap();
    soon("an answer", client.send(request)).await.unwrap()
}

#[tokio::test]
async fn the_rest_of_a_grpc_deadline_is_forwarded_on_every_attempt() {
    let scene = Scene::grpc(1, RETRIES).await;
    let server = &scene.upstreams[0];
    server.script([GrpcMood::SlowTrailersOnly(Duration::from_millis(300), Code::Unavailable)]);
    let reply = call(&scene, &[("grpc-timeout", "20S")]).await;
    assert_eq!(grpc_status(&reply).as_deref(), Some("0"), "{reply:?}");
    let left: Vec<_> = server.records().iter().map(|r| grpc_ms(r.header("grpc-timeout").unwrap())).collect();
    assert_eq!(left.len(), 2);
    assert!(left[0] <= 20_000.0 && left[0] > 15_000.0, "{left:?}");
    assert!(left[1] <= left[0] - 295.0 && left[1] > 10_000.0, "{left:?}");
}

#[tokio::test]
async fn the_rest_of_an_http_deadline_is_forwarded_on_every_attempt() {
    let scene = Scene::new(1, RETRIES).await;
    let upstream = &scene.upstreams[0];
    upstream.script([Mood::Slow(Duration::from_millis(300), 503)]);
    let (_, reply) = scene.ask("GET", empty(), &[(MS, "20000")]).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let left: Vec<f64> = upstream.arrivals().iter().map(|a| a.header(MS).unwrap().parse().unwrap()).collect();
    assert_eq!(left.len(), 2);
    assert!(left[0] <= 20_000.0 && left[0] > 15_000.0, "{left:?}");
    assert!(left[1] <= left[0] - 295.0 && left[1] > 10_000.0, "{left:?}");
}

#[tokio::test]
async fn nothing_is_forwarded_that_the_client_did_not_say() {
    let scene = Scene::new(1, RETRIES).await;
    assert_eq!(scene.get().await.status, 200);
    let arrival = &scene.upstreams[0].arrivals()[0];
    assert_eq!((arrival.header(MS), arrival.header("grpc-timeout")), (None, None));
    let scene = Scene::grpc(1, RETRIES).await;
    assert_eq!(grpc_status(&call(&scene, &[]).await).as_deref(), Some("0"));
    let record = &scene.upstreams[0].records()[0];
    assert_eq!((record.header(MS), record.header("grpc-timeout")), (None, None));
}

#[tokio::test]
async fn a_deadline_that_has_passed_touches_no_upstream() {
    let scene = Scene::grpc(1, RETRIES).await;
    for timeout in ["1n", "0n", "0S"] {
        let reply = call(&scene, &[("grpc-timeout", timeout)]).await;
        assert_eq!(grpc_status(&reply).as_deref(), Some("4"), "{timeout}: {reply:?}");
        assert_eq!(reply.header("x-weft-reason"), Some("deadline_exceeded"), "{timeout}: {reply:?}");
    }
    assert_eq!(scene.count(), 0);
    scene.weft.until_metric("weft_requests_total", &[("reason", "deadline_exceeded")], 3).await;

    let scene = Scene::new(1, RETRIES).await;
    let (_, reply) = scene.ask("GET", empty(), &[(MS, "0")]).await;
    reply.assert_refused(504, "deadline_exceeded");
    assert_eq!(scene.count(), 0);
    // Time that Weft itself spends counts, too.
    scene.weft.apply(&scene.config("fault: {delay: {fixed: 300ms}}")).await;
    let (_, reply) = scene.ask("GET", empty(), &[(MS, "50")]).await;
    let reason = reply.header("x-weft-reason").unwrap_or_default();
    assert!(reply.status == 504 && ["deadline_exceeded", "upstream_timeout"].contains(&reason), "{reply:?}");
    assert_eq!(scene.count(), 0);
}

#[tokio::test]
async fn the_shorter_deadline_wins() {
    for (route, client) in [("60s", "300"), ("300ms", "60000")] {
        let scene = Scene::new(1, &format!("timeouts: {{request: {route}}}")).await;
        let upstream = &scene.upstreams[0];
        upstream.set(Mood::Hang);
        let start = Instant::now();
        let (_, reply) = scene.ask("GET", empty(), &[(MS, client)]).await;
        let took = start.elapsed();
        reply.assert_refused(504, "upstream_timeout");
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{route}, {client}: {took:?}");
        until("the upstream's work is cancelled", || upstream.cancelled() == 1).await;
        let forwarded: f64 = upstream.arrivals()[0].header(MS).unwrap().parse().unwrap();
        assert!(forwarded <= 300.0, "the upstream is told the shorter one: {forwarded}");

        let scene = Scene::grpc(1, &format!("timeouts: {{request: {route}}}")).await;
        scene.upstreams[0].set(GrpcMood::Hang);
        let start = Instant::now();
        let reply = call(&scene, &[("grpc-timeout", &format!("{client}m"))]).await;
        let took = start.elapsed();
        assert_eq!(grpc_status(&reply).as_deref(), Some("4"), "{reply:?}");
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{route}, {client}: {took:?}");
        let record = &scene.upstreams[0].records()[0];
        assert!(grpc_ms(record.header("grpc-timeout").unwrap()) <= 300.0, "{record:?}");
    }
}

#[tokio::test]
async fn a_deadline_is_for_all_attempts_together() {
    let policy = "timeouts: {request: 60s}\nretryBudget: {minPerSecond: 1000}\n\
                  retry: {attempts: 50, backoff: {base: 1ms, max: 1ms}}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::Slow(Duration::from_millis(150), 503));
    let start = Instant::now();
    let (_, reply) = scene.ask("GET", empty(), &[(MS, "500")]).await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(reply.status == 503 || reply.status == 504, "{reply:?}");
    assert!((2..=4).contains(&upstream.count()), "{}", upstream.count());
}

#[tokio::test]
async fn nonsense_is_no_deadline() {
    let scene = Scene::new(1, RETRIES).await;
    for value in ["soon", "-5", "1.5e9", "99999999999999999999999", ""] {
        let (_, reply) = scene.ask("GET", empty(), &[(MS, value)]).await;
        assert_eq!(reply.status, 200, "{value}: {reply:?}");
    }
}
