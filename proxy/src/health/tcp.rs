//! Connecting: all that a TCP probe does, and how the others begin.

use std::{net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::{Failure, Tls};

/// TCP, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Ready for hyper.
pub(super) type Io = TokioIo<Box<dyn Stream>>;

pub(super) struct Connection {
    pub(super) io: Io,
    /// Whether ALPN chose HTTP/2; None if nothing was negotiated.
    pub(super) alpn_h2: Option<bool>,
}

pub(super) async fn connect(address: SocketAddr, tls: Option<&Tls>) -> Result<Connection, Failure> {
    let stream = TcpStream::connect(address).await.map_err(Failure::Connect)?;
    // Failing here costs latency at most.
    let _ = stream.set_nodelay(true);
    let Some((config, name)) = tls else {
        return Ok(Connection { io: TokioIo::new(Box::new(stream)), alpn_h2: None });
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(name.clone(), stream).await.map_err(Failure::Tls)?;
    let alpn_h2 = stream.get_ref().1.alpn_protocol().map(|protocol| protocol == b"h2");
    Ok(Connection { io: TokioIo::new(Box::new(stream)), alpn_h2 })
}
