//! Accepting TLS without trusting the peer: a bounded number of handshakes at once, each with a deadline.
//!
//! One [`Handshakes`] belongs to one worker. Waiting for a permit counts against the deadline, so a flood of stalled
//! clients delays others by one deadline at most, and the number of waiting tasks is bounded by the accept loop's own
//! connection limit.

use std::{io, sync::Arc, time::Duration};

use rustls::{InvalidMessage, ProtocolVersion, ServerConfig};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{ALPN_H2, ALPN_HTTP1};

/// Handshakes of one worker.
#[derive(Debug)]
pub struct Handshakes {
    permits: Semaphore,
    timeout: Duration,
}

/// A finished handshake.
#[derive(Debug)]
pub struct Handshake<IO> {
    /// The encrypted connection.
    pub stream: TlsStream<IO>,
    /// What the client asked to speak.
    pub alpn: Alpn,
    /// The name the client asked for, lower case.
    pub sni: Option<Arc<str>>,
    /// `1.2` or `1.3`, for spans and logs.
    pub version: &'static str,
    /// Whether the client continued an earlier session.
    pub resumed: bool,
}

/// The application protocol that the handshake settled on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `h2`
    Http2,
    /// `http/1.1`
    Http1,
    /// The client named none: HTTP/1.1, as browsers and RFC 9113 have it.
    None,
}

impl Alpn {
    /// From the negotiated name.
    pub fn of(name: Option<&[u8]>) -> Self {
        match name {
            Some(name) if name == ALPN_H2 => Self::Http2,
            Some(name) if name == ALPN_HTTP1 => Self::Http1,
            _ => Self::None,
        }
    }
}

/// Why a client got no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Too many handshakes on this worker for the whole deadline.
    #[error("too many TLS handshakes at once")]
    Overloaded,
    /// The client did not finish in time.
    #[error("the client did not finish its TLS handshake in time")]
    Timeout,
    /// The client went away.
    #[error("the client left during the TLS handshake")]
    Closed,
    /// The client does not speak TLS.
    #[error("the client does not speak TLS (cleartext HTTP on an HTTPS port?)")]
    NotTls,
    /// Nothing in common: version, cipher suite, signature or application protocol.
    #[error("no common TLS parameters: {0}")]
    Incompatible(rustls::Error),
    /// The client refused our certificate, or sent another alert.
    #[error("the client ended the handshake: {0}")]
    Refused(rustls::Error),
    /// Any other breach of protocol.
    #[error("TLS handshake failed: {0}")]
    Tls(rustls::Error),
    /// The socket failed.
    #[error("connection failed during the TLS handshake: {0}")]
    Io(io::Error),
}

impl HandshakeError {
    /// Label for metrics: few values, stable.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotTls => "not_tls",
            Self::Incompatible(_) => "incompatible",
            Self::Refused(_) => "refused",
            Self::Tls(_) => "protocol",
            Self::Io(_) => "io",
        }
    }

    fn classify(error: io::Error) -> Self {
        use rustls::Error as E;
        let kind = error.kind();
        match error.downcast::<rustls::Error>() {
            Ok(E::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge,
            )) => Self::NotTls,
            Ok(error @ (E::PeerIncompatible(_) | E::NoApplicationProtocol)) => Self::Incompatible(error),
            Ok(error @ E::AlertReceived(_)) => Self::Refused(error),
            Ok(error) => Self::Tls(error),
            Err(_) if matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Self::Closed,
            Err(_) if kind == io::ErrorKind::BrokenPipe => Self::Closed,
            Err(error) => Self::Io(error),
        }
    }
}

impl Handshakes {
    /// At most `limit` at once, each within `timeout`.
    pub fn new(limit: usize, timeout: Duration) -> Self {
        Self { permits: Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)), timeout }
    }

    /// How many may begin right now without waiting.
    pub fn available(&self) -> usize {
        self.permits.available_permits()
    }

    /// Takes a client through the handshake.
    pub async fn accept<IO>(&self, io: IO, config: Arc<ServerConfig>) -> Result<Handshake<IO>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let Ok(permit) = tokio::time::timeout_at(deadline, self.permits.acquire()).await else {
            return Err(HandshakeError::Overloaded);
        };
        let accepted = tokio::time::timeout_at(deadline, TlsAcceptor::from(config).accept(io)).await;
        drop(permit);
        let stream = match accepted {
            Err(_) => return Err(HandshakeError::Timeout),
            Ok(Err(error)) => return Err(HandshakeError::classify(error)),
            Ok(Ok(stream)) => stream,
        };
        let (_, session) = stream.get_ref();
        Ok(Handshake {
            alpn: Alpn::of(session.alpn_protocol()),
            sni: session.server_name().map(|name| name.to_ascii_lowercase().into()),
            version: if session.protocol_version() == Some(ProtocolVersion::TLSv1_2) { "1.2" } else { "1.3" },
            resumed: session.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            stream,
        })
    }
}

#[cfg(test)]
mod tests;
