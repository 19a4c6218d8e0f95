//! A client's connection as its requests see it, and the registry that drains and sweeps connections.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use http::HeaderValue;

use crate::{
    accept::{
        Arrived,
        captured::Captured,
        guard::{Deadlines, GuardHandle, Overdue},
    },
    error::Reason,
    options::Limits,
    snapshot::PortId,
    telemetry::metrics::ConnectionGuard,
    upgrade::Tunnel,
    upstream::interim::Interim,
    worker::Worker,
};

/// One client connection.
#[derive(Debug)]
pub struct Conn {
    /// Its worker.
    pub worker: Rc<Worker>,
    /// The port that accepted it.
    pub port: PortId,
    /// The client.
    pub peer: SocketAddr,
    /// Our side.
    pub local: SocketAddr,
    /// Whether TLS ended here, and the server name that the client asked for.
    pub tls: Option<Tls>,
    /// What the kernel knows of it, if it was captured.
    pub captured: Option<Box<Captured>>,
    /// The client's address as `x-forwarded-for` wants it.
    pub forwarded_for: HeaderValue,
    /// Whether the client's own forwarding headers count.
    pub trusted: bool,
    /// HTTP/1.1 only: what the guard knows.
    pub guard: OnceCell<GuardHandle>,
    /// HTTP/1.1: interim responses on their way to the client; made by the first request that may have any.
    pub interim: OnceCell<Arc<Interim>>,
    /// Requests whose response has not ended.
    pub in_flight: Cell<u32>,
    /// Those of them whose response has not begun: their own deadlines watch them.
    pub waiting: Cell<u32>,
    /// Last time that a request began, a body moved or a response ended (coarse).
    pub moved: Cell<Instant>,
    /// Not yet known which protocol the client speaks.
    pub detecting: Cell<bool>,
    /// It may well be silent for long: whoever serves it watches over it.
    pub patient: Cell<bool>,
    /// HTTP/1.1: what the connection becomes once the response at hand has been sent.
    pub tunnel: RefCell<Option<Tunnel>>,
    order: Cell<Order>,
    waker: RefCell<Option<Waker>>,
}

/// What the handshake told us.
#[derive(Debug, Clone)]
pub struct Tls {
    /// SNI.
    pub server_name: Option<Arc<str>>,
}

/// What a connection is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Carry on.
    None,
    /// Finish what is in flight, then close: GOAWAY, `Connection: close`.
    Drain,
    /// HTTP/1.1: close as soon as nothing is in flight and everything has been written.
    Finish,
    /// Close at once.
    Close,
}

impl Conn {
    /// A connection that was just accepted.
    pub fn new(worker: Rc<Worker>, arrived: Arrived, local: SocketAddr, tls: Option<Tls>) -> Self {
        let Arrived { port, peer, captured } = arrived;
        let ip = peer.ip().to_canonical();
        let forwarded_for = HeaderValue::try_from(ip.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let trusted = worker.shared.options.trusts(ip);
        let moved = Cell::new(worker.clock.now());
        Self {
            worker,
            port,
            peer: SocketAddr::new(ip, peer.port()),
            local,
            tls,
            captured,
            forwarded_for,
            trusted,
            guard: OnceCell::new(),
            interim: OnceCell::new(),
            in_flight: Cell::new(0),
            waiting: Cell::new(0),
            moved,
            detecting: Cell::new(true),
            patient: Cell::new(false),
            tunnel: RefCell::new(None),
            order: Cell::new(Order::None),
            waker: RefCell::new(None),
        }
    }

    /// `http` or `https`.
    pub const fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Something moved.
    pub fn touch(&self) {
        self.moved.set(self.worker.clock.now());
    }

    /// Resolves when the connection has to be closed, provided that nobody waits for anything on it.
    pub async fn ended(&self) {
        poll_fn(|cx| match self.order(cx) {
            Order::None | Order::Drain => Poll::Pending,
            Order::Finish | Order::Close => Poll::Ready(()),
        })
        .await;
    }

    /// The order in force; the task of the connection is woken when it changes.
    pub fn order(&self, cx: &Context<'_>) -> Order {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.order.get()
    }

    /// Gives an order; a stronger one cannot be taken back.
    pub fn give(&self, order: Order) {
        self.order.set(self.order.get().max(order));
        self.wake();
    }

    /// Ends the connection if it is past one of its deadlines.
    fn sweep(&self, now: Instant, limits: &Limits) {
        if self.patient.get() {
            return;
        }
        let quiet = |since: Instant| now.saturating_duration_since(since);
        if self.detecting.get() {
            // From accept on, these bytes belong to the first head.
            if quiet(self.moved.get()) > limits.head_timeout {
                self.give(Order::Close);
            }
            return;
        }
        let idle = quiet(self.moved.get()) > limits.idle_timeout;
        let Some(guard) = self.guard.get() else {
            // HTTP/2: h2 itself bounds heads; what is left is silence, with or without open streams.
            if idle && self.in_flight.get() == 0 {
                // A client that does not even answer the GOAWAY has had twice the time.
                let gone = quiet(self.moved.get()) > 2 * limits.idle_timeout;
                self.give(if gone { Order::Close } else { Order::Drain });
            } else if idle && self.waiting.get() == 0 {
                self.give(Order::Close);
            }
            return;
        };
        let deadlines = Deadlines {
            header: limits.head_timeout,
            body: limits.idle_timeout,
            idle: limits.idle_timeout,
            write: limits.idle_timeout,
        };
        match guard.overdue(now, &deadlines) {
            None => {}
            Some(Overdue::Header) => self.refuse(guard, "the request's head did not arrive in time"),
            Some(Overdue::Body) => self.refuse(guard, "the request's body stood still"),
            Some(Overdue::Idle | Overdue::Write) => self.give(Order::Close),
        }
    }

    /// Nothing has arrived that would wake the connection's task: whoever gives up waiting has to.
    fn refuse(&self, guard: &GuardHandle, detail: &'static str) {
        guard.refuse(Reason::RequestTimeout, detail);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Every connection of a worker.
#[derive(Debug, Default)]
pub struct Connections {
    slots: RefCell<Vec<Option<Rc<Conn>>>>,
    free: RefCell<Vec<usize>>,
}

impl Connections {
    /// Keeps `conn` in sight until the registration is dropped.
    pub fn register(&self, conn: Rc<Conn>, counted: ConnectionGuard) -> Registration {
        let worker = conn.worker.clone();
        if worker.draining.get() {
            conn.give(Order::Drain);
        }
        let mut slots = self.slots.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or(slots.len());
        if slot == slots.len() {
            slots.push(Some(conn));
        } else {
            slots[slot] = Some(conn);
        }
        Registration { worker, slot, _counted: counted }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.borrow().len() - self.free.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives every connection an order.
    pub fn give_all(&self, order: Order) {
        for conn in self.slots.borrow().iter().flatten() {
            conn.give(order);
        }
    }

    /// Ends what is past its deadlines.
    pub fn sweep(&self, now: Instant, limits: &Limits) {
        for conn in self.slots.borrow().iter().flatten() {
            conn.sweep(now, limits);
        }
    }
}

/// A place in [`Connections`].
#[derive(Debug)]
pub struct Registration {
    worker: Rc<Worker>,
    slot: usize,
    _counted: ConnectionGuard,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let connections = &self.worker.connections;
        let conn = connections.slots.borrow_mut()[self.slot].take();
        connections.free.borrow_mut().push(self.slot);
        drop(conn);
    }
}
