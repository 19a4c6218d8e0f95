//! Members that come, move and go.

use crate::common::{LIMIT, applied, member, port, service, setup, three, until};
use http::{Method, StatusCode};
use serde_json::json;
use weft_control::{Client, member::start};

async fn ready(client: &Client) -> StatusCode {
    // Not passed on to another member, and not asked again.
    let address = client.get("/v1/raft/self").await.unwrap().body["address"].as_str().unwrap().to_owned();
    let request = http::Request::get("/ready").body(Default::default()).unwrap();
    weft_control::Pool::default().send(&address, request, LIMIT).await.unwrap().status()
}

#[tokio::test]
async fn a_member_on_standby_is_added_where_it_listens() {
    let first = member("a", &[]).await;
    let mut client = first.client();
    applied(&mut client, &service("cart", 7)).await;
    // It has only itself to join: its port has to be known before.
    let port_of = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut standby = setup("b", dir.path(), &[port_of.to_string()]);
    standby.listen = port_of;
    let second = start(standby).await.unwrap();
    assert!(second.store().status().members.is_empty());
    let body = json!({"address": port_of.to_string()}).to_string();
    let added = client.change(Method::POST, "/v1/raft/add", &[], body.clone()).await.unwrap();
    assert_eq!((added.status, &added.body["name"]), (StatusCode::OK, &"b".into()), "{}", added.body);
    let status = client.get("/v1/raft").await.unwrap().body;
    assert_eq!(status["members"][1]["voter"], true, "{status}");
    let other = Client::new(vec![port_of.to_string()], LIMIT);
    assert_eq!(port(&other.get("/v1/objects/Service/default/cart").await.unwrap().body), 7);
    // Once more is no mistake; who belongs to another cluster, or is not there, is refused.
    assert_eq!(client.change(Method::POST, "/v1/raft/add", &[], body).await.unwrap().status, StatusCode::OK);
    let foreign = member("c", &[]).await;
    until("it leads", async || foreign.client().get("/v1/raft").await.unwrap().body["leader"] == "c").await;
    let body = json!({"address": foreign.address()}).to_string();
    assert_eq!(client.change(Method::POST, "/v1/raft/add", &[], body).await.unwrap().body["code"], "other_cluster");
    let body = json!({"address": "127.0.0.1:1"}).to_string();
    assert_eq!(client.change(Method::POST, "/v1/raft/add", &[], body).await.unwrap().body["code"], "unreachable");
    foreign.member.stop().await;
    second.stop().await;
    first.member.store().shutdown().await;
}

#[tokio::test]
async fn a_member_that_moved_tells_the_others() {
    let first = member("a", &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let join = [first.address()];
    let third = member("c", &join).await;
    let moving = start(setup("b", dir.path(), &join)).await.unwrap();
    let client = first.client();
    let voters = async |count: usize| {
        let status = client.get("/v1/raft").await.unwrap().body;
        let members = status["members"].as_array().unwrap().clone();
        members.iter().filter(|member| member["voter"] == true && member["term"].is_u64()).count() == count
    };
    until("three voters", async || voters(3).await).await;
    let before = moving.address();
    moving.stop().await;
    // Port 0 gives it another; only its name and directory are the same.
    let moved = start(setup("b", dir.path(), &[])).await.unwrap();
    assert_ne!(moved.address(), before);
    until("the others reach it", async || {
        let status = client.get("/v1/raft").await.unwrap().body;
        status["members"][1]["address"] == moved.address().to_string() && status["members"][1]["role"] == "follower"
    })
    .await;
    applied(&mut first.client(), &service("cart", 9)).await;
    let there = Client::new(vec![moved.address().to_string()], LIMIT);
    until("it follows", async || {
        let cart = there.get("/v1/objects/Service/default/cart?consistency=serializable").await.unwrap();
        cart.status == StatusCode::OK
    })
    .await;
    moved.stop().await;
    third.member.stop().await;
    first.member.store().shutdown().await;
}

#[tokio::test]
async fn a_member_that_was_removed_is_told_and_disturbs_nobody() {
    let members = three().await;
    let mut client = members[0].client();
    let removed = members[2].client();
    until("it is ready", async || ready(&removed).await == StatusCode::OK).await;
    let term = client.get("/v1/raft").await.unwrap().body["members"][0]["term"].clone();
    let done = client.change(Method::POST, "/v1/raft/remove/c", &[], "").await.unwrap();
    assert_eq!(done.status, StatusCode::OK, "{}", done.body);
    until("it says so", async || ready(&removed).await == StatusCode::SERVICE_UNAVAILABLE).await;
    let said = removed.get("/v1/raft/self").await.unwrap().body;
    assert_ne!(said["role"], "leader", "{said}");
    applied(&mut client, &service("cart", 1)).await;
    let status = client.get("/v1/raft").await.unwrap().body;
    assert_eq!((&status["leader"], &status["members"][0]["term"]), (&"a".into(), &term), "{status}");
    for member in members {
        member.member.stop().await;
    }
}
