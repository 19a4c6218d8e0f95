//! Hedged requests.

use std::time::{Duration, Instant};

use weft_tests::{Unruly, unruly::Mood, upstream::empty};

use super::{Scene, by, until};

const AFTER: &str = "hedge: {after: 100ms}\nretryBudget: {minPerSecond: 1000}\ntimeouts: {request: 8s}";

#[tokio::test]
async fn a_slow_endpoint_is_overtaken_by_another() {
    let scene = Scene::new(2, AFTER).await;
    let slow = &scene.upstreams[0];
    slow.set(Mood::Slow(Duration::from_secs(6), 200));
    for _ in 0..4 {
        let start = Instant::now();
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), by(&reply)), (200, Some("app1")));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert_eq!(scene.upstreams[1].received(&id), 1);
        if slow.received(&id) == 1 {
            assert!(start.elapsed() >= Duration::from_millis(95), "not before its time: {:?}", start.elapsed());
        }
    }
    assert!(slow.count() >= 1);
    until("the losers are cancelled", || slow.cancelled() == slow.count()).await;
    let endpoint = scene.weft.endpoint(slow.addr).await;
    assert_eq!(endpoint["in_flight"], 0, "{endpoint}");
    let won = scene.weft.metrics().await.sum("weft_hedges_total", &[("service", "app"), ("outcome", "won")]);
    assert_eq!(won as usize, slow.count(), "one for each request that went to the slow one first");
}

#[tokio::test]
async fn a_fast_answer_costs_nothing() {
    let scene = Scene::new(2, &AFTER.replace("100ms", "1s")).await;
    for _ in 0..30 {
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 1));
    }
}

#[tokio::test]
async fn the_first_one_may_still_win() {
    let scene = Scene::new(2, AFTER).await;
    for upstream in &scene.upstreams {
        upstream.set(Mood::Slow(Duration::from_millis(400), 200));
    }
    // Whichever is asked first answers after 400 ms; the other one is asked after 100 ms, and answers after 500.
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 2));
    until("the loser is cancelled", || scene.upstreams.iter().map(Unruly::cancelled).sum::<usize>() == 1).await;
    let lost = scene.weft.metrics().await.sum("weft_hedges_total", &[("service", "app"), ("outcome", "lost")]);
    assert!((lost - 1.0).abs() < f64::EPSILON, "{lost}");
}

#[tokio::test]
async fn an_unsafe_request_is_never_hedged() {
    let scene = Scene::new(2, AFTER).await;
    for upstream in &scene.upstreams {
        upstream.set(Mood::Slow(Duration::from_millis(400), 200));
    }
    for _ in 0..3 {
        let (id, reply) = scene.post(&[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 1));
    }
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 2), "one more and no more");
}

#[tokio::test]
async fn the_budget_holds() {
    let scene = Scene::new(2, &AFTER.replace("minPerSecond: 1000", "percent: 0, minPerSecond: 0")).await;
    for upstream in &scene.upstreams {
        upstream.set(Mood::Slow(Duration::from_millis(300), 200));
    }
    for _ in 0..3 {
        let (id, reply) = scene.ask("GET", empty(), &[]).await;
        assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 1));
    }
}

#[tokio::test]
async fn a_single_endpoint_is_not_hedged_against_itself() {
    let scene = Scene::new(1, AFTER).await;
    scene.upstreams[0].set(Mood::Slow(Duration::from_millis(300), 200));
    let (id, reply) = scene.ask("GET", empty(), &[]).await;
    assert_eq!((reply.status.as_u16(), scene.received(&id)), (200, 1));
}

#[tokio::test]
async fn a_quantile_is_learnt() {
    let scene = Scene::new(2, &AFTER.replace("100ms", "p95")).await;
    for _ in 0..100 {
        assert_eq!(scene.get().await.status, 200);
    }
    // What has been learnt is looked up now and then, not for every request.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let slow = &scene.upstreams[0];
    slow.set(Mood::Slow(Duration::from_secs(6), 200));
    let before = slow.count();
    for _ in 0..4 {
        let start = Instant::now();
        assert_eq!(by(&scene.get().await), Some("app1"));
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
    assert!(slow.count() > before, "the slow one was asked");
}
