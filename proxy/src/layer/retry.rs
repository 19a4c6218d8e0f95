//! Retries: what follows a failed attempt. [`RetryPlan`] decides about the request, the service's budget about all of them.
//!
//! Two things are kept apart. A request that no endpoint has processed is *picked again*, up to `REPICKS` times, as long
//! as there is an endpoint that, as far as anybody knows, accepts connections: that costs nobody anything, and is not a
//! matter of policy. Everything else is a *retry*: it needs a policy that lists the failure, a method that may be
//! repeated, and room in the budget.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{Response, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use smallvec::SmallVec;

use crate::{
    balance::Pick,
    endpoint::Endpoint,
    error::{Reason, Refusal},
    exchange::Exchange,
    headers,
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
};

/// How often a request that nobody has processed is offered to yet another endpoint.
const REPICKS: u8 = 2;
/// How long the head of a gRPC response is held back to see whether its trailers follow at once: a call that fails
/// without a message is answered in one piece.
const PEEK: Duration = Duration::from_millis(20);
/// An answer that the client does not get is read to its end up to this many bytes, so that its connection can be kept.
const DRAIN: usize = 64 << 10;
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
    tried: SmallVec<[u64; 3]>,
    repicks: u8,
    /// The next attempt makes sense at another endpoint only.
    elsewhere: bool,
    /// Why the policy's retry did not happen.
    stopped: Option<RetryOutcome>,
    /// What the refusal says of it.
    limit: Option<String>,
}

impl<'t> Retries<'t> {
    /// Before the first attempt. `method` says whether it may be repeated.
    pub fn new(target: &'t Target, upstream: &'t Upstream, hash: u64, method: bool, now: Instant) -> Self {
        let plan = target.retry.as_deref();
        if plan.is_some() || upstream.policy.hedge.is_some() {
            upstream.service.budget.deposit(now);
        }
        Self {
            plan,
            target,
            upstream,
            hash,
            state: RetryState::new(method),
            tried: SmallVec::new(),
            repicks: 0,
            elsewhere: false,
            stopped: None,
            limit: None,
        }
    }

    /// The backend.
    pub const fn target(&self) -> &'t Target {
        self.target
    }

    /// Where attempts go.
    pub const fn upstream(&self) -> &'t Upstream {
        self.upstream
    }

    /// The endpoint for the next attempt; `None` when there is none that makes sense.
    ///
    /// # Errors
    /// Why there is none.
    pub fn pick(&mut self, exchange: &Exchange, now: Instant) -> Result<Option<Pick>, Refusal> {
        let rng = &mut exchange.conn.worker.rng.borrow_mut();
        let avoids = self.elsewhere || self.plan.is_none_or(|plan| plan.avoid_previous_hosts);
        let avoided = if avoids { &self.tried[..] } else { &[] };
        let picked = self.upstream.pick(self.hash, avoided, now, rng);
        let pick = picked.map_err(|unpicked| self.upstream.refusal(unpicked, now))?;
        let id = pick.endpoint.id;
        let known = self.tried.contains(&id);
        if std::mem::take(&mut self.elsewhere) && known {
            return Ok(None);
        }
        if !known {
            self.tried.push(id);
        }
        Ok(Some(pick))
    }

    /// Another endpoint for a hedge, if there is one and the budget allows it.
    pub fn hedge(&mut self, exchange: &mut Exchange, now: Instant) -> Option<Pick> {
        self.elsewhere = true;
        let pick = self.pick(exchange, now).ok()??;
        if self.granted(exchange, now).is_err() {
            // It is not sent there after all.
            self.tried.pop();
            return None;
        }
        Some(pick)
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
        // Whoever asks to be left alone is, if there is somebody else.
        self.elsewhere = failed.retry_after.is_some_and(|wanted| plan.is_too_long(wanted));
        let wait = self.decide(plan, &failed, exchange)?;
        exchange.attempt_dismissed();
        Some(wait)
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
        // What came back unsent has its body with it.
        let repeatable = request.is_whole() || (error.unprocessed && request.with(|_| ()).is_some());
        let reachable = |endpoint: &Endpoint| endpoint.reachable();
        if repeatable && error.unprocessed && self.repicks < REPICKS && self.has_another(reachable) {
            self.repicks += 1;
            self.elsewhere = true;
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
        match (self.decide(plan, &failed, exchange), self.limit.take()) {
            (Some(wait), _) => (Some(wait), error.refusal),
            (None, None) => (None, error.refusal),
            (None, Some(limit)) => {
                let detail = format!("{}; no retry: {limit}", error.refusal);
                (None, Refusal::with(Reason::RetryBudgetExhausted, detail))
            }
        }
    }

    /// Counts what came of it, once the client has an answer; `good` says whether it is one.
    pub fn finish(&self, exchange: &Exchange, good: bool) {
        let outcome = match self.stopped {
            Some(outcome) => outcome,
            None if self.state.retries == 0 => return,
            None if good => RetryOutcome::Recovered,
            None => RetryOutcome::Failed,
        };
        exchange.conn.worker.telemetry.metrics.retried(&self.target.slot, outcome);
    }

    /// Whether a request may go to an endpoint that it has not been sent to.
    fn has_another(&self, suits: impl Fn(&Endpoint) -> bool) -> bool {
        let mut endpoints = self.upstream.service.endpoints().iter();
        endpoints.any(|endpoint| {
            endpoint.weight() > 0 && endpoint.usable() && !self.tried.contains(&endpoint.id) && suits(endpoint)
        })
    }

    fn decide(&mut self, plan: &RetryPlan, failed: &Failed, exchange: &mut Exchange) -> Option<Duration> {
        let conn = exchange.conn.clone();
        let now = conn.worker.clock.now();
        let others = self.has_another(|_| true);
        let rng = &mut conn.worker.rng.borrow_mut();
        match plan.decide(failed, &mut self.state, now, exchange.head_deadline(), others, rng) {
            Decision::Retry { after } => match self.granted(exchange, now) {
                Ok(()) => return Some(after),
                Err(limit) => {
                    self.stopped = Some(RetryOutcome::BudgetExhausted);
                    self.limit = Some(limit);
                }
            },
            Decision::Stop(Why::BodyTooLarge) => self.stopped = Some(RetryOutcome::BodyTooLarge),
            Decision::Stop(_) => {}
        }
        None
    }

    /// Asks what all requests to the service share: retries in flight, and the budget.
    fn granted(&self, exchange: &mut Exchange, now: Instant) -> Result<(), String> {
        let service = &self.upstream.service;
        if !exchange.occupy_retry(self.upstream) {
            let limit = self.upstream.policy.connection_pool.max_retries;
            return Err(format!("service {} has maxRetries: {limit} in flight", service.name));
        }
        if !service.budget.withdraw(now) {
            exchange.release_retry();
            return Err(format!("the retry budget of service {} is used up", service.name));
        }
        Ok(())
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

/// Waits before the next attempt. Meanwhile a short answer is read to its end: it may still be the one that the client
/// gets, and somebody else may need its connection.
pub async fn pause(wait: Duration, exchange: &mut Exchange, response: Option<(&mut Response<Incoming>, &mut Lease)>) {
    let mut sleep = pin!(tokio::time::sleep(wait));
    if let Some((response, lease)) = response
        && exchange.aside.is_none()
        && is_drainable(response, exchange)
    {
        let mut text = BytesMut::new();
        let ended = tokio::select! {
            ended = read(response.body_mut(), &mut text) => ended,
            () = &mut sleep => false,
        };
        if ended {
            lease.finish();
        }
        exchange.aside = (!text.is_empty()).then(|| Box::new(Frame::data(text.freeze())));
    }
    if !sleep.is_elapsed() {
        sleep.await;
    }
}

/// Reads an answer that the client does not get to its end, if that is near: closing connections is dear under failure.
pub fn drain(exchange: &Exchange, response: Response<Incoming>, mut lease: Lease) {
    if !is_drainable(&response, exchange) || exchange.conn.worker.draining.get() {
        return;
    }
    let mut body = response.into_body();
    if body.is_end_stream() {
        return lease.finish();
    }
    tokio::task::spawn_local(async move {
        let mut text = BytesMut::new();
        // Closed when it takes longer.
        if tokio::time::timeout(DRAIN_TIME, read(&mut body, &mut text)).await == Ok(true) {
            lease.finish();
        }
    });
}

/// Whether the rest of an answer is worth reading. One that came before all of the request was sent spoils its connection.
fn is_drainable(response: &Response<Incoming>, exchange: &Exchange) -> bool {
    exchange.is_sent()
        && response.body().size_hint().lower() <= DRAIN as u64
        && headers::check_response_framing(response).is_ok()
}

/// Reads up to [`DRAIN`] bytes; whether that was all. Trailers of such an answer interest nobody.
async fn read(body: &mut Incoming, text: &mut BytesMut) -> bool {
    while text.len() <= DRAIN {
        match body.frame().await {
            Some(Ok(frame)) => frame.data_ref().into_iter().for_each(|data| text.extend_from_slice(data)),
            Some(Err(_)) => return false,
            None => return true,
        }
    }
    false
}
