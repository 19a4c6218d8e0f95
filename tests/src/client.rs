//! HTTP clients of one connection each, on hyper.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::upstream::{Body, empty, full, one};

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

/// One connection.
pub struct Client {
    sender: Sender,
    task: JoinHandle<()>,
    scheme: &'static str,
}

/// A complete response.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
    /// Why the body ended early.
    pub error: Option<String>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        one(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// Name of the upstream that echoed.
    pub fn upstream(&self) -> String {
        self.json()["upstream"].as_str().unwrap().to_owned()
    }

    /// Asserts that Weft itself answered, with this status and reason.
    pub fn assert_refused(&self, status: u16, reason: &str) {
        assert_eq!(
            (self.status.as_u16(), self.header("x-weft-reason"), self.header("server")),
            (status, Some(reason), Some("weft")),
            "{self:?}"
        );
    }
}

impl Client {
    pub async fn h1(addr: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let task = tokio::spawn(async move { drop(connection.with_upgrades().await) });
        Ok(Self { sender: Sender::H1(sender), task, scheme: "http" })
    }

    /// HTTP/2 with prior knowledge.
    pub async fn h2(addr: SocketAddr) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender: Sender::H2(sender), task, scheme: "http" })
    }

    /// TLS; what ALPN chooses is spoken.
    pub async fn tls(addr: SocketAddr, name: &str, config: Arc<rustls::ClientConfig>) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await.map_err(text)?;
        let server = ServerName::try_from(name.to_owned()).map_err(text)?;
        let stream = TlsConnector::from(config).connect(server, stream).await.map_err(text)?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let (sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
            let task = tokio::spawn(async move { drop(connection.await) });
            return Ok(Self { sender: Sender::H2(sender), task, scheme: "https" });
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender: Sender::H1(sender), task, scheme: "https" })
    }

    pub fn is_h2(&self) -> bool {
        matches!(self.sender, Sender::H2(_))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::H1(sender) => sender.is_closed(),
            Sender::H2(sender) => sender.is_closed(),
        }
    }

    /// Sends and returns the response with its body still streaming.
    pub async fn open(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, String> {
        match &mut self.sender {
            Sender::H1(sender) => {
                sender.ready().await.map_err(text)?;
                sender.send_request(request).await.map_err(text)
            }
            Sender::H2(sender) => {
                let host = request.headers_mut().remove("host").expect("requests are built with a host");
                let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                *request.uri_mut() =
                    format!("{}://{}{path}", self.scheme, host.to_str().unwrap()).parse().map_err(text)?;
                sender.ready().await.map_err(text)?;
                sender.send_request(request).await.map_err(text)
            }
        }
    }

    /// Sends and reads the whole response; a body that breaks is in [`Reply::error`].
    pub async fn send(&mut self, request: Request<Body>) -> Result<Reply, String> {
        Ok(collect(self.open(request).await?).await)
    }

    pub async fn get(&mut self, host: &str, path: &str) -> Result<Reply, String> {
        self.send(get(host, path)).await
    }

    pub async fn post(&mut self, host: &str, path: &str, body: impl Into<Bytes>) -> Result<Reply, String> {
        self.send(request("POST", host, path, full(body))).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads a response to its end.
pub async fn collect(response: Response<Incoming>) -> Reply {
    let (head, mut body) = response.into_parts();
    let mut reply = Reply {
        status: head.status,
        version: head.version,
        headers: head.headers,
        body: Bytes::new(),
        trailers: None,
        error: None,
    };
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) if frame.is_trailers() => reply.trailers = frame.into_trailers().ok(),
            Ok(frame) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Err(error) => {
                reply.error = Some(text(error));
                break;
            }
        }
    }
    reply.body = bytes.into();
    reply
}

pub fn request(method: &str, host: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(path).header("host", host).body(body).unwrap()
}

pub fn get(host: &str, path: &str) -> Request<Body> {
    request("GET", host, path, empty())
}

/// A GET with more headers.
pub fn get_with(host: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = get(host, path);
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    request
}

/// One request on its own HTTP/1.1 connection.
pub async fn get_once(addr: SocketAddr, host: &str, path: &str) -> Result<Reply, String> {
    Client::h1(addr).await?.get(host, path).await
}

fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
