//! Three members.

use std::{collections::HashMap, net::SocketAddr};

use tonic::Code;
use weft_control::member::{RunningMember, start};
use weft_wire::resource::{ENDPOINT, OBJECT};

use crate::{
    asked::{nodes, shown_when},
    client::{Client, register},
    common::{Running, applied, member, service, setup, three, until},
};

#[tokio::test]
async fn a_node_goes_on_at_another_member_where_it_was() {
    let members = three().await;
    let mut api = members[0].client();
    let first = applied(&mut api, &format!("{}---\n{}", service("cart", 1), service("shop", 2))).await;
    let second = register(&members[0], "cart", 1, 1).await;
    let mut node = Client::connect(&members[1].address(), "n1", HashMap::new()).await.unwrap();
    node.until(OBJECT, &[("Service/default/cart", first), ("Service/default/shop", first)]).await;
    node.until(ENDPOINT, &[("default/cart/10.0.0.7:1", second)]).await;
    let has = node.has.clone();
    drop(node);

    // Nothing has changed, so nothing comes: versions are the same everywhere.
    let mut node = Client::connect(&members[2].address(), "n1", has.clone()).await.unwrap();
    for _ in 0..2 {
        let response = node.take().await;
        assert_eq!((response.resources.len(), response.removed_resources.len()), (0, 0), "{response:?}");
        assert_eq!(response.control_plane.unwrap().identifier, "c");
    }
    assert_eq!(node.has, has);
    // It is shown once, at whichever member one asks.
    for member in &members {
        let shown = shown_when(member, "n1", |node| node["state"] == "SYNCED" && node["lag"] == 0).await;
        assert_eq!((&shown["member"], &shown["connected"]), (&"c".into(), &true.into()));
        let all = nodes(member).await;
        assert_eq!((all["nodes"].as_array().unwrap().len(), &all["unreachable"]), (1, &serde_json::json!([])));
    }
    // A change at any member reaches it.
    let third = applied(&mut members[1].client(), &service("cart", 9)).await;
    node.until(OBJECT, &[("Service/default/cart", third), ("Service/default/shop", first)]).await;
}

/// A member that can be started again where it was.
struct Restartable {
    name: &'static str,
    dir: tempfile::TempDir,
    address: SocketAddr,
    running: Option<RunningMember>,
}

impl Restartable {
    async fn join(name: &'static str, first: &Running) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = start(setup(name, dir.path(), &[first.address()])).await.unwrap();
        Self { name, dir, address: running.address(), running: Some(running) }
    }

    async fn stop(&mut self) {
        if let Some(member) = self.running.take() {
            member.stop().await;
        }
    }

    async fn start(&mut self) {
        let mut setup = setup(self.name, self.dir.path(), &[]);
        setup.listen = self.address;
        self.running = Some(start(setup).await.unwrap());
    }
}

#[tokio::test]
async fn a_member_that_has_lost_the_others_sends_its_nodes_away() {
    let left = member("a", &[]).await;
    let (mut second, mut third) = (Restartable::join("b", &left).await, Restartable::join("c", &left).await);
    until("three voters", async || {
        let status = left.client().get("/v1/raft").await.unwrap().body;
        status["members"].as_array().unwrap().iter().filter(|member| member["voter"] == true).count() == 3
    })
    .await;
    let revision = applied(&mut left.client(), &service("cart", 1)).await;
    let mut node = Client::connect(&left.address(), "n1", HashMap::new()).await.unwrap();
    node.until(OBJECT, &[("Service/default/cart", revision)]).await;
    assert_eq!(node.take().await.type_url, ENDPOINT);
    third.stop().await;
    node.is_quiet().await;
    second.stop().await;
    let ended = node.next().await.unwrap_err();
    assert!(ended.code() == Code::Unavailable && ended.message().contains("lost the others"), "{ended:?}");
    let refused = Client::connect(&left.address(), "n1", node.has.clone()).await;
    assert_eq!(refused.err().map(|status| status.code()), Some(Code::Unavailable));

    second.start().await;
    until("it serves again", async || Client::connect(&left.address(), "n1", HashMap::new()).await.is_ok()).await;
    second.stop().await;
}
