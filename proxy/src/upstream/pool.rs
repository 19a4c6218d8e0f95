//! A worker's connections to one endpoint. No locks: everything here stays on its worker's thread.
//!
//! HTTP/1.1 connections are checked out exclusively and come back when the response *and* the request have ended;
//! HTTP/2 connections are shared by up to `maxConcurrentStreams` requests.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use hyper::client::conn::{http1, http2};
use tokio::sync::Notify;

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
    by_endpoint: RefCell<HashMap<u64, Rc<Pool>, foldhash::fast::RandomState>>,
    clock: Rc<Clock>,
}

/// Connections to one endpoint.
#[derive(Debug)]
pub struct Pool {
    endpoint: Arc<Endpoint>,
    clock: Rc<Clock>,
    idle: RefCell<Vec<Http1>>,
    shared: RefCell<Vec<Rc<Http2>>>,
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
    since: Instant,
}

/// A shared HTTP/2 connection.
#[derive(Debug)]
pub struct Http2 {
    send: http2::SendRequest<RequestBody>,
    streams: Cell<u32>,
    served: Cell<u32>,
    since: Cell<Instant>,
}

impl Pools {
    /// No connections yet.
    pub fn new(clock: Rc<Clock>) -> Self {
        Self { by_endpoint: RefCell::default(), clock }
    }

    /// The pool of `endpoint`.
    pub fn of(&self, endpoint: &Arc<Endpoint>) -> Rc<Pool> {
        if let Some(pool) = self.by_endpoint.borrow().get(&endpoint.id) {
            return pool.clone();
        }
        let pool = Rc::new(Pool {
            endpoint: endpoint.clone(),
            clock: self.clock.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
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
        Http1 { send, served: 0, since: self.clock.now() }
    }

    /// A shared connection with a free stream.
    pub fn share(&self, upstream: &Upstream) -> Option<Rc<Http2>> {
        let pool = &upstream.policy.connection_pool;
        let mut shared = self.shared.borrow_mut();
        let limit = pool.max_requests_per_connection;
        let worn = |conn: &Http2| limit != 0 && conn.served.get() >= limit;
        shared.retain(|conn| !(conn.send.is_closed() || (worn(conn) && conn.streams.get() == 0)));
        shared.iter().find(|conn| !worn(conn) && conn.streams.get() < pool.max_concurrent_streams.max(1)).cloned()
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
    pub fn add(&self, send: http2::SendRequest<RequestBody>) -> Rc<Http2> {
        let conn =
            Rc::new(Http2 { send, streams: Cell::new(0), served: Cell::new(0), since: Cell::new(self.clock.now()) });
        self.shared.borrow_mut().push(conn.clone());
        conn
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
    conn: Rc<Http2>,
    clock: Rc<Clock>,
}

impl Stream {
    /// Takes a stream of `conn`.
    pub fn open(conn: Rc<Http2>, pool: &Pool) -> Self {
        conn.streams.set(conn.streams.get() + 1);
        conn.served.set(conn.served.get() + 1);
        Self { conn, clock: pool.clock.clone() }
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
        self.conn.since.set(self.clock.now());
    }
}

impl Lease {
    /// The response has ended cleanly: an HTTP/1.1 connection may serve the next request.
    pub fn finish(&mut self) {
        let Self::Http1 { pool, conn, progress, max_requests } = self else { return };
        let Some(mut conn) = conn.take() else { return };
        conn.served += 1;
        let sent = progress.as_ref().is_none_or(|progress| progress.done.get());
        let worn = *max_requests != 0 && conn.served >= *max_requests;
        if sent && !worn && !conn.send.is_closed() && !pool.endpoint.is_removed() {
            conn.since = pool.clock.now();
            pool.idle.borrow_mut().push(conn);
        }
    }

    /// Whether this is the first exchange on its connection.
    pub fn is_fresh(&self) -> bool {
        match self {
            Self::Http1 { conn, .. } => conn.as_ref().is_some_and(|conn| conn.served == 0),
            Self::Http2(stream) => !stream.reused(),
        }
    }

    /// The connection will not be used again (`Connection: close`, an upgrade).
    pub fn forfeit(&mut self) {
        if let Self::Http1 { max_requests, .. } = self {
            *max_requests = 1;
        }
    }
}
