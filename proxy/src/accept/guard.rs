//! Every byte of an HTTP/1 client passes here before hyper sees it.
//!
//! hyper is lenient where two readers of one message could disagree: it drops `Content-Length` beside `Transfer-Encoding`, takes
//! bare LF, white space in chunk sizes, several `Host`s, and answers what it refuses with a nameless 400. The guard follows the
//! framing of the client's messages (RFC 9112) on hyper's read side, passes complete and valid heads and the bytes of their bodies
//! on unchanged, and stops at the first byte that breaks a rule. The tables of rules are in `head.rs` and `chunk.rs`.
//!
//! ```text
//!  socket → Guard::poll_read ─┬─ good bytes → hyper → service
//!                             └─ a bad one  → GuardHandle::violation → refuse_now → the named reply, as hyper shuts down
//! ```
//!
//! What the connection's owner does: poll hyper's connection; then, if [`GuardHandle::refuse_now`], call `graceful_shutdown` and
//! poll on; at the end take the guard back with `into_parts` and, unless it became a tunnel, [`Guard::close`] it. What the service
//! does: keep a [`GuardHandle::exchange`] for as long as each response lives.

mod chunk;
mod class;
mod fields;
mod framing;
mod handle;
mod head;
mod host;
mod reply;
#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

pub use self::handle::{Clock, Deadlines, Exchange, GuardHandle, Injection, Overdue, Phase};
use self::{
    framing::{Framing, State, Step, Stop},
    handle::{Recv, Shared},
};
use crate::error::Reason;

/// What a client may send behind its last request while it waits for the answer.
const MAX_DISCARD: usize = 64 * 1024;

/// Limits of a request head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head, from the method to the empty line.
    pub head_bytes: usize,
    /// Fields of a head, and of trailers.
    pub headers: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: 64 * 1024, headers: 100, uri_bytes: 16 * 1024 }
    }
}

impl Limits {
    /// These limits, where hyper and `http` cannot take more: 65,534 bytes of URI, and a header map's 32,768 fields with room to spare.
    fn feasible(self) -> Self {
        Self { head_bytes: self.head_bytes, headers: self.headers.min(4096), uri_bytes: self.uri_bytes.min(65_534) }
    }

    /// Makes hyper's own limits no narrower than these, and turns off what the guard does better.
    pub fn configure(&self, http: &mut hyper::server::conn::http1::Builder) {
        const HYPER_HEADERS: usize = 100;
        const HYPER_BUFFER: usize = 8192 + 4096 * 100;
        http.header_read_timeout(None);
        if self.headers > HYPER_HEADERS {
            http.max_headers(self.feasible().headers);
        }
        if self.head_bytes >= HYPER_BUFFER {
            http.max_buf_size(self.head_bytes + HYPER_BUFFER);
        }
    }
}

/// A broken rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Decides the status.
    pub reason: Reason,
    /// For the person who reads the reply.
    pub detail: &'static str,
    /// In the body of a request whose head was good: the body fails, and the service answers.
    pub in_body: bool,
}

impl Violation {
    const fn in_head(reason: Reason, detail: &'static str) -> Self {
        Self { reason, detail, in_body: false }
    }

    const fn in_body(detail: &'static str) -> Self {
        Self { reason: Reason::BadRequest, detail, in_body: true }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Violation {}

/// Stands between a client's connection and hyper.
#[derive(Debug)]
pub struct Guard<IO> {
    io: IO,
    framing: Framing,
    /// Bytes that came and may not be passed yet. At most a head, or what one read brought.
    held: BytesMut,
    /// How many of `held` may be passed.
    ready: usize,
    /// Whether the others are worth a look before more have come.
    look: bool,
    discarded: usize,
    reply: Option<Bytes>,
    shut: bool,
    shared: Rc<Shared>,
}

impl<IO> Guard<IO> {
    /// A guard over `io`; `prefix` has been read from it already.
    pub fn new(io: IO, prefix: BytesMut, limits: Limits, clock: Clock) -> (Self, GuardHandle) {
        let shared = Rc::new(Shared::new(clock));
        shared.bytes_in.set(prefix.len() as u64);
        let handle = GuardHandle(shared.clone());
        let guard = Self {
            io,
            framing: Framing::new(limits.feasible()),
            look: !prefix.is_empty(),
            held: prefix,
            ready: 0,
            discarded: 0,
            reply: None,
            shut: false,
            shared,
        };
        (guard, handle)
    }

    /// The connection, and bytes that came and were not passed: of a tunnel, its first.
    pub fn into_parts(self) -> (IO, Bytes) {
        (self.io, self.held.freeze())
    }

    /// The connection.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Notes what a look at the next bytes has brought. Whether the bytes neither passed nor dropped are still wanted.
    #[inline]
    fn settle(&mut self, step: &Step) -> bool {
        let shared = &*self.shared;
        if shared.heads.get() != self.framing.heads() {
            shared.heads.set(self.framing.heads());
            shared.tunnel.set(None);
        }
        let recv = match self.framing.state() {
            State::Head if step.stop == Stop::Partial => {
                if shared.recv.get() != Recv::PartialHead || step.pass > 0 {
                    shared.head_since.set(shared.now());
                }
                Recv::PartialHead
            }
            State::Head => Recv::Head,
            State::Length(_) | State::Chunked | State::Trailers => Recv::Body,
            State::Hold => Recv::Hold,
            State::Tunnel => Recv::Tunnel,
            State::Closed => Recv::Closed,
            State::Refused => Recv::Refused,
        };
        shared.recv.set(recv);
        self.look = step.stop == Stop::Again;
        match step.stop {
            Stop::Refused(violation) => {
                shared.violation.set(Some(violation));
                false
            }
            Stop::Closed => false,
            Stop::End | Stop::Partial | Stop::Again | Stop::Hold => true,
        }
    }

    /// Looks at the held bytes.
    fn look(&mut self) {
        let step = self.framing.advance(&self.held);
        self.held.advance(step.drop);
        self.ready = step.pass;
        if !self.settle(&step) {
            self.held.truncate(step.pass);
        }
    }

    /// What a read means when no byte may be passed: `None` if that has just changed.
    #[cold]
    fn gate(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<()>>> {
        let shared = &*self.shared;
        match shared.recv.get() {
            Recv::Refused => Some(match shared.violation.get() {
                Some(violation) if violation.in_body => {
                    Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)))
                }
                _ => Poll::Pending,
            }),
            Recv::Eof => Some(Poll::Ready(Ok(()))),
            Recv::Hold => {
                let Some(tunnel) = shared.tunnel.take().or((shared.owed() == 0).then_some(false)) else {
                    shared.wait(cx);
                    return Some(Poll::Pending);
                };
                self.framing.decided(tunnel);
                self.look();
                None
            }
            _ => None,
        }
    }

    /// Takes up to `buf.remaining()` of the bytes that may be passed.
    fn pass(&mut self, buf: &mut ReadBuf<'_>) {
        let n = self.ready.min(buf.remaining());
        buf.put_slice(&self.held[..n]);
        self.held.advance(n);
        self.ready -= n;
        if self.held.is_empty() {
            // A connection that waits shall not keep the memory of one that was slow.
            self.held = BytesMut::new();
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Guard<IO> {
    /// Ends a connection: writes the reply if one is due, closes the write side and, if the client was refused, reads on for a while
    /// (see [`linger`]). Whatever hyper did before, this may follow.
    pub async fn close(mut self, max_bytes: usize, patience: Duration) -> io::Result<()> {
        let shut = tokio::time::timeout(patience, self.shutdown()).await;
        shut.unwrap_or(Err(io::ErrorKind::TimedOut.into()))?;
        linger(&mut self.io, max_bytes, patience).await;
        Ok(())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let before = buf.filled().len();
        let shared = &*self.shared;
        match Pin::new(&mut self.io).poll_read(cx, buf) {
            Poll::Pending => {
                shared.stall(&shared.read_stalled);
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {
                let n = buf.filled().len() - before;
                shared.read_stalled.set(None);
                shared.activity.set(shared.now());
                shared.bytes_in.set(shared.bytes_in.get() + n as u64);
                if n == 0 && shared.recv.get() != Recv::Tunnel {
                    shared.recv.set(Recv::Eof);
                }
                Poll::Ready(Ok(n))
            }
        }
    }

    #[inline]
    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        let shared = &*self.shared;
        match result {
            Poll::Pending => shared.stall(&shared.write_stalled),
            Poll::Ready(Ok(n)) => {
                shared.write_stalled.set(None);
                shared.bytes_out.set(shared.bytes_out.get() + *n as u64);
            }
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.shut {
            // Whoever reads on only drains: nothing is judged any more.
            return this.poll_fill(cx, buf).map_ok(|_| ());
        }
        let before = buf.filled().len();
        loop {
            if this.ready > 0 || buf.remaining() == 0 {
                this.pass(buf);
                return Poll::Ready(Ok(()));
            }
            let recv = this.shared.recv.get();
            if matches!(recv, Recv::Refused | Recv::Eof | Recv::Hold) {
                match this.gate(cx) {
                    Some(answer) => return answer,
                    None => continue,
                }
            }
            if this.look {
                this.look();
                continue;
            }
            let n = ready!(this.poll_fill(cx, buf))?;
            if n == 0 || recv == Recv::Tunnel {
                return Poll::Ready(Ok(()));
            }
            if recv == Recv::Closed {
                buf.set_filled(before);
                this.discarded += n;
                if this.discarded > MAX_DISCARD {
                    return Poll::Pending;
                }
                continue;
            }
            if !this.held.is_empty() {
                this.held.extend_from_slice(&buf.filled()[before..]);
                buf.set_filled(before);
                this.look = true;
                continue;
            }
            let step = this.framing.advance(&buf.filled()[before..]);
            if this.settle(&step) && step.pass + step.drop < n {
                this.held.extend_from_slice(&buf.filled()[before + step.pass + step.drop..]);
            }
            buf.set_filled(before + step.pass);
            if step.pass > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.shared.flushed.set(false);
        ready!(this.shared.poll_interim(&mut this.io, cx, false))?;
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.shared.flushed.set(false);
        ready!(this.shared.poll_interim(&mut this.io, cx, false))?;
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper flushes when it has written all it has, so this is also where an interim response may begin.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.shared.poll_interim(&mut this.io, cx, true))?;
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        this.shared.flushed.set(true);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.shut {
            return Poll::Ready(Ok(()));
        }
        if this.shared.armed.get() {
            if this.reply.is_none() {
                let violation = this.shared.violation.get();
                this.reply = violation.map(|violation| reply::reply(&violation, SystemTime::now()).into());
            }
            while let Some(reply) = this.reply.as_mut().filter(|reply| !reply.is_empty()) {
                let result = Pin::new(&mut this.io).poll_write(cx, reply);
                let n = match &result {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(n)) => *n,
                    _ => 0,
                };
                reply.advance(n);
                this.wrote(&result);
                ready!(result)?;
            }
        }
        ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
        this.shut = true;
        Poll::Ready(Ok(()))
    }
}

/// Reads and drops what a client still sends, until it closes, `max_bytes` have come or `patience` is over: a socket closed with
/// unread bytes answers with a reset, which can destroy the reply before the client has read it (RFC 9112 §9.6).
pub async fn linger<IO: AsyncRead + Unpin>(io: &mut IO, max_bytes: usize, patience: Duration) {
    let drain = async {
        let mut left = max_bytes;
        let mut scrap = [0; 4096];
        while let Ok(n @ 1..) = io.read(&mut scrap).await {
            if n >= left {
                break;
            }
            left -= n;
        }
    };
    let _ = tokio::time::timeout(patience, drain).await;
}
