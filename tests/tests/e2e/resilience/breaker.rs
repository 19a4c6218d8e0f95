//! What opens the circuit of an endpoint, what does not, and who is told.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::Code;
use weft_tests::{Options, SOON, Unruly, Wire, eventually, soon, unruly::Mood, unruly::grpc::GrpcMood};

use super::{Scene, by, until};

/// Three failures in a row, and nothing else; out for longer than any test.
const THREE: &str = "circuitBreaker: {consecutiveFailures: 3, failureRate: {minimumRequests: 10000}, \
                     baseEjectionTime: 30s, maxEjectionPercent: 50}";

/// Asks until the first endpoint is ejected.
async fn provoke(scene: &Scene<Unruly>) {
    for _ in 0..20 {
        scene.get().await;
        if scene.weft.breaker(scene.upstreams[0].addr).await == "open" {
            return;
        }
    }
    panic!("still {}", scene.weft.endpoint(scene.upstreams[0].addr).await);
}

/// The first of two endpoints fails in one way: it is ejected, and everybody is told why.
async fn ejects(break_it: impl AsyncFnOnce(&Unruly), more: &str, failure: &str) {
    let scene = Scene::new(2, &format!("{THREE}\n{more}")).await;
    let bad = &scene.upstreams[0];
    break_it(bad).await;
    provoke(&scene).await;
    let evidence = format!("3 of 3 failed: {failure} ×3");
    let addr = bad.addr.to_string();

    let endpoint = scene.weft.endpoint(bad.addr).await;
    assert_eq!((endpoint["ejected"].as_bool(), endpoint["ejections"].as_u64()), (Some(true), Some(1)), "{endpoint}");
    assert_eq!(endpoint["evidence"], evidence.as_str(), "{endpoint}");
    let left = endpoint["ejection_ms_left"].as_f64().unwrap();
    assert!((20_000.0..=33_000.0).contains(&left), "30 s ± 10 %: {endpoint}");
    let other = scene.weft.endpoint(scene.upstreams[1].addr).await;
    assert_eq!((other["breaker"].as_str(), other["ejected"].as_bool()), (Some("closed"), Some(false)), "{other}");
    let events = scene.weft.events("app").await;
    assert_eq!(events.len(), 1, "{events:?}");
    for (field, value) in [("endpoint", &*addr), ("from", "closed"), ("to", "open"), ("evidence", &evidence)] {
        assert_eq!(events[0][field], value, "{field}: {events:?}");
    }

    let metrics = scene.weft.metrics().await;
    let state = metrics.sum("weft_endpoint_breaker_state", &[("service", "app"), ("endpoint", &addr)]);
    assert!((state - 2.0).abs() < 0.1, "2 is open: {state}");
    let ejections = metrics.sum("weft_ejections_total", &[]);
    assert!((ejections - 1.0).abs() < 0.1, "{ejections} ejections");
    eventually("it is logged", SOON, async || {
        scene.weft.stderr().lines().any(|line| line.contains(&evidence) && line.contains(&addr))
    })
    .await;

    let before = bad.count();
    for _ in 0..20 {
        let reply = scene.get().await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app1")));
    }
    assert_eq!(bad.count(), before, "it is left alone");
}

#[tokio::test]
async fn a_status_opens_it() {
    ejects(async |bad| bad.set(Mood::Answer(503, "")), "", "503").await;
}

#[tokio::test]
async fn an_error_that_is_no_gateway_error_opens_it() {
    ejects(async |bad| bad.set(Mood::Answer(500, "")), "", "500").await;
}

#[tokio::test]
async fn a_reset_opens_it() {
    ejects(async |bad| bad.set(Mood::ResetAfterHead), "", "upstream_reset").await;
}

#[tokio::test]
async fn a_refused_connection_opens_it() {
    ejects(async |bad| bad.stop().await, "", "connect_failed").await;
}

#[tokio::test]
async fn a_time_out_opens_it() {
    ejects(async |bad| bad.set(Mood::Hang), "timeouts: {request: 150ms}", "upstream_timeout").await;
}

#[tokio::test]
async fn an_answer_that_is_not_http_opens_it() {
    ejects(async |bad| bad.set(Mood::Garbage), "", "bad_upstream_response").await;
}

#[tokio::test]
async fn a_grpc_status_opens_it_wherever_it_stands() {
    for mood in [GrpcMood::TrailersOnly(Code::Unavailable), GrpcMood::Trailers(Code::Unavailable)] {
        let scene = Scene::grpc(2, THREE).await;
        let bad = &scene.upstreams[0];
        bad.set(mood);
        for _ in 0..8 {
            let _ = scene.call().await;
        }
        let endpoint = scene.weft.until_breaker(bad.upstream.addr, "open").await;
        assert_eq!(endpoint["evidence"], "3 of 3 failed: grpc:UNAVAILABLE ×3", "{mood:?}");
        let before = bad.count();
        for _ in 0..10 {
            assert!(scene.call().await.is_ok(), "{mood:?}");
        }
        assert_eq!(bad.count(), before, "{mood:?}");
    }
}

/// By rate alone, from ten requests on.
const RATE: &str = "circuitBreaker: {consecutiveFailures: 10000, failureRate: {percent: 40, minimumRequests: 10}, \
                    baseEjectionTime: 30s}";

#[tokio::test]
async fn what_fails_after_a_good_start_counts_too() {
    let scene = Scene::grpc(1, RATE).await;
    scene.upstreams[0].set(GrpcMood::AfterMessage(Code::Internal));
    for _ in 0..20 {
        let _ = scene.call().await;
    }
    let endpoint = scene.weft.until_breaker(scene.upstreams[0].upstream.addr, "open").await;
    assert!(endpoint["evidence"].as_str().unwrap().contains("grpc:INTERNAL"), "{endpoint}");

    let scene = Scene::new(1, RATE).await;
    scene.upstreams[0].set(Mood::Half);
    for _ in 0..20 {
        scene.get().await;
    }
    let endpoint = scene.weft.until_breaker(scene.upstreams[0].addr, "open").await;
    assert!(endpoint["evidence"].as_str().unwrap().contains("upstream_reset"), "{endpoint}");
}

#[tokio::test]
async fn answers_that_blame_the_client_do_not_count() {
    let scene = Scene::new(1, THREE).await;
    for status in [400, 404, 409, 429] {
        scene.upstreams[0].set(Mood::Answer(status, ""));
        for _ in 0..10 {
            assert_eq!(scene.get().await.status, status);
        }
    }
    assert_eq!(scene.weft.breaker(scene.upstreams[0].addr).await, "closed");

    let scene = Scene::grpc(1, THREE).await;
    for code in [Code::NotFound, Code::ResourceExhausted, Code::PermissionDenied, Code::Unimplemented] {
        for mood in [GrpcMood::TrailersOnly(code), GrpcMood::Trailers(code), GrpcMood::AfterMessage(code)] {
            scene.upstreams[0].set(mood);
            for _ in 0..4 {
                assert_eq!(scene.call().await.unwrap_err().code(), code);
            }
        }
    }
    assert_eq!(scene.weft.breaker(scene.upstreams[0].upstream.addr).await, "closed");
}

#[tokio::test]
async fn a_success_in_between_starts_the_count_anew() {
    let scene = Scene::new(1, THREE).await;
    let (bad, well) = (Mood::Answer(503, ""), Mood::Well);
    scene.upstreams[0].script([bad, bad, well, bad, bad, well, bad, bad, well]);
    for _ in 0..9 {
        scene.get().await;
    }
    assert_eq!(scene.weft.breaker(scene.upstreams[0].addr).await, "closed");
}

#[tokio::test]
async fn a_failure_rate_opens_it_from_the_minimum_on() {
    let policy = "circuitBreaker: {consecutiveFailures: 10000, baseEjectionTime: 30s, \
                  failureRate: {percent: 50, minimumRequests: 20, window: 10s}}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    let (bad, reset, well) = (Mood::Answer(503, ""), Mood::ResetAfterRequest, Mood::Well);
    upstream.script([well, bad, reset, bad, well, reset, bad, well, bad, well, bad, reset, bad, well, bad, reset]);
    upstream.script([well, reset, well, bad]);
    for number in 0..20 {
        assert_eq!(scene.weft.breaker(upstream.addr).await, "closed", "{number} are below the minimum");
        // POSTs: a GET that is reset on a kept connection is sent again, which would count.
        scene.post(&[]).await;
    }
    let endpoint = scene.weft.until_breaker(upstream.addr, "open").await;
    let evidence = "13 of 20 failed in 10s (65 % ≥ 50 %): 503 ×8, upstream_reset ×5";
    assert_eq!(endpoint["evidence"], evidence, "{endpoint}");
}

#[tokio::test]
async fn slow_calls_open_it() {
    let policy = "circuitBreaker: {consecutiveFailures: 10000, baseEjectionTime: 30s, \
                  slowCalls: {threshold: 100ms, percent: 60, minimumRequests: 10}}";
    let scene = Scene::new(1, policy).await;
    scene.upstreams[0].set(Mood::Slow(Duration::from_millis(150), 200));
    for reply in scene.at_once(9).await {
        assert_eq!(reply.status, 200);
    }
    assert_eq!(scene.weft.breaker(scene.upstreams[0].addr).await, "closed", "below the minimum");
    assert_eq!(scene.get().await.status, 200, "slow is not wrong");
    let endpoint = scene.weft.until_breaker(scene.upstreams[0].addr, "open").await;
    assert_eq!(endpoint["evidence"], "10 of 10 took 100ms or longer (100 % ≥ 60 %)", "{endpoint}");
}

#[tokio::test]
async fn at_most_a_share_of_the_endpoints_is_ejected() {
    let scene = Scene::new(4, THREE).await;
    for bad in &scene.upstreams[..3] {
        bad.set(Mood::Answer(503, ""));
    }
    let mut states = Vec::new();
    for _ in 0..60 {
        scene.get().await;
        states.clear();
        for upstream in &scene.upstreams[..3] {
            let endpoint = scene.weft.endpoint(upstream.addr).await;
            states.push((endpoint["breaker"] == "open", endpoint["ejected"] == true));
        }
        if states.iter().all(|(open, _)| *open) {
            break;
        }
    }
    assert!(states.iter().all(|(open, _)| *open), "{states:?}");
    assert_eq!(states.iter().filter(|(_, ejected)| *ejected).count(), 2, "half of four: {states:?}");
    let counts = || scene.upstreams.iter().map(Unruly::count).collect::<Vec<_>>();
    let before = counts();
    for _ in 0..20 {
        let reply = scene.get().await;
        assert!(by(&reply).is_some(), "one endpoint is well, so the circuit of the service is closed: {reply:?}");
    }
    let after = counts();
    let (kept, ejected): (Vec<_>, Vec<_>) = (0..3).partition(|number| !states[*number].1);
    assert!(ejected.iter().all(|number| before[*number] == after[*number]), "{states:?} {before:?} {after:?}");
    assert!(after[kept[0]] > before[kept[0]] && after[3] > before[3], "{states:?} {before:?} {after:?}");
}

#[tokio::test]
async fn an_open_circuit_of_the_service_is_a_refusal_with_a_time() {
    let scene = Scene::new(1, &THREE.replace("30s", "5s")).await;
    scene.upstreams[0].set(Mood::Answer(503, ""));
    provoke(&scene).await;
    let service = scene.weft.service("app").await;
    assert_eq!(service["circuit"], "open", "{service}");
    assert_eq!(service["endpoints"][0]["ejected"], false, "half of one is none: it is kept in rotation: {service}");
    for _ in 0..10 {
        let reply = scene.get().await;
        reply.assert_refused(503, "circuit_open");
        let seconds: u64 = reply.header("retry-after").expect("the time is known").parse().unwrap();
        assert!((1..=6).contains(&seconds), "{seconds}");
    }
    assert_eq!(scene.upstreams[0].count(), 3);
    scene.weft.until_metric("weft_requests_total", &[("reason", "circuit_open"), ("code", "503")], 10).await;

    // The attempt that opened it knows why; the refusals that follow are seen, too.
    let span = scene.weft.until_span("client", "weft.breaker.evidence", |_| true).await;
    assert_eq!(span["attributes"]["weft.breaker.evidence"], "3 of 3 failed: 503 ×3", "{span}");
    scene.weft.until_span("server", "weft.reason", |reason| reason == "circuit_open").await;
}

#[tokio::test]
async fn grpc_is_told_of_an_open_circuit_in_its_own_words() {
    let scene = Scene::grpc(1, THREE).await;
    scene.upstreams[0].set(GrpcMood::TrailersOnly(Code::Unavailable));
    for _ in 0..3 {
        assert_eq!(scene.call().await.unwrap_err().message(), "told to fail");
    }
    scene.weft.until_circuit("app", "open").await;
    let error = scene.call().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert_eq!(error.metadata().get("x-weft-reason").unwrap(), "circuit_open");
    assert!(error.metadata().contains_key("retry-after"), "{error:?}");
    assert_eq!(scene.count(), 3);
}

#[tokio::test]
async fn what_weft_refuses_itself_never_counts() {
    let limits = "connectionPool: {maxRequests: 1}";
    let scene = Scene::new(1, &format!("{THREE}\n{limits}")).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::Hang);
    let mut wire = Wire::connect(scene.addr).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the only place is taken", || upstream.count() == 1).await;
    for _ in 0..20 {
        scene.get().await.assert_refused(503, "overloaded");
    }
    wire.reset();
    until("the client is gone", || upstream.cancelled() == 1).await;
    let endpoint = scene.weft.endpoint(upstream.addr).await;
    assert_eq!((endpoint["breaker"].as_str(), endpoint["failures"].as_u64()), (Some("closed"), Some(0)), "{endpoint}");

    let scene = Scene::new(1, &format!("{THREE}\nrateLimit: [{{requests: 1, per: 60s}}]")).await;
    assert_eq!(scene.get().await.status, 200);
    for _ in 0..20 {
        scene.get().await.assert_refused(429, "rate_limited");
    }
    let endpoint = scene.weft.endpoint(scene.upstreams[0].addr).await;
    assert_eq!((endpoint["breaker"].as_str(), endpoint["failures"].as_u64()), (Some("closed"), Some(0)), "{endpoint}");
}

#[tokio::test]
async fn clients_that_go_away_never_count() {
    let scene = Scene::new(1, THREE).await;
    let upstream = &scene.upstreams[0];
    upstream.set(Mood::Hang);
    for round in 1..=10 {
        let mut wire = Wire::connect(scene.addr).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        until("it arrives", || upstream.count() == round).await;
        if round % 2 == 0 {
            wire.reset()
        } else {
            drop(wire)
        }
        until("its end is passed on", || upstream.cancelled() == round).await;
    }
    let endpoint = scene.weft.endpoint(upstream.addr).await;
    assert_eq!((endpoint["breaker"].as_str(), endpoint["failures"].as_u64()), (Some("closed"), Some(0)), "{endpoint}");
    upstream.set(Mood::Well);
    assert_eq!(scene.get().await.status, 200);
}

#[tokio::test]
async fn workers_count_together() {
    let policy = "circuitBreaker: {consecutiveFailures: 8, failureRate: {minimumRequests: 10000}, baseEjectionTime: 30s, \
                  maxEjectionPercent: 100}";
    let scene = Scene::with(1, policy, Options { workers: 2, ..Options::default() }).await;
    scene.upstreams[0].set(Mood::Answer(503, ""));
    // New connections are spread over the workers.
    for number in 0..40 {
        let reply = scene.get().await;
        if number < 8 {
            assert_eq!((reply.status.as_u16(), by(&reply)), (503, Some("app0")), "number {number}");
        } else {
            reply.assert_refused(503, "circuit_open");
        }
    }
    assert_eq!(scene.upstreams[0].count(), 8);
    let replies = soon("all answers", join_all((0..40).map(|_| scene.get()))).await;
    assert!(replies.iter().all(|reply| reply.header("x-weft-reason") == Some("circuit_open")));
    scene.weft.until_metric("weft_ejections_total", &[], 1).await;
}
