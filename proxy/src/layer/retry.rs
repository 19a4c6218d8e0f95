//! Retries: what follows a failed attempt. [`RetryPlan`] decides about the request, the service's budget about all of them.
//!
//! Two things are kept apart. A request that no endpoint has processed is simply *picked again*, a few times, as long as
//! there is an endpoint that answers: that costs nobody anything, and is not a matter of policy. Everything else is a
//! *retry*: it needs a policy that lists the failure, a method that may be repeated, and room in the budget.

use std::{
    future::poll_fn,
    pin::Pin,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::{
    balance::Pick,
    error::{Reason, Refusal},
    exchange::Exchange,
    resilience::{
        outcome::Failure,
        retry::{Decision, Failed, RetryPlan, RetryState, Why, retry_after},
    },
    snapshot::{Target, Upstream},
    telemetry::metrics::RetryOutcome,
    upstream::{
        pool::Lease,
        send::{SendError, Slot},
    },
    worker::Worker,
};

/// How many endpoints a request that nobody has processed is offered to.
const PICKS: usize = 3;
/// How long the head of a gRPC response is held back to see whether its trailers follow at once: a call that fails
/// without a message is answered in one piece.
const PEEK: Duration = Duration::from_millis(20);
/// An answer that the client does not get is read to its end up to this many bytes, so that its connection can be kept.
const DRAIN: u64 = 64 << 10;
/// And for no longer than this.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// The retries of one request.
#[derive(Debug)]
pub struct Retries<'t> {
    plan: Option<&'t RetryPlan>,
    target: &'t Target,
    upstream: &'t Upstream,
    hash: u64,
    state: RetryState,
    /// Endpoints that this request has been sent to.
    tried: SmallVec<[u64; PICKS]>,
    /// The budget, or the limit of retries in flight, did not allow another one.
    exhausted: bool,
}

impl<'t> Retries<'t> {
    /// Before the first attempt. `method` says whether it may be repeated.
    pub fn new(target: &'t Target, upstream: &'t Upstream, hash: u64, method: bool, now: Instant) -> Self {
        let plan = target.retry.as_deref();
        if plan.is_some() || upstream.policy.hedge.is_some() {
            upstream.service.budget.deposit(now);
        }
        let state = RetryState::new(method);
        Self { plan, target, upstream, hash, state, tried: SmallVec::new(), exhausted: false }
    }

    /// Where attempts go.
    pub const fn upstream(&self) -> &'t Upstream {
        self.upstream
    }

    /// Another endpoint for a hedge, if there is one and the budget allows it.
    pub fn hedge(&mut self, exchange: &mut Exchange, now: Instant) -> Option<Pick> {
        let conn = exchange.conn.clone();
        let pick = self.upstream.pick(self.hash, &self.tried, now, &mut conn.worker.rng.borrow_mut()).ok()?;
        if self.tried.contains(&pick.endpoint.id) || !self.granted(exchange, now) {
            return None;
        }
        self.tries(pick.endpoint.id);
        Some(pick)
    }

    /// The endpoints that the next attempt avoids if it can.
    pub fn avoided(&self) -> &[u64] {
        if self.plan.is_none_or(|plan| plan.avoid_previous_hosts || self.state.retries == 0) {
            &self.tried
        } else {
            &[]
        }
    }

    /// An attempt goes to this endpoint.
    pub fn tries(&mut self, endpoint: u64) {
        if !self.tried.contains(&endpoint) {
            self.tried.push(endpoint);
        }
    }

    /// After an answer: how long to wait for the next attempt, or `None` when the client gets this one.
    pub async fn after_answer(
        &mut self,
        response: &mut Response<Incoming>,
        request: &Slot,
        exchange: &mut Exchange,
    ) -> Option<Duration> {
        let plan = self.plan?;
        let status = response.status().as_u16();
        let mut grpc = exchange.record.seen_grpc_status();
        if grpc.is_none() && status == 200 && exchange.record.is_grpc() && plan.watches_grpc() && exchange.is_sent() {
            grpc = Box::pin(peek(response.body_mut(), exchange)).await;
        }
        if !plan.retries_status(status) && !grpc.is_some_and(|status| plan.retries_grpc(status)) {
            if self.state.retries > 0 {
                let failed = Failure::of_status(status).is_some() || grpc.is_some_and(|grpc| grpc != 0);
                self.ended(exchange, if failed { RetryOutcome::Failed } else { RetryOutcome::Recovered });
            }
            return None;
        }
        let wanted = response.headers().get(header::RETRY_AFTER);
        let failed = Failed {
            status: Some(status),
            grpc,
            sent: exchange.is_sent(),
            repeatable: request.is_whole(),
            retry_after: wanted.and_then(|value| retry_after(value, SystemTime::now())),
            ..Failed::default()
        };
        self.decide(plan, &failed, exchange)
    }

    /// After an attempt without an answer: how long to wait for the next one, if there is one, and what the client is
    /// told otherwise.
    pub fn after_failure(
        &mut self,
        error: SendError,
        request: &Slot,
        exchange: &mut Exchange,
    ) -> (Option<Duration>, Refusal) {
        // What Weft refused itself, and what the client did wrong, ends here.
        if Failure::of_reason(error.refusal.reason).is_none() {
            return (None, error.refusal);
        }
        let whole = request.is_whole();
        // What came back unsent has its body with it.
        let repeatable = whole || (error.unprocessed && request.with(|_| ()).is_some());
        if repeatable && error.unprocessed && self.tried.len() < PICKS && self.another_answers() {
            return (Some(Duration::ZERO), error.refusal);
        }
        let Some(plan) = self.plan else { return (None, error.refusal) };
        let failed = Failed {
            reason: Some(error.refusal.reason),
            unprocessed: error.unprocessed,
            sent: exchange.is_sent(),
            repeatable,
            per_try_timeout: error.per_try,
            ..Failed::default()
        };
        match self.decide(plan, &failed, exchange) {
            Some(wait) => (Some(wait), error.refusal),
            None if self.exhausted => (None, self.exhausted(&error.refusal)),
            None => (None, error.refusal),
        }
    }

    /// Whether there is an endpoint left that, as far as anybody knows, accepts connections.
    fn another_answers(&self) -> bool {
        let endpoints = self.upstream.service.endpoints();
        endpoints.iter().any(|endpoint| !self.tried.contains(&endpoint.id) && endpoint.usable() && endpoint.reachable())
    }

    fn others_untried(&self) -> bool {
        let endpoints = self.upstream.service.endpoints();
        endpoints.iter().any(|endpoint| !self.tried.contains(&endpoint.id) && endpoint.usable())
    }

    fn decide(&mut self, plan: &RetryPlan, failed: &Failed, exchange: &mut Exchange) -> Option<Duration> {
        let conn = exchange.conn.clone();
        let now = conn.worker.clock.now();
        let others = self.others_untried();
        let rng = &mut conn.worker.rng.borrow_mut();
        match plan.decide(failed, &mut self.state, now, exchange.deadline(), others, rng) {
            Decision::Retry { after } if self.granted(exchange, now) => Some(after),
            Decision::Retry { .. } => {
                self.exhausted = true;
                self.ended(exchange, RetryOutcome::BudgetExhausted);
                None
            }
            Decision::Stop(Why::BodyTooLarge) => {
                self.ended(exchange, RetryOutcome::BodyTooLarge);
                None
            }
            Decision::Stop(_) => {
                if self.state.retries > 0 {
                    self.ended(exchange, RetryOutcome::Failed);
                }
                None
            }
        }
    }

    /// Asks what all requests to the service share: retries in flight, and the budget.
    fn granted(&self, exchange: &mut Exchange, now: Instant) -> bool {
        exchange.occupy_retry(self.upstream) && self.upstream.service.budget.withdraw(now)
    }

    fn exhausted(&self, refusal: &Refusal) -> Refusal {
        let name = &self.upstream.service.name;
        let detail = format!("{refusal}; no retry: the retry budget of service {name} is used up");
        Refusal::with(Reason::RetryBudgetExhausted, detail)
    }

    fn ended(&self, exchange: &Exchange, outcome: RetryOutcome) {
        exchange.conn.worker.telemetry.metrics.retried(&self.target.slot, outcome);
    }
}

/// Waits a moment for the first frame of a gRPC response: its trailers are the answer when no message comes. What was
/// read is put aside for the client.
async fn peek(body: &mut Incoming, exchange: &mut Exchange) -> Option<u8> {
    let first = tokio::time::timeout(PEEK, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx))).await;
    // What broke off or is late comes up again when the client reads.
    let frame: Frame<Bytes> = first.ok()??.ok()?;
    let status = frame.trailers_ref().and_then(|trailers| exchange.trailers(trailers));
    exchange.aside = Some(Box::new(frame));
    status
}

/// Reads an answer that the client does not get to its end, if that is near: closing connections is dear under failure.
pub fn drain(worker: &Worker, response: Response<Incoming>, mut lease: Lease) {
    let mut body = response.into_body();
    if body.is_end_stream() {
        return lease.finish();
    }
    if body.size_hint().upper().is_none_or(|size| size > DRAIN) || worker.draining.get() {
        return;
    }
    tokio::task::spawn_local(async move {
        let read = async {
            while let Some(frame) = body.frame().await {
                if frame.is_err() {
                    return;
                }
            }
            lease.finish();
        };
        // Closed when it takes longer.
        let _ = tokio::time::timeout(DRAIN_TIME, read).await;
    });
}
