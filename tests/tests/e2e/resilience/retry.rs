//! Retries over HTTP.

use std::time::{Duration, Instant};

use http::HeaderMap;
use weft_tests::{
    Client, Options, Unruly, soon,
    unruly::Mood,
    upstream::{Body, channel, empty, full},
    yaml,
};

use super::{Scene, by, tagged, until};

const BAD: Mood = Mood::Answer(503, "");

/// Two more attempts, hardly any wait, and as many as it takes.
const TWICE: &str = "retry: {attempts: 2, backoff: {base: 5ms, max: 20ms}}\nretryBudget: {minPerSecond: 1000}";

/// A body of such a length that no two parts of it look the same.
fn bytes(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..length).map(|_| rng.u8(..)).collect()
}

#[tokio::test]
async fn the_other_endpoint_is_asked() {
    let scene = Scene::new(2, TWICE).await;
    scene.upstreams[0].set(BAD);
    for _ in 0..10 {
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app1")), "{reply:?}");
        assert_eq!(scene.upstreams[1].received(&id), 1);
        assert!(scene.upstreams[0].received(&id) <= 1, "not the same one again");
    }
    let retried = scene.upstreams[0].count();
    assert!(retried >= 3, "the first one was asked, too");
    scene.weft.until_metric("weft_retries_total", &[("service", "app"), ("outcome", "recovered")], retried).await;
    scene.weft.until_metric("weft_requests_total", &[("code", "200")], 10).await;
    scene.weft.until_metric("weft_requests_total", &[], 10).await;
    let span = scene.weft.until_span("client", "http.request.resend_count", |count| *count == 1).await;
    assert_eq!(span["attributes"]["server.port"], scene.upstreams[1].addr.port(), "{span}");
}

#[tokio::test]
async fn every_endpoint_gets_its_turn() {
    let scene = Scene::new(3, TWICE).await;
    scene.upstreams[0].set(BAD);
    scene.upstreams[1].set(Mood::Answer(502, ""));
    for _ in 0..12 {
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app2")), "{reply:?}");
        assert!(scene.upstreams.iter().all(|upstream| upstream.received(&id) <= 1));
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_the_last_answer_is_the_client_s() {
    let scene = Scene::new(1, TWICE).await;
    scene.upstreams[0].set(BAD);
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-weft-reason")), (503, None), "{reply:?}");
    assert_eq!((reply.header("x-number"), reply.text().as_str()), (Some("3"), "app0 3"), "{reply:?}");
    assert_eq!(scene.received(&id), 3);
    scene.weft.until_metric("weft_retries_total", &[("outcome", "failed")], 1).await;
    for count in 1..=2 {
        scene.weft.until_span("client", "http.request.resend_count", |value| *value == count).await;
    }
    assert_eq!(scene.weft.spans().await.iter().filter(|span| span["kind"] == "client").count(), 3);
}

#[tokio::test]
async fn what_is_not_listed_is_not_retried() {
    let scene = Scene::new(1, TWICE).await;
    for status in [500, 404, 429, 501] {
        scene.upstreams[0].set(Mood::Answer(status, ""));
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (status, 1));
    }
    for (listed, status) in [("500", 500), ("5xx", 501), ("gateway-error", 502), ("429", 429)] {
        let policy = TWICE.replace("attempts: 2,", &format!("attempts: 2, retryOn: [{listed}],"));
        scene.weft.apply(&scene.config(&policy)).await;
        scene.upstreams[0].set(Mood::Well);
        scene.upstreams[0].script([Mood::Answer(status, "")]);
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 2), "{listed}");
    }
}

#[tokio::test]
async fn without_a_policy_nothing_is_retried() {
    let scene = Scene::new(2, "timeouts: {request: 3s}").await;
    for upstream in &scene.upstreams {
        upstream.set(BAD);
    }
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (503, 1));
}

#[tokio::test]
async fn methods_that_are_safe_to_repeat_and_others() {
    let scene = Scene::new(1, TWICE).await;
    let upstream = &scene.upstreams[0];
    let key = [("idempotency-key", "\"7\"")];
    for (method, headers, times) in [
        ("GET", &[][..], 2),
        ("HEAD", &[], 2),
        ("OPTIONS", &[], 2),
        ("PUT", &[], 2),
        ("DELETE", &[], 2),
        ("POST", &[], 1),
        ("PATCH", &[], 1),
        ("POST", &key, 2),
        ("PATCH", &key, 2),
    ] {
        upstream.script([BAD]);
        let body = if method == "PUT" || method == "POST" { full("pay") } else { empty() };
        let (id, reply) = scene.ask(method, body, headers).await;
        let status = if times == 2 { 200 } else { 503 };
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (status, times), "{method} {headers:?}");
    }
    for more in ["unsafeMethods: true", "methods: [POST]"] {
        scene.weft.apply(&scene.config(&TWICE.replace("attempts: 2,", &format!("attempts: 2, {more},")))).await;
        upstream.script([BAD]);
        let (id, reply) = scene.post(&[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 2), "{more}");
    }
}

#[tokio::test]
async fn what_no_endpoint_has_seen_is_sent_again_whatever_its_method() {
    let scene = Scene::new(2, TWICE).await;
    scene.upstreams[0].stop().await;
    for _ in 0..6 {
        let (id, reply) = scene.post(&[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 1), "{reply:?}");
    }
}

#[tokio::test]
async fn a_body_is_replayed_byte_for_byte() {
    let scene = Scene::new(1, TWICE).await;
    let upstream = &scene.upstreams[0];
    let chunked = |parts: Vec<Vec<u8>>| -> Body {
        let (mut sender, body) = channel(1);
        tokio::spawn(async move {
            for part in parts {
                let _ = sender.send_data(part.into()).await;
            }
        });
        body
    };
    let all = bytes(64 * 1024);
    let in_parts: Vec<Vec<u8>> = all.chunks(5_000).map(<[u8]>::to_vec).collect();
    for (what, body, expected) in [
        ("one byte", full(vec![0_u8]), &[0_u8][..]),
        ("64 KiB", full(all.clone()), &all),
        ("chunks", chunked(in_parts), &all),
        ("nothing", empty(), &[]),
    ] {
        upstream.script([BAD, BAD]);
        let (id, reply) = scene.ask("PUT", body, &[]).await;
        assert_eq!(reply.status, 200, "{what}: {reply:?}");
        let arrivals: Vec<_> = upstream.arrivals().into_iter().filter(|arrival| arrival.id == id).collect();
        assert_eq!(arrivals.len(), 3, "{what}");
        for arrival in &arrivals {
            assert!(arrival.whole && arrival.body == expected, "{what}: {} bytes", arrival.body.len());
        }
    }
}

#[tokio::test]
async fn trailers_are_replayed() {
    let scene = Scene::new(1, TWICE).await;
    let upstream = &scene.upstreams[0];
    upstream.script([BAD]);
    let (mut sender, body) = channel(2);
    sender.send_data("data".into()).await.unwrap();
    sender.send_trailers(HeaderMap::from_iter([("x-check".parse().unwrap(), "7".parse().unwrap())])).await.unwrap();
    drop(sender);
    let (_, request) = tagged("PUT", body, &[("trailer", "x-check")]);
    let mut client = Client::h2(scene.addr).await.unwrap();
    assert_eq!(soon("an answer", client.send(request)).await.unwrap().status, 200);
    let arrivals = upstream.arrivals();
    assert_eq!(arrivals.len(), 2);
    for arrival in arrivals {
        assert_eq!(arrival.body, b"data");
        let trailers: Vec<_> = arrival.trailers.iter().map(|(k, v)| (k.to_lowercase(), v.as_str())).collect();
        assert_eq!(trailers, [("x-check".to_owned(), "7")]);
    }
}

#[tokio::test]
async fn larger_bodies_stream_through_and_are_not_retried() {
    let scene = Scene::new(1, TWICE).await;
    let upstream = &scene.upstreams[0];
    upstream.set(BAD);
    let too_large = bytes(64 * 1024 + 1);
    let (id, reply) = scene.ask("PUT", full(too_large.clone()), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (503, 1), "{reply:?}");
    assert_eq!(upstream.arrivals().last().unwrap().body, too_large);
    scene.weft.until_metric("weft_retries_total", &[("outcome", "body_too_large")], 1).await;

    upstream.set(Mood::Well);
    let large = bytes(3 << 20);
    let (id, reply) = scene.ask("PUT", full(large.clone()), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 1));
    assert_eq!(upstream.arrivals().last().unwrap().body, large);

    // Nobody waits for the whole body before it is forwarded.
    let (mut sender, body) = channel(1);
    let (id, request) = tagged("PUT", body, &[]);
    let mut client = scene.client().await;
    let answer = tokio::spawn(async move { client.send(request).await });
    sender.send_data("first".into()).await.unwrap();
    until("it is on its way", || upstream.received(&id) == 1).await;
    assert!(!upstream.arrivals().last().unwrap().whole);
    drop(sender);
    assert_eq!(soon("an answer", answer).await.unwrap().unwrap().status, 200);
    assert_eq!(upstream.arrivals().last().unwrap().body, b"first");
}

#[tokio::test]
async fn the_time_an_upstream_asks_for_is_waited() {
    let policy = "retry: {attempts: 1, backoff: {base: 5ms, max: 2s}}";
    let scene = Scene::new(1, policy).await;
    let upstream = &scene.upstreams[0];
    upstream.script([Mood::Answer(503, "Retry-After: 1\r\n")]);
    let (_, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!(reply.status, 200);
    let arrivals = upstream.arrivals();
    let waited = arrivals[1].at - arrivals[0].at;
    assert!(waited >= Duration::from_millis(990), "{waited:?}");

    upstream.script([Mood::Answer(503, "Retry-After: 30\r\n")]);
    let start = Instant::now();
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (503, 1), "longer than backoff.max: no retry");
    assert_eq!(reply.header("retry-after"), Some("30"));
    assert!(start.elapsed() < Duration::from_secs(1));

    let scene = Scene::new(2, policy).await;
    scene.upstreams[0].set(Mood::Answer(503, "Retry-After: 30\r\n"));
    for _ in 0..4 {
        let start = Instant::now();
        assert_eq!(by(&scene.get().await), Some("app1"), "another endpoint did not ask for time");
        assert!(start.elapsed() < Duration::from_secs(4));
    }
}

#[tokio::test]
async fn attempts_are_spaced() {
    let scene = Scene::new(1, "retry: {attempts: 1, backoff: {base: 300ms, max: 300ms, jitter: None}}").await;
    scene.upstreams[0].script([BAD]);
    assert_eq!(scene.get().await.status, 200);
    let arrivals = scene.upstreams[0].arrivals();
    let waited = arrivals[1].at - arrivals[0].at;
    assert!((Duration::from_millis(290)..Duration::from_secs(3)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn no_retry_beyond_the_deadline() {
    let policy = "retry: {attempts: 5, backoff: {base: 5s, max: 5s, jitter: None}}\ntimeouts: {request: 400ms}";
    let scene = Scene::new(1, policy).await;
    scene.upstreams[0].set(BAD);
    let start = Instant::now();
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(reply.status == 503 || reply.status == 504, "{reply:?}");
    assert_eq!(scene.received(&id), 1);
}

#[tokio::test]
async fn one_attempt_may_take_only_so_long() {
    let policy =
        format!("{TWICE}\ntimeouts: {{request: 8s}}").replace("attempts: 2,", "attempts: 2, perTryTimeout: 150ms,");
    let scene = Scene::new(2, &policy).await;
    let hanging = &scene.upstreams[0];
    hanging.set(Mood::Hang);
    for _ in 0..4 {
        let start = Instant::now();
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        let tried = scene.upstreams.iter().map(|upstream| upstream.received(&id)).collect::<Vec<_>>();
        assert_eq!(by(&reply), Some("app1"), "tried {tried:?}: {reply:?}");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
    assert!(hanging.count() >= 1);
    until("what was given up is cancelled", || hanging.cancelled() == hanging.count()).await;

    scene.upstreams[1].set(Mood::Hang);
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    reply.assert_refused(504, "upstream_timeout");
    assert_eq!(scene.received(&id), 3);
    let (id, reply) = scene.post(&[]).await;
    reply.assert_refused(504, "upstream_timeout");
    assert_eq!(scene.received(&id), 1, "a POST may be at work there");
}

#[tokio::test]
async fn a_reset_before_the_answer_is_retried_where_it_is_safe() {
    let policy = TWICE.replace("attempts: 2,", "attempts: 2, retryOn: [connect-failure, reset],");
    let scene = Scene::new(1, &policy).await;
    let upstream = &scene.upstreams[0];
    for mood in [Mood::ResetUnread, Mood::ResetAfterHead, Mood::ResetAfterRequest, Mood::ResetInHead] {
        upstream.script([mood]);
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!(reply.status, 200, "{mood:?}: {reply:?}");
        assert_eq!(scene.received(&id), 2, "{mood:?}");
        upstream.script([mood]);
        let (id, reply) = scene.post(&[]).await;
        reply.assert_refused(502, "upstream_reset");
        assert_eq!(scene.received(&id), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn once_the_answer_has_begun_there_is_no_way_back() {
    let policy =
        TWICE.replace("attempts: 2,", "attempts: 2, retryOn: [reset, reset-before-request, 5xx, gateway-error],");
    let scene = Scene::new(1, &policy).await;
    for mood in [Mood::Half, Mood::ResetInBody] {
        scene.upstreams[0].script([mood]);
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "0123456789"));
        assert!(reply.error.is_some(), "truncation is visible: {reply:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(scene.received(&id), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn a_rule_may_ask_for_retries_by_itself() {
    let rule = |path: &str, retry: &str| {
        format!(
            "- {{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], {retry}backendRefs: [{}]}}\n",
            yaml::backend("app")
        )
    };
    let rules =
        format!("rules:\n{}{}", rule("/buy", "retry: {attempts: 2, codes: [503], backoff: 10ms}, "), rule("/once", ""));
    let routes = |_| vec![yaml::http_route("all", &rules)];
    let scene = Scene::routed(1, "timeouts: {request: 3s}", Options::default(), routes).await;
    let upstream: &Unruly = &scene.upstreams[0];
    upstream.script([BAD, BAD]);
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 3));
    upstream.script([Mood::Answer(500, "")]);
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (500, 1), "not among the codes");
    upstream.script([BAD]);
    let (id, reply) = scene.post(&[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (503, 1), "rules do not make a POST safe");
    upstream.script([BAD]);
    let before = upstream.count();
    assert_eq!(scene.client().await.get("a", "/once").await.unwrap().status, 503, "another rule");
    assert_eq!(upstream.count(), before + 1);
}
