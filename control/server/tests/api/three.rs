//! Three members, over their ports.

use crate::common::{LIMIT, Running, applied, port, service, three};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use weft_control::Client;

/// A client of all of them, in this order.
fn of(members: &[&Running]) -> Client {
    Client::new(members.iter().map(|member| member.address()).collect(), LIMIT)
}

/// The next line that says something.
async fn line(body: &mut Incoming) -> Value {
    loop {
        let frame = tokio::time::timeout(LIMIT, body.frame()).await.expect("a line in time").unwrap().unwrap();
        let line: Value = serde_json::from_slice(frame.data_ref().unwrap()).unwrap();
        if line["changes"] != serde_json::json!([]) {
            return line;
        }
    }
}

#[tokio::test]
async fn a_follower_takes_writes_and_reads_them() {
    let members = three().await;
    let revision = applied(&mut members[1].client(), &service("cart", 1)).await;
    for member in &members {
        let cart = member.client().get("/v1/objects/Service/default/cart").await.unwrap();
        assert_eq!(port(&cart.body), 1);
        let reached = member.client().get(&format!("/v1/revision?revision={revision}")).await.unwrap();
        assert_eq!(reached.body["revision"], revision);
    }
    let status = members[2].client().get("/v1/raft").await.unwrap().body;
    assert_eq!(status["leader"], "a");
    assert_eq!(status["members"][0]["role"], "leader");
    assert!(status["members"].as_array().unwrap().iter().all(|member| member["commit"].is_u64()), "{status}");
}

#[tokio::test]
async fn the_leader_stops_and_nothing_is_lost() {
    let mut members = three().await;
    let leader = members.remove(0);
    let (mut client, follower) = (of(&[&leader, &members[0], &members[1]]), members[0].client());
    let (status, mut watch) = follower.stream("/v1/watch?from=0&kind=Service").await.unwrap();
    assert_eq!(status, StatusCode::OK);
    for n in 1..=5 {
        applied(&mut client, &service("cart", n)).await;
    }
    leader.member.stop().await;
    for n in 6..=10 {
        applied(&mut client, &service("cart", n)).await;
    }
    for n in 1..=10 {
        let seen = line(&mut watch).await;
        assert_eq!((seen["revision"].as_u64(), port(&seen["changes"][0]["object"])), (Some(n), n));
    }
    let status = client.get("/v1/raft").await.unwrap().body;
    assert_ne!(status["leader"], "a");
    assert_eq!(status["members"][0]["role"], "unreachable");
    // It is gone for good: the two that are left remove it.
    let removed = client.change(Method::POST, "/v1/raft/remove/a", &[], "").await.unwrap();
    assert_eq!(removed.status, StatusCode::OK, "{}", removed.body);
    let status = client.get("/v1/raft").await.unwrap().body;
    assert_eq!(status["members"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn leadership_goes_where_it_is_sent() {
    let members = three().await;
    let mut client = members[1].client();
    let sent = client.change(Method::POST, "/v1/raft/transfer/c", &[], "").await.unwrap();
    assert_eq!(sent.status, StatusCode::OK, "{}", sent.body);
    assert_eq!(client.get("/v1/raft").await.unwrap().body["leader"], "c");
    applied(&mut client, &service("cart", 1)).await;
    let nobody = client.change(Method::POST, "/v1/raft/transfer/d", &[], "").await.unwrap();
    assert_eq!((nobody.status, &nobody.body["hint"]), (StatusCode::NOT_FOUND, &"members: a, b, c".into()));
}

#[tokio::test]
async fn a_name_is_taken_once() {
    let one = crate::common::member("a", &[]).await;
    let mut second = crate::common::member("a", &[one.address()]).await;
    let ended = tokio::time::timeout(LIMIT, second.member.failed()).await.unwrap();
    assert!(ended.to_string().contains("weft raft remove a"), "{ended}");
}

#[tokio::test]
async fn writers_through_every_member_do_not_get_in_each_others_way() {
    let members = three().await;
    let writers = (0..12_usize).map(|n| {
        let mut client = members[n % 3].client();
        async move {
            for port in 1..=3 {
                applied(&mut client, &service(&format!("s{n}"), port)).await;
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let list = members[0].client().get("/v1/objects/Service").await.unwrap().body;
    assert_eq!(list["metadata"]["resourceVersion"], "36", "each change is one revision");
    assert!(list["items"].as_array().unwrap().iter().all(|service| port(service) == 3));
}
