//! Trailers in both directions and versions.

use http::{HeaderMap, HeaderValue};
use weft_tests::{RawUpstream, client, upstream::channel};

use crate::Stage;

#[tokio::test]
async fn response_trailers_pass_over_every_pair_of_versions() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        for mut client in [stage.client_h1().await, stage.client_h2().await] {
            let reply = client.send(client::get_with("a", "/trailers", &[("te", "trailers")])).await.unwrap();
            assert_eq!(reply.text(), "body");
            let trailers = reply.trailers.unwrap_or_else(|| panic!("trailers over {:?}", reply.version));
            assert_eq!(trailers["x-sum"], "42", "{:?}", reply.version);
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_trailers_still_gets_the_body() {
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 42\r\n\r\n";
    let stage = Stage::raw(RawUpstream::answering(answer).await).await;
    let mut wire = stage.wire().await;
    for _ in 0..3 {
        let response = wire.exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(response.text(), "body");
    }
    let reply = stage.client_h2().await.get("a", "/").await.unwrap();
    assert_eq!(reply.trailers.expect("HTTP/2 always has room for trailers")["x-sum"], "42");
}

#[tokio::test]
async fn request_trailers_pass() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        let mut client = stage.client_h2().await;
        let (mut sender, body) = channel(2);
        sender.send_data("data".into()).await.unwrap();
        let trailers = HeaderMap::from_iter([("x-check".parse().unwrap(), HeaderValue::from_static("7"))]);
        sender.send_trailers(trailers).await.unwrap();
        drop(sender);
        let mut request = client::request("POST", "a", "/", body);
        request.headers_mut().insert("trailer", HeaderValue::from_static("x-check"));
        let echo = client.send(request).await.unwrap().json();
        assert_eq!(echo["body"], "data");
        assert_eq!(echo["trailers"], serde_json::json!([["x-check", "7"]]), "{echo}");
    }
}

#[tokio::test]
async fn trailers_of_an_http_1_request_pass() {
    for stage in [Stage::h1().await, Stage::h2().await] {
        let mut wire = stage.wire().await;
        let response = wire
            .exchange(
                "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n\
                 4\r\ndata\r\n0\r\nX-Check: 7\r\n\r\n",
            )
            .await;
        let echo = response.json();
        assert_eq!(echo["body"], "data");
        assert_eq!(echo["trailers"], serde_json::json!([["x-check", "7"]]), "{echo}");
    }
}

#[tokio::test]
async fn trailers_cannot_smuggle_what_belongs_into_the_head() {
    let stage = Stage::h1().await;
    let mut wire = stage.wire().await;
    wire.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: host, content-length, x-forwarded-for\r\n\r\n\
         1\r\nd\r\n0\r\nHost: evil\r\nContent-Length: 9\r\nX-Forwarded-For: 6.6.6.6\r\nTransfer-Encoding: gzip\r\n\r\n",
    )
    .await;
    let response = wire.read_response().await;
    if response.status == 400 {
        return;
    }
    let trailers = response.json()["trailers"].to_string();
    for forbidden in ["evil", "content-length", "6.6.6.6", "transfer-encoding"] {
        assert!(!trailers.contains(forbidden), "RFC 9110 section 6.5.1: {trailers}");
    }
}
