//! One member.

use std::collections::HashMap;

use serde_json::Value;
use weft_wire::resource::{ENDPOINT, Endpoint, OBJECT, Object};

use crate::{
    client::{Client, deregister, message, register},
    common::{applied, member, service},
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
