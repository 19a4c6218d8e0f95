//! New connections to endpoints: TCP, TLS if the service's policy asks for it, then the HTTP handshake.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::client::TlsStream;

use crate::{
    body::RequestBody, endpoint::Endpoint, identity::client::ClientTlsError, kernel::Kernel, snapshot::Upstream,
    telemetry::metrics::ConnectionGuard, upstream::places::Place, worker::LocalExec,
};

/// Most that hyper buffers for one upstream connection in each direction, in bytes; a response's head has to fit. With
/// a client that does not read, one such buffer is being filled, one is on its way, and the client's side holds more.
const BUFFER: usize = 32 * 1024;
/// Flow-control windows towards upstreams, in bytes: of one stream, and of the connection. The latter has room for all
/// streams that share it: otherwise a few clients that do not read would hold up everybody else.
const H2_WINDOWS: (u32, u32) = (64 * 1024, 16 * 1024 * 1024);

/// A connection to an endpoint, before HTTP. It keeps its place until it is closed, whoever holds it then: the task that
/// drives it, or a tunnel.
#[derive(Debug)]
pub struct Io {
    stream: Stream,
    // After `stream`: the place is free once the socket is closed.
    _place: Place,
}

#[derive(Debug)]
enum Stream {
    /// Cleartext.
    Plain(TcpStream),
    /// TLS, boxed because it is some 1.5 KiB large.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP said no.
    #[error("cannot connect: {0}")]
    Tcp(io::Error),
    /// TLS said no.
    #[error("TLS handshake failed: {0}")]
    Tls(ClientTlsError),
    /// HTTP/2 said no.
    #[error("HTTP/2 handshake failed: {0}")]
    Handshake(hyper::Error),
    /// `timeouts.connect` is over.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
}

/// Opens a connection to `endpoint`, within the connect time-out of `upstream`.
///
/// # Errors
/// What TCP or TLS say, or that it took too long; the place is free again.
pub async fn connect(
    kernel: Option<&dyn Kernel>,
    upstream: &Upstream,
    endpoint: &Endpoint,
    place: Place,
) -> Result<Io, ConnectError> {
    let limit = upstream.policy.timeouts.connect;
    let connecting = async {
        let stream = match kernel {
            None => TcpStream::connect(endpoint.address).await,
            Some(kernel) => announced(kernel, endpoint).await,
        };
        let stream = stream.map_err(ConnectError::Tcp)?;
        stream.set_nodelay(true).map_err(ConnectError::Tcp)?;
        match &upstream.tls {
            None => Ok(Stream::Plain(stream)),
            Some(tls) => {
                let stream = tls.connect(stream, upstream.protocol).await.map_err(ConnectError::Tls)?;
                Ok(Stream::Tls(Box::new(stream)))
            }
        }
    };
    let stream = if limit.is_zero() {
        connecting.await
    } else {
        tokio::time::timeout(limit, connecting).await.unwrap_or(Err(ConnectError::Timeout(limit)))
    };
    Ok(Io { stream: stream?, _place: place })
}

/// Opens a connection that the kernel counts for the endpoint: what happens to it is evidence for the breaker.
async fn announced(kernel: &dyn Kernel, endpoint: &Endpoint) -> io::Result<TcpStream> {
    let socket = if endpoint.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    kernel.attribute(socket.as_fd(), endpoint.id);
    socket.connect(endpoint.address).await
}

/// Starts HTTP/1.1 on a connection; a local task drives it until it ends.
pub async fn http1(io: Io, counted: ConnectionGuard) -> Result<http1::SendRequest<RequestBody>, hyper::Error> {
    let (send, connection) = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(io)).await?;
    tokio::task::spawn_local(async move {
        let _counted = counted;
        // Its requests learn of an error themselves; an idle connection has nobody to tell.
        let _ = connection.with_upgrades().await;
    });
    Ok(send)
}

/// Starts HTTP/2 with prior knowledge (or after ALPN) on a connection; a local task drives it until it ends.
pub async fn http2(io: Io, counted: ConnectionGuard) -> Result<http2::SendRequest<RequestBody>, hyper::Error> {
    let (send, connection) = http2::Builder::new(LocalExec)
        .initial_stream_window_size(H2_WINDOWS.0)
        .initial_connection_window_size(H2_WINDOWS.1)
        .max_send_buf_size(BUFFER)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::task::spawn_local(async move {
        let _counted = counted;
        let _ = connection.await;
    });
    Ok(send)
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
