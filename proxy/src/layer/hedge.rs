//! Hedging: when an endpoint is slow to answer, another one is asked the same, and the faster answer counts.
//!
//! J. Dean, L. A. Barroso, "The Tail at Scale" (CACM 2013). Only for idempotent requests without a body; a hedge is
//! counted by the service's retry budget, and the slower attempt is cancelled.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use smallvec::SmallVec;

use super::retry::{self, Retries};
use crate::{
    balance::Pick,
    body::RequestBody,
    exchange::{Exchange, Live},
    snapshot::Upstream,
    upstream::{
        pool::Lease,
        send::{self, Keep, SendError, Slot},
    },
    worker::Worker,
};

type Answer = Result<(Response<Incoming>, Lease), SendError>;
/// What an attempt ends with, and the request if it can be sent again.
type Ended = (Answer, Option<Request<RequestBody>>);

/// An attempt that has not ended.
struct Running<'u> {
    live: Live,
    attempt: Pin<Box<dyn Future<Output = Ended> + 'u>>,
}

/// The attempts at one request, and when the next one is due.
struct Race<'u> {
    worker: &'u Rc<Worker>,
    upstream: &'u Upstream,
    running: SmallVec<[Running<'u>; 2]>,
    due: Option<Pin<Box<tokio::time::Sleep>>>,
}

enum Event {
    /// Nobody has answered for a while.
    Due,
    Ended(Live, Box<Ended>),
}

impl<'u> Race<'u> {
    fn start(&mut self, exchange: &mut Exchange, pick: Pick, mut request: Request<RequestBody>) {
        let endpoint = pick.endpoint.clone();
        let tls = self.upstream.tls.is_some();
        let live = exchange.begin_attempt(pick.into(), tls, Some(request.headers_mut()));
        let (worker, upstream) = (self.worker, self.upstream);
        let attempt = Box::pin(async move {
            let mut slot = Slot::new(request, Keep::ForRetry);
            let answer = send::send(worker, upstream, &endpoint, &mut slot, None).await;
            slot.request();
            (answer, slot.take())
        });
        self.running.push(Running { live, attempt });
    }

    async fn next(&mut self) -> Result<Event, SendError> {
        poll_fn(|cx| {
            for place in 0..self.running.len() {
                if let Poll::Ready(ended) = self.running[place].attempt.as_mut().poll(cx) {
                    return Poll::Ready(Ok(Event::Ended(self.running.remove(place).live, Box::new(ended))));
                }
            }
            if self.due.as_mut().is_some_and(|due| due.as_mut().poll(cx).is_ready()) {
                self.due = None;
                return Poll::Ready(Ok(Event::Due));
            }
            Poll::Pending
        })
        .await
    }
}

/// One attempt, with up to `extra` more when nobody has answered `after` so long. The request comes back into `slot` if
/// it can be sent again. A 5xx counts only when nobody gives a better answer.
pub async fn attempt(
    exchange: &mut Exchange,
    retries: &mut Retries<'_>,
    first: Pick,
    slot: &mut Slot,
    after: Duration,
    mut extra: u32,
) -> Answer {
    let conn = exchange.conn.clone();
    let (worker, upstream) = (&conn.worker, retries.upstream());
    let Some(request) = slot.take() else { return Err(send::lost()) };
    let mut spare = send::again(&request);
    let timer = |extra: u32| (extra > 0).then(|| Box::pin(tokio::time::sleep(after)));
    let mut race = Race { worker, upstream, running: SmallVec::new(), due: timer(extra) };
    race.start(exchange, first, request);
    let mut fallback = None;
    loop {
        let event = {
            let next = pin!(race.next());
            exchange.within(next).await
        };
        let now = worker.clock.read();
        match event {
            Err(over) => {
                for Running { live, .. } in race.running {
                    exchange.attempt_failed(upstream, live, &over, now);
                }
                slot.put(spare);
                return fallback.ok_or(over);
            }
            Ok(Event::Due) => {
                if let Some(next) = spare.as_ref().and_then(send::again)
                    && let Some(pick) = retries.hedge(exchange, now)
                {
                    extra -= 1;
                    race.start(exchange, pick, next);
                    race.due = timer(extra);
                }
            }
            Ok(Event::Ended(live, ended)) => {
                let (answer, back) = *ended;
                spare = back.or(spare);
                let answer = exchange.attempt_ended(upstream, live, answer, now);
                let good = answer.as_ref().is_ok_and(|(response, _)| !response.status().is_server_error());
                if !good && !race.running.is_empty() {
                    fallback = answer.ok().or(fallback);
                    continue;
                }
                for Running { live, .. } in race.running {
                    exchange.attempt_cancelled(live, now);
                }
                slot.put(spare);
                return match answer {
                    Ok(answer) => {
                        if let Some((response, lease)) = fallback {
                            retry::drain(worker, response, lease);
                        }
                        Ok(answer)
                    }
                    Err(error) => fallback.ok_or(error),
                };
            }
        }
    }
}
