//! One request and its response, from the head's arrival to the last byte: what it waits for, and what is told of it
//! afterwards.
//!
//! An [`Exchange`] travels with the request, then inside the response's body. Wherever it is dropped, whether the
//! response ended, the client vanished or something panicked, the request is recorded once.

mod attempt;
mod waiting;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body::Frame;

use crate::{
    accept::guard::{self, GuardHandle},
    body::Progress,
    conn::Conn,
    endpoint::InFlight,
    error::{Reason, Refusal},
    record::Record,
    resilience::limiter::Standing,
    snapshot::{Deadlines, Rule, Target, Upstream},
    telemetry::metrics::InFlightGuard,
    wheel::Timer,
    worker::Local,
};

pub use attempt::Live;
pub use waiting::TimedOut;
use waiting::Waiting;

/// A request under way.
#[derive(Debug)]
pub struct Exchange {
    /// The connection it came on.
    pub conn: Rc<Conn>,
    /// When its head was complete.
    pub start: Instant,
    /// What spans, metrics and the access log will say.
    pub record: Record,
    snapshot: Option<(Local, u32)>,
    /// Position among the rule's backends.
    target: Option<usize>,
    deadlines: Option<Deadlines>,
    /// The client's own deadline; it counts beside the time-outs.
    client_deadline: Option<Instant>,
    /// The attempt whose response the client gets, or may get.
    live: Option<Live>,
    /// A frame of the response's body that was read before its head is passed on.
    pub aside: Option<Box<Frame<Bytes>>>,
    /// The request's body, if it has one.
    pub progress: Option<Rc<Progress>>,
    /// What the rate limits of its route have told; the response passes it on.
    pub standing: Option<Box<Standing>>,
    /// Counts it at the service.
    pub holds: Holds,
    /// HTTP/1.1: the guard counts whose turn it is.
    _turn: Option<guard::Exchange>,
    timer: Option<Timer>,
    /// The response's head is there.
    answered: bool,
    /// Something was sent to the client since the timer was last looked at.
    moved: bool,
}

/// One of the requests, or of the retries, that a service has in flight, on all workers.
#[derive(Debug)]
struct Place(Arc<InFlight>);

impl Place {
    /// Taken, if fewer than `limit` were.
    fn take(counter: &Arc<InFlight>, limit: u32) -> Option<Self> {
        let place = Self(counter.clone());
        (place.0.enter() < limit).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A backend of a rule, found again in the snapshot that it was chosen from.
#[derive(Debug)]
pub struct Chosen {
    snapshot: Local,
    rule: u32,
    target: usize,
}

impl Chosen {
    /// The backend.
    pub fn target(&self) -> Option<&Target> {
        self.snapshot.rules.get(self.rule as usize)?.backends.get(self.target)
    }

    /// Where it sends to.
    pub fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.target()?.upstream.as_ref()
    }
}

/// What is counted as long as the exchange lasts.
#[derive(Debug, Default)]
pub struct Holds {
    service: Option<InFlightGuard>,
    place: Option<Place>,
    retry: Option<Place>,
}

impl Exchange {
    /// A request whose head has just arrived.
    pub fn begin<B>(conn: &Rc<Conn>, request: &Request<B>, grpc: bool) -> Box<Self> {
        let worker = &conn.worker;
        let start = worker.clock.read();
        conn.in_flight.set(conn.in_flight.get() + 1);
        conn.waiting.set(conn.waiting.get() + 1);
        conn.touch();
        worker.shared.requests[worker.id].enter();
        Box::new(Self {
            record: Record::begin(&worker.telemetry, request, grpc),
            conn: conn.clone(),
            start,
            snapshot: None,
            target: None,
            deadlines: None,
            client_deadline: None,
            live: None,
            aside: None,
            progress: None,
            standing: None,
            holds: Holds::default(),
            _turn: conn.guard.get().map(GuardHandle::exchange),
            timer: None,
            answered: false,
            moved: false,
        })
    }

    /// The rule that serves it.
    pub fn routed(&mut self, snapshot: &Local, rule: u32) {
        self.snapshot = Some((snapshot.clone(), rule));
        self.record.slot = Some(snapshot.rules[rule as usize].slot.clone());
    }

    /// The backend that was chosen: its time-outs begin to count.
    pub fn targeted(&mut self, position: usize, target: &Target) {
        self.target = Some(position);
        self.record.slot = Some(target.slot.clone());
        self.deadlines = Some(target.deadlines);
        self.holds.service = Some(self.conn.worker.telemetry.metrics.in_flight(&target.slot));
    }

    /// The client waits no longer than this, whatever the time-outs are.
    pub fn limit(&mut self, timeout: Duration) {
        self.client_deadline = Some(self.start + timeout);
    }

    /// When the whole exchange has to be over, if somebody said so.
    pub fn deadline(&self) -> Option<Instant> {
        let whole = self.deadlines.and_then(|deadlines| deadlines.whole_deadline(self.start));
        [whole, self.client_deadline].into_iter().flatten().min()
    }

    /// When the response's head has to be there, as far as that is known now.
    pub fn head_deadline(&self) -> Option<Instant> {
        let ended = self.progress.as_ref().map_or(Some(self.start), |progress| progress.ended.get());
        let default = self.deadlines.filter(|deadlines| !deadlines.whole).and_then(|deadlines| deadlines.request);
        let head = default.and_then(|default| Some(ended? + default));
        [head, self.deadline()].into_iter().flatten().min()
    }

    /// Takes a place among the requests that the service may have in flight.
    ///
    /// # Errors
    /// `overloaded` when `connectionPool.maxRequests` places are taken, or as many as the service's latency allows.
    pub fn occupy(&mut self, upstream: &Upstream) -> Result<(), Refusal> {
        let (service, limit) = (&upstream.service, upstream.policy.connection_pool.max_requests);
        let Some(place) = Place::take(&service.in_flight, limit) else { return Err(upstream.max_requests()) };
        if let Some(limit) = service.concurrency.as_ref().map(|gradient| gradient.limit())
            && service.in_flight.get() > limit
        {
            return Err(upstream.adaptive_limit(limit));
        }
        self.holds.place = Some(place);
        Ok(())
    }

    /// Takes a place among the retries that the service may have in flight, kept until the client has an answer.
    pub fn occupy_retry(&mut self, upstream: &Upstream) -> bool {
        if self.holds.retry.is_none() {
            self.holds.retry = Place::take(&upstream.service.retries, upstream.policy.connection_pool.max_retries);
        }
        self.holds.retry.is_some()
    }

    /// There will be no retry, or it is over.
    pub fn release_retry(&mut self) {
        self.holds.retry = None;
    }

    /// Whether all of the request has been sent.
    pub fn is_sent(&self) -> bool {
        self.progress.as_ref().is_none_or(|progress| progress.done.get())
    }

    /// The backend, in a form that outlives borrows of the exchange.
    pub fn target(&self) -> Option<Chosen> {
        let (snapshot, rule) = self.snapshot.as_ref()?;
        Some(Chosen { snapshot: snapshot.clone(), rule: *rule, target: self.target? })
    }

    /// The rule, for the response's filters.
    pub fn rule(&self) -> Option<&Rule> {
        self.snapshot.as_ref().map(|(snapshot, rule)| &snapshot.rules[*rule as usize])
    }

    /// Runs an attempt that began at `began`, or a part of it, under the time-outs in force.
    pub async fn within<T, E: From<TimedOut>>(
        &mut self,
        began: Instant,
        mut attempt: Pin<&mut impl Future<Output = Result<T, E>>>,
    ) -> Result<T, E> {
        let Some(deadlines) = self.deadlines else { return attempt.await };
        let started = self.conn.worker.clock.now();
        let mut waiting = Waiting {
            deadlines,
            start: self.start,
            attempt: began,
            heard: started,
            progress: self.progress.clone(),
            client: self.client_deadline,
        };
        let due = match waiting.check(started) {
            Ok(Some(due)) => due,
            Ok(None) => return attempt.await,
            Err(over) => return Err(over.into()),
        };
        let timer = match self.timer.take() {
            Some(timer) => {
                timer.rearm(due);
                timer
            }
            None => self.conn.worker.wheel.arm(due),
        };
        let result = poll_fn(|cx| {
            loop {
                if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                    return Poll::Ready(result);
                }
                ready!(timer.poll_elapsed(cx));
                match waiting.check(Instant::now()) {
                    Ok(Some(due)) => timer.rearm(due),
                    Ok(None) => return Poll::Pending,
                    Err(over) => return Poll::Ready(Err(over.into())),
                }
            }
        })
        .await;
        self.timer = Some(timer);
        result
    }

    /// The response's head is there: from now on its body is watched.
    pub fn answered(&mut self, status: u16) {
        self.record.status = status;
        self.head_seen();
        // What streams on for hours is no retry any more.
        self.release_retry();
        // The timer still stands at a deadline of the head. It is looked at only if the body makes somebody wait.
        self.moved = true;
    }

    /// It no longer waits for a response's head.
    fn head_seen(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.conn.waiting.set(self.conn.waiting.get().saturating_sub(1));
        }
    }

    /// Part of the response's body goes to the client.
    pub fn sent(&mut self, bytes: usize) {
        self.record.bytes_out += bytes as u64;
        self.moved = true;
        self.conn.touch();
        self.message_passed();
    }

    /// The response could not be completed.
    pub fn fail(&mut self, reason: Reason) {
        self.record.reason.get_or_insert(reason);
        self.response_failed(reason);
    }

    /// While the upstream's body makes no progress: ready once it has taken too long.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        let Some(deadlines) = self.deadlines else { return Poll::Pending };
        let whole = self.deadline();
        let next = |now: Instant| [whole, deadlines.idle.map(|idle| now + idle)].into_iter().flatten().min();
        let now = self.conn.worker.clock.now();
        let timer = match (&self.timer, next(now)) {
            (Some(timer), _) => timer,
            (None, Some(due)) => &*self.timer.insert(self.conn.worker.wheel.arm(due)),
            (None, None) => return Poll::Pending,
        };
        loop {
            ready!(timer.poll_elapsed(cx));
            let now = Instant::now();
            // A stream in which only the client talks is alive.
            let sent = self.progress.as_ref().is_some_and(|progress| progress.moved.replace(false));
            let detail = if whole.is_some_and(|whole| now >= whole) {
                "the response was not complete within the request time-out"
            } else if std::mem::take(&mut self.moved) || sent || deadlines.idle.is_none() {
                let Some(due) = next(now) else { return Poll::Pending };
                timer.rearm(due);
                continue;
            } else {
                "the response's body stood still for the idle time-out"
            };
            self.fail(Reason::UpstreamTimeout);
            return Poll::Ready(Refusal::new(Reason::UpstreamTimeout, detail));
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let worker = &self.conn.worker;
        worker.shared.requests[worker.id].leave();
        if !self.answered {
            self.conn.waiting.set(self.conn.waiting.get().saturating_sub(1));
        }
        self.conn.in_flight.set(self.conn.in_flight.get().saturating_sub(1));
        let end = worker.clock.read();
        self.conn.touch();
        if let Some(progress) = &self.progress {
            self.record.bytes_in = progress.bytes.get();
        }
        let rule = self.snapshot.as_ref().map(|(snapshot, rule)| &snapshot.rules[*rule as usize]);
        self.record.finish(&worker.telemetry, rule, &self.conn, self.start, end);
    }
}
