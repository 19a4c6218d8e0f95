//! `weft status`, against a member in this process and nodes that speak just enough.

use std::convert::Infallible;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::StreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, runtime::Runtime, sync::mpsc};
use weft_control::member::{RunningMember, Setup, start};
use weft_wire::{
    DELTA,
    discovery::{Any, DeltaRequest, DeltaResponse, Node, Status},
    prost::Message,
    resource::{OBJECT, REJECTED, Rejected},
};

use crate::{LIMIT, weft};

/// A stream that asks for documents.
struct Stream {
    requests: mpsc::Sender<DeltaRequest>,
    responses: Incoming,
    buffer: BytesMut,
}

impl Stream {
    async fn connect(address: &str, name: &str) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let (requests, queue) = mpsc::channel::<DeltaRequest>(8);
        let frames = futures_util::stream::unfold(queue, async |mut queue| {
            let body = queue.recv().await?.encode_to_vec();
            let mut frame = BytesMut::new();
            frame.put_u8(0);
            frame.put_u32(u32::try_from(body.len()).unwrap());
            frame.put_slice(&body);
            Some((Ok::<_, Infallible>(Frame::data(frame.freeze())), queue))
        });
        let request = http::Request::post(format!("http://{address}{DELTA}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(StreamBody::new(frames.boxed()))
            .unwrap();
        let node = Node { id: name.into(), user_agent_name: "weft".into(), ..Node::default() };
        let first = DeltaRequest { node: Some(node), type_url: OBJECT.into(), ..DeltaRequest::default() };
        requests.send(first).await.unwrap();
        let responses = sender.send_request(request).await.unwrap().into_body();
        Self { requests, responses, buffer: BytesMut::new() }
    }

    async fn next(&mut self) -> DeltaResponse {
        loop {
            if let Some((head, rest)) = self.buffer.split_at_checked(5) {
                let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
                if rest.len() >= length {
                    let message: Bytes = self.buffer.split_to(5 + length).freeze().slice(5..);
                    return DeltaResponse::decode(message).unwrap();
                }
            }
            let frame = tokio::time::timeout(LIMIT, self.responses.frame()).await.expect("a frame in time");
            self.buffer.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
    }

    async fn answer(&self, response: &DeltaResponse, rejected: &[(&str, &str)]) {
        let detail = |(name, reason): &(&str, &str)| {
            Any::of(REJECTED, &Rejected { name: (*name).into(), reason: (*reason).into() })
        };
        let details: Vec<Any> = rejected.iter().map(detail).collect();
        let error_detail = (!details.is_empty()).then(|| Status { details, ..Status::default() });
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let answer = DeltaRequest { type_url, response_nonce, error_detail, ..DeltaRequest::default() };
        self.requests.send(answer).await.unwrap();
    }
}

async fn member(dir: &std::path::Path) -> RunningMember {
    let listen = "127.0.0.1:0".parse().unwrap();
    start(Setup { name: "a".into(), data_dir: dir.into(), listen, advertise: None, join: vec![] }).await.unwrap()
}

/// Asks until the page holds this.
fn until(address: &str, expected: &str) -> (i32, String) {
    let end = std::time::Instant::now() + LIMIT;
    loop {
        let (code, stdout, stderr) = weft(&["status", "--control", address]);
        if stdout.contains(expected) {
            return (code, stdout);
        }
        assert!(std::time::Instant::now() < end, "{code} {stdout}{stderr}");
    }
}

#[test]
fn nodes_are_shown_with_what_they_do_not_take() {
    let (runtime, dir) = (Runtime::new().unwrap(), tempfile::tempdir().unwrap());
    let member = runtime.block_on(member(dir.path()));
    let address = member.address().to_string();
    let (code, stdout, _) = weft(&["status", "--control", &address]);
    assert_eq!((code, stdout.contains("weft proxy --control")), (0, true), "{stdout}");

    let (mut stream, first) = runtime.block_on(async {
        let mut stream = Stream::connect(&address, "n1").await;
        let first = stream.next().await;
        stream.answer(&first, &[]).await;
        (stream, first)
    });
    assert_eq!(first.resources.len(), 0);
    let (code, stdout) = until(&address, "SYNCED");
    assert_eq!(code, 0, "{stdout}");

    let (_file, path) = crate::file(&crate::valid(8080));
    assert_eq!(weft(&["apply", "-f", path.to_str().unwrap(), "--control", &address]).0, 0);
    let (code, stdout) = until(&address, "STALE");
    assert_eq!(code, 1, "{stdout}");
    runtime.block_on(async {
        let response = stream.next().await;
        stream.answer(&response, &[("Gateway/default/web", "port 8080 is taken")]).await;
    });
    let (code, stdout) = until(&address, "NACKED");
    assert!(code == 1 && stdout.contains("n1 does not take Gateway/default/web"), "{stdout}");
    assert!(stdout.contains("port 8080 is taken; what it had stays in force"), "{stdout}");
    let (_, stdout, _) = weft(&["status", "-o", "json", "--control", &address]);
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(found["nodes"][0]["rejections"][0]["reason"], "port 8080 is taken");

    drop(stream);
    let (code, stdout) = until(&address, "NACKED (gone)");
    assert!(code == 0 && stdout.contains("n1 is not connected"), "{stdout}");
    runtime.block_on(member.stop());
    let (code, _, stderr) = weft(&["status", "--control", &address]);
    assert!(code == 3 && stderr.contains("--control"), "{stderr}");
}
