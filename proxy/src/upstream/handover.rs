//! What becomes of a connection that could serve another request: it stays, goes to somebody who waits, or is closed so
//! that its place is free for somebody who cannot use it (at another worker, or of another endpoint).
//!
//! All of it is off the path of a request that finds an idle connection, and of one that leaves one when nobody waits.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    places::{Places, Verdict},
    pool::{Given, Http1, Http2, Pool, Pools, Stream},
};

/// A retired connection whose streams have not ended by then takes requests again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those who wait at one pool, in the order of their tickets.
#[derive(Debug, Default)]
pub struct Queue(RefCell<VecDeque<(u64, oneshot::Sender<Given>)>>);

impl Queue {
    /// Waits under `ticket`, which is larger than those before.
    pub fn join(&self, ticket: u64, sender: oneshot::Sender<Given>) {
        self.0.borrow_mut().push_back((ticket, sender));
    }

    /// Waits no longer.
    pub fn leave(&self, ticket: u64) {
        let mut queue = self.0.borrow_mut();
        if let Ok(at) = queue.binary_search_by_key(&ticket, |(ticket, _)| *ticket) {
            queue.remove(at);
        }
    }

    fn oldest(&self) -> Option<u64> {
        self.0.borrow().front().map(|(ticket, _)| *ticket)
    }

    fn pop(&self) -> Option<oneshot::Sender<Given>> {
        self.0.borrow_mut().pop_front().map(|(_, sender)| sender)
    }
}

impl Pool {
    /// A connection whose exchange has ended.
    pub fn settle(&self, conn: Http1) {
        if self.places.pressed() {
            self.settle_pressed(conn);
        } else {
            self.idle.borrow_mut().push(conn);
        }
    }

    #[cold]
    fn settle_pressed(&self, mut conn: Http1) {
        // Its place is free already, or about to be.
        if conn.send.is_closed() {
            return;
        }
        loop {
            match self.places.returned(self.queue.oldest(), true) {
                Verdict::Keep => return self.idle.borrow_mut().push(conn),
                Verdict::Close | Verdict::Retire => return,
                Verdict::HandOver => {
                    let Some(sender) = self.queue.pop() else { return };
                    match sender.send(Given::Http1(conn)) {
                        Err(Given::Http1(back)) => conn = back,
                        _ => return,
                    }
                }
            }
        }
    }

    /// A request on `conn` has ended while somebody waits.
    #[cold]
    pub(super) fn stream_ended(self: &Rc<Self>, conn: &Rc<Http2>) {
        if conn.send.is_closed() {
            return;
        }
        let idle = conn.streams.get() == 0;
        if idle && conn.is_worn() {
            return self.forget(conn);
        }
        loop {
            let usable = conn.has_room() && conn.retiring.get().is_none();
            let oldest = if usable { self.queue.oldest() } else { None };
            match self.places.returned(oldest, idle) {
                Verdict::Keep if idle => return conn.retiring.set(None),
                Verdict::Keep => return,
                Verdict::Close => return self.forget(conn),
                Verdict::Retire if conn.stubborn.get() => {}
                Verdict::Retire => return conn.retiring.set(Some(self.clock.now())),
                Verdict::HandOver => return self.hand_over(conn),
            }
        }
    }

    fn hand_over(self: &Rc<Self>, conn: &Rc<Http2>) {
        if let Some(sender) = self.queue.pop() {
            // One who has just gone drops the stream, which is then offered to the next.
            let _ = sender.send(Given::Http2(Stream::open(conn.clone(), self)));
        }
    }

    /// Those who wait share a connection as far as it has room.
    pub fn offer(self: &Rc<Self>, conn: &Rc<Http2>) {
        while conn.has_room()
            && let Some(ticket) = self.queue.oldest()
        {
            self.places.served(ticket);
            self.hand_over(conn);
        }
    }

    /// Whether `conn` takes no requests because its place is needed.
    pub(super) fn is_retiring(&self, conn: &Http2) -> bool {
        if conn.retiring.get().is_some() && !self.places.pressed() {
            conn.retiring.set(None);
        }
        conn.retiring.get().is_some()
    }

    /// Once a second: HTTP/2 connections that are never idle must not keep others waiting for ever; and streams that
    /// never end must not make a connection useless.
    pub(super) fn review(self: &Rc<Self>, now: Instant) {
        if self.shared.borrow().is_empty() || !self.places.pressed() {
            return;
        }
        let conns = self.shared.borrow().clone();
        for conn in conns {
            match conn.retiring.get() {
                Some(since) if now.saturating_duration_since(since) >= PATIENCE => {
                    conn.retiring.set(None);
                    conn.stubborn.set(true);
                    self.offer(&conn);
                }
                None if !conn.stubborn.get() && self.queue.oldest().is_none() && self.places.wanting() => {
                    conn.retiring.set(Some(now));
                }
                _ => {}
            }
        }
    }

    fn forget(&self, conn: &Rc<Http2>) {
        self.shared.borrow_mut().retain(|other| !Rc::ptr_eq(other, conn));
    }

    /// Closes idle connections, as far as their places are needed.
    fn reclaim(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|conn| !conn.send.is_closed());
        while !idle.is_empty() && self.places.reclaim() {
            // The one that was not used for the longest time.
            idle.remove(0);
        }
        drop(idle);
        let mut shared = self.shared.borrow_mut();
        shared.retain(|conn| {
            !conn.send.is_closed() && (conn.streams.get() > 0 || conn.is_worn() || !self.places.reclaim())
        });
    }
}

impl Pools {
    /// Closes idle connections of a service, as far as somebody waits for their places.
    pub fn reclaim(&self, places: &Arc<Places>) {
        for pool in self.by_endpoint.borrow().values().filter(|pool| Arc::ptr_eq(&pool.places, places)) {
            pool.reclaim();
        }
    }
}
