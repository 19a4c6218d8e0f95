//! HTTP/2 connections to servers of the control plane, the same for Weft's API and for gRPC.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// A connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    to: SocketAddr,
    sender: http2::SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Connects with prior knowledge.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let io = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
        io.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { to, sender })
    }

    /// A request with a body of JSON.
    pub async fn json(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.to));
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let (status, body, _) = self.send(request.body(Full::new(body))?).await?;
        Ok((status, body))
    }

    /// A unary gRPC call; the answer's message is not looked at.
    pub async fn grpc(&mut self, method: &str, message: &[u8]) -> Result<()> {
        let mut body = BytesMut::with_capacity(5 + message.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len())?);
        body.put_slice(message);
        let request = Request::post(format!("http://{}{method}", self.to))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body.freeze()))?;
        let (status, _, fields) = self.send(request).await?;
        match fields.get("grpc-status") {
            Some(code) if code == "0" => Ok(()),
            code => bail!("{method}: {status}, grpc-status {code:?}: {:?}", fields.get("grpc-message")),
        }
    }

    /// Status, body, and headers and trailers together.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes, HeaderMap)> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let mut fields = head.headers;
        fields.extend(body.trailers().cloned().unwrap_or_default());
        Ok((head.status, body.to_bytes(), fields))
    }
}
