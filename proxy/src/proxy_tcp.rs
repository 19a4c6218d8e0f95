//! TCP listeners: a connection in, a connection out.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{io::Interest, net::TcpStream};

use crate::{
    balance::Pick,
    endpoint::Ticket,
    resilience::outcome::{Failure, Outcome},
    snapshot::{PortId, PortKind, Target, Upstream},
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
/// When no endpoint can be reached, or when either side fails.
pub async fn connection(worker: &Rc<Worker>, port: PortId, client: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let _counted = worker.telemetry.metrics.connection(ConnectionSide::Downstream, ConnectionState::Active);
    let snapshot = worker.snapshot();
    let Some(PortKind::Tcp(Some(route))) = snapshot.port(port).map(|port| &port.kind) else {
        tracing::info!(%peer, %port, "connection closed: no TCPRoute is attached to this listener");
        return Ok(());
    };
    let refused = |detail: String| {
        tracing::info!(%peer, %port, route = &*route.route, detail, "connection closed");
        Ok(())
    };
    let Some(target) = route.backends.pick(worker.random()) else {
        return refused("the route has no backend with a weight".into());
    };
    let Some(upstream) = target.upstream.as_ref() else {
        return refused(format!("service {} or its port does not exist", target.service));
    };
    match open(worker, upstream, &client, peer).await {
        Ok((io, ticket)) => pass(worker, target, client, io, ticket).await,
        Err(detail) => refused(detail),
    }
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
        let connected = connect::connect(upstream, &endpoint, place).await;
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

async fn pass(
    worker: &Rc<Worker>,
    target: &Target,
    client: TcpStream,
    server: connect::Io,
    _ticket: Ticket,
) -> io::Result<()> {
    let _held = worker.telemetry.metrics.in_flight(&target.slot);
    let idle = target.deadlines.idle.unwrap_or(Duration::ZERO);
    tunnel::run(client, server, idle, &worker.wheel).await.map(drop)
}
