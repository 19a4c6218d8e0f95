//! Sends one request to one endpoint.
//!
//! A pooled connection may have been closed by its peer a moment ago. That never costs the client an error when it can
//! be helped: what was not sent is sent again on another connection, and so is an idempotent request without a body
//! (RFC 9110 §9.2.2, RFC 9112 §9.3.1).

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use http::{Method, Request, Response};
use hyper::body::Incoming;
use weft_model::config::AppProtocol;

use super::{
    connect::ConnectError,
    obtain::{self, Patience},
    pool::{Lease, Pool},
};
use crate::{
    body::{Progress, RequestBody},
    endpoint::Endpoint,
    error::{Reason, Refusal},
    exchange::TimedOut,
    snapshot::Upstream,
    worker::Worker,
};

/// How often a request may meet a connection that its peer has just closed before a fresh one is opened for it.
const STALE_TRIES: u32 = 3;

/// A failed attempt.
#[derive(Debug)]
pub struct SendError {
    /// What the client would be told.
    pub refusal: Refusal,
    /// No upstream has processed any of it. If the request came back, too, it may be sent elsewhere.
    pub unprocessed: bool,
    /// The attempt's own time-out is over; the request may have time left.
    pub per_try: bool,
    /// The client set the time that is over: the endpoint is not to blame.
    pub client_deadline: bool,
}

impl SendError {
    /// An attempt of which nothing reached an endpoint.
    pub const fn unprocessed(refusal: Refusal) -> Self {
        Self { refusal, unprocessed: true, per_try: false, client_deadline: false }
    }
}

impl From<Refusal> for SendError {
    /// Whatever was sent may have been processed.
    fn from(refusal: Refusal) -> Self {
        Self { unprocessed: false, ..Self::unprocessed(refusal) }
    }
}

impl From<TimedOut> for SendError {
    fn from(over: TimedOut) -> Self {
        Self { per_try: over.per_try, client_deadline: over.client, ..over.refusal.into() }
    }
}

/// Whether a copy of a request is kept while it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Only where this module may need it: on a connection that its peer may just have closed.
    ForReuse,
    /// Whatever becomes of the attempt, also when it is dropped, the caller may want to send the same request again.
    ForRetry,
}

/// A request on its way: taken out while it is being sent, and put back as far as it can be had.
///
/// Moving it from future to future would cost more than parsing it.
#[derive(Debug)]
pub struct Slot {
    request: RefCell<Option<Request<RequestBody>>>,
    /// While an attempt runs. Here, so that an attempt that is given up leaves it behind, and another one can run beside.
    /// Boxed, because every connection has room for what this is in.
    spare: RefCell<Option<Box<Request<RequestBody>>>>,
    keep: Keep,
    /// What to do when there is no connection.
    pub(super) patience: Patience,
    /// It waits for a connection, of which there are as many as there may be.
    pub(super) queued: Cell<bool>,
    /// When it had waited long enough.
    pub(super) served: Cell<Option<Instant>>,
}

impl Slot {
    /// A request that has not been sent.
    pub const fn new(request: Request<RequestBody>, keep: Keep) -> Self {
        Self {
            request: RefCell::new(Some(request)),
            spare: RefCell::new(None),
            keep,
            patience: Patience::Wait,
            queued: Cell::new(false),
            served: Cell::new(None),
        }
    }

    /// One that nobody waits for: it does not wait for a connection either.
    pub fn impatient(request: Request<RequestBody>) -> Self {
        Self { patience: Patience::Never, ..Self::new(request, Keep::ForReuse) }
    }

    /// Whether an attempt that began at `began` spent most of its time, up to `now`, waiting for a connection: then no
    /// endpoint is to blame for its end.
    pub fn was_queued(&self, began: Instant, now: Instant) -> bool {
        let mostly = |served: Instant| served.saturating_duration_since(began) > now.saturating_duration_since(served);
        self.queued.get() || self.served.get().is_some_and(mostly)
    }

    /// Looks at the request for the next attempt, if all of it can be had.
    pub fn with<T>(&self, f: impl FnOnce(&mut Request<RequestBody>) -> T) -> Option<T> {
        let mut request = self.request.borrow_mut();
        if request.is_none() {
            *request = self.spare.take().map(|spare| *spare);
        }
        request.as_mut().map(f)
    }

    /// Whether the caller may want to send it again.
    pub const fn keep(&self) -> Keep {
        self.keep
    }

    /// Whether the next attempt would send what the client sent.
    pub fn is_whole(&self) -> bool {
        self.with(|request| request.body().is_whole()).unwrap_or(false)
    }

    /// The same request for an attempt beside the one that runs, as far as it can be had.
    pub fn another(&self) -> Option<Self> {
        let copy = again(self.spare.borrow().as_ref()?)?;
        Some(Self::new(*copy, self.keep))
    }

    /// Takes it out for an attempt. `repeatable` says that this module may have to send it again.
    #[inline]
    fn take(&self, repeatable: bool) -> Option<Request<RequestBody>> {
        let mut request = self.request.borrow_mut();
        if repeatable || self.keep == Keep::ForRetry {
            self.spare.replace(request.as_ref().and_then(again));
        }
        request.take()
    }

    /// An attempt failed: `unsent` came back from it. Otherwise the copy takes its place, if `repeatable` or the caller
    /// wants it. Whether there is a request for another attempt.
    fn failed(&self, unsent: Option<Request<RequestBody>>, repeatable: bool) -> bool {
        let keeps = repeatable || self.keep == Keep::ForRetry;
        let spare = self.spare.take().filter(|spare| keeps && spare.body().is_whole());
        let request = unsent.or_else(|| spare.map(|spare| *spare));
        let any = request.is_some();
        self.request.replace(request);
        any
    }
}

impl SendError {
    /// Whether its time was over.
    pub fn is_timeout(&self) -> bool {
        self.refusal.reason == Reason::UpstreamTimeout
    }

    /// No connection to `endpoint`.
    pub(super) fn connect(error: &ConnectError, endpoint: &Endpoint) -> Self {
        let refusal = Refusal::with(Reason::ConnectFailed, format!("{}: {error}", endpoint.label));
        Self::unprocessed(refusal)
    }
}

/// Sends `request` to `endpoint` and waits for the response's head.
///
/// When the request could not be sent it is in its slot again, and with [`Keep::ForRetry`] a copy is there even after an
/// answer.
pub async fn send(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Arc<Endpoint>,
    slot: &Slot,
    progress: Option<&Rc<Progress>>,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let pool = worker.pools.of(upstream, endpoint);
    match upstream.protocol {
        // Boxed: the state of the rarer path must not make every request larger.
        AppProtocol::Http2 | AppProtocol::Grpc => {
            Box::pin(http2(worker, upstream, endpoint, &pool, slot, progress)).await
        }
        AppProtocol::Http | AppProtocol::Tcp => http1(worker, upstream, endpoint, &pool, slot, progress).await,
    }
}

async fn http1(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Endpoint,
    pool: &Rc<Pool>,
    slot: &Slot,
    progress: Option<&Rc<Progress>>,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let idempotent = slot.with(|request| is_idempotent(request.method())).unwrap_or(false);
    let mut stale = 0;
    loop {
        let pooled = if stale < STALE_TRIES { pool.checkout().await } else { None };
        let mut conn = match pooled {
            Some(conn) => conn,
            // Boxed: the rarer path again.
            None => Box::pin(obtain::http1(worker, upstream, endpoint, pool, slot)).await?,
        };
        let reused = conn.served > 0;
        if reused && !idempotent {
            // This one cannot be repeated: let the runtime look at its sockets once, so that a close that has already
            // arrived is noticed before anything is written.
            tokio::task::yield_now().await;
            if conn.send.is_closed() {
                stale += 1;
                continue;
            }
        }
        let empty = slot.with(|request| request.body().is_empty()).unwrap_or(false);
        let repeatable = reused && idempotent && empty;
        let Some(request) = slot.take(repeatable) else { return Err(lost()) };
        match conn.send.try_send_request(request).await {
            Ok(response) => {
                let max_requests = upstream.policy.connection_pool.max_requests_per_connection;
                let lease =
                    Lease::Http1 { pool: pool.clone(), conn: Some(conn), progress: progress.cloned(), max_requests };
                return Ok((response, lease));
            }
            Err(mut error) => {
                let message = error.take_message();
                let unsent = message.is_some();
                let closed = repeatable && closed_before_answer(error.error());
                slot.failed(message, closed);
                if !reused || !(unsent || closed) {
                    return Err(failed(error.error(), endpoint, progress, unsent));
                }
            }
        }
        stale += 1;
    }
}

async fn http2(
    worker: &Worker,
    upstream: &Upstream,
    endpoint: &Endpoint,
    pool: &Rc<Pool>,
    slot: &Slot,
    progress: Option<&Rc<Progress>>,
) -> Result<(Response<Incoming>, Lease), SendError> {
    let idempotent = slot.with(|request| is_idempotent(request.method())).unwrap_or(false);
    let mut stale = 0;
    loop {
        let stream = obtain::http2(worker, upstream, endpoint, pool, slot).await?;
        let empty = slot.with(|request| request.body().is_empty()).unwrap_or(false);
        let Some(request) = slot.take(empty) else { return Err(lost()) };
        let mut sender = stream.sender();
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, Lease::Http2(stream))),
            Err(mut error) => {
                let message = error.take_message();
                let unsent = message.is_some();
                let closed = stream.reused() && idempotent && closed_before_answer(error.error());
                let repeatable = unsent || closed || was_refused(error.error());
                // A connection that goes away has a successor; who refuses a stream will refuse the next one as well.
                let tries = if unsent || closed || is_going_away(error.error()) { STALE_TRIES } else { 1 };
                if !slot.failed(message, repeatable) || !repeatable || stale >= tries {
                    return Err(failed(error.error(), endpoint, progress, unsent));
                }
            }
        }
        stale += 1;
    }
}

/// A request is in its slot whenever an attempt begins.
pub fn lost() -> SendError {
    Refusal::new(Reason::Internal, "a request was sent twice").into()
}

/// RFC 9110 §9.2.2.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE)
}

/// The same request for another attempt, if its body can be had again.
fn again(request: &Request<RequestBody>) -> Option<Box<Request<RequestBody>>> {
    let mut copy = Box::new(Request::new(request.body().again()?));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// The peer closed the connection without a byte of an answer: what a just-closed pooled connection looks like.
fn closed_before_answer(error: &hyper::Error) -> bool {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return true;
    }
    find::<std::io::Error>(error).is_some_and(|io| {
        use std::io::ErrorKind as K;
        matches!(io.kind(), K::ConnectionReset | K::BrokenPipe | K::ConnectionAborted | K::NotConnected)
    })
}

/// HTTP/2: the peer says that it has not processed the stream (RFC 9113 §8.7).
fn was_refused(error: &hyper::Error) -> bool {
    is_going_away(error) || find::<h2::Error>(error).is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// HTTP/2: the peer closes the connection in an orderly way (RFC 9113 §6.8).
fn is_going_away(error: &hyper::Error) -> bool {
    find::<h2::Error>(error)
        .is_some_and(|h2| h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR))
}

fn find<'e, E: std::error::Error + 'static>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Names what went wrong between request and response head.
fn failed(error: &hyper::Error, endpoint: &Endpoint, progress: Option<&Rc<Progress>>, whole: bool) -> SendError {
    let label = &endpoint.label;
    let refusal = if let Some(reason) = progress.and_then(|progress| progress.failure.get()) {
        // The client's body ended the exchange; the upstream only saw the consequence.
        find::<Refusal>(error)
            .cloned()
            .unwrap_or_else(|| Refusal::new(reason, "the request's body broke off or is malformed"))
    } else if error.is_parse() {
        Refusal::with(Reason::BadUpstreamResponse, format!("{label}: the answer is not valid HTTP: {error}"))
    } else if find::<h2::Error>(error)
        .is_some_and(|h2| h2.is_library() || h2.reason() == Some(h2::Reason::PROTOCOL_ERROR))
    {
        Refusal::with(Reason::BadUpstreamResponse, format!("{label}: the answer breaks HTTP/2's rules: {error}"))
    } else {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        Refusal::with(Reason::UpstreamReset, format!("{label}: {error}{cause}"))
    };
    SendError { unprocessed: whole || was_refused(error), ..refusal.into() }
}
