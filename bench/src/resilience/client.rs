//! One HTTP/1.1 connection, for requests that a load generator does not make.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Request, Response, header::HOST};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A connection; after an error it is of no more use.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    /// Connects.
    pub async fn connect(target: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(target).await.with_context(|| format!("connect to {target}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        Ok(Self { sender, host: target.to_string() })
    }

    /// Sends one request and returns its whole answer. Nothing is ever sent twice.
    pub async fn send(&mut self, request: http::request::Builder, body: Bytes) -> Result<Response<Bytes>> {
        self.sender.ready().await?;
        let request: Request<_> = request.header(HOST, &self.host).body(Full::new(body))?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    /// Whether another request can be sent.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// One GET on a connection of its own.
pub async fn get(target: SocketAddr, path: &str) -> Result<Response<Bytes>> {
    let mut client = Client::connect(target).await?;
    client.send(Request::get(path), Bytes::new()).await.with_context(|| format!("GET {path} from {target}"))
}
