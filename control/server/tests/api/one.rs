//! One member, over its port.

use crate::common::{applied, apply, member, port, service};
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_store::types::{Command, Op, Revision};

#[tokio::test]
async fn objects_are_applied_read_changed_and_deleted() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let first = applied(&mut client, &format!("{}---\n{}", service("cart", 1001), service("shop", 1002))).await;
    assert_eq!(applied(&mut client, &service("cart", 1001)).await, first, "nothing changed");
    let cart = client.get("/v1/objects/services/default/cart").await.unwrap().body;
    assert_eq!((port(&cart), &cart["metadata"]["resourceVersion"]), (1001, &first.to_string().into()));
    let list = client.get("/v1/objects/Service?consistency=serializable").await.unwrap().body;
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let everything = client.get(&format!("/v1/objects?revision={first}")).await.unwrap().body;
    assert_eq!(everything["items"].as_array().unwrap().len(), 2, "the guard is not shown");

    let second = applied(&mut client, &service("cart", 1003)).await;
    assert_eq!(second, first + 1);
    // What was read before it changed is not written back, neither by a header nor by what the document says.
    let target = "/v1/objects/Service/default/cart";
    let stale = [("if-match", &*first.to_string())];
    let put = client.change(Method::PUT, target, &stale, service("cart", 1004)).await.unwrap();
    assert_eq!((put.status, &put.body["code"]), (StatusCode::CONFLICT, &"conflict".into()));
    assert_eq!(apply(&mut client, &cart.to_string()).await.status, StatusCode::CONFLICT);
    let current = [("if-match", &*second.to_string())];
    let put = client.change(Method::PUT, target, &current, service("cart", 1004)).await.unwrap();
    assert_eq!(put.status, StatusCode::OK, "{}", put.body);
    let absent = client.change(Method::PUT, target, &[("if-none-match", "*")], service("cart", 1)).await.unwrap();
    assert_eq!(absent.status, StatusCode::CONFLICT);

    let history = client.get("/v1/history/Service/default/cart").await.unwrap().body;
    let ports: Vec<u64> = history["items"].as_array().unwrap().iter().map(|item| port(&item["object"])).collect();
    assert_eq!(ports, [1004, 1003, 1001]);
    let deleted = client.change(Method::DELETE, target, &[], "").await.unwrap();
    assert_eq!((deleted.status, deleted.body["changed"].as_u64()), (StatusCode::OK, Some(1)));
    assert_eq!(client.get(target).await.unwrap().status, StatusCode::NOT_FOUND);
    assert_eq!(client.change(Method::DELETE, target, &[], "").await.unwrap().status, StatusCode::NOT_FOUND);
    one.member.stop().await;
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: all}
spec:
  parentRefs: [{group: weft.dev, kind: Service, name: cart}]
  rules:
  - backendRefs: [{group: weft.dev, kind: Service, name: cart, port: 80}]
";

#[tokio::test]
async fn what_would_not_be_valid_is_not_stored() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let refused = apply(&mut client, &format!("{}---\n{ROUTE}", service("shop", 1))).await;
    assert_eq!((refused.status, &refused.body["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &"invalid".into()));
    let problem = &refused.body["problems"][0];
    assert_eq!(problem["file"], "test.yaml");
    assert!(problem["line"].as_u64().unwrap() > 7, "{problem}");
    let typo = apply(&mut client, &service("shop", 1).replace("spec", "specs")).await;
    assert_eq!(typo.body["code"], "invalid");
    assert_eq!(client.get("/v1/revision").await.unwrap().body["revision"], 0);

    // With what is stored already, it is valid; and what it refers to cannot go.
    let dry = client.change(Method::POST, "/v1/apply?dryRun=true", &[], service("cart", 1)).await.unwrap();
    assert_eq!((dry.status, &dry.body["objects"][0]["action"]), (StatusCode::OK, &"created".into()));
    applied(&mut client, &service("cart", 1)).await;
    applied(&mut client, ROUTE).await;
    let delete = client.change(Method::DELETE, "/v1/objects/Service/default/cart", &[], "").await.unwrap();
    assert_eq!(delete.body["code"], "invalid", "{}", delete.body);
    let file = delete.body["problems"][0]["file"].as_str().unwrap();
    assert_eq!(file, "HTTPRoute/default/all (stored)");
    let keys = r#"{"keys": [{"kind": "httproute", "namespace": "default", "name": "all"},
        {"kind": "Service", "namespace": "default", "name": "cart"}]}"#;
    let both = client.change(Method::POST, "/v1/delete", &[], keys).await.unwrap();
    assert_eq!(both.body["changed"], 2, "{}", both.body);
}

#[tokio::test]
async fn a_retry_is_applied_once() {
    let one = member("a", &[]).await;
    let mut other = one.client();
    let issued = (weft_store::Options::new("", "", "").clock)().to_string();
    let id = [("weft-client", "abc"), ("weft-sequence", "7"), ("weft-issued", &*issued)];
    // Not through Client::change, which numbers its requests itself.
    let raw = async |body: String| {
        let request =
            id.iter().fold(http::Request::post("/v1/apply"), |request, (name, value)| request.header(*name, *value));
        let request = request.body(http_body_util::Full::from(body)).unwrap();
        let answer = weft_control::Pool::default().send(&one.address(), request, crate::common::LIMIT).await.unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()
    };
    applied(&mut other, &service("shop", 1)).await;
    let first = raw(service("cart", 1)).await;
    assert_eq!((&first["revision"], &first["changed"]), (&2.into(), &1.into()), "{first}");
    let at_once = raw(service("cart", 1)).await;
    assert_eq!((&at_once["revision"], &at_once["changed"]), (&2.into(), &1.into()), "{at_once}");
    applied(&mut other, &service("cart", 2)).await;
    let again = raw(service("cart", 1)).await;
    assert_eq!((&again["revision"], &again["changed"]), (&first["revision"], &first["changed"]), "{again}");
    let cart = other.get("/v1/objects/Service/default/cart").await.unwrap().body;
    assert_eq!(port(&cart), 2);
}

#[tokio::test]
async fn plain_http_1_gets_readiness_and_metrics() {
    let one = member("a", &[]).await;
    applied(&mut one.client(), &service("cart", 1)).await;
    let ask = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(one.member.address()).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(ask("/ready").await.starts_with("HTTP/1.1 200"));
    let metrics = ask("/metrics").await;
    for line in ["weft_raft_is_leader 1", "weft_store_revision 1", "# HELP weft_raft_term ", "weft_raft_members 1"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(ask("/v1/objects/Serviec").await.contains("kinds: Gateway"));
}

#[tokio::test]
async fn what_is_forgotten_cannot_be_watched() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    for n in 1..=3 {
        applied(&mut client, &service("cart", n)).await;
    }
    let compact = Op::Compact { through: Revision(2) };
    one.member.store().write(Command::new("test", 0, compact)).await.unwrap();
    let refused = client.get("/v1/watch?from=1").await.unwrap();
    assert_eq!((refused.status, &refused.body["message"]), (StatusCode::GONE, &"compacted at 2".into()));
    let (status, _) = client.stream("/v1/watch?from=2").await.unwrap();
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    applied(&mut client, &service("cart", 1)).await;
    for (target, code) in [
        ("/v1/objects/Serviec", "not_found"),
        ("/v1/objects?revision=x", "bad_request"),
        ("/v1/objects?revision=1&consistency=serializable", "bad_request"),
        ("/v1/objects/Service/default/%ff", "bad_request"),
        ("/v1", "not_found"),
    ] {
        assert_eq!(client.get(target).await.unwrap().body["code"], code, "{target}");
    }
    let large = client.change(Method::POST, "/v1/apply", &[], vec![b'#'; 9 << 20]).await.unwrap();
    assert_eq!((large.status, &large.body["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &"too_large".into()));
    let other = client.change(Method::PUT, "/v1/objects/Service/default/shop", &[], service("cart", 1)).await.unwrap();
    assert_eq!(other.body["code"], "bad_request");
}
