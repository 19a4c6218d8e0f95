//! The connections that a service may have open on this node, and the requests that wait for one.
//!
//! Counts and decides, and has no sockets. What is asked once per request is a load of [`Places::pressed`]; everything
//! else happens when a connection is opened or ends, or while somebody waits, and takes a lock.
//!
//! A free place goes to whoever has waited longest. So does, in effect, a connection that becomes idle: when the one who
//! has waited longest can use it, it is handed over as it is, otherwise it is closed and its place is free. To open a
//! connection for every other request would be a waste, so others may be preferred up to `PASSES` times.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    task::{Context, Poll},
};

use smallvec::SmallVec;
use tokio::sync::oneshot;

/// How often others may be served before the one who has waited longest.
const PASSES: u32 = 16;

/// What `connectionPool` allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `maxConnections`.
    pub connections: u32,
    /// `maxPendingRequests`.
    pub pending: u32,
}

impl Limits {
    /// Connections that copies of requests leave to the requests themselves, unless there is only one at all.
    fn reserve(self) -> u32 {
        self.connections.div_ceil(10).min(self.connections.saturating_sub(1))
    }
}

/// The places of one port of a service, for all workers.
#[derive(Debug)]
pub struct Places {
    pressed: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    open: u32,
    limits: Limits,
    /// In the order of their tickets.
    queue: VecDeque<Waiter>,
    next_ticket: u64,
    /// Idle connections that have been told to close, and still have their places.
    promised: u32,
    /// How often the one who has waited longest was passed over.
    passed: u32,
    search: Search,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    sender: oneshot::Sender<Place>,
}

/// Whether the workers are being searched for idle connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    /// No.
    Off,
    /// Yes.
    Running,
    /// Yes, and somebody came who may need more than was closed at the workers that are done.
    Again,
    /// There are none, and as long as somebody waits none can come.
    Found,
}

/// The right to have one connection open. Given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Places>);

/// Why there is neither a place nor room to wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What came of asking for a place.
#[derive(Debug)]
pub enum Asked {
    /// There was one.
    Place(Place),
    /// There will be.
    Wait(Waiting),
}

/// Somebody who waits for a place. Dropping it gives up.
#[derive(Debug)]
pub struct Waiting {
    places: Arc<Places>,
    /// Smaller numbers have waited longer.
    pub ticket: u64,
    /// Whether idle connections have to be looked for, see [`Places::searched`].
    pub search: bool,
    receiver: oneshot::Receiver<Place>,
}

/// What is to become of a connection that could serve somebody now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody needs it.
    Keep,
    /// It goes to the one who has waited longest among those who can use it.
    HandOver,
    /// Its place is needed.
    Close,
    /// Its place is needed as soon as the requests on it have ended.
    Retire,
}

impl Inner {
    /// How many connections have to end, so that nobody waits and the limit is kept.
    fn need(&self) -> u32 {
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        waiting.saturating_add(self.open.saturating_sub(self.limits.connections))
    }

    /// Whether more have to end than those that are about to.
    fn wanting(&self) -> bool {
        self.need() > self.promised
    }

    fn position(&self, ticket: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&ticket, |waiter| waiter.ticket)
    }

    fn remove(&mut self, at: usize) -> Option<Waiter> {
        if at == 0 {
            self.passed = 0;
        }
        let waiter = self.queue.remove(at);
        if self.queue.is_empty() {
            self.search = Search::Off;
        }
        waiter
    }

    /// Whether whoever asks has to start a search.
    fn begin_search(&mut self) -> bool {
        let search = self.search == Search::Off && self.wanting();
        self.search = match self.search {
            Search::Off if search => Search::Running,
            Search::Running => Search::Again,
            other => other,
        };
        search
    }

    /// Takes a place for each one who may have one, in the order of their coming.
    fn grant(&mut self) -> SmallVec<[oneshot::Sender<Place>; 2]> {
        let mut granted = SmallVec::new();
        while self.open < self.limits.connections {
            let Some(waiter) = self.remove(0) else { break };
            self.open += 1;
            granted.push(waiter.sender);
        }
        granted
    }
}

impl Places {
    /// None taken, under these limits.
    pub fn new(limits: Limits) -> Self {
        let inner = Inner {
            open: 0,
            limits,
            queue: VecDeque::new(),
            next_ticket: 0,
            promised: 0,
            passed: 0,
            search: Search::Off,
        };
        Self { pressed: AtomicBool::new(false), inner: Mutex::new(inner) }
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Open connections, and requests that wait for one.
    pub fn numbers(&self) -> (u32, u32) {
        let inner = self.lock();
        (inner.open, u32::try_from(inner.queue.len()).unwrap_or(u32::MAX))
    }

    /// Whether a connection that becomes idle has to be offered to [`Places::returned`].
    pub fn pressed(&self) -> bool {
        self.pressed.load(Acquire)
    }

    /// A place, or one in the queue.
    ///
    /// # Errors
    /// When as many wait as may.
    pub fn ask(self: &Arc<Self>) -> Result<Asked, Full> {
        let mut inner = self.lock();
        // Nobody waits while there is a free place.
        if inner.open < inner.limits.connections {
            inner.open += 1;
            self.note(&inner);
            return Ok(Asked::Place(Place(self.clone())));
        }
        if inner.queue.len() >= inner.limits.pending as usize {
            return Err(Full);
        }
        let (sender, receiver) = oneshot::channel();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        inner.queue.push_back(Waiter { ticket, sender });
        let search = inner.begin_search();
        self.note(&inner);
        Ok(Asked::Wait(Waiting { places: self.clone(), ticket, search, receiver }))
    }

    /// A place that nobody will miss: for copies of requests, which never wait.
    pub fn spare(self: &Arc<Self>) -> Option<Place> {
        let mut inner = self.lock();
        let Limits { connections, .. } = inner.limits;
        let free = inner.queue.is_empty() && inner.open < connections.saturating_sub(inner.limits.reserve());
        if free {
            inner.open += 1;
            self.note(&inner);
        }
        free.then(|| Place(self.clone()))
    }

    /// Other limits from now on. Whether there are more connections than may be, so that idle ones have to be looked for,
    /// see [`Places::searched`].
    #[must_use]
    pub fn review(self: &Arc<Self>, limits: Limits) -> bool {
        let mut inner = self.lock();
        inner.limits = limits;
        let granted = inner.grant();
        let search = inner.begin_search();
        self.note(&inner);
        drop(inner);
        self.hand_out(granted);
        search
    }

    /// What is to become of a connection that could serve another request. `oldest` is the ticket of the one who has
    /// waited longest among those who can use it as it is, and who stops waiting when it is handed over; `idle` is false
    /// while requests are on it.
    pub fn returned(&self, oldest: Option<u64>, idle: bool) -> Verdict {
        let mut inner = self.lock();
        let wanting = inner.wanting();
        if let Some(ticket) = oldest
            && inner.open <= inner.limits.connections
        {
            let first = inner.queue.front().is_none_or(|first| first.ticket >= ticket);
            if first || !wanting || inner.passed < PASSES {
                inner.passed += u32::from(!first);
                if let Ok(at) = inner.position(ticket) {
                    inner.remove(at);
                }
                self.note(&inner);
                return Verdict::HandOver;
            }
        }
        if !wanting {
            // What is idle from now on has to be found again by those who come.
            if inner.search == Search::Found {
                inner.search = Search::Off;
            }
            return Verdict::Keep;
        }
        if idle {
            inner.promised += 1;
            inner.passed = 0;
            return Verdict::Close;
        }
        inner.passed += 1;
        if inner.passed <= PASSES {
            return Verdict::Keep;
        }
        inner.passed = 0;
        Verdict::Retire
    }

    /// The one with this ticket is handed a connection that has room, which costs nobody anything.
    pub fn served(&self, ticket: u64) {
        let mut inner = self.lock();
        if let Ok(at) = inner.position(ticket) {
            inner.remove(at);
            self.note(&inner);
        }
    }

    /// Whether an idle connection has to be closed. Whoever asks closes one if so.
    pub fn reclaim(&self) -> bool {
        let mut inner = self.lock();
        let wanting = inner.wanting();
        inner.promised += u32::from(wanting);
        wanting
    }

    /// Whether somebody waits for whom nothing is about to end.
    pub fn wanting(&self) -> bool {
        self.lock().wanting()
    }

    /// One worker has closed what was idle and needed. Whether to go on with the next; `last` when all have had their
    /// turn, and going on means starting over.
    pub fn searched(&self, last: bool) -> bool {
        let mut inner = self.lock();
        let (search, go_on) = match inner.search {
            _ if !inner.wanting() => (Search::Off, false),
            search if !last => (search, true),
            Search::Again => (Search::Running, true),
            _ => (Search::Found, false),
        };
        inner.search = search;
        go_on
    }

    fn release(self: &Arc<Self>) {
        let mut inner = self.lock();
        inner.open = inner.open.saturating_sub(1);
        inner.promised = inner.promised.saturating_sub(1);
        let granted = inner.grant();
        self.note(&inner);
        drop(inner);
        self.hand_out(granted);
    }

    /// Without the lock: who has gone away meanwhile gives its place back at once.
    fn hand_out(self: &Arc<Self>, granted: SmallVec<[oneshot::Sender<Place>; 2]>) {
        for sender in granted {
            let _ = sender.send(Place(self.clone()));
        }
    }

    fn note(&self, inner: &Inner) {
        self.pressed.store(inner.need() > 0, Release);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Waiting {
    /// Ready when there is a place.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Place> {
        match std::pin::Pin::new(&mut self.receiver).poll(cx) {
            Poll::Ready(Ok(place)) => Poll::Ready(place),
            // The sender stays in the queue until it is used or `self` is dropped.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// Waits until there is a place.
    pub async fn place(mut self) -> Place {
        poll_fn(|cx| self.poll(cx)).await
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.places.lock();
        if let Ok(at) = inner.position(self.ticket) {
            let waiter = inner.remove(at);
            // One connection less has to end for those who wait.
            self.places.note(&inner);
            drop(inner);
            drop(waiter);
        }
    }
}

#[cfg(test)]
mod tests;
