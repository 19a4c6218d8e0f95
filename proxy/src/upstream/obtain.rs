//! How a request comes by a connection when none is idle: a place is taken or waited for, then a connection is opened;
//! or somebody else's connection becomes free first.

use std::{future::poll_fn, pin::Pin, rc::Rc, task::Poll, time::Duration};

use tokio::sync::oneshot;

use super::{
    connect::{self, ConnectError},
    places::{Asked, Full, Limits, Place, Waiting},
    pool::{Given, Http1, Pool, Stream},
    send::{SendError, Slot},
};
use crate::{
    endpoint::Endpoint,
    error::{Reason, Refusal},
    snapshot::Upstream,
    telemetry::metrics::{ConnectionGuard, ConnectionSide, ConnectionState},
    worker::Worker,
};

/// What to do when the service has as many connections as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Wait for one, if there is room to wait.
    Wait,
    /// Give up at once, and leave the last places to those who wait.
    Never,
}

/// An HTTP/1.1 connection that is ready for a request; none was idle.
pub async fn http1(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Endpoint,
    pool: &Rc<Pool>,
    slot: &Slot,
) -> Result<Http1, SendError> {
    loop {
        let place = match place_or_connection(worker, upstream, pool, slot).await? {
            Turn::Place(place) => place,
            Turn::Given(Given::Http1(mut conn), waited) => {
                // Its task may have to run once more to notice that the last exchange has ended.
                if conn.send.ready().await.is_ok() {
                    conn.waited = waited;
                    return Ok(conn);
                }
                continue;
            }
            Turn::Given(Given::Http2(_), _) => continue,
        };
        let opened = async {
            let io = connect::connect(worker.shared.kernel.as_deref(), upstream, endpoint, place).await?;
            connect::http1(io, counted(worker)).await.map_err(ConnectError::Handshake)
        };
        return match opened.await {
            Ok(send) => Ok(pool.fresh(send)),
            Err(error) => Err(SendError::connect(&error, endpoint)),
        };
    }
}

/// A stream of an HTTP/2 connection.
pub async fn http2(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Endpoint,
    pool: &Rc<Pool>,
    slot: &Slot,
) -> Result<Stream, SendError> {
    let mut place = None;
    loop {
        if let Some(conn) = pool.share(upstream) {
            return Ok(Stream::open(conn, pool));
        }
        // While somebody opens a connection, no other place is needed yet.
        if place.is_none() && !pool.is_opening() {
            match Box::pin(place_or_connection(worker, upstream, pool, slot)).await? {
                Turn::Place(taken) => place = Some(taken),
                Turn::Given(Given::Http2(mut stream), waited) => {
                    stream.waited = waited;
                    return Ok(stream);
                }
                Turn::Given(Given::Http1(_), _) => {}
            }
            // Much may have happened while it waited.
            continue;
        }
        let turn = pool.wait_or_open().await;
        let Some(opening) = turn.map_err(SendError::unprocessed)? else { continue };
        let Some(place) = place.take() else { continue };
        let opened = async {
            let io = connect::connect(worker.shared.kernel.as_deref(), upstream, endpoint, place).await?;
            connect::http2(io, counted(worker)).await.map_err(ConnectError::Handshake)
        };
        return match opened.await {
            Ok(send) => {
                let stream = Stream::open(pool.add(send, upstream), pool);
                drop(opening);
                pool.offer(&stream.conn);
                Ok(stream)
            }
            Err(error) => {
                let error = SendError::connect(&error, endpoint);
                pool.fail(&error.refusal);
                Err(error)
            }
        };
    }
}

/// The right to open a connection that no pool will hold.
///
/// # Errors
/// `overloaded` when too many wait already.
pub async fn place(worker: &Worker, upstream: &Upstream) -> Result<Place, Refusal> {
    match upstream.service.places.ask().map_err(|Full| overloaded(upstream))? {
        Asked::Place(place) => Ok(place),
        Asked::Wait(waiting) => {
            worker.search_for(&waiting, &upstream.service.places);
            Ok(waiting.place().await)
        }
    }
}

/// What one who asked for a place got.
enum Turn {
    Place(Place),
    /// A connection of this worker came first; after how long.
    Given(Given, Duration),
}

async fn place_or_connection(
    worker: &Worker,
    upstream: &Upstream,
    pool: &Rc<Pool>,
    slot: &Slot,
) -> Result<Turn, SendError> {
    let refused = || SendError::unprocessed(overloaded(upstream));
    let places = &upstream.service.places;
    if slot.patience == Patience::Never {
        return places.spare().map(Turn::Place).ok_or_else(refused);
    }
    match places.ask().map_err(|Full| refused())? {
        Asked::Place(place) => Ok(Turn::Place(place)),
        Asked::Wait(waiting) => {
            slot.queued.set(true);
            let turn = wait(worker, pool, waiting).await;
            slot.queued.set(false);
            slot.served.set(Some(worker.clock.read()));
            Ok(turn)
        }
    }
}

async fn wait(worker: &Worker, pool: &Rc<Pool>, waiting: Waiting) -> Turn {
    let start = worker.clock.now();
    let mut queued = Queued::new(pool, waiting.ticket);
    // Dropped before `queued`: a connection that goes on to the next must not find this one waiting.
    let mut waiting = waiting;
    worker.search_for(&waiting, &pool.places);
    poll_fn(|cx| {
        if let Poll::Ready(Ok(given)) = Pin::new(&mut queued.receiver).poll(cx) {
            let waited = worker.clock.read().saturating_duration_since(start);
            return Poll::Ready(Turn::Given(given, waited));
        }
        waiting.poll(cx).map(Turn::Place)
    })
    .await
}

/// A turn in the pool's own queue. Dropping it gives up; what was handed over in that moment goes to the next.
struct Queued<'p> {
    pool: &'p Rc<Pool>,
    ticket: u64,
    receiver: oneshot::Receiver<Given>,
}

impl<'p> Queued<'p> {
    fn new(pool: &'p Rc<Pool>, ticket: u64) -> Self {
        let (sender, receiver) = oneshot::channel();
        pool.queue.join(ticket, sender);
        Self { pool, ticket, receiver }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.pool.queue.leave(self.ticket);
        self.receiver.close();
        if let Ok(Given::Http1(conn)) = self.receiver.try_recv() {
            self.pool.settle(conn);
        }
    }
}

/// Counts a connection to an endpoint for as long as it is open.
fn counted(worker: &Worker) -> ConnectionGuard {
    worker.telemetry.metrics.connection(ConnectionSide::Upstream, ConnectionState::Active)
}

/// The time-out came before a connection did: no endpoint is to blame.
pub fn too_late(upstream: &Upstream, over: &Refusal) -> SendError {
    let (name, Limits { connections, .. }) = (&upstream.service.name, upstream.service.places.limits());
    let detail = format!("all of maxConnections: {connections} of service {name} were in use: {}", over.detail);
    SendError::unprocessed(Refusal::with(Reason::Overloaded, detail))
}

fn overloaded(upstream: &Upstream) -> Refusal {
    let (name, Limits { connections, pending }) = (&upstream.service.name, upstream.service.places.limits());
    let detail = format!(
        "service {name} has maxPendingRequests: {pending} waiting for one of maxConnections: {connections} connections"
    );
    Refusal::with(Reason::Overloaded, detail)
}
