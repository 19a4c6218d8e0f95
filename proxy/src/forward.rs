//! From a prepared request to the answer that the client gets: pick an endpoint, send, and again when that fails and may be
//! repeated; then make the response fit for the client.

use std::{future::Future, pin::pin, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;

use crate::{
    balance::Pick,
    error::{Reason, Refusal},
    exchange::Exchange,
    headers,
    layer::{
        hedge,
        retry::{self, Retries},
    },
    pipeline::nowhere,
    reply::Answer,
    snapshot::Target,
    upgrade::{Client, Tunnel},
    upstream::{
        interim, obtain,
        pool::Lease,
        send::{self, SendError, Slot},
    },
};

/// A request that is ready to be sent.
pub struct Prepared {
    /// Taken out while it is being sent.
    pub request: Slot,
    /// The client's side of a tunnel, if it asked for one.
    pub client: Option<Client>,
    /// For RingHash and Maglev.
    pub hash: u64,
    /// The client has said how long it will wait.
    pub deadline: bool,
    /// The client can be told of interim responses.
    pub interim: bool,
    /// The policy retries it, and its method allows that.
    pub repeatable: bool,
    /// When another endpoint is asked, too, and how many at most.
    pub hedge: Option<hedge::Plan>,
    /// Fault injection: first the wait, then the refusal.
    pub fault: Option<Box<(Duration, Option<Refusal>)>>,
}

/// An answer, and the connection that it comes on.
type Answered = (Response<Incoming>, Lease);

/// Sends the request until there is an answer for the client.
pub async fn forward(exchange: &mut Exchange, prepared: &mut Prepared) -> Result<Answered, Answer> {
    let conn = exchange.conn.clone();
    let worker = &conn.worker;
    let chosen = exchange.target().ok_or_else(|| nowhere("no backend was chosen"))?;
    let target = chosen.target().ok_or_else(|| nowhere("no backend was chosen"))?;
    let upstream = chosen.upstream().ok_or_else(|| nowhere("the service or its port does not exist"))?;
    let mut hurried = prepared.deadline;
    if let Some((delay, abort)) = prepared.fault.take().map(|fault| *fault) {
        Box::pin(inject(exchange, delay)).await;
        abort.map_or(Ok(()), Err)?;
        exchange.occupy(upstream)?;
        hurried = true;
    }
    let mut retries = Retries::new(target, upstream, prepared.hash, prepared.repeatable, worker.clock.now());
    // What the client gets when there is no time or no endpoint for another attempt.
    let mut before: Option<Box<Result<Answered, Refusal>>> = None;
    let ended = loop {
        let now = worker.clock.now();
        let time = if hurried || before.is_some() { has_time(exchange, prepared) } else { Ok(()) };
        let pick = match time.and_then(|()| retries.pick(exchange, now)) {
            Ok(Some(pick)) => pick,
            // Only where there was an attempt before.
            Ok(None) => break before.map_or_else(|| Err(nowhere("no other endpoint is left")), |before| *before),
            Err(refusal) => break before.map_or(Err(refusal), |before| *before),
        };
        if let Some(Ok((response, lease))) = before.take().map(|before| *before) {
            exchange.aside = None;
            retry::drain(exchange, response, lease);
        }
        let (wait, mut ended) = match attempt(exchange, prepared, &mut retries, pick).await {
            Ok((mut response, mut lease)) => {
                match retries.after_answer(&mut response, &prepared.request, exchange).await {
                    Some(wait) => (wait, Ok((response, lease))),
                    None => {
                        fit(&mut response, &mut lease, exchange, prepared, &retries)?;
                        return Ok((response, lease));
                    }
                }
            }
            Err(error) => match retries.after_failure(error, &prepared.request, exchange) {
                (Some(wait), refusal) => (wait, Err(refusal)),
                (None, refusal) => break Err(refusal),
            },
        };
        if !wait.is_zero() {
            let response = ended.as_mut().ok().map(|(response, lease)| (response, lease));
            Box::pin(retry::pause(wait, exchange, response)).await;
            worker.clock.read();
        }
        before = Some(Box::new(ended));
    };
    match ended {
        Ok((mut response, mut lease)) => {
            fit(&mut response, &mut lease, exchange, prepared, &retries)?;
            Ok((response, lease))
        }
        Err(refusal) => {
            retries.finish(exchange, false);
            Err(refusal.into())
        }
    }
}

/// Sends the request to one endpoint, under the time-outs in force; to another one, too, if the policy hedges.
///
/// What comes before the wait is outside of the future: what a future holds across a wait is paid for by every
/// connection, and what is moved into it is copied.
fn attempt<'a>(
    exchange: &'a mut Exchange,
    prepared: &'a Prepared,
    retries: &'a mut Retries<'_>,
    pick: Pick,
) -> impl Future<Output = Result<Answered, SendError>> + 'a {
    let (slot, upstream) = (&prepared.request, retries.upstream());
    if prepared.interim {
        let conn = &exchange.conn;
        slot.with(|request| conn.interim.get_or_init(Default::default).listen(request));
    }
    let live = slot.with(|request| exchange.begin_attempt(pick, upstream, Request::headers_mut(request)));
    async move {
        let Some(live) = live else { return Err(send::lost()) };
        let conn = exchange.conn.clone();
        let worker = &conn.worker;
        let endpoint = live.endpoint().clone();
        let progress = exchange.progress.clone();
        let sending = pin!(send::send(worker, upstream, &endpoint, slot, progress.as_ref()));
        let mut relayed = pin!(interim::relay(&conn, sending));
        if let Some(plan) = prepared.hedge {
            return Box::pin(hedge::race(exchange, retries, slot, plan, live, relayed)).await;
        }
        let answer = exchange.within(live.start(), relayed.as_mut()).await;
        let now = worker.clock.read();
        let answer = match answer {
            Err(over) if over.is_timeout() && slot.was_queued(live.start(), now) => {
                Err(obtain::too_late(upstream, &over.refusal))
            }
            answer => answer,
        };
        exchange.attempt_ended(upstream, live, &answer, now);
        answer
    }
}

/// Refuses what nobody waits for any more, and tells the upstream how long the client will.
fn has_time(exchange: &Exchange, prepared: &Prepared) -> Result<(), Refusal> {
    let now = exchange.conn.worker.clock.read();
    if exchange.head_deadline().is_some_and(|deadline| now >= deadline) {
        let detail = "the time for an answer was over before an endpoint was asked";
        return Err(Refusal::new(Reason::DeadlineExceeded, detail));
    }
    if let Some(deadline) = exchange.deadline().filter(|_| prepared.deadline) {
        let left = deadline.saturating_duration_since(now);
        prepared.request.with(|request| headers::forward_deadline(request.headers_mut(), left));
    }
    Ok(())
}

/// The delay of an injected fault, as far as there is time for it.
async fn inject(exchange: &Exchange, delay: Duration) {
    let clock = &exchange.conn.worker.clock;
    let until = clock.now() + delay;
    let until = exchange.head_deadline().map_or(until, |deadline| deadline.min(until));
    tokio::time::sleep_until(until.into()).await;
    clock.read();
}

/// Makes the upstream's response fit for the client: nobody is asked after it.
fn fit(
    response: &mut Response<Incoming>,
    lease: &mut Lease,
    exchange: &mut Exchange,
    prepared: &mut Prepared,
    retries: &Retries<'_>,
) -> Result<(), Refusal> {
    let grpc = exchange.record.seen_grpc_status();
    retries.finish(exchange, !response.status().is_server_error() && grpc.is_none_or(|status| status == 0));
    let fit = finish(response, lease, prepared.client.take(), exchange, retries.target());
    if let Err(refusal) = &fit {
        exchange.response_failed(refusal.reason);
    }
    fit
}

/// Makes the upstream's response fit for the client; starts the tunnel if that is what it is.
fn finish(
    response: &mut Response<Incoming>,
    lease: &mut Lease,
    client: Option<Client>,
    exchange: &Exchange,
    target: &Target,
) -> Result<(), Refusal> {
    let conn = &exchange.conn;
    let response_headers = exchange.rule().and_then(|rule| rule.response_headers.as_ref());
    let connect = exchange.record.method() == Method::CONNECT;
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !connect && switched && !response.headers().contains_key(header::UPGRADE) {
        let detail = "the endpoint switched protocols without saying to which";
        return Err(Refusal::new(Reason::BadUpstreamResponse, detail));
    }
    let tunnel = if connect { response.status().is_success() } else { switched };
    if switched && client.is_none() {
        let detail = "the endpoint switched protocols without being asked to";
        return Err(Refusal::new(Reason::BadUpstreamResponse, detail));
    }
    headers::check_response_framing(response)?;
    // A proxy speaks its own version (RFC 9110 §2.5), whatever the endpoint speaks.
    *response.version_mut() = Version::HTTP_11;
    if headers::prepare_response(response.headers_mut(), tunnel && !connect).close {
        lease.forfeit();
    }
    for modifier in [response_headers, target.response_headers.as_ref()].into_iter().flatten() {
        modifier.apply(response.headers_mut());
    }
    if let Some(client) = client {
        // Bytes that the guard held back belong to the tunnel, or are the next request.
        if let Some(guard) = conn.guard.get() {
            guard.resume_after_upgrade(tunnel);
        }
        if tunnel {
            lease.forfeit();
            Tunnel::new(conn, hyper::upgrade::on(response), target).start(conn, client);
        } else if connect {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    Ok(())
}
