//! The way back: ejection times, probes, and what ends an ejection early.

use std::time::Duration;

use weft_tests::{Unruly, Wire, unruly::Mood};

use super::{Scene, by, until};

const SHORT: &str = "circuitBreaker: {consecutiveFailures: 3, failureRate: {minimumRequests: 10000}, \
                     baseEjectionTime: 500ms, maxEjectionTime: 1200ms, maxEjectionPercent: 50, halfOpenRequests: 2}";

/// Makes the first endpoint fail until it is ejected.
async fn eject(scene: &Scene<Unruly>) {
    scene.upstreams[0].set(Mood::Answer(503, ""));
    for _ in 0..20 {
        scene.get().await;
        if scene.weft.breaker(scene.upstreams[0].addr).await == "open" {
            return;
        }
    }
    panic!("still {}", scene.weft.endpoint(scene.upstreams[0].addr).await);
}

#[tokio::test]
async fn exactly_so_many_probes_and_then_it_is_back() {
    let scene = Scene::new(2, SHORT).await;
    let bad = &scene.upstreams[0];
    eject(&scene).await;
    let before = bad.count();
    bad.set(Mood::Slow(Duration::from_millis(600), 200));
    scene.weft.until_due(bad.addr).await;
    let crowd = async {
        let replies = scene.at_once(12).await;
        assert!(replies.iter().all(|reply| reply.status == 200), "nobody waits for a probe to succeed: {replies:?}");
        replies.iter().filter(|reply| by(reply) == Some("app0")).count()
    };
    let watch = async {
        until("the probes are out", || bad.count() == before + 2).await;
        let endpoint = scene.weft.endpoint(bad.addr).await;
        assert_eq!(endpoint["breaker"], "half_open", "{endpoint}");
        let state =
            scene.weft.metrics().await.sum("weft_endpoint_breaker_state", &[("endpoint", &bad.addr.to_string())]);
        assert!((state - 1.0).abs() < 0.1, "1 is half-open: {state}");
    };
    let (probes, ()) = tokio::join!(crowd, watch);
    assert_eq!(probes, 2);
    scene.weft.until_breaker(bad.addr, "closed").await;
    assert_eq!(bad.count(), before + 2);
    bad.set(Mood::Well);
    let mut served = 0;
    for _ in 0..20 {
        served += usize::from(by(&scene.get().await) == Some("app0"));
    }
    assert!((8..=12).contains(&served), "its share, at once: {served} of 20");
    let events = scene.weft.events("app").await;
    let changes: Vec<_> =
        events.iter().map(|event| [event["from"].as_str().unwrap(), event["to"].as_str().unwrap()]).collect();
    assert_eq!(changes, [["closed", "open"], ["open", "half_open"], ["half_open", "closed"]], "{events:?}");
}

#[tokio::test]
async fn a_failed_probe_ejects_again_for_longer_up_to_a_limit() {
    let scene = Scene::new(1, SHORT).await;
    let bad = &scene.upstreams[0];
    eject(&scene).await;
    let mut times = Vec::new();
    for round in 1..=3 {
        let endpoint = scene.weft.until_breaker(bad.addr, "open").await;
        assert_eq!(endpoint["ejections"], round, "{endpoint}");
        if round > 1 {
            assert_eq!(endpoint["evidence"], "a probe failed: 503", "{endpoint}");
        }
        scene.get().await.assert_refused(503, "circuit_open");
        let events = scene.weft.events("app").await;
        let last = events.iter().rfind(|event| event["to"] == "open").unwrap();
        times.push(last["for_ms"].as_f64().unwrap_or_else(|| panic!("{last}")));
        scene.weft.until_due(bad.addr).await;
        let before = bad.count();
        let reply = scene.get().await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (503, Some("app0")), "the probe's answer is the client's");
        assert_eq!(bad.count(), before + 1);
    }
    for (time, expected) in times.iter().zip([500.0, 1000.0, 1200.0]) {
        assert!((expected * 0.89..=expected * 1.11).contains(time), "{expected} ± 10 %: {times:?}");
    }
}

#[tokio::test]
async fn the_next_request_goes_to_the_endpoint_that_is_due() {
    let scene = Scene::new(3, &SHORT.replace("halfOpenRequests: 2", "halfOpenRequests: 1")).await;
    eject(&scene).await;
    scene.upstreams[0].set(Mood::Well);
    scene.weft.until_due(scene.upstreams[0].addr).await;
    assert_eq!(by(&scene.get().await), Some("app0"));
    scene.weft.until_breaker(scene.upstreams[0].addr, "closed").await;
}

#[tokio::test]
async fn a_probe_whose_client_went_away_gives_its_place_back() {
    let scene = Scene::new(1, &SHORT.replace("halfOpenRequests: 2", "halfOpenRequests: 1")).await;
    let bad = &scene.upstreams[0];
    eject(&scene).await;
    bad.set(Mood::Hang);
    scene.weft.until_due(bad.addr).await;
    let before = bad.count();
    let mut wire = Wire::connect(scene.addr).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the probe arrives", || bad.count() == before + 1).await;
    scene.get().await.assert_refused(503, "circuit_open");
    wire.reset();
    until("the probe ends", || bad.cancelled() == 1).await;
    bad.set(Mood::Well);
    assert_eq!(scene.get().await.status, 200, "the next one is the probe");
    scene.weft.until_breaker(bad.addr, "closed").await;
    assert_eq!(bad.count(), before + 2);
}

#[tokio::test]
async fn after_the_circuit_closes_old_latency_is_forgotten() {
    // One failure is enough: a slow endpoint is not asked often.
    let policy = SHORT.replace("consecutiveFailures: 3", "consecutiveFailures: 1");
    let scene = Scene::new(2, &format!("{policy}\nloadBalancer: {{type: PeakEWMA}}")).await;
    let bad = &scene.upstreams[0];
    bad.set(Mood::Slow(Duration::from_millis(300), 503));
    for _ in 0..20 {
        scene.at_once(4).await;
        if scene.weft.breaker(bad.addr).await == "open" {
            break;
        }
    }
    bad.set(Mood::Well);
    scene.weft.until_due(bad.addr).await;
    for _ in 0..10 {
        scene.get().await;
    }
    scene.weft.until_breaker(bad.addr, "closed").await;
    let mut served = 0;
    for _ in 0..60 {
        served += usize::from(by(&scene.get().await) == Some("app0"));
    }
    assert!(served >= 12, "{served} of 60");
}

#[tokio::test]
async fn a_service_that_is_dead_and_comes_back_serves_again() {
    let scene = Scene::new(2, &SHORT.replace("maxEjectionPercent: 50", "maxEjectionPercent: 100")).await;
    for upstream in &scene.upstreams {
        upstream.stop().await;
    }
    for _ in 0..10 {
        scene.get().await;
    }
    let service = scene.weft.until_circuit("app", "open").await;
    assert!(service["endpoints"].as_array().unwrap().iter().all(|e| e["evidence"].is_string()), "{service}");
    for upstream in &scene.upstreams {
        upstream.listen().await;
    }
    weft_tests::eventually("both are back", weft_tests::SOON, async || {
        scene.get().await;
        let service = scene.weft.service("app").await;
        service["endpoints"].as_array().unwrap().iter().all(|endpoint| endpoint["breaker"] == "closed")
    })
    .await;
    assert_eq!(scene.weft.service("app").await["circuit"], "closed");
    for _ in 0..10 {
        assert_eq!(scene.get().await.status, 200);
    }
}

#[tokio::test]
async fn state_survives_a_new_configuration() {
    let long = SHORT.replace("500ms", "30s").replace("1200ms", "60s");
    let scene = Scene::new(2, &long).await;
    let bad = &scene.upstreams[0];
    eject(&scene).await;
    let before = scene.weft.endpoint(bad.addr).await;
    let received = bad.count();
    scene.weft.apply(&scene.config(&format!("{long}\ntimeouts: {{request: 3s}}"))).await;
    scene.weft.apply(&scene.config(&long.replace("consecutiveFailures: 3", "consecutiveFailures: 7"))).await;
    let after = scene.weft.endpoint(bad.addr).await;
    for field in ["breaker", "ejected", "evidence", "ejections", "requests", "failures"] {
        assert_eq!(after[field], before[field], "{field}: {before} {after}");
    }
    assert!(after["ejection_ms_left"].as_f64() <= before["ejection_ms_left"].as_f64(), "{before} {after}");
    for _ in 0..10 {
        assert_eq!(by(&scene.get().await), Some("app1"));
    }
    assert_eq!(bad.count(), received);
}

#[tokio::test]
async fn without_the_policy_every_circuit_is_closed_at_once() {
    let scene = Scene::new(1, &SHORT.replace("500ms", "30s").replace("1200ms", "60s")).await;
    let upstream = &scene.upstreams[0];
    eject(&scene).await;
    scene.get().await.assert_refused(503, "circuit_open");
    upstream.set(Mood::Well);
    scene.weft.apply(&scene.config("timeouts: {request: 3s}")).await;
    assert_eq!(scene.get().await.status, 200);
    let service = scene.weft.service("app").await;
    assert_eq!((service["circuit"].as_str(), service["endpoints"][0]["breaker"].as_str()), (None, Some("closed")));
    upstream.set(Mood::Answer(503, ""));
    for _ in 0..10 {
        assert_eq!(by(&scene.get().await), Some("app0"), "off is off");
    }
}
