//! Upgraded connections and CONNECT: once both sides have agreed, bytes pass unread.

use std::{io, rc::Rc, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{conn::Conn, snapshot::Target, telemetry::metrics::InFlightGuard, tunnel};

/// A tunnel that both sides have agreed on.
#[derive(Debug)]
pub struct Tunnel {
    server: OnUpgrade,
    idle: Duration,
    _held: InFlightGuard,
}

/// Where the client's bytes come from once the response has been sent.
#[derive(Debug)]
pub enum Client {
    /// The connection itself: whoever serves it takes over.
    Http1,
    /// A stream.
    Http2(OnUpgrade),
}

impl Tunnel {
    /// A tunnel to the upstream's side of an upgrade.
    pub fn new(conn: &Conn, server: OnUpgrade, target: &Target) -> Self {
        Self {
            server,
            idle: target.deadlines.idle.unwrap_or(Duration::ZERO),
            _held: conn.worker.telemetry.metrics.in_flight(&target.slot),
        }
    }

    /// Starts it, or leaves it to the task that serves the connection.
    pub fn start(self, conn: &Rc<Conn>, client: Client) {
        let stream = match client {
            Client::Http1 => {
                conn.tunnel.replace(Some(self));
                return;
            }
            Client::Http2(stream) => stream,
        };
        let conn = conn.clone();
        tokio::task::spawn_local(async move {
            let ended = match stream.await {
                Ok(client) => self.run(TokioIo::new(client), &conn).await,
                Err(error) => Err(io::Error::other(error)),
            };
            log(ended, &conn);
        });
    }

    /// Passes bytes until both directions have ended.
    ///
    /// # Errors
    /// What ended it early.
    pub async fn run(self, client: impl AsyncRead + AsyncWrite + Unpin, conn: &Conn) -> io::Result<()> {
        let server = self.server.await.map_err(io::Error::other)?;
        tunnel::run(client, TokioIo::new(server), self.idle, &conn.worker.wheel).await.map(drop)
    }
}

/// A tunnel's end is of interest to somebody who debugs only.
pub fn log(ended: io::Result<()>, conn: &Conn) {
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %conn.peer, "tunnel ended");
    }
}
