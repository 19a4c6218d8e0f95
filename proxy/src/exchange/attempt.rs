//! The attempts of an exchange: each is recorded for metrics and spans, and tells the endpoint that it went to how it went.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, Response};
use hyper::body::Incoming;

use super::Exchange;
use crate::{
    balance::Pick,
    endpoint::{Endpoint, Ticket},
    error::Reason,
    resilience::outcome::{Failure, Outcome},
    snapshot::Upstream,
    upstream::{pool::Lease, send::SendError},
};

/// A failed attempt counts as one that took so long: otherwise an endpoint that refuses at once would look fast, and
/// draw requests.
const FAILURE: Duration = Duration::from_secs(1);
/// A probe that nobody could wait for has failed when it took so long; a shorter one may not have been given a chance.
const PROBE_PATIENCE: Duration = Duration::from_millis(100);

/// An attempt under way. Dropped before its end, its client went away or another attempt was faster: that says nothing
/// about the endpoint.
#[derive(Debug)]
pub struct Live {
    /// Its place in the record.
    index: usize,
    start: Instant,
    /// When the response's head came.
    head: Option<Instant>,
    ticket: Ticket,
    /// The endpoint knows how it went.
    judged: bool,
}

impl Exchange {
    /// An attempt begins; its trace context goes into `headers`.
    pub fn begin_attempt(&mut self, pick: Pick, upstream: &Upstream, headers: &mut HeaderMap) -> Live {
        let worker = &self.conn.worker;
        let start = worker.clock.now();
        let ticket = Ticket::new(pick.endpoint, pick.probe);
        let index = self.record.attempt(&worker.telemetry, ticket.endpoint(), upstream.tls.is_some(), headers, start);
        Live { index, start, head: None, ticket, judged: false }
    }

    /// The attempt has its response's head, or came to nothing.
    pub fn attempt_ended(
        &mut self,
        upstream: &Upstream,
        mut live: Live,
        answer: &Result<(Response<Incoming>, Lease), SendError>,
        now: Instant,
    ) {
        match answer {
            Ok((response, lease)) => {
                // Neither opening a connection nor waiting for one of which there are too few says anything of the
                // requests to come.
                live.start = lease.opened().unwrap_or(live.start + lease.waited()).max(live.start);
                let took = live.took(now);
                live.ticket.endpoint().observe(live.start, took, now);
                upstream.took(took, matches!(response.status().as_u16(), 429 | 503), now);
                self.attempt_answered(live, response.status().as_u16(), response.headers(), now);
            }
            Err(error) => self.attempt_failed(upstream, live, error, now),
        }
    }

    /// The response's head has come; from now on this attempt is the exchange's. A gRPC exchange is judged by what comes
    /// after the head, unless the head says it all.
    fn attempt_answered(&mut self, mut live: Live, status: u16, headers: &HeaderMap, now: Instant) {
        if let Some(before) = self.live.take() {
            self.record.attempt_ended(before.index, now);
        }
        live.head = Some(now);
        live.ticket.endpoint().set_reachable(true);
        let grpc = self.record.head(live.index, status, headers, now);
        if !self.record.is_grpc() || grpc.is_some() || status != 200 {
            let failure = Failure::of_status(status).or_else(|| grpc.and_then(Failure::of_grpc));
            self.judge(&mut live, failure, now);
        }
        self.live = Some(live);
    }

    /// The attempt came to nothing.
    pub fn attempt_failed(&mut self, upstream: &Upstream, mut live: Live, error: &SendError, now: Instant) {
        let reason = error.refusal.reason;
        self.record.attempt_failed(live.index, reason, now);
        let Some(failure) = Failure::of_reason(reason) else {
            if error.unprocessed {
                live.ticket.unsent();
            }
            return;
        };
        let took = live.took(now);
        if error.client_deadline && took < live.patience() {
            // The client gave up early; that the endpoint took at least so long is known all the same.
            live.ticket.endpoint().observe(live.start, took, now);
            return;
        }
        live.ticket.endpoint().observe(live.start, took.max(FAILURE), now);
        if failure == Failure::Timeout {
            upstream.took(took, true, now);
        }
        live.ticket.endpoint().set_reachable(failure != Failure::ConnectFailed);
        self.judge(&mut live, Some(failure), now);
    }

    /// The answer is not passed on: another attempt follows.
    pub fn attempt_dismissed(&mut self) {
        if let Some(live) = self.live.take() {
            self.record.attempt_ended(live.index, self.conn.worker.clock.now());
        }
    }

    /// Another attempt was faster. Nobody knows how this one would have ended, but it took at least so long.
    pub fn attempt_cancelled(&mut self, upstream: &Upstream, mut live: Live, now: Instant) {
        self.record.attempt_ended(live.index, now);
        let took = live.took(now);
        live.ticket.endpoint().observe(live.start, took, now);
        upstream.took(took, false, now);
        let failure = (live.ticket.is_probe() && took >= live.patience()).then_some(Failure::Timeout);
        if failure.is_some() || live.ticket.endpoint().guard().is_slow(took) {
            self.judge(&mut live, failure, now);
        }
    }

    /// Tells the endpoint how an attempt went.
    fn judge(&mut self, live: &mut Live, failure: Option<Failure>, now: Instant) {
        // What fails after its head fails now.
        let end = if std::mem::replace(&mut live.judged, true) { now } else { live.head.unwrap_or(now) };
        let outcome = Outcome { failure, took: live.took(end) };
        let event = live.ticket.judge(outcome, now, &mut self.conn.worker.rng.borrow_mut());
        if let Some(event) = event {
            self.record.breaker(live.index, event);
        }
    }

    /// Tells the endpoint of the response how it went on.
    fn judge_live(&mut self, failure: Option<Failure>) {
        if let Some(mut live) = self.live.take() {
            let now = self.conn.worker.clock.now();
            self.judge(&mut live, failure, now);
            self.live = Some(live);
        }
    }

    /// Part of the response's body was passed on. In gRPC that is a message: the call works. What its trailers will say
    /// comes on top of it.
    pub fn message_passed(&mut self) {
        if self.live.as_ref().is_some_and(|live| !live.judged) {
            self.judge_live(None);
        }
    }

    /// The response's body has ended; what follows from its trailers has been said before.
    pub fn response_ended(&mut self) {
        if self.live.as_ref().is_some_and(|live| !live.judged) {
            // Neither a message nor a status: gRPC clients take that for UNKNOWN.
            self.judge_live(Some(Failure::Grpc(2)));
        }
    }

    /// The response broke off, or cannot be passed on.
    pub fn response_failed(&mut self, reason: Reason) {
        // A client that breaks off its request ends the response, too.
        let client = self.progress.as_ref().is_some_and(|progress| progress.failure.get().is_some());
        let now = self.conn.worker.clock.now();
        let late = reason == Reason::UpstreamTimeout && self.client_deadline.is_some_and(|deadline| now >= deadline);
        if client || late {
            return;
        }
        if let Some(failure) = Failure::of_reason(reason) {
            self.judge_live(Some(failure));
        }
    }

    /// The response's trailers; the gRPC status in them, if there is one.
    pub fn trailers(&mut self, trailers: &HeaderMap) -> Option<u8> {
        let live = self.live.as_ref()?;
        let (index, judged) = (live.index, live.judged);
        let status = self.record.grpc_status(index, trailers)?;
        let failure = Failure::of_grpc(status);
        if failure.is_some() || !judged {
            self.judge_live(failure);
        }
        Some(status)
    }

    /// The endpoint of the response.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.live.as_ref().map(|live| live.ticket.endpoint())
    }
}

impl Live {
    /// When it began.
    pub const fn start(&self) -> Instant {
        self.start
    }

    /// Where it goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        self.ticket.endpoint()
    }

    /// From here on the endpoint is to blame although it was somebody else who gave up.
    fn patience(&self) -> Duration {
        if self.ticket.is_probe() { PROBE_PATIENCE } else { FAILURE }
    }

    fn took(&self, end: Instant) -> Duration {
        end.saturating_duration_since(self.start)
    }
}
