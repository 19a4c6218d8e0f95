//! The configuration as a whole: sets, going back, status, backups.

use crate::common::{applied, apply, member, port, service, until};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use weft_control::{Client, client::Answer};
use weft_store::{
    backup,
    types::{Command, Op, Revision},
};

async fn post(client: &mut Client, target: &str, body: impl Into<bytes::Bytes>) -> Answer {
    client.change(Method::POST, target, &[], body).await.unwrap()
}

/// The names of the Services.
async fn services(client: &Client) -> Vec<String> {
    let list = client.get("/v1/objects/services").await.unwrap().body;
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

fn actions(answer: &Answer) -> Vec<String> {
    let objects = answer.body["objects"].as_array().unwrap_or_else(|| panic!("{}", answer.body));
    objects.iter().map(|o| format!("{} {}", o["name"].as_str().unwrap(), o["action"].as_str().unwrap())).collect()
}

#[tokio::test]
async fn an_object_says_since_when_it_is_and_keeps_it() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    applied(&mut client, &service("cart", 1)).await;
    let cart = client.get("/v1/objects/Service/default/cart").await.unwrap().body;
    let created = cart["metadata"]["creationTimestamp"].as_str().unwrap().to_owned();
    assert!(created.len() == 20 && created.starts_with("20") && created.ends_with('Z'), "{created}");
    assert_eq!(applied(&mut client, &service("cart", 1)).await, 1, "unchanged");
    applied(&mut client, &service("cart", 2)).await;
    let cart = client.get("/v1/objects/Service/default/cart").await.unwrap().body;
    assert_eq!(cart["metadata"]["creationTimestamp"], *created);
    // What was read may be written back, status and all.
    let back = apply(&mut client, &cart.to_string()).await;
    assert_eq!(actions(&back), ["cart unchanged"]);
    let written = service("cart", 2).replace("name: cart", "name: cart, creationTimestamp: \"2001-02-03T04:05:06Z\"");
    applied(&mut client, &written).await;
    applied(&mut client, &service("cart", 3)).await;
    let cart = client.get("/v1/objects/Service/default/cart").await.unwrap().body;
    assert_eq!(cart["metadata"]["creationTimestamp"], "2001-02-03T04:05:06Z");
    let conditions = cart["status"]["conditions"].as_array().unwrap();
    let said: Vec<_> =
        conditions.iter().map(|c| (c["type"].as_str().unwrap(), c["status"].as_str().unwrap())).collect();
    assert_eq!(said, [("Accepted", "True"), ("ResolvedRefs", "True"), ("Programmed", "Unknown")]);
    assert_eq!(conditions[2]["observedGeneration"], cart["metadata"]["generation"]);
    let history = client.get("/v1/history/service/default/cart").await.unwrap().body;
    assert!(history["items"][0]["time"].as_str().unwrap() >= &*created, "{history}");
    one.member.stop().await;
}

#[tokio::test]
async fn a_set_holds_exactly_what_it_is_told() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    applied(&mut client, &service("other", 1)).await;
    let two = format!("{}---\n{}", service("cart", 1), service("shop", 2));
    let first = post(&mut client, "/v1/sync?set=files", two.clone()).await;
    assert_eq!(
        (actions(&first), &first.body["changed"]),
        (vec!["cart created".into(), "shop created".into()], &2.into())
    );
    let same = post(&mut client, "/v1/sync?set=files", two).await;
    assert_eq!((&same.body["revision"], &same.body["changed"]), (&2.into(), &0.into()), "{}", same.body);

    let dry = post(&mut client, "/v1/sync?set=files&dryRun=true", service("shop", 3)).await;
    assert_eq!(actions(&dry), ["shop configured", "cart deleted"]);
    assert_eq!(services(&client).await, ["cart", "other", "shop"]);
    let less = post(&mut client, "/v1/sync?set=files", service("shop", 3)).await;
    assert_eq!(
        (actions(&less), &less.body["revision"]),
        (vec!["shop configured".into(), "cart deleted".into()], &3.into())
    );
    assert_eq!(services(&client).await, ["other", "shop"]);

    // What another set holds as well stays, until neither does.
    post(&mut client, "/v1/sync?set=more", format!("{}---\n{}", service("shop", 3), service("cart", 4))).await;
    let files = |files: Value| json!({"files": files}).to_string();
    let headers = [("content-type", "application/vnd.weft.files+json")];
    let none = client.change(Method::POST, "/v1/sync?set=files", &headers, files(json!([]))).await.unwrap();
    assert_eq!(none.status, StatusCode::OK, "{}", none.body);
    assert_eq!(services(&client).await, ["cart", "other", "shop"]);
    client.change(Method::POST, "/v1/sync?set=more", &headers, files(json!([]))).await.unwrap();
    assert_eq!(services(&client).await, ["other"]);
    assert_eq!(post(&mut client, "/v1/sync", service("shop", 3)).await.body["code"], "bad_request");
    // What is not valid changes neither objects nor the set.
    let refused = post(&mut client, "/v1/sync?set=files", service("shop", 3).replace("spec", "specs")).await;
    assert_eq!(refused.body["code"], "invalid", "{}", refused.body);
    assert_eq!(services(&client).await, ["other"]);
    one.member.stop().await;
}

#[tokio::test]
async fn a_configuration_comes_back_in_one_revision() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let cart = applied(&mut client, &format!("{}---\n{}", service("cart", 1), service("shop", 1))).await;
    applied(&mut client, &service("cart", 2)).await;
    client.change(Method::DELETE, "/v1/objects/Service/default/shop", &[], "").await.unwrap();
    applied(&mut client, &service("new", 1)).await;
    let body = json!({"service": "cart", "endpoints": [{"address": "10.0.0.7", "port": 80}]});
    let last = post(&mut client, "/v1/register", body.to_string()).await.body["revision"].as_u64().unwrap();

    let target = format!("/v1/rollback?to={cart}");
    let dry = post(&mut client, &format!("{target}&dryRun=true"), "").await;
    assert_eq!((&dry.body["revision"], &dry.body["changed"]), (&last.into(), &3.into()), "{}", dry.body);
    let done = post(&mut client, &target, "").await;
    let mut said = actions(&done);
    said.sort();
    assert_eq!(said, ["cart configured", "new deleted", "shop created"]);
    assert_eq!(done.body["revision"], last + 1);
    assert_eq!(services(&client).await, ["cart", "shop"]);
    assert_eq!(port(&client.get("/v1/objects/Service/default/cart").await.unwrap().body), 1);
    let endpoints = client.get("/v1/objects/endpoints").await.unwrap().body;
    assert_eq!(endpoints["items"].as_array().unwrap().len(), 1, "endpoints stay");
    assert_eq!(post(&mut client, &target, "").await.body["changed"], 0);
    // And back again: a rollback is a change like any other.
    assert_eq!(post(&mut client, &format!("/v1/rollback?to={last}"), "").await.body["changed"], 3);
    assert_eq!(services(&client).await, ["cart", "new"]);

    assert_eq!(post(&mut client, "/v1/rollback?to=999", "").await.body["code"], "bad_request");
    let compact = Op::Compact { through: Revision(last) };
    one.member.store().write(Command::new("test", 0, compact)).await.unwrap();
    let refused = post(&mut client, &target, "").await;
    let expected = (StatusCode::GONE, Value::from(format!("compacted at {last}")));
    assert_eq!((refused.status, refused.body["message"].clone()), expected, "{}", refused.body);
    one.member.stop().await;
}

#[tokio::test]
async fn a_gateway_counts_its_routes() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let files = format!(
        "{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  \
         gatewayClassName: weft\n  listeners: [{{name: web, port: 8080, protocol: HTTP}}]\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: all}}\nspec:\n  \
         parentRefs: [{{name: edge}}]\n  rules:\n  - backendRefs: [{{group: weft.dev, kind: Service, name: cart, port: 80}}]\n",
        service("cart", 1)
    );
    applied(&mut client, &files).await;
    let gateway = client.get("/v1/objects/gateway/default/edge").await.unwrap().body;
    assert_eq!(gateway["status"]["listeners"][0]["attachedRoutes"], 1, "{gateway}");
    assert_eq!(gateway["status"]["conditions"][1]["reason"], "NoNodes");
    let route = client.get("/v1/objects/HTTPRoute/default/all").await.unwrap().body;
    assert_eq!(route["status"]["parents"][0]["parentRef"]["name"], "edge", "{route}");
    one.member.stop().await;
}

#[tokio::test]
async fn what_was_backed_up_goes_on_in_a_new_cluster() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    applied(&mut client, &service("cart", 1)).await;
    let body = json!({"service": "cart", "endpoints": [{"address": "10.0.0.7", "port": 80}]});
    post(&mut client, "/v1/register", body.to_string()).await;
    let (status, file) = client.stream("/v1/backup").await.unwrap();
    assert_eq!(status, StatusCode::OK);
    let file = file.collect().await.unwrap().to_bytes();
    let contents = backup::read(&file).unwrap();
    assert_eq!(contents.revision, Revision(2));
    applied(&mut client, &service("cart", 2)).await;
    one.member.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("b");
    let restored = backup::restore(contents, &into, "b", "127.0.0.1:1").await.unwrap();
    let setup = crate::common::setup("b", &into, &[]);
    let b = weft_control::member::start(setup).await.unwrap();
    let mut client = Client::new(vec![b.address().to_string()], crate::common::LIMIT);
    let cart = client.get("/v1/objects/Service/default/cart").await.unwrap().body;
    assert_eq!((port(&cart), &cart["metadata"]["resourceVersion"]), (1, &restored.to_string().into()));
    assert_eq!(client.get("/v1/objects/endpoints").await.unwrap().body["items"].as_array().unwrap().len(), 1);
    let old = client.get("/v1/watch?from=3").await.unwrap();
    assert_eq!(old.body["message"], format!("compacted at {restored}"), "{}", old.body);
    assert_eq!(applied(&mut client, &service("cart", 3)).await, restored.0 + 1);
    // It was restored for another address than it has got.
    until("it knows where it is", async || {
        let status = client.get("/v1/raft").await.unwrap().body;
        status["members"][0]["address"] == b.address().to_string()
    })
    .await;
    b.stop().await;
}
