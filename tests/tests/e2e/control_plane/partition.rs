//! Members that do not reach each other, or only in one direction.

use std::time::{Duration, Instant};

use weft_tests::{
    cut::Link,
    eventually,
    plane::{LONG, Line, Plane, client},
};

use super::{A_WHILE, Stage};

/// Longer than a member tries to reach a majority.
const PATIENT: Duration = Duration::from_secs(30);

/// Cuts one member off; the others go on. Its own clients are told so within their time, and may still have what it has.
async fn cut_off(leader: bool, link: Link) {
    let stage = Stage::start().await;
    let leads = stage.plane.leader().await;
    let off = if leader { leads } else { (leads + 1) % 3 };
    let (member, address) = (&stage.plane.members[off], stage.plane.members[off].address);
    stage.plane.cut(off, link, link);
    let before = member.revision().await.unwrap();
    let others: Vec<_> = stage.plane.addresses().into_iter().filter(|other| *other != address).collect();
    stage.load.members(&others);
    stage.plane.leader_but(if leader { off } else { usize::MAX }).await;
    stage.load.goes_on(10).await;

    let path = "/v1/objects/Service/default/register-0";
    // Of the time before the cut and not much more.
    let (status, stale) = Line::new(address).get(&format!("{path}?consistency=serializable"), LONG).await.unwrap();
    assert!(status == 200 && stale["metadata"]["resourceVersion"].is_string(), "{stale}");
    let start = Instant::now();
    let (status, refusal) = Line::new(address).get(path, PATIENT).await.expect("an answer in time");
    let code = refusal["code"].as_str().unwrap_or_default();
    assert!(status == 503 && ["unavailable", "no_leader"].contains(&code), "{status} {refusal}");
    let body = client::service("nobody-has-this", 1);
    let headers = client::identity(1, 1);
    let mut line = Line::new(address);
    let put = line.ask("PUT", "/v1/objects/Service/default/nobody-has-this", &headers, body, PATIENT);
    let (status, refusal) = put.await.expect("an answer in time");
    let named = match (status, refusal["code"].as_str()) {
        (503, Some("no_leader" | "unavailable")) => true,
        // The connection to the leader took it and was lost.
        (504, Some("unknown")) => !leader,
        _ => false,
    };
    assert!(named && refusal["hint"].is_string() | (code == "unavailable"), "{status} {refusal}");
    eprintln!("refused with {code} and {}, in {:?} together", refusal["code"], start.elapsed());
    assert!(member.revision().await.unwrap() >= before);

    stage.plane.network.heal();
    stage.plane.voting(3).await;
    stage.load.members(&stage.plane.addresses());
    let plane = stage.check().await;
    let gone = plane.members[off].ask("/v1/objects/Service/default/nobody-has-this").await;
    assert_eq!(gone, None, "what was refused was not done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_is_replaced() {
    cut_off(true, Link::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_in_a_black_hole_is_replaced() {
    cut_off(true, Link::SWALLOWED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_in_a_black_hole_refuses_and_catches_up() {
    cut_off(false, Link::SWALLOWED).await;
}

/// One direction only, as when packets are lost one way. Either way no request between this member and another is
/// answered, so it is as good as cut off; but heartbeats of a deaf leader still arrive, and must not keep the others from
/// electing one that can do something.
async fn one_way(leader: bool, cut: fn(&Plane, usize)) {
    let stage = Stage::start().await;
    let leads = stage.plane.leader().await;
    let off = if leader { leads } else { (leads + 1) % 3 };
    let member = &stage.plane.members[off];
    let others: Vec<_> = stage.plane.addresses().into_iter().filter(|other| *other != member.address).collect();
    let term = member.ask("/v1/raft/self").await.unwrap()["term"].clone();
    cut(&stage.plane, off);
    stage.load.members(&others);
    tokio::time::sleep(A_WHILE).await;
    stage.load.goes_on(20).await;
    if leader {
        assert_ne!(stage.plane.leader().await, off);
    } else {
        // Pre-vote: it asks, nobody wants it, and no term passes.
        assert_eq!(stage.plane.leader().await, leads);
        assert_eq!(member.ask("/v1/raft/self").await.unwrap()["term"], term);
    }
    let (status, refusal) = Line::new(member.address).get("/v1/objects", PATIENT).await.expect("an answer in time");
    assert!(status == 503 && refusal["code"].is_string(), "{status} {refusal}");
    stage.plane.network.heal();
    stage.plane.voting(3).await;
    stage.load.members(&stage.plane.addresses());
    stage.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_follower_does_not_disturb() {
    one_way(false, Plane::deafen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_follower_does_not_disturb() {
    one_way(false, Plane::mute).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deaf_leader_is_replaced() {
    one_way(true, Plane::deafen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mute_leader_is_replaced() {
    one_way(true, Plane::mute).await;
}

/// Answers that are lost, in both directions, and a line that is slow: everything is slower and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_broken_lines_cost_time_only() {
    let stage = Stage::start().await;
    let names: Vec<String> = stage.plane.members.iter().map(|member| member.name.clone()).collect();
    for round in 0..6_u64 {
        for from in &names {
            for to in names.iter().filter(|to| *to != from) {
                let link = match fastrand::u32(..3) {
                    0 => Link::Reset,
                    1 => Link::slow(Duration::from_millis(20 * (round % 3))),
                    _ => Link::default(),
                };
                stage.plane.network.set(Some(from), to, link);
            }
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(300..2000))).await;
        stage.plane.network.heal();
        stage.load.goes_on(5).await;
    }
    eventually("a leader", LONG, async || stage.plane.leading().await.is_some()).await;
    stage.check().await;
}
