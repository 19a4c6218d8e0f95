//! One request and its response, from the head's arrival to the last byte: what it waits for, and what is told of it
//! afterwards.
//!
//! An [`Exchange`] travels with the request, then inside the response's body. Wherever it is dropped, whether the
//! response ended, the client vanished or something panicked, the request is recorded once.

mod judge;

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{HeaderMap, Request};

use crate::{
    accept::guard::{self, GuardHandle},
    balance::Pick,
    body::Progress,
    conn::Conn,
    endpoint::{Endpoint, Ticket},
    error::{Reason, Refusal},
    record::Record,
    snapshot::{Deadlines, Rule, Service, Target, Upstream},
    telemetry::metrics::InFlightGuard,
    wheel::Timer,
    worker::Local,
};

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
    /// The request's body, if it has one.
    pub progress: Option<Rc<Progress>>,
    /// Counts it at the service and at the endpoint.
    pub holds: Holds,
    /// HTTP/1.1: the guard counts whose turn it is.
    _turn: Option<guard::Exchange>,
    timer: Option<Timer>,
    /// The response's head is there.
    answered: bool,
    /// gRPC: the current attempt has not shown yet whether it succeeds.
    undecided: bool,
    /// Something was sent to the client since the timer was last looked at.
    moved: bool,
}

/// One of the requests that a service has in flight, on all workers.
#[derive(Debug)]
struct Place(Arc<Service>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.leave();
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
    endpoint: Option<Ticket>,
    service: Option<InFlightGuard>,
    place: Option<Place>,
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
            progress: None,
            holds: Holds::default(),
            _turn: conn.guard.get().map(GuardHandle::exchange),
            timer: None,
            answered: false,
            undecided: false,
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

    /// The client waits no longer than this; only ever shortens what is in force.
    pub fn limit(&mut self, timeout: Duration) {
        if let Some(deadlines) = &mut self.deadlines {
            let shorter = deadlines.request.filter(|request| deadlines.whole && *request <= timeout);
            deadlines.request = Some(shorter.unwrap_or(timeout));
            deadlines.whole = true;
        }
    }

    /// Takes a place among the requests that the service may have in flight.
    ///
    /// # Errors
    /// `overloaded` when `connectionPool.maxRequests` places are taken.
    pub fn occupy(&mut self, upstream: &Upstream) -> Result<(), Refusal> {
        let limit = upstream.policy.connection_pool.max_requests;
        let place = Place(upstream.service.clone());
        if place.0.in_flight.enter() >= limit {
            let detail = format!("service {} has maxRequests: {limit} in flight", upstream.service.name);
            return Err(Refusal::with(Reason::Overloaded, detail));
        }
        self.holds.place = Some(place);
        Ok(())
    }

    /// An attempt begins.
    pub fn attempt(&mut self, pick: Pick, tls: bool, headers: Option<&mut HeaderMap>) {
        let Pick { endpoint, probe } = pick;
        self.undecided = self.record.is_grpc() && endpoint.guard().enabled();
        let endpoint = self.holds.endpoint.insert(Ticket::new(endpoint, probe)).endpoint();
        let worker = &self.conn.worker;
        self.record.attempt(&worker.telemetry, endpoint, tls, headers, worker.clock.now());
    }

    /// The endpoint of the current attempt.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.holds.endpoint.as_ref().map(Ticket::endpoint)
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

    /// Runs an attempt under the time-outs in force.
    pub async fn within<T, E: From<Refusal>>(
        &mut self,
        mut attempt: Pin<&mut impl Future<Output = Result<T, E>>>,
    ) -> Result<T, E> {
        let Some(deadlines) = self.deadlines else { return attempt.await };
        let started = self.conn.worker.clock.now();
        let mut waiting =
            Waiting { deadlines, start: self.start, attempt: started, heard: started, progress: self.progress.clone() };
        let due = match waiting.check(started) {
            Ok(Some(due)) => due,
            Ok(None) => return attempt.await,
            Err(refusal) => return Err(refusal.into()),
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
                    Err(refusal) => return Poll::Ready(Err(refusal.into())),
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
        if self.undecided {
            self.judge_message();
        }
    }

    /// The response's body has ended; what follows from its trailers has been said before.
    pub fn ended(&mut self) {
        if self.undecided {
            self.judge_silence();
        }
    }

    /// The response's trailers.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.record.grpc_status(trailers);
        self.judge_trailers();
    }

    /// The response could not be completed.
    pub fn fail(&mut self, reason: Reason) {
        self.record.reason.get_or_insert(reason);
        // A client that breaks off its request ends the response, too.
        if self.progress.as_ref().is_none_or(|progress| progress.failure.get().is_none()) {
            self.judge_failure(reason);
        }
    }

    /// While the upstream's body makes no progress: ready once it has taken too long.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        let Some(deadlines) = self.deadlines else { return Poll::Pending };
        let whole = deadlines.whole_deadline(self.start);
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
            self.record.reason.get_or_insert(Reason::UpstreamTimeout);
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
        if let Some(endpoint) = self.endpoint() {
            self.record.judge(endpoint);
        }
        let rule = self.snapshot.as_ref().map(|(snapshot, rule)| &snapshot.rules[*rule as usize]);
        self.record.finish(&worker.telemetry, rule, &self.conn, self.start, end);
    }
}

impl Deadlines {
    /// The end of an exchange whose request time-out covers the response's body.
    fn whole_deadline(&self, start: Instant) -> Option<Instant> {
        self.request.filter(|_| self.whole).map(|request| start + request)
    }
}

/// Waiting for a response's head: which of the time-outs is due. Pure: `now` is passed in.
#[derive(Debug)]
struct Waiting {
    deadlines: Deadlines,
    start: Instant,
    attempt: Instant,
    /// Last progress of the request's body.
    heard: Instant,
    progress: Option<Rc<Progress>>,
}

impl Waiting {
    /// When to look again, or what is over.
    fn check(&mut self, now: Instant) -> Result<Option<Instant>, Refusal> {
        let sending = self.progress.as_ref().is_some_and(|progress| !progress.done.get());
        let mut due: Option<Instant> = None;
        let mut sooner = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        if sending {
            if self.progress.as_ref().is_some_and(|progress| progress.moved.replace(false)) {
                self.heard = now;
            }
            if let Some(idle) = self.deadlines.idle {
                if now >= self.heard + idle {
                    return Err(Refusal::new(
                        Reason::RequestTimeout,
                        "the request's body stood still for the idle time-out",
                    ));
                }
                sooner(self.heard + idle);
            }
        }
        if let Some(request) = self.deadlines.request {
            // A default time-out counts from the end of the request's body, and so not before that.
            let ended = self.progress.as_ref().map_or(Some(self.start), |progress| progress.ended.get());
            let base = if sending { now } else { ended.unwrap_or(now) };
            let at = if self.deadlines.whole { self.start } else { base } + request;
            if now >= at {
                return Err(over("the request", request, sending));
            }
            sooner(at);
        }
        if let Some(limit) = self.deadlines.attempt {
            if now >= self.attempt + limit {
                return Err(over("this attempt", limit, sending));
            }
            sooner(self.attempt + limit);
        }
        Ok(due)
    }
}

fn over(what: &str, limit: Duration, sending: bool) -> Refusal {
    if sending {
        return Refusal::with(Reason::RequestTimeout, format!("the request's body was not complete within {limit:?}"));
    }
    Refusal::with(Reason::UpstreamTimeout, format!("no response within {limit:?}, the time-out of {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn waiting(start: Instant, deadlines: Deadlines, progress: Option<Rc<Progress>>) -> Waiting {
        Waiting { deadlines, start, attempt: start, heard: start, progress }
    }

    #[test]
    fn a_default_time_out_begins_when_the_request_has_been_sent() {
        let start = Instant::now();
        let progress = Rc::new(Progress::default());
        let deadlines = Deadlines { request: Some(15 * S), whole: false, attempt: None, idle: Some(300 * S) };
        let mut wait = waiting(start, deadlines, Some(progress.clone()));
        progress.moved.set(true);
        assert_eq!(wait.check(start + 20 * S).unwrap(), Some(start + 35 * S));
        progress.done.set(true);
        progress.ended.set(Some(start + 29 * S));
        assert_eq!(wait.check(start + 30 * S).unwrap(), Some(start + 44 * S));
        assert_eq!(wait.check(start + 44 * S).unwrap_err().reason, Reason::UpstreamTimeout);
    }

    #[test]
    fn a_written_time_out_covers_everything_and_blames_who_is_late() {
        let start = Instant::now();
        let deadlines = Deadlines { request: Some(2 * S), whole: true, attempt: None, idle: None };
        let mut wait = waiting(start, deadlines, None);
        assert_eq!(wait.check(start).unwrap(), Some(start + 2 * S));
        assert_eq!(wait.check(start + 2 * S).unwrap_err().reason, Reason::UpstreamTimeout);
        let mut wait = waiting(start, deadlines, Some(Rc::default()));
        assert_eq!(wait.check(start + 2 * S).unwrap_err().reason, Reason::RequestTimeout);
    }

    #[test]
    fn the_earliest_of_several_counts() {
        let start = Instant::now();
        let deadlines = Deadlines { request: Some(9 * S), whole: true, attempt: Some(S), idle: None };
        let mut wait = waiting(start, deadlines, None);
        assert_eq!(wait.check(start).unwrap(), Some(start + S));
        assert!(wait.check(start + S).unwrap_err().detail.contains("this attempt"));
    }

    #[test]
    fn a_body_that_stands_still_is_the_clients_fault() {
        let start = Instant::now();
        let progress = Rc::new(Progress::default());
        let deadlines = Deadlines { request: None, whole: false, attempt: None, idle: Some(5 * S) };
        let mut wait = waiting(start, deadlines, Some(progress.clone()));
        assert_eq!(wait.check(start + S).unwrap(), Some(start + 5 * S));
        progress.moved.set(true);
        assert_eq!(wait.check(start + 5 * S).unwrap(), Some(start + 10 * S));
        assert_eq!(wait.check(start + 10 * S).unwrap_err().reason, Reason::RequestTimeout);
    }
}
