//! What the guard tells the connection's owner and the service, and what they tell it.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use tokio::io::AsyncWrite;

use super::Violation;
use crate::error::Reason;

/// A clock that somebody else winds, so that no connection asks the kernel for the time.
pub type Clock = Rc<Cell<Instant>>;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No request is under way.
    Idle,
    /// A head has begun and is not complete.
    Head,
    /// A body has begun and is not complete.
    Body,
    /// A request is complete, its response is not.
    Exchange,
    /// The service decides about a CONNECT or Upgrade.
    Hold,
    /// Every byte passes.
    Tunnel,
    /// Nothing more is read.
    Closed,
}

/// Deadlines of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the first byte of a head to its last.
    pub header: Duration,
    /// Between two reads of a body that somebody waits for.
    pub body: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For a client that does not read its response.
    pub write: Duration,
}

/// Which deadline has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// Answer 408: `refuse(Reason::RequestTimeout, …)`.
    Header,
    /// `refuse(Reason::RequestTimeout, …)`; the service sees the body fail.
    Body,
    /// Shut down gracefully.
    Idle,
    /// Drop the connection.
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recv {
    Head,
    PartialHead,
    Body,
    Hold,
    Tunnel,
    Closed,
    Refused,
    Eof,
}

#[derive(Debug, Default)]
struct Interim {
    bytes: Vec<u8>,
    written: usize,
    waker: Option<Waker>,
}

#[derive(Debug)]
pub(super) struct Shared {
    clock: Clock,
    pub recv: Cell<Recv>,
    pub violation: Cell<Option<Violation>>,
    pub heads: Cell<u64>,
    answered: Cell<u64>,
    pub head_since: Cell<Instant>,
    pub activity: Cell<Instant>,
    pub read_stalled: Cell<Option<Instant>>,
    pub write_stalled: Cell<Option<Instant>>,
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
    pub tunnel: Cell<Option<bool>>,
    waker: RefCell<Option<Waker>>,
    /// hyper holds no unwritten byte.
    pub flushed: Cell<bool>,
    /// The reply to the violation is to be written at shutdown.
    pub armed: Cell<bool>,
    has_interim: Cell<bool>,
    interim: RefCell<Interim>,
}

impl Shared {
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock.get();
        Self {
            clock,
            recv: Cell::new(Recv::Head),
            violation: Cell::new(None),
            heads: Cell::new(0),
            answered: Cell::new(0),
            head_since: Cell::new(now),
            activity: Cell::new(now),
            read_stalled: Cell::new(None),
            write_stalled: Cell::new(None),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            tunnel: Cell::new(None),
            waker: RefCell::new(None),
            flushed: Cell::new(true),
            armed: Cell::new(false),
            has_interim: Cell::new(false),
            interim: RefCell::default(),
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.clock.get()
    }

    pub(super) fn owed(&self) -> u64 {
        self.heads.get().saturating_sub(self.answered.get())
    }

    pub(super) fn wake(&self) {
        let waker = self.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whom [`wake`](Self::wake) wakes.
    pub(super) fn wait(&self, cx: &mut Context<'_>) {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
    }

    /// Starts a stall, or leaves it running.
    #[inline]
    pub(super) fn stall(&self, since: &Cell<Option<Instant>>) {
        if since.get().is_none() {
            since.set(Some(self.now()));
        }
    }

    /// Writes what [`GuardHandle::inject`] left. `begin` says that this is the boundary of a response.
    #[inline]
    pub(super) fn poll_interim<IO>(&self, io: &mut IO, cx: &mut Context<'_>, begin: bool) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        if self.has_interim.get() { self.write_interim(io, cx, begin) } else { Poll::Ready(Ok(())) }
    }

    #[cold]
    fn write_interim<IO>(&self, io: &mut IO, cx: &mut Context<'_>, begin: bool) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        let mut interim = self.interim.borrow_mut();
        if interim.written == 0 && !begin {
            return Poll::Ready(Ok(()));
        }
        while interim.written < interim.bytes.len() {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, &interim.bytes[interim.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            interim.written += n;
            self.bytes_out.set(self.bytes_out.get() + n as u64);
        }
        interim.bytes = Vec::new();
        interim.written = 0;
        self.has_interim.set(false);
        if let Some(waker) = interim.waker.take() {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }
}

/// The other end of a [`Guard`](super::Guard), for the connection's owner and the service. Cheap to clone; stays on its thread.
#[derive(Debug, Clone)]
pub struct GuardHandle(pub(super) Rc<Shared>);

impl GuardHandle {
    /// What the client, or a deadline, did wrong.
    pub fn violation(&self) -> Option<Violation> {
        self.0.violation.get()
    }

    /// What the connection is doing.
    pub fn phase(&self) -> Phase {
        match self.0.recv.get() {
            Recv::Hold if self.0.tunnel.get() == Some(true) => Phase::Tunnel,
            Recv::Hold => Phase::Hold,
            Recv::Tunnel => Phase::Tunnel,
            Recv::Body if self.0.owed() <= 1 => Phase::Body,
            _ if self.0.owed() > 0 => Phase::Exchange,
            Recv::Head => Phase::Idle,
            Recv::PartialHead => Phase::Head,
            Recv::Body => Phase::Body,
            Recv::Closed | Recv::Refused | Recv::Eof => Phase::Closed,
        }
    }

    /// To be called by the service for each request, and kept until its response is complete or given up: in the response's body.
    /// The guard counts them to know whose turn it is.
    pub fn exchange(&self) -> Exchange {
        Exchange(self.0.clone())
    }

    /// Whether a violation is to be answered now: all earlier responses are written. Asked after each poll of hyper; when true, the
    /// owner calls hyper's `graceful_shutdown` and polls on, and the guard writes the reply as hyper shuts the connection down.
    /// Always false for a violation in a body: the service answers that one.
    pub fn refuse_now(&self) -> bool {
        let due = self.0.violation.get().is_some_and(|violation| !violation.in_body)
            && self.0.owed() == 0
            && self.0.flushed.get();
        if due {
            self.0.armed.set(true);
        }
        due
    }

    /// Refuses what the client is sending, for a reason of the owner's, like a deadline. A first violation stays. The owner polls
    /// hyper next.
    pub fn refuse(&self, reason: Reason, detail: &'static str) {
        if self.0.violation.get().is_none() {
            self.0.violation.set(Some(Violation { reason, detail, in_body: self.0.recv.get() == Recv::Body }));
            self.0.recv.set(Recv::Refused);
        }
        self.0.wake();
    }

    /// The service's decision about a CONNECT or Upgrade, taken before it answers. True makes a tunnel of the rest of the
    /// connection. False goes on with the next request behind an Upgrade, and ends the connection behind a CONNECT: send that answer
    /// with `connection: close`. Without a decision, the end of the [`Exchange`] means false.
    pub fn resume_after_upgrade(&self, accepted: bool) {
        // What is held lies behind the last head: an earlier request has no say.
        if self.0.owed() == 1 {
            self.0.tunnel.set(Some(accepted));
            self.0.wake();
        }
    }

    /// Ends reading: hyper sees an end of file.
    pub fn close_read(&self) {
        self.0.recv.set(Recv::Eof);
        self.0.wake();
    }

    /// Sends a complete interim (1xx) response to the client before the final one (RFC 9110 §15.2). To be awaited by the service
    /// before it returns its response; dropped earlier, it is not sent. One at a time.
    pub fn inject(&self, interim: &[u8]) -> Injection {
        self.0.interim.borrow_mut().bytes.extend_from_slice(interim);
        self.0.has_interim.set(true);
        Injection(self.0.clone())
    }

    /// Bytes that came from the client.
    pub fn bytes_in(&self) -> u64 {
        self.0.bytes_in.get()
    }

    /// Bytes that went to the client.
    pub fn bytes_out(&self) -> u64 {
        self.0.bytes_out.get()
    }

    /// Requests whose heads were good.
    pub fn requests(&self) -> u64 {
        self.0.heads.get()
    }

    /// When the client last sent something, or its last response ended.
    pub fn last_activity(&self) -> Instant {
        self.0.activity.get()
    }

    /// When the head that is not complete began.
    pub fn head_since(&self) -> Option<Instant> {
        (self.phase() == Phase::Head).then(|| self.0.head_since.get())
    }

    /// Since when the connection waits for the client's bytes.
    pub fn read_stalled_since(&self) -> Option<Instant> {
        self.0.read_stalled.get()
    }

    /// Since when the client takes no bytes.
    pub fn write_stalled_since(&self) -> Option<Instant> {
        self.0.write_stalled.get()
    }

    /// Whether a deadline has passed: for a sweeper, so that no connection needs a timer.
    pub fn overdue(&self, now: Instant, deadlines: &Deadlines) -> Option<Overdue> {
        let over = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        if self.0.write_stalled.get().is_some_and(|since| over(since, deadlines.write)) {
            return Some(Overdue::Write);
        }
        match self.phase() {
            Phase::Head => over(self.0.head_since.get(), deadlines.header).then_some(Overdue::Header),
            Phase::Body => {
                self.0.read_stalled.get().is_some_and(|since| over(since, deadlines.body)).then_some(Overdue::Body)
            }
            Phase::Idle => over(self.0.activity.get(), deadlines.idle).then_some(Overdue::Idle),
            Phase::Exchange | Phase::Hold | Phase::Tunnel | Phase::Closed => None,
        }
    }
}

/// One request under way; dropped when its response is complete. See [`GuardHandle::exchange`].
#[derive(Debug)]
pub struct Exchange(Rc<Shared>);

impl Drop for Exchange {
    fn drop(&mut self) {
        let shared = &*self.0;
        shared.answered.set(shared.answered.get() + 1);
        if shared.owed() == 0 {
            let now = shared.now();
            shared.activity.set(now);
            // A head that waited for its turn has only now the time that a head has.
            shared.head_since.set(now);
            if shared.recv.get() == Recv::Hold {
                shared.wake();
            }
        }
    }
}

/// Ready when the interim response is written. See [`GuardHandle::inject`].
#[derive(Debug)]
#[must_use = "dropped, it is not sent"]
pub struct Injection(Rc<Shared>);

impl Future for Injection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.0.has_interim.get() {
            return Poll::Ready(());
        }
        self.0.interim.borrow_mut().waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        if self.0.has_interim.get() {
            let mut interim = self.0.interim.borrow_mut();
            interim.waker = None;
            if interim.written == 0 {
                interim.bytes = Vec::new();
                self.0.has_interim.set(false);
            }
        }
    }
}
