//! Bodies in both directions. Frames are passed on as they come; nothing is read ahead.
//!
//! [`RequestBody`] goes to an upstream and keeps account of what happened to it; [`ReplyBody`] goes to the client and
//! carries everything that has to happen when the response ends: the connection goes back to its pool, the exchange is
//! recorded.

mod kept;

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use crate::{
    accept::guard::Violation,
    conn::Conn,
    error::{Reason, Refusal},
    exchange::Exchange,
    upstream::pool::Lease,
};

/// Error of a body: boxed, because hyper boxes it anyway.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What happened to a request body so far; shared between the body and the exchange.
#[derive(Debug, Default)]
pub struct Progress {
    /// The client has been asked for more, and has not sent it yet.
    pub asked: Cell<bool>,
    /// The whole body has been handed on.
    pub done: Cell<bool>,
    /// When that was (coarse).
    pub ended: Cell<Option<Instant>>,
    /// Bytes handed on.
    pub bytes: Cell<u64>,
    /// Why the body ended early: the client's fault, not the upstream's.
    pub failure: Cell<Option<Reason>>,
    /// Something moved since the last time somebody looked (see `exchange`).
    pub moved: Cell<bool>,
}

/// A request's body on its way to an upstream.
#[derive(Debug)]
pub struct RequestBody {
    source: Source,
    progress: Option<Rc<Progress>>,
    /// Kept awake while bytes come.
    conn: Option<Rc<Conn>>,
    /// Largest number of bytes accepted; `u64::MAX` is unlimited.
    limit: u64,
    /// Copies for mirrors.
    tees: Vec<mpsc::Sender<Copied>>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Client(Incoming),
    Copy(mpsc::Receiver<Copied>),
    Kept(kept::Reader),
}

/// What a mirror is sent; `None` is the end. A channel that ends without it lost something.
type Copied = Option<Frame<Bytes>>;

impl RequestBody {
    /// No body.
    pub const fn empty() -> Self {
        Self { source: Source::Empty, progress: None, conn: None, limit: u64::MAX, tees: Vec::new() }
    }

    /// The client's body; bodies that have already ended cost nothing.
    pub fn from_client(body: Incoming, limit: u64, conn: &Rc<Conn>) -> (Self, Option<Rc<Progress>>) {
        if body.is_end_stream() {
            return (Self::empty(), None);
        }
        let progress = Rc::new(Progress::default());
        let body = Self {
            source: Source::Client(body),
            progress: Some(progress.clone()),
            conn: Some(conn.clone()),
            limit,
            tees: Vec::new(),
        };
        (body, Some(progress))
    }

    /// A copy of this body, for a mirror. A mirror that reads more slowly than the upstream loses its copy.
    pub fn tee(&mut self) -> Self {
        if matches!(self.source, Source::Empty) {
            return Self::empty();
        }
        let (sender, receiver) = mpsc::channel(16);
        self.tees.push(sender);
        Self { source: Source::Copy(receiver), progress: None, conn: None, limit: u64::MAX, tees: Vec::new() }
    }

    /// Keeps up to `limit` bytes while they are sent, for [`RequestBody::again`]. Mirrors have to be made before.
    pub fn keep(self, limit: u64) -> Self {
        if self.is_empty() || self.size_hint().lower() > limit {
            return self;
        }
        Self { source: Source::Kept(kept::Kept::first(self, limit)), ..Self::empty() }
    }

    /// The same body for another attempt, as far as it can be had. What this one has not sent is lost to it.
    pub fn again(&self) -> Option<Self> {
        let source = match &self.source {
            Source::Empty => Source::Empty,
            Source::Kept(reader) => Source::Kept(reader.again()?),
            Source::Client(_) | Source::Copy(_) => return None,
        };
        Some(Self { source, ..Self::empty() })
    }

    /// Whether all of it can still be had, so that sending this one means sending what the client sent.
    pub fn is_whole(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Kept(reader) => reader.is_whole(),
            Source::Client(_) | Source::Copy(_) => false,
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        matches!(self.source, Source::Empty)
    }

    fn account(&mut self, frame: &Frame<Bytes>) -> Result<(), BodyError> {
        if let (Some(progress), Some(data)) = (&self.progress, frame.data_ref()) {
            let bytes = progress.bytes.get() + data.len() as u64;
            progress.bytes.set(bytes);
            progress.moved.set(true);
            if bytes > self.limit {
                progress.failure.set(Some(Reason::RequestTooLarge));
                return Err(Refusal::new(Reason::RequestTooLarge, "the body is larger than --max-body-bytes").into());
            }
        }
        if let Some(conn) = &self.conn {
            conn.touch();
        }
        self.tees.retain(|tee| tee.try_send(Some(copy(frame))).is_ok());
        Ok(())
    }

    /// Another attempt sends it from its beginning.
    fn restarted(&self) {
        if let Some(progress) = &self.progress {
            progress.done.set(false);
            progress.asked.set(false);
        }
    }

    /// All of it has been handed on.
    fn ended(&mut self) {
        if let Some(progress) = &self.progress {
            progress.done.set(true);
            // Of all attempts, the first one that sent all of it.
            if progress.ended.get().is_none() {
                progress.ended.set(self.conn.as_ref().map(|conn| conn.worker.clock.now()));
            }
        }
        for tee in self.tees.drain(..) {
            // A mirror that does not keep up has an incomplete copy already.
            let _ = tee.try_send(None);
        }
    }
}

/// Why a client's body ended early: the guard may know better than hyper.
fn broken(error: &hyper::Error) -> Refusal {
    let io = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    match io.and_then(|io| io.get_ref()).and_then(|inner| inner.downcast_ref::<Violation>()) {
        Some(violation) => Refusal::new(violation.reason, violation.detail),
        None => Refusal::new(Reason::BadRequest, "the request's body broke off"),
    }
}

fn copy(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Frame::data(data.clone()),
        (None, Some(trailers)) => Frame::trailers(trailers.clone()),
        (None, None) => Frame::data(Bytes::new()),
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Client(body) => Pin::new(body).poll_frame(cx),
            Source::Copy(receiver) => {
                return receiver.poll_recv(cx).map(|copied| match copied {
                    Some(copied) => copied.map(Ok),
                    None => Some(Err("the copy is incomplete".into())),
                });
            }
            Source::Kept(reader) => return reader.poll_frame(cx),
        };
        if let Some(progress) = &this.progress {
            progress.asked.set(polled.is_pending());
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                if let Err(error) = this.account(&frame) {
                    return Poll::Ready(Some(Err(error)));
                }
                if this.is_end_stream() {
                    this.ended();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let refusal = broken(&error);
                if let Some(progress) = &this.progress {
                    progress.failure.set(Some(refusal.reason));
                }
                // Mirrors must not take what they have for the whole.
                this.tees.clear();
                Poll::Ready(Some(Err(refusal.into())))
            }
            Poll::Ready(None) => {
                this.ended();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Client(body) => body.is_end_stream(),
            Source::Copy(_) => false,
            Source::Kept(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Client(body) => body.size_hint(),
            Source::Copy(_) => SizeHint::default(),
            Source::Kept(reader) => reader.size_hint(),
        }
    }
}

/// A response's body on its way to the client.
#[derive(Debug)]
pub struct ReplyBody {
    source: ReplySource,
    /// A frame that was read before the head was passed on.
    first: Option<Box<Frame<Bytes>>>,
    /// Recorded when the body ends or is dropped.
    exchange: Option<Box<Exchange>>,
}

#[derive(Debug)]
enum ReplySource {
    Empty,
    Full(Bytes),
    Upstream { body: Incoming, lease: Lease },
}

impl ReplyBody {
    /// A body that Weft made.
    pub fn local(text: Bytes, exchange: Box<Exchange>) -> Self {
        let source = if text.is_empty() { ReplySource::Empty } else { ReplySource::Full(text) };
        Self { source, first: None, exchange: Some(exchange) }
    }

    /// The upstream's body.
    pub fn upstream(body: Incoming, mut lease: Lease, mut exchange: Box<Exchange>) -> Self {
        let first = exchange.aside.take();
        if first.as_ref().is_some_and(|first| first.is_data()) {
            exchange.message_passed();
        }
        let source = if body.is_end_stream() {
            lease.finish();
            exchange.response_ended();
            ReplySource::Empty
        } else {
            ReplySource::Upstream { body, lease }
        };
        Self { source, first, exchange: Some(exchange) }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            // Trailers have been looked at already.
            if let (Some(exchange), Some(data)) = (&mut this.exchange, first.data_ref()) {
                exchange.sent(data.len());
            }
            return Poll::Ready(Some(Ok(*first)));
        }
        let (body, lease) = match &mut this.source {
            ReplySource::Empty => return Poll::Ready(None),
            ReplySource::Full(_) => {
                let ReplySource::Full(text) = std::mem::replace(&mut this.source, ReplySource::Empty) else {
                    return Poll::Ready(None);
                };
                if let Some(exchange) = &mut this.exchange {
                    exchange.sent(text.len());
                }
                return Poll::Ready(Some(Ok(Frame::data(text))));
            }
            ReplySource::Upstream { body, lease } => (body, lease),
        };
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(exchange) = &mut this.exchange {
                    match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => exchange.sent(data.len()),
                        (None, Some(trailers)) => drop(exchange.trailers(trailers)),
                        (None, None) => {}
                    }
                }
                if body.is_end_stream() {
                    lease.finish();
                    if let Some(exchange) = &mut this.exchange {
                        exchange.response_ended();
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.fail(Reason::UpstreamReset);
                }
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                lease.finish();
                if let Some(exchange) = &mut this.exchange {
                    exchange.response_ended();
                }
                Poll::Ready(None)
            }
            Poll::Pending => match this.exchange.as_mut().map_or(Poll::Pending, |exchange| exchange.poll_stalled(cx)) {
                Poll::Ready(refusal) => Poll::Ready(Some(Err(refusal.into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        if self.first.is_some() {
            return false;
        }
        match &self.source {
            ReplySource::Empty => true,
            ReplySource::Full(_) => false,
            ReplySource::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.source {
            ReplySource::Empty => SizeHint::with_exact(0),
            ReplySource::Full(text) => SizeHint::with_exact(text.len() as u64),
            ReplySource::Upstream { body, .. } => body.size_hint(),
        };
        let first = self.first.as_ref().and_then(|first| first.data_ref()).map_or(0, |data| data.len() as u64);
        if first == 0 { rest } else { longer(&rest, first) }
    }
}

/// The size of a body of which `by` bytes are taken out already.
fn longer(rest: &SizeHint, by: u64) -> SizeHint {
    let mut hint = SizeHint::new();
    hint.set_lower(rest.lower() + by);
    if let Some(upper) = rest.upper() {
        hint.set_upper(upper + by);
    }
    hint
}
