//! TCP listeners, and captured connections that carry no HTTP: a connection in, a connection out.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::TcpStream,
};

use crate::{
    accept::{Arrived, captured::Captured, rewind::Rewind},
    balance::Pick,
    endpoint::Ticket,
    layer::access,
    resilience::outcome::{Failure, Outcome},
    snapshot::{PortId, PortKind, Target, TcpTarget, Upstream},
    telemetry::metrics::{ConnectionSide, ConnectionState},
    tunnel,
    upstream::{connect, obtain},
    worker::Worker,
};

/// Endpoints tried before a client is let down.
const PICKS: usize = 3;

/// Passes bytes between a client and an endpoint of the TCPRoute's backends.
///
/// # Errors
/// When either side fails.
pub async fn connection(worker: &Rc<Worker>, arrived: Arrived, client: TcpStream) -> io::Result<()> {
    let Arrived { port, peer, captured } = arrived;
    let _counted = worker.telemetry.metrics.connection(ConnectionSide::Downstream, ConnectionState::Active);
    let snapshot = worker.snapshot();
    let Some(PortKind::Tcp(Some(route))) = snapshot.port(port) else {
        tracing::info!(%peer, %port, "connection closed: no TCPRoute is attached to this listener");
        return Ok(());
    };
    match reach(worker, route, &client, peer, captured.as_deref()).await {
        Ok(reached) => pass(worker, reached, client, Bytes::new()).await,
        Err(detail) => {
            refused(route, port, peer, &detail);
            Ok(())
        }
    }
}

/// Says why a client is let down.
pub fn refused(route: &TcpTarget, port: PortId, peer: SocketAddr, detail: &str) {
    tracing::info!(%peer, %port, route = &*route.route, detail, "connection closed");
}

/// A connection to an endpoint for a client.
#[derive(Debug)]
pub struct Reached<'r> {
    /// The endpoint's side.
    pub io: connect::Io,
    /// The backend that was chosen.
    pub target: &'r Target,
    ticket: Ticket,
}

impl Reached<'_> {
    /// It turns out that it is not needed: nothing has been sent to the endpoint.
    pub fn unneeded(self) {
        self.ticket.unsent();
    }
}

/// Opens a connection to an endpoint of one of the backends.
///
/// # Errors
/// Why the client cannot be served, for a log.
pub async fn reach<'r>(
    worker: &Worker,
    route: &'r TcpTarget,
    client: &TcpStream,
    peer: SocketAddr,
    captured: Option<&Captured>,
) -> Result<Reached<'r>, String> {
    let picked = route.backends.pick(worker.random());
    let target = picked.ok_or("the route has no backend with a weight")?;
    let upstream = target.upstream.as_ref();
    let upstream = upstream.ok_or_else(|| format!("service {} or its port does not exist", target.service))?;
    access::check(&upstream.service, peer.ip(), captured).map_err(|refusal| refusal.to_string())?;
    let (io, ticket) = open(worker, upstream, client, peer).await?;
    Ok(Reached { io, target, ticket })
}

async fn open(
    worker: &Worker,
    upstream: &Upstream,
    client: &TcpStream,
    peer: SocketAddr,
) -> Result<(connect::Io, Ticket), String> {
    let hash = crate::balance::hash_str(peer.ip().to_string().as_bytes());
    let mut tried = smallvec::SmallVec::<[u64; PICKS]>::new();
    let mut why = format!("service {} has no usable endpoint", upstream.service.name);
    while tried.len() < PICKS {
        let now = worker.clock.read();
        // Before it waits for a place: that of a connection to a service that is out of order may take for ever.
        match upstream.check(now) {
            Err(unpicked) if tried.is_empty() => return Err(upstream.refusal(unpicked, now).detail.into_owned()),
            Err(_) => break,
            Ok(()) => {}
        }
        let place = tokio::select! {
            biased;
            place = obtain::place(worker, upstream) => place.map_err(|refusal| refusal.to_string())?,
            () = gone(client) => return Err("the client went away while it waited for a connection".into()),
        };
        let now = worker.clock.read();
        let picked = upstream.pick(hash, &tried, now, &mut worker.rng.borrow_mut());
        let Pick { endpoint, probe } = match picked {
            Ok(pick) if !tried.contains(&pick.endpoint.id) => pick,
            Err(unpicked) if tried.is_empty() => return Err(upstream.refusal(unpicked, now).detail.into_owned()),
            _ => break,
        };
        let mut ticket = Ticket::new(endpoint.clone(), probe);
        let connected = connect::connect(worker.shared.kernel.as_deref(), upstream, &endpoint, place).await;
        let done = worker.clock.read();
        let took = done.saturating_duration_since(now);
        // All that is known of a service that speaks no HTTP: whether it takes connections, and how fast.
        let outcome = Outcome { failure: connected.is_err().then_some(Failure::ConnectFailed), took };
        ticket.judge(outcome, done, &mut worker.rng.borrow_mut());
        match connected {
            Ok(io) => {
                endpoint.observe(now, took, done);
                return Ok((io, ticket));
            }
            Err(error) => why = format!("{}: {error}", endpoint.label),
        }
        tried.push(endpoint.id);
    }
    Err(why)
}

/// Waits until a client that is not being read has gone away.
async fn gone(client: &TcpStream) {
    if !matches!(client.peek(&mut [0]).await, Ok(1..)) {
        return;
    }
    // It has said something, and may have closed its side after it. Only a reset is certain.
    let _ = client.ready(Interest::ERROR).await;
}

/// Passes bytes until both directions have ended; `said` is what the endpoint has said already.
///
/// # Errors
/// When either side fails.
pub async fn pass(
    worker: &Rc<Worker>,
    reached: Reached<'_>,
    client: impl AsyncRead + AsyncWrite + Unpin,
    said: Bytes,
) -> io::Result<()> {
    let Reached { io, target, ticket: _ticket } = reached;
    let _held = worker.telemetry.metrics.in_flight(&target.slot);
    let idle = target.deadlines.idle.unwrap_or(Duration::ZERO);
    tunnel::run(client, Rewind::new(io, said), idle, &worker.wheel).await.map(drop)
}
