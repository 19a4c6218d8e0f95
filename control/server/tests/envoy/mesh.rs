//! A member, what is stored in it, and servers that are endpoints.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use weft_control::{
    Client,
    registry::{self, Endpoint},
};
use weft_store::types::{Command, Op, Put, Write};

use crate::common::{Running, applied, member};

/// A control plane of one member.
pub struct Mesh {
    pub running: Running,
    client: Client,
}

impl Mesh {
    pub async fn start() -> Self {
        let running = member("a", &[]).await;
        let client = running.client();
        Self { running, client }
    }

    pub async fn apply(&mut self, yaml: &str) {
        applied(&mut self.client, yaml).await;
    }

    pub async fn delete(&mut self, kind: &str, name: &str) {
        let target = format!("/v1/objects/{kind}/default/{name}");
        let answer = self.client.change(Method::DELETE, &target, &[], "").await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }

    /// An endpoint of `service` registers, or says something new about itself.
    pub async fn register(&self, service: &str, address: SocketAddr, draining: bool) {
        let endpoint = Endpoint {
            service: service.into(),
            address: address.ip().to_string(),
            port: address.port().into(),
            weight: 1,
            zone: "a".into(),
            draining,
        };
        let key = registry::key_of(&endpoint.check("default").unwrap());
        self.write(Write::Put(Put::spec(key, endpoint.body()))).await;
    }

    pub async fn deregister(&self, service: &str, address: SocketAddr) {
        let name = format!("{service}/{address}");
        self.write(Write::Delete(weft_store::types::ObjectKey::new(registry::ENDPOINT, "default", &name))).await;
    }

    async fn write(&self, write: Write) {
        let op = Op::Write { require: vec![], writes: vec![write] };
        self.running.member.store().write(Command::new("test", 0, op)).await.unwrap();
    }

    /// What the member says of the node.
    pub async fn node(&self, id: &str) -> Option<Value> {
        let nodes = self.client.get("/v1/nodes").await.unwrap().body;
        nodes["nodes"].as_array()?.iter().find(|node| node["node"] == id).cloned()
    }
}

/// Answers every HTTP/1.1 request with its name.
pub struct Upstream {
    pub address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Upstream {
    pub async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, name));
            }
        });
        Self { address, serving }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// The path, and what it has of header `x-test`, come back after the name.
async fn answer(mut stream: TcpStream, name: &str) {
    let mut buffer = Vec::new();
    loop {
        while !buffer.windows(4).any(|window| window == b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut buffer).await, Ok(read) if read > 0) {
                return;
            }
        }
        let head = String::from_utf8_lossy(&buffer).into_owned();
        buffer.clear();
        let path = head.split(' ').nth(1).unwrap_or_default();
        let test = head.lines().find_map(|line| line.strip_prefix("x-test: ")).unwrap_or_default();
        let body = format!("{name} {path} {test}");
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let last = head.contains("connection: close");
        if stream.write_all(response.as_bytes()).await.is_err() || last {
            return;
        }
    }
}

/// Status and body of a GET; 0 when there is no answer.
pub async fn get(to: SocketAddr, host: &str, path: &str) -> (u16, String) {
    let ask = async {
        let mut stream = TcpStream::connect(to).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(std::time::Duration::from_secs(5), ask).await;
    let Ok(Ok(answer)) = answer else { return (0, String::new()) };
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    (status, if chunked { joined(body) } else { body.to_owned() })
}

/// The text that comes in chunks.
fn joined(mut chunks: &str) -> String {
    let mut text = String::new();
    while let Some((length, rest)) = chunks.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        text += &rest[..length];
        chunks = rest[length..].strip_prefix("\r\n").unwrap_or_default();
        if length == 0 {
            break;
        }
    }
    text
}
