//! A policy that changes under traffic.

use std::time::{Duration, Instant};

use weft_tests::{Client, SOON, Unruly, client, eventually, unruly::Mood, within};

use super::{Scene, by};

/// How long a policy may take to be in force, as we promise it.
const PROMISE: Duration = Duration::from_millis(147);
/// As this test asserts it: the machine is shared, and the build not optimised.
const BOUND: Duration = Duration::from_secs(5);

fn aborting(status: u16) -> String {
    format!(
        "fault: {{abort: {{status: {status}}}, header: {{name: x-fault, value: \"1\"}}}}\n\
             circuitBreaker: {{consecutiveFailures: 3, baseEjectionTime: 60s}}"
    )
}

async fn status(client: &mut Client) -> u16 {
    client.send(client::get_with("a", "/", &[("x-fault", "1")])).await.unwrap().status.as_u16()
}

#[tokio::test]
async fn a_new_policy_is_soon_in_force() {
    let scene = Scene::new(2, &aborting(418)).await;
    let mut client = scene.client().await;
    assert_eq!(status(&mut client).await, 418);
    let mut times = Vec::new();
    for round in 0..6 {
        let wanted = if round % 2 == 0 { 420 } else { 421 };
        let new = scene.weft.dir().join(".new");
        std::fs::write(&new, scene.config(&aborting(wanted))).unwrap();
        let start = Instant::now();
        std::fs::rename(new, &scene.weft.config).unwrap();
        within(BOUND, "the new policy is in force", async {
            while status(&mut client).await != wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        times.push(start.elapsed());
        assert_eq!(client.get("a", "/").await.unwrap().status, 200, "requests without the header all the while");
    }
    let within = times.iter().filter(|time| **time <= PROMISE).count();
    eprintln!("a new policy was in force after {times:?}: {within} of {} within {PROMISE:?}", times.len());
}

#[tokio::test]
async fn what_is_known_of_endpoints_is_kept() {
    let scene = Scene::new(2, &aborting(418)).await;
    let bad = &scene.upstreams[0];
    bad.set(Mood::Answer(503, ""));
    for _ in 0..6 {
        scene.get().await;
    }
    let before = scene.weft.until_breaker(bad.addr, "open").await;
    let events = scene.weft.events("app").await;
    bad.set(Mood::Well);
    let received = bad.count();
    for status in [419, 420, 421] {
        scene.weft.apply(&scene.config(&aborting(status))).await;
        let after = scene.weft.endpoint(bad.addr).await;
        for field in ["breaker", "ejected", "evidence", "ejections", "requests", "failures"] {
            assert_eq!(after[field], before[field], "{field}: {before} {after}");
        }
        assert_eq!(by(&scene.get().await), Some("app1"));
    }
    assert_eq!(scene.weft.events("app").await, events);
    assert_eq!(bad.count(), received);
}

#[tokio::test]
async fn the_other_endpoints_of_a_service_keep_their_state_when_one_comes_and_goes() {
    let scene = Scene::new(2, &aborting(418)).await;
    let bad = &scene.upstreams[0];
    bad.set(Mood::Answer(503, ""));
    for _ in 0..6 {
        scene.get().await;
    }
    scene.weft.until_breaker(bad.addr, "open").await;
    let third = Unruly::start("third").await;
    let config = scene.config(&aborting(418));
    let two = format!("port: {}}}]", scene.upstreams[1].addr.port());
    let three = two.replace("}]", &format!("}}, {{address: 127.0.0.1, port: {}}}]", third.addr.port()));
    assert!(config.contains(&two), "{config}");
    scene.weft.apply(&config.replace(&two, &three)).await;
    eventually("the newcomer serves", SOON, async || by(&scene.get().await) == Some("third")).await;
    assert_eq!(scene.weft.breaker(bad.addr).await, "open");
    scene.weft.apply(&config).await;
    assert_eq!(scene.weft.breaker(bad.addr).await, "open");
    // An endpoint that was away comes back with a clean record.
    let one = format!("{{address: 127.0.0.1, port: {}}}, ", bad.addr.port());
    scene.weft.apply(&config.replace(&one, "")).await;
    scene.weft.apply(&config).await;
    assert_eq!(scene.weft.breaker(bad.addr).await, "closed");
}

#[tokio::test]
async fn a_retry_policy_that_comes_and_goes() {
    let scene = Scene::new(1, "timeouts: {request: 3s}").await;
    let upstream = &scene.upstreams[0];
    let received = async || {
        upstream.script([Mood::Answer(503, "")]);
        let (id, _) = scene.ask("GET", weft_tests::upstream::empty(), &[]).await;
        upstream.received(&id)
    };
    assert_eq!(received().await, 1);
    scene.weft.apply(&scene.config("retry: {backoff: {base: 5ms, max: 5ms}}")).await;
    assert_eq!(received().await, 2);
    scene.weft.apply(&scene.config("timeouts: {request: 3s}")).await;
    assert_eq!(received().await, 1);
}
