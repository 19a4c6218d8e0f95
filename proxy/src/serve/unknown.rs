//! Captured connections of which nobody has said what they carry (`appProtocol` was left out).
//!
//! Whoever speaks first tells. A client that begins with HTTP gets HTTP, with routes and everything; whatever else it
//! begins with passes unread. In other protocols the server speaks first, and the client waits for it: a client that is
//! silent for a moment is therefore connected to an endpoint, and the first word of either side decides.
//!
//! ```text
//!  client ── HTTP ─────────────────────▶ pipeline            (a connection made on trial is closed)
//!         ── anything else ────────────▶ endpoint, unread
//!         ── nothing for QUIET ──▶ connect ──▶ server speaks ─▶ endpoint, unread
//!                                          └─▶ client speaks ─▶ as above
//! ```

mod speech;

use std::{error::Error, io, pin::pin, rc::Rc, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{sleep, timeout},
};

use self::speech::{LOOK, Speech, classify};
use super::speak;
use crate::{
    accept::{detect::Detected, rewind::Rewind},
    conn::Conn,
    proxy_tcp::{self, Reached},
    snapshot::TcpTarget,
    telemetry::metrics::{ConnectionSide, ConnectionState},
};

/// A client that is silent for so long waits for the server. HTTP clients send their request right after they have
/// connected, and they are on this host; a server's greeting is late by this much.
const QUIET: Duration = Duration::from_millis(20);

/// A client that has begun with what may become a request has so long to go on with it. Requests come in one piece or
/// nearly so, and something else that looks the same at first must not wait for ever.
const SETTLE: Duration = Duration::from_millis(200);

/// Room for a server's greeting.
const GREETING: usize = 1024;

/// Serves a captured connection of unknown protocol until it ends.
///
/// # Errors
/// What ended it early; for the log only.
pub(super) async fn connection(conn: Rc<Conn>, client: TcpStream) -> Result<(), Box<dyn Error>> {
    let worker = conn.worker.clone();
    let counted = worker.telemetry.metrics.connection(ConnectionSide::Downstream, ConnectionState::Active);
    let registration = worker.connections.register(conn.clone(), counted);
    let snapshot = worker.snapshot();
    let port = snapshot.virtual_port(conn.port);
    let Some(route) = port.and_then(|port| port.unknown.as_ref()) else { return Ok(()) };
    // An endpoint of unknown protocol is asked in HTTP/1.1. A client of HTTP/2 is understood by it or not: without a route
    // to apply there is no need to come between them.
    let opaque_h2 = port.is_some_and(|port| port.implicit.is_some());
    let (said, answered) = (BytesMut::new(), BytesMut::new());
    let mut silence = Silence { conn: &conn, route, client: &client, opaque_h2, said, answered };
    let outcome = silence.end().await;
    let Silence { said, answered, .. } = silence;
    match outcome {
        Ok(Outcome::Ended) => Ok(()),
        Err(detail) => {
            proxy_tcp::refused(route, conn.port, conn.peer, &detail);
            Ok(())
        }
        Ok(Outcome::Http(protocol)) => {
            conn.patient.set(false);
            conn.touch();
            drop(snapshot);
            Box::pin(speak(conn.clone(), client, said, protocol)).await
        }
        Ok(Outcome::Opaque(reached)) => {
            // From here on it is as any TCP connection: those are counted, and not swept.
            let _counted = worker.telemetry.metrics.connection(ConnectionSide::Downstream, ConnectionState::Active);
            drop(registration);
            let client = Rewind::new(client, said.freeze());
            Ok(proxy_tcp::pass(&worker, reached, client, answered.freeze()).await?)
        }
    }
}

/// What becomes of a connection.
enum Outcome<'r> {
    Http(Detected),
    /// Passed on unread.
    Opaque(Reached<'r>),
    /// It was silent for too long, or the node drains.
    Ended,
}

/// A connection on which nobody has spoken yet; then what has been said by the time that it is known what to do.
struct Silence<'a, 'r> {
    conn: &'a Conn,
    route: &'r TcpTarget,
    client: &'a TcpStream,
    /// HTTP/2 passes unread.
    opaque_h2: bool,
    said: BytesMut,
    answered: BytesMut,
}

impl<'r> Silence<'_, 'r> {
    /// Waits until either side speaks.
    async fn end(&mut self) -> Result<Outcome<'r>, String> {
        let (conn, route, client) = (self.conn, self.route, self.client);
        let first = tokio::select! {
            biased;
            () = conn.ended() => return Ok(Outcome::Ended),
            speech = listen(client, &mut self.said) => Some(speech.map_err(gone)?),
            () = sleep(QUIET) => None,
        };
        let first = match first {
            None if self.said.is_empty() => return self.on_trial().await,
            // It has begun, and is given the time to go on.
            None => listen(client, &mut self.said).await.map_err(gone)?,
            Some(speech) => speech,
        };
        match self.http(first) {
            Some(http) => Ok(Outcome::Http(http)),
            None => reach(conn, route, client).await.map(Outcome::Opaque),
        }
    }

    /// The client waits: connects it to an endpoint, and listens to both.
    async fn on_trial(&mut self) -> Result<Outcome<'r>, String> {
        let (conn, route, client) = (self.conn, self.route, self.client);
        // Both may be silent for long, and be well.
        conn.patient.set(true);
        let mut opening = pin!(reach(conn, route, client));
        let mut reached = tokio::select! {
            biased;
            () = conn.ended() => return Ok(Outcome::Ended),
            speech = listen(client, &mut self.said) => match self.http(speech.map_err(gone)?) {
                Some(http) => return Ok(Outcome::Http(http)),
                None => return opening.await.map(Outcome::Opaque),
            },
            reached = &mut opening => reached?,
        };
        let idle = reached.target.deadlines.idle.unwrap_or(Duration::MAX);
        self.answered.reserve(GREETING);
        let speech = tokio::select! {
            biased;
            () = conn.ended() => return Ok(Outcome::Ended),
            speech = listen(client, &mut self.said) => speech.map_err(gone)?,
            // Also when it closes: the client is told, as it would be without Weft.
            said = reached.io.read_buf(&mut self.answered) => {
                said.map_err(|error| format!("the endpoint: {error}"))?;
                Speech::Opaque
            }
            () = sleep(idle) => return Ok(Outcome::Ended),
        };
        Ok(match self.http(speech) {
            Some(http) => {
                reached.unneeded();
                Outcome::Http(http)
            }
            None => Outcome::Opaque(reached),
        })
    }

    const fn http(&self, speech: Speech) -> Option<Detected> {
        match speech {
            Speech::Http1 => Some(Detected::Http1),
            Speech::Http2 if !self.opaque_h2 => Some(Detected::Http2),
            Speech::Http2 | Speech::Opaque | Speech::More => None,
        }
    }
}

async fn reach<'r>(conn: &Conn, route: &'r TcpTarget, client: &TcpStream) -> Result<Reached<'r>, String> {
    proxy_tcp::reach(&conn.worker, route, client, conn.peer, conn.captured.as_deref()).await
}

fn gone(error: io::Error) -> String {
    format!("the client: {error}")
}

/// Reads until it is known what the client speaks. Its bytes are in `said`: giving up loses none, and whoever asks again goes
/// on where this one stopped. A client that closes its side has nothing more to say, which is no HTTP.
async fn listen(client: &TcpStream, said: &mut BytesMut) -> io::Result<Speech> {
    loop {
        match classify(said) {
            Speech::More => {}
            speech => return Ok(speech),
        }
        let read = if said.is_empty() {
            read(client, said).await?
        } else {
            match timeout(SETTLE, read(client, said)).await {
                Ok(read) => read?,
                Err(_) => return Ok(Speech::Opaque),
            }
        };
        if read == 0 {
            return Ok(Speech::Opaque);
        }
    }
}

/// Reads without owning the connection: what is being opened for the client looks at it, too.
async fn read(client: &TcpStream, said: &mut BytesMut) -> io::Result<usize> {
    loop {
        client.readable().await?;
        said.reserve(LOOK);
        match client.try_read_buf(said) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}
