//! What a member says when it is asked.

use std::cell::RefCell;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use weft_control::Pool;

use crate::common::{LIMIT, Running, until};

/// All nodes.
pub async fn nodes(member: &Running) -> Value {
    member.client().get("/v1/nodes").await.unwrap().body
}

/// A node, once it is as it should be.
pub async fn shown_when(member: &Running, id: &str, check: impl Fn(&Value) -> bool) -> Value {
    let found = RefCell::new(Value::Null);
    until(&format!("{id} is as it should be"), async || {
        let nodes = nodes(member).await;
        let node = nodes["nodes"].as_array().unwrap().iter().find(|node| node["node"] == id).cloned();
        *found.borrow_mut() = node.unwrap_or_default();
        check(&found.borrow())
    })
    .await;
    found.into_inner()
}

async fn send(address: &str, request: Request<Full<Bytes>>) -> (http::HeaderMap, Bytes) {
    let answer = Pool::default().send(address, request, LIMIT).await.unwrap();
    let mut headers = answer.headers().clone();
    let body = answer.into_body().collect().await.unwrap();
    headers.extend(body.trailers().cloned().unwrap_or_default());
    (headers, body.to_bytes())
}

pub async fn metrics(member: &Running) -> String {
    let request = Request::get("/metrics").body(Full::default()).unwrap();
    String::from_utf8(send(&member.address(), request).await.1.to_vec()).unwrap()
}

/// What comes of a gRPC request with this body: its status, and whether that says why.
pub async fn garbage(address: &str, path: &str, body: &'static [u8]) -> (String, bool) {
    let request = Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let (headers, _) = send(address, request.body(Full::from(body)).unwrap()).await;
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    (text("grpc-status"), !text("grpc-message").is_empty())
}
