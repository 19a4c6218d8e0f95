//! Faults that Weft injects itself.

use std::time::{Duration, Instant};

use tonic::Code;

use super::Scene;

#[tokio::test]
async fn a_delay_comes_before_the_upstream() {
    let scene = Scene::new(1, "fault: {delay: {fixed: 300ms, percent: 100}}").await;
    let start = Instant::now();
    let reply = scene.get().await;
    assert_eq!((reply.status.as_u16(), reply.header("x-weft-reason")), (200, None));
    let arrival = &scene.upstreams[0].arrivals()[0];
    assert!(arrival.at - start >= Duration::from_millis(295), "{:?}", arrival.at - start);
    assert_eq!(scene.count(), 1);
    // Delays of several clients run side by side.
    let start = Instant::now();
    scene.at_once(20).await;
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_abort_answers_as_configured_and_touches_no_upstream() {
    let scene = Scene::new(1, "fault: {abort: {status: 418}}").await;
    for _ in 0..10 {
        scene.get().await.assert_refused(418, "fault_injected");
        scene.post(&[]).await.1.assert_refused(418, "fault_injected");
    }
    assert_eq!((scene.count(), scene.upstreams[0].connections()), (0, 0));
    scene.weft.until_metric("weft_requests_total", &[("code", "418"), ("reason", "fault_injected")], 20).await;
}

#[tokio::test]
async fn grpc_is_aborted_with_a_status_of_its_own() {
    for (written, code) in
        [("grpcStatus: RESOURCE_EXHAUSTED", Code::ResourceExhausted), ("grpcStatus: 10", Code::Aborted)]
    {
        let scene = Scene::grpc(1, &format!("fault: {{abort: {{{written}}}}}")).await;
        let error = scene.call().await.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert_eq!(error.metadata().get("x-weft-reason").unwrap(), "fault_injected");
        assert_eq!(scene.count(), 0);
    }
}

#[tokio::test]
async fn a_delay_and_an_abort_together() {
    let scene = Scene::new(1, "fault: {delay: {fixed: 200ms}, abort: {status: 503}}").await;
    let start = Instant::now();
    scene.get().await.assert_refused(503, "fault_injected");
    assert!(start.elapsed() >= Duration::from_millis(195), "{:?}", start.elapsed());
    assert_eq!(scene.count(), 0);
}

#[tokio::test]
async fn a_share_is_hit() {
    const REQUESTS: usize = 400;
    for (percent, expected) in [(0, 0..=0), (30, 65..=175), (100, REQUESTS..=REQUESTS)] {
        let scene = Scene::new(1, &format!("fault: {{abort: {{status: 500, percent: {percent}}}}}")).await;
        let mut client = scene.client().await;
        let mut hit = 0;
        for _ in 0..REQUESTS {
            hit += usize::from(client.get("a", "/").await.unwrap().status == 500);
        }
        assert!(expected.contains(&hit), "{percent} % of {REQUESTS} within six standard deviations: {hit}");
        assert_eq!(scene.count(), REQUESTS - hit);
    }
}

#[tokio::test]
async fn only_requests_with_the_header_are_hit() {
    let scene = Scene::new(1, "fault: {abort: {status: 500}, header: {name: X-Fault, value: \"yes\"}}").await;
    for (headers, status) in [(&[][..], 200), (&[("x-fault", "no")], 200), (&[("x-fault", "yes")], 500)] {
        assert_eq!(scene.ask("GET", weft_tests::upstream::empty(), headers).await.1.status, status, "{headers:?}");
    }
    assert_eq!(scene.count(), 2);
}

#[tokio::test]
async fn breakers_and_retries_take_no_notice() {
    let policy = "fault: {abort: {status: 503}}\ncircuitBreaker: {consecutiveFailures: 2, baseEjectionTime: 30s}\n\
                  retry: {attempts: 3, unsafeMethods: true}";
    let scene = Scene::new(1, policy).await;
    for _ in 0..10 {
        scene.get().await.assert_refused(503, "fault_injected");
    }
    let endpoint = scene.weft.endpoint(scene.upstreams[0].addr).await;
    assert_eq!((endpoint["breaker"].as_str(), endpoint["failures"].as_u64()), (Some("closed"), Some(0)), "{endpoint}");
    let retries = scene.weft.metrics().await.sum("weft_retries_total", &[]);
    assert!(retries < 0.5, "{retries}");
    assert_eq!(scene.count(), 0);
}
