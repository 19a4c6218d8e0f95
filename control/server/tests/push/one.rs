//! One member.

use std::collections::{BTreeMap, HashMap};

use http::Method;
use serde_json::Value;
use tonic::Code;
use weft_wire::{
    DELTA,
    discovery::{DeltaRequest, DeltaResponse, SotwRequest},
    prost::Message,
    resource::{ENDPOINT, Endpoint, OBJECT, Object},
};

use crate::{
    asked::{garbage, metrics, nodes, shown_when},
    client::{Client, SotwClient, ack, channel, deregister, first, message, nack, node, register},
    common::{applied, member, service, until},
};

#[tokio::test]
async fn a_node_gets_what_there_is_and_every_change() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    let first = applied(&mut api, &format!("{}---\n{}", service("cart", 1001), service("shop", 1002))).await;
    let second = register(&one, "cart", 8080, 3).await;
    let mut node = Client::connect(&one.address(), "n1", HashMap::new()).await.unwrap();

    let objects = node.take().await;
    assert_eq!((&*objects.type_url, &*objects.system_version_info), (OBJECT, &*second.to_string()));
    assert_eq!(objects.control_plane.as_ref().unwrap().identifier, "a");
    assert_eq!(objects.resources.len(), 2, "all in one response: {objects:?}");
    let cart: Object = message(&objects, "Service/default/cart");
    assert_eq!((&*cart.kind, &*cart.namespace, &*cart.name), ("Service", "default", "cart"));
    let document: Value = serde_json::from_slice(&cart.document).unwrap();
    assert_eq!(crate::common::port(&document), 1001);
    let endpoints = node.take().await;
    let expected = Endpoint {
        namespace: "default".into(),
        service: "cart".into(),
        address: "10.0.0.7".into(),
        port: 8080,
        weight: 3,
        zone: "z".into(),
        draining: false,
    };
    let name = "default/cart/10.0.0.7:8080";
    assert_eq!(message::<Endpoint>(&endpoints, name), expected);
    assert_eq!(node.has[OBJECT]["Service/default/cart"], first.to_string());
    assert_eq!(node.has[ENDPOINT][name], second.to_string());
    node.is_quiet().await;

    let third = applied(&mut api, &service("cart", 1003)).await;
    node.until(OBJECT, &[("Service/default/cart", third), ("Service/default/shop", first)]).await;
    let fourth = register(&one, "cart", 8080, 4).await;
    node.until(ENDPOINT, &[(name, fourth)]).await;
    deregister(&one, "cart", 8080).await;
    node.until(ENDPOINT, &[]).await;
    let delete = api.change(http::Method::DELETE, "/v1/objects/Service/default/shop", &[], "").await.unwrap();
    assert!(delete.status.is_success(), "{}", delete.body);
    node.until(OBJECT, &[("Service/default/cart", third)]).await;
    node.is_quiet().await;
    one.member.stop().await;
}

#[tokio::test]
async fn what_a_node_does_not_take_is_shown_and_not_sent_again() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    let first = applied(&mut api, &format!("{}---\n{}", service("cart", 1), service("shop", 2))).await;
    let mut node = Client::connect(&one.address(), "n1", HashMap::new()).await.unwrap();
    let response = node.next().await.unwrap();
    assert_eq!(response.type_url, OBJECT);
    node.requests.send(nack(&response, &[("Service/default/cart", "port 1 is taken")])).await.unwrap();
    assert_eq!(node.take().await.type_url, ENDPOINT);
    let shown = shown_when(&one, "n1", |node| node["state"] == "NACKED").await;
    let rejection = &shown["rejections"][0];
    assert_eq!(
        (&rejection["name"], &rejection["version"], &rejection["reason"], &rejection["type"]),
        (&"Service/default/cart".into(), &first.to_string().into(), &"port 1 is taken".into(), &OBJECT.into())
    );
    assert_eq!((&shown["acknowledged"], &shown["lag"]), (&0.into(), &first.into()));
    let who = ["zone", "client", "version", "member"].map(|name| shown[name].as_str().unwrap());
    assert_eq!(who, ["z", "weft", "1.2.3", "a"]);

    // Something else changes: only that comes.
    let second = applied(&mut api, &service("shop", 3)).await;
    let response = node.next().await.unwrap();
    assert_eq!(response.resources.len(), 1, "{response:?}");
    node.requests.send(nack(&response, &[("Service/default/cart", "port 1 is taken")])).await.unwrap();
    node.is_quiet().await;
    let late = ack(&response);
    node.requests.send(late).await.unwrap();
    let shown = shown_when(&one, "n1", |node| node["state"] == "SYNCED").await;
    assert_eq!((&shown["acknowledged"], &shown["lag"]), (&second.into(), &0.into()), "a late ACK");

    let metrics = metrics(&one).await;
    for line in [
        "weft_push_nacks_total{type=\"weft.v1.Object\"} 2",
        "weft_push_streams{client=\"weft\"} 1",
        "weft_push_nodes{state=\"synced\"} 1",
        "weft_push_serving 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    one.member.stop().await;
}

#[tokio::test]
async fn who_comes_back_gets_only_what_has_changed() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    let first = applied(&mut api, &format!("{}---\n{}", service("cart", 1), service("shop", 2))).await;
    register(&one, "cart", 1, 1).await;
    let kept = register(&one, "cart", 2, 1).await;
    let mut node = Client::connect(&one.address(), "n1", HashMap::new()).await.unwrap();
    node.take().await;
    node.take().await;
    let has = node.has.clone();
    drop(node);
    let gone = shown_when(&one, "n1", |node| node["connected"] == false).await;
    assert_eq!(gone["state"], "STALE");

    let second = applied(&mut api, &service("cart", 3)).await;
    let removed = api.change(Method::DELETE, "/v1/objects/Service/default/shop", &[], "").await.unwrap();
    assert!(removed.status.is_success());
    deregister(&one, "cart", 1).await;
    let mut node = Client::connect(&one.address(), "n1", has).await.unwrap();
    let (objects, endpoints) = (node.take().await, node.take().await);
    let names = |response: &DeltaResponse| response.resources.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&objects), ["Service/default/cart"]);
    assert_eq!(objects.removed_resources, ["Service/default/shop"]);
    assert_eq!((names(&endpoints), &*endpoints.removed_resources), (vec![], &["default/cart/10.0.0.7:1".into()][..]));
    assert_eq!(node.has[OBJECT], [("Service/default/cart".to_owned(), second.to_string())].into());
    assert_eq!(node.has[ENDPOINT].values().collect::<Vec<_>>(), [&kept.to_string()]);
    assert!(first < second);
    node.is_quiet().await;
    let shown = shown_when(&one, "n1", |node| node["state"] == "SYNCED").await;
    assert_eq!(shown["connected"], true);
    one.member.stop().await;
}

#[tokio::test]
async fn the_second_connection_of_a_node_takes_over() {
    let one = member("a", &[]).await;
    applied(&mut one.client(), &service("cart", 1)).await;
    let mut old = Client::connect(&one.address(), "n1", HashMap::new()).await.unwrap();
    old.take().await;
    old.take().await;
    let mut new = Client::connect(&one.address(), "n1", HashMap::new()).await.unwrap();
    let ended = old.next().await.unwrap_err();
    assert!(ended.code() == Code::Aborted && ended.message().contains("--node"), "{ended:?}");
    new.take().await;
    new.take().await;
    let shown = nodes(&one).await;
    assert_eq!(shown["nodes"].as_array().unwrap().len(), 1, "{shown}");
    one.member.stop().await;
}

#[tokio::test]
async fn a_server_that_stops_says_so() {
    let one = member("a", &[]).await;
    applied(&mut one.client(), &service("cart", 1)).await;
    let mut node = Client::connect(&one.address(), "n1", HashMap::new()).await.unwrap();
    node.take().await;
    node.take().await;
    let stopping = tokio::spawn(one.member.stop());
    let ended = node.next().await.unwrap_err();
    assert!(ended.code() == Code::Unavailable && ended.message().contains("stops"), "{ended:?}");
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_client_that_is_ahead_waits_and_is_refused_in_the_end() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    let first = applied(&mut api, &service("cart", 1)).await;
    let ahead = |revision: u64| {
        let has = [("Service/default/cart".to_owned(), revision.to_string())].into();
        HashMap::from([(OBJECT.to_owned(), has)])
    };
    let mut soon = Client::connect(&one.address(), "soon", ahead(first + 1)).await.unwrap();
    let mut never = Client::connect(&one.address(), "never", ahead(first + 1_000_000)).await.unwrap();
    // Endpoints do not wait for documents.
    assert_eq!(soon.take().await.type_url, ENDPOINT);
    assert_eq!(applied(&mut api, &service("cart", 2)).await, first + 1);
    let response = soon.take().await;
    assert_eq!((response.resources.len(), &*response.type_url), (0, OBJECT), "it has that already");
    assert_eq!(never.take().await.type_url, ENDPOINT);
    let refused = never.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("make the client forget what it has"), "{refused:?}");
    one.member.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_gets_the_latest_only() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    applied(&mut api, &service("cart", 1)).await;
    let mut slow = Client::connect(&one.address(), "slow", HashMap::new()).await.unwrap();
    let first = slow.next().await.unwrap();
    assert_eq!(first.type_url, OBJECT);
    let mut last = 0;
    for port in 2..=40 {
        last = applied(&mut api, &service("cart", port)).await;
        register(&one, "cart", 1, port.into()).await;
    }
    // One response of each type was on its way; what came since is one more of each, with the latest.
    let waiting = shown_when(&one, "slow", |node| node["state"] == "STALE").await;
    assert!(waiting["lag"].as_u64().unwrap() > 70, "{waiting}");
    slow.requests.send(ack(&first)).await.unwrap();
    let mut seen: HashMap<String, u32> = HashMap::new();
    let lacks = |slow: &Client, url: &str, name: &str, version: u64| {
        slow.has.get(url).and_then(|has| has.get(name)).is_none_or(|has| *has != version.to_string())
    };
    while lacks(&slow, OBJECT, "Service/default/cart", last)
        || lacks(&slow, ENDPOINT, "default/cart/10.0.0.7:1", last + 1)
    {
        let response = slow.take().await;
        *seen.entry(response.type_url).or_default() += 1;
    }
    assert_eq!(seen[OBJECT], 1, "the latest only");
    assert!(seen[ENDPOINT] <= 2, "{seen:?}");
    slow.is_quiet().await;
    one.member.stop().await;
}

#[tokio::test]
async fn two_hundred_streams_all_converge() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    let first = applied(&mut api, &service("cart", 1)).await;
    let channel = channel(&one.address()).await;
    let mut connected = Vec::new();
    for n in 0..200 {
        let mut node = Client::over(channel.clone(), &format!("n{n}"), HashMap::new()).await.unwrap();
        node.take().await;
        node.take().await;
        connected.push(node);
    }
    let last = 20;
    let following: Vec<_> = connected
        .into_iter()
        .map(|mut node| {
            tokio::spawn(async move {
                node.until(ENDPOINT, &[("default/cart/10.0.0.7:1", first + last)]).await;
                node
            })
        })
        .collect();
    for weight in 1..=last {
        register(&one, "cart", 1, weight.try_into().unwrap()).await;
    }
    let mut connected = Vec::new();
    for node in following {
        connected.push(node.await.unwrap());
    }
    until("all nodes are in step", async || {
        let shown = nodes(&one).await;
        let nodes = shown["nodes"].as_array().unwrap();
        nodes.len() == 200 && nodes.iter().all(|node| node["state"] == "SYNCED" && node["lag"] == 0)
    })
    .await;
    let metrics = metrics(&one).await;
    let observed = metrics.lines().find_map(|line| line.strip_prefix("weft_push_convergence_seconds_count "));
    assert_eq!(observed, Some("20"), "each revision has converged: {metrics}");
    drop(connected);
    one.member.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_hurts_nobody() {
    let one = member("a", &[]).await;
    applied(&mut one.client(), &service("cart", 1)).await;
    let mut healthy = Client::connect(&one.address(), "healthy", HashMap::new()).await.unwrap();
    healthy.take().await;
    healthy.take().await;
    for (request, expected) in [
        (
            first("n", "type.googleapis.com/weft.v1.Nothing", &BTreeMap::new()),
            "types: type.googleapis.com/weft.v1.Object",
        ),
        (first("", OBJECT, &BTreeMap::new()), "node.id"),
        (DeltaRequest { type_url: OBJECT.into(), ..DeltaRequest::default() }, "node.id"),
    ] {
        let mut client = Client::open(channel(&one.address()).await).await.unwrap();
        client.requests.send(request).await.unwrap();
        let refused = client.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(expected), "{refused:?}");
    }
    // Names and versions that nobody has heard of, and an answer to nothing.
    let odd = BTreeMap::from([("Service/default/cart".into(), "x".into()), (String::new(), String::new())]);
    let mut client = Client::open(channel(&one.address()).await).await.unwrap();
    let request = DeltaRequest { response_nonce: "77".into(), ..first("odd", OBJECT, &odd) };
    client.requests.send(request).await.unwrap();
    let response = client.take().await;
    assert_eq!((response.resources.len(), &*response.removed_resources), (1, &[String::new()][..]));

    let status = garbage(&one.address(), DELTA, b"\0\0\0\0\x05\xff\xff\xff\xff\xff").await;
    assert_eq!(status, ("3".into(), true), "not protobuf");
    assert_eq!(garbage(&one.address(), "/weft.Nothing/Do", b"").await.0, "12");
    applied(&mut one.client(), &service("cart", 2)).await;
    assert_eq!(healthy.take().await.resources.len(), 1);
    one.member.stop().await;
}

#[tokio::test]
async fn the_state_of_the_world_is_there_too() {
    let one = member("a", &[]).await;
    let mut api = one.client();
    let first = applied(&mut api, &format!("{}---\n{}", service("cart", 1), service("shop", 2))).await;
    let mut client = SotwClient::open(channel(&one.address()).await).await;
    let ask = SotwRequest {
        node: Some(node("world")),
        type_url: OBJECT.into(),
        resource_names: vec!["Service/default/cart".into()],
        ..SotwRequest::default()
    };
    client.requests.send(ask.clone()).await.unwrap();
    let response = client.next().await;
    assert_eq!((&*response.version_info, response.resources.len()), (&*first.to_string(), 1));
    assert_eq!(Object::decode(&*response.resources[0].value).unwrap().name, "cart");
    let ack = SotwRequest {
        node: None,
        version_info: response.version_info.clone(),
        response_nonce: response.nonce.clone(),
        ..ask
    };
    client.requests.send(ack.clone()).await.unwrap();
    applied(&mut api, &service("shop", 3)).await;
    let third = applied(&mut api, &service("cart", 4)).await;
    let response = client.next().await;
    assert_eq!((&*response.version_info, response.resources.len()), (&*third.to_string(), 1));
    let shown = shown_when(&one, "world", |node| node["state"] == "STALE").await;
    assert_eq!(shown["acknowledged"], first);
    one.member.stop().await;
}
