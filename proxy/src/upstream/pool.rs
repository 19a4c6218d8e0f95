//! A worker's connections to one endpoint. No locks: everything here stays on its worker's thread.
//!
//! HTTP/1.1 connections are checked out exclusively and come back when the response *and* the request have ended;
//! HTTP/2 connections are shared by up to `maxConcurrentStreams` requests.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;

use super::{handover::Queue, places::Places};

use crate::{
    body::{Progress, RequestBody},
    endpoint::Endpoint,
    error::Refusal,
    snapshot::Upstream,
    worker::Clock,
};

/// All pools of a worker, by endpoint id.
#[derive(Debug)]
pub struct Pools {
    pub(super) by_endpoint: RefCell<HashMap<u64, Rc<Pool>, foldhash::fast::RandomState>>,
    clock: Rc<Clock>,
}

/// Connections to one endpoint.
#[derive(Debug)]
pub struct Pool {
    pub(super) endpoint: Arc<Endpoint>,
    /// Of the service, for the whole node.
    pub(super) places: Arc<Places>,
    pub(super) clock: Rc<Clock>,
    pub(super) idle: RefCell<Vec<Http1>>,
    pub(super) shared: RefCell<Vec<Rc<Http2>>>,
    /// Requests that wait for a connection of this pool, or for a place.
    pub(super) queue: Queue,
    /// An HTTP/2 connection is being opened: others wait for it instead of opening one each.
    opening: Cell<bool>,
    opened: Notify,
    /// Why the last attempt to open one failed; for those who waited for it.
    failed: RefCell<Option<Rc<Refusal>>>,
}

/// A checked-out or idle HTTP/1.1 connection.
#[derive(Debug)]
pub struct Http1 {
    /// hyper's handle.
    pub send: http1::SendRequest<RequestBody>,
    /// Requests sent before the one at hand; 0 on a fresh connection.
    pub served: u32,
    /// How long the request at hand has waited for it.
    pub waited: Duration,
    pub(super) since: Instant,
}

/// A shared HTTP/2 connection.
#[derive(Debug)]
pub struct Http2 {
    pub(super) send: http2::SendRequest<RequestBody>,
    pub(super) streams: Cell<u32>,
    served: Cell<u32>,
    pub(super) since: Cell<Instant>,
    /// Streams at once, and requests in all (0 is unlimited), as the last user's policy has them.
    limits: Cell<(u32, u32)>,
    /// It takes no more requests, so that its place becomes free.
    pub(super) retiring: Cell<Option<Instant>>,
    /// It was retired once, and its streams went on: it is not retired again.
    pub(super) stubborn: Cell<bool>,
}

/// What one who waited is handed.
#[derive(Debug)]
pub enum Given {
    /// For HTTP/1.1.
    Http1(Http1),
    /// For HTTP/2.
    Http2(Stream),
}

impl Pools {
    /// No connections yet.
    pub fn new(clock: Rc<Clock>) -> Self {
        Self { by_endpoint: RefCell::default(), clock }
    }

    /// The pool of `endpoint`, which is one of `upstream`.
    pub fn of(&self, upstream: &Upstream, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        if let Some(pool) = self.by_endpoint.borrow().get(&endpoint.id) {
            return pool.clone();
        }
        let pool = Rc::new(Pool {
            endpoint: endpoint.clone(),
            places: upstream.service.places.clone(),
            clock: self.clock.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            queue: Queue::default(),
            opening: Cell::new(false),
            opened: Notify::new(),
            failed: RefCell::default(),
        });
        self.by_endpoint.borrow_mut().insert(endpoint.id, pool.clone());
        pool
    }

    /// Closes what has been idle for longer than its service allows, and what belongs to endpoints that are gone.
    pub fn sweep(&self, now: Instant) {
        self.by_endpoint.borrow_mut().retain(|_, pool| {
            if pool.endpoint.is_removed() {
                return false;
            }
            let limit = pool.endpoint.idle_timeout();
            let fresh = |since: Instant| now.saturating_duration_since(since) < limit;
            pool.idle.borrow_mut().retain(|conn| !conn.send.is_closed() && fresh(conn.since));
            pool.shared
                .borrow_mut()
                .retain(|conn| !conn.send.is_closed() && (conn.streams.get() > 0 || fresh(conn.since.get())));
            pool.review(now);
            true
        });
    }

    /// Idle and shared connections held.
    #[cfg(test)]
    pub fn connections(&self) -> usize {
        self.by_endpoint.borrow().values().map(|pool| pool.idle.borrow().len() + pool.shared.borrow().len()).sum()
    }
}

impl Pool {
    /// The most recently used idle connection that is still open.
    pub async fn checkout(&self) -> Option<Http1> {
        loop {
            let conn = self.idle.borrow_mut().pop()?;
            if conn.send.is_ready() {
                return Some(conn);
            }
            // Its task may have to run once more to notice that the last exchange has ended.
            if !conn.send.is_closed() {
                tokio::task::yield_now().await;
                if conn.send.is_ready() {
                    return Some(conn);
                }
            }
        }
    }

    /// A lease on a connection that was just opened.
    pub fn fresh(&self, send: http1::SendRequest<RequestBody>) -> Http1 {
        Http1 { send, served: 0, waited: Duration::ZERO, since: self.clock.read() }
    }

    /// A shared connection with a free stream.
    pub fn share(&self, upstream: &Upstream) -> Option<Rc<Http2>> {
        let limits = Http2::limits(upstream);
        let mut shared = self.shared.borrow_mut();
        shared.retain(|conn| {
            conn.limits.set(limits);
            !(conn.send.is_closed() || (conn.is_worn() && conn.streams.get() == 0))
        });
        shared.iter().find(|conn| conn.has_room() && !self.is_retiring(conn)).cloned()
    }

    /// Whether somebody opens an HTTP/2 connection.
    pub fn is_opening(&self) -> bool {
        self.opening.get()
    }

    /// Waits while somebody else opens a connection; `None` when that may have made one, the right to open one when
    /// nobody does.
    ///
    /// # Errors
    /// What the other one met: trying again at once would make the last of many wait many times as long.
    pub async fn wait_or_open(self: &Rc<Self>) -> Result<Option<Opening>, Refusal> {
        if self.opening.replace(true) {
            self.opened.notified().await;
            return match &*self.failed.borrow() {
                Some(refusal) => Err(Refusal::clone(refusal)),
                None => Ok(None),
            };
        }
        self.failed.take();
        Ok(Some(Opening(self.clone())))
    }

    /// Tells those who wait why there is no connection.
    pub fn fail(&self, refusal: &Refusal) {
        self.failed.replace(Some(Rc::new(refusal.clone())));
    }

    /// Adds a connection that was just opened.
    pub fn add(&self, send: http2::SendRequest<RequestBody>, upstream: &Upstream) -> Rc<Http2> {
        let conn = Rc::new(Http2 {
            send,
            streams: Cell::new(0),
            served: Cell::new(0),
            since: Cell::new(self.clock.read()),
            limits: Cell::new(Http2::limits(upstream)),
            retiring: Cell::new(None),
            stubborn: Cell::new(false),
        });
        self.shared.borrow_mut().push(conn.clone());
        conn
    }
}

impl Http2 {
    fn limits(upstream: &Upstream) -> (u32, u32) {
        let pool = &upstream.policy.connection_pool;
        (pool.max_concurrent_streams.max(1), pool.max_requests_per_connection)
    }

    /// Whether it has served as many requests as it may.
    pub(super) fn is_worn(&self) -> bool {
        let (_, requests) = self.limits.get();
        requests != 0 && self.served.get() >= requests
    }

    /// Whether it takes another request.
    pub(super) fn has_room(&self) -> bool {
        !self.send.is_closed() && !self.is_worn() && self.streams.get() < self.limits.get().0
    }
}

/// The right to open an HTTP/2 connection; dropping it lets the next one try.
#[derive(Debug)]
pub struct Opening(Rc<Pool>);

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.set(false);
        self.0.opened.notify_waiters();
    }
}

/// What a response holds on to until it has ended.
#[derive(Debug)]
pub enum Lease {
    /// An exclusive connection; goes back to the pool by [`Lease::finish`], is closed otherwise.
    Http1 {
        /// Where it goes back to.
        pool: Rc<Pool>,
        /// Taken when it goes back.
        conn: Option<Http1>,
        /// The request's body: the connection is reusable only once all of it has been sent.
        progress: Option<Rc<Progress>>,
        /// 0 is unlimited.
        max_requests: u32,
    },
    /// A stream of a shared connection.
    Http2(Stream),
}

/// A stream in use; gives its place back when dropped.
#[derive(Debug)]
pub struct Stream {
    pub(super) conn: Rc<Http2>,
    pool: Rc<Pool>,
    /// How long the request at hand has waited for it.
    pub waited: Duration,
}

impl Stream {
    /// Takes a stream of `conn`.
    pub fn open(conn: Rc<Http2>, pool: &Rc<Pool>) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        conn.served.set(conn.served.get() + 1);
        Self { conn, pool: pool.clone(), waited: Duration::ZERO }
    }

    /// hyper's handle.
    pub fn sender(&self) -> http2::SendRequest<RequestBody> {
        self.conn.send.clone()
    }

    /// Whether other requests were sent on this connection before.
    pub fn reused(&self) -> bool {
        self.conn.served.get() > 1
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.conn.streams.set(self.conn.streams.get().saturating_sub(1));
        self.conn.since.set(self.pool.clock.now());
        if self.pool.places.pressed() {
            self.pool.stream_ended(&self.conn);
        }
    }
}

impl Lease {
    /// The response has ended cleanly: an HTTP/1.1 connection may serve the next request.
    pub fn finish(&mut self) {
        let Self::Http1 { pool, conn, progress, max_requests } = self else { return };
        let Some(mut conn) = conn.take() else { return };
        conn.served += 1;
        conn.waited = Duration::ZERO;
        let sent = progress.as_ref().is_none_or(|progress| progress.done.get());
        let worn = *max_requests != 0 && conn.served >= *max_requests;
        if sent && !worn && !conn.send.is_closed() && !pool.endpoint.is_removed() {
            conn.since = pool.clock.now();
            pool.settle(conn);
        }
    }

    /// When the connection was opened, if this is the first exchange on it.
    pub fn opened(&self) -> Option<Instant> {
        match self {
            Self::Http1 { conn, .. } => conn.as_ref().filter(|conn| conn.served == 0).map(|conn| conn.since),
            Self::Http2(stream) => (!stream.reused()).then(|| stream.conn.since.get()),
        }
    }

    /// How long the request waited for its connection, because the service had as many as it may.
    pub fn waited(&self) -> Duration {
        match self {
            Self::Http1 { conn, .. } => conn.as_ref().map_or(Duration::ZERO, |conn| conn.waited),
            Self::Http2(stream) => stream.waited,
        }
    }

    /// The connection will not be used again (`Connection: close`, an upgrade).
    pub fn forfeit(&mut self) {
        if let Self::Http1 { max_requests, .. } = self {
            *max_requests = 1;
        }
    }
}
