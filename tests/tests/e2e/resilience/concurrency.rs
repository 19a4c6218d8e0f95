//! The adaptive limit on requests in flight.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{sync::Semaphore, time::Instant};
use weft_tests::{Client, Upstream, Weft, ports, soon, unruly::Mood, upstream::full, yaml};

use super::{Scene, by};
use crate::local;

#[tokio::test]
async fn more_than_the_limit_is_refused_by_name() {
    let scene = Scene::new(1, "concurrency: {adaptive: {min: 3, max: 10}}").await;
    scene.upstreams[0].set(Mood::Slow(Duration::from_millis(500), 200));
    let mut refused = 0;
    for _ in 0..3 {
        for reply in scene.at_once(64).await {
            if reply.status == 200 {
                assert_eq!(by(&reply), Some("app0"));
            } else {
                reply.assert_refused(503, "overloaded");
                assert!(reply.text().contains("adaptive limit"), "{}", reply.text());
                refused += 1;
            }
        }
        let service = scene.weft.service("app").await;
        let limit = service["concurrency_limit"].as_f64().unwrap_or_else(|| panic!("{service}"));
        assert!((3.0..=10.0).contains(&limit), "{service}");
        assert_eq!(service["requests_in_flight"], 0, "{service}");
    }
    let served = scene.count();
    assert_eq!(served + refused, 3 * 64);
    assert!((9..=30).contains(&served), "between the least and the greatest limit, three times: {served}");
    assert_eq!(scene.get().await.status, 200, "one at a time is always served");
}

#[tokio::test]
async fn without_the_policy_there_is_no_limit() {
    let scene = Scene::new(1, "timeouts: {request: 8s}").await;
    scene.upstreams[0].set(Mood::Slow(Duration::from_millis(200), 200));
    assert!(scene.at_once(64).await.iter().all(|reply| reply.status == 200));
    assert!(scene.weft.service("app").await["concurrency_limit"].is_null());
}

/// Works on four requests at a time, for 10 ms each; the others wait in a queue that the latency shows.
async fn with_a_queue() -> Upstream {
    let places = Arc::new(Semaphore::new(4));
    Upstream::h1_with(Arc::new(move |_, _| {
        let places = places.clone();
        Box::pin(async move {
            let _place = places.acquire().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(http::Response::new(full("done")))
        })
    }))
    .await
}

#[tokio::test]
async fn a_queue_at_the_upstream_lowers_the_limit() {
    let upstream = with_a_queue().await;
    let port = ports::free();
    let config =
        yaml::docs(&[yaml::simple(port, "http", upstream.addr), yaml::policy("app", "concurrency: {adaptive: {}}")]);
    let weft = Weft::start(&config).await;
    // What the service can do without a queue.
    let mut client = Client::h1(local(port)).await.unwrap();
    for _ in 0..50 {
        assert_eq!(client.get("a", "/").await.unwrap().status, 200);
    }
    let end = Instant::now() + Duration::from_secs(4);
    let clients = (0..64).map(|_| async {
        let mut client = Client::h1(local(port)).await.unwrap();
        let (mut ok, mut refused) = (0, 0);
        while Instant::now() < end {
            let reply = soon("an answer", client.get("a", "/")).await.unwrap();
            if reply.status == 200 {
                ok += 1;
            } else {
                reply.assert_refused(503, "overloaded");
                refused += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        (ok, refused)
    });
    let counts = join_all(clients).await;
    let (ok, refused) = counts.iter().fold((0, 0), |sum: (usize, usize), more| (sum.0 + more.0, sum.1 + more.1));
    let service = weft.service("app").await;
    let limit = service["concurrency_limit"].as_f64().unwrap_or_else(|| panic!("{service}"));
    assert!(refused > 0 && (3.0..64.0).contains(&limit), "{ok} served, {refused} refused, {service}");
    // Four seconds of four places of 10 ms are 1,600 requests.
    assert!(ok > 500, "the service is kept busy: {ok} served, {refused} refused, {service}");
}
