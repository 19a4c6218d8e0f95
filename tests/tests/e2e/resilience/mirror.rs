//! A mirror in trouble is nobody's trouble.

use std::time::{Duration, Instant};

use weft_tests::{Options, Unruly, soon, unruly::Mood, upstream::full, yaml};

use super::{Scene, by, until};

/// Everything is copied to the service `mirror`, which has breakers and retries of its own; so has the service itself.
async fn mirrored() -> (Scene<Unruly>, Unruly) {
    let mirror = Unruly::start("mirror").await;
    let filter = format!("{{type: RequestMirror, requestMirror: {{backendRef: {}}}}}", yaml::backend("mirror"));
    let rules = format!("rules: [{{filters: [{filter}], backendRefs: [{}]}}]", yaml::backend("app"));
    let policy = "circuitBreaker: {consecutiveFailures: 3, baseEjectionTime: 30s}\n\
                  retry: {attempts: 2, backoff: {base: 5ms, max: 20ms}}";
    let more = |_| {
        vec![
            yaml::http_route("all", &rules),
            yaml::service("mirror", "http", &[mirror.addr]),
            yaml::policy("mirror", policy),
        ]
    };
    (Scene::routed(1, policy, Options::default(), more).await, mirror)
}

#[tokio::test]
async fn whatever_a_mirror_does_the_client_is_served() {
    let (scene, mirror) = mirrored().await;
    let upstream = &scene.upstreams[0];
    for mood in [
        Mood::Well,
        Mood::Hang,
        Mood::Slow(Duration::from_secs(3), 200),
        Mood::ResetOnAccept,
        Mood::ResetUnread,
        Mood::ResetAfterHead,
        Mood::ResetInRequest,
        Mood::ResetInHead,
        Mood::ResetInBody,
        Mood::Half,
        Mood::Garbage,
        Mood::Answer(503, "Retry-After: 5\r\n"),
    ] {
        mirror.set(mood);
        let start = Instant::now();
        for number in 0..10 {
            let method = if number % 2 == 0 { "POST" } else { "PUT" };
            let body = vec![b'x'; 1000 * number];
            let (id, reply) = scene.ask(method, full(body.clone()), &[]).await;
            assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app0")), "{mood:?}: {reply:?}");
            assert_eq!((reply.error, upstream.received(&id)), (None, 1), "{mood:?}");
            assert_eq!(upstream.arrivals().last().unwrap().body, body, "{mood:?}");
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{mood:?}: {:?}", start.elapsed());
    }
    mirror.stop().await;
    for _ in 0..10 {
        assert_eq!(scene.post(&[]).await.1.status, 200);
    }
    let endpoint = scene.weft.endpoint(upstream.addr).await;
    assert_eq!((endpoint["breaker"].as_str(), endpoint["failures"].as_u64()), (Some("closed"), Some(0)), "{endpoint}");
    scene.weft.until_metric("weft_requests_total", &[("service", "app"), ("code", "200")], 130).await;
}

#[tokio::test]
async fn a_copy_is_sent_once_however_often_the_original_is_retried() {
    let (scene, mirror) = mirrored().await;
    let upstream = &scene.upstreams[0];
    for mood in [Mood::Well, Mood::Answer(503, ""), Mood::Hang] {
        mirror.set(mood);
        upstream.script([Mood::Answer(503, ""), Mood::Answer(503, "")]);
        let body = vec![b'x'; 20_000];
        let (id, reply) = scene.ask("PUT", full(body.clone()), &[]).await;
        assert_eq!((reply.status.as_u16(), upstream.received(&id)), (200, 3), "{mood:?}");
        assert!(upstream.arrivals().iter().filter(|arrival| arrival.id == id).all(|arrival| arrival.body == body));
        until("the copy arrives", || mirror.received(&id) == 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(mirror.received(&id), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn the_primary_s_failures_stay_its_own() {
    let (scene, mirror) = mirrored().await;
    scene.upstreams[0].set(Mood::ResetAfterRequest);
    let (_, reply) = scene.post(&[]).await;
    reply.assert_refused(502, "upstream_reset");
    until("the copy arrives", || mirror.count() == 1).await;
    let endpoint = soon("the mirror's endpoint", scene.weft.endpoint(mirror.addr)).await;
    assert_eq!(endpoint["breaker"], "closed", "{endpoint}");
}
