//! Hedging: when an endpoint is slow to answer, another one is asked the same, and the faster answer counts.
//!
//! J. Dean, L. A. Barroso, "The Tail at Scale" (CACM 2013). Only for idempotent requests without a body; a hedge is
//! counted by the service's retry budget, and the slower attempt is cancelled.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::retry::{self, Retries};
use crate::{
    balance::Pick,
    exchange::{Exchange, Live},
    snapshot::Upstream,
    upstream::{
        obtain,
        pool::Lease,
        send::{self, SendError, Slot},
    },
    wheel::{TICK, Timer},
    worker::Worker,
};

/// When a request is hedged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Nobody has answered for so long.
    pub after: Duration,
    /// Attempts besides the first.
    pub extra: u32,
}

type Answer = Result<(Response<Incoming>, Lease), SendError>;

/// An attempt beside the first.
struct Rival<'u> {
    live: Live,
    sending: Pin<Box<dyn Future<Output = Answer> + 'u>>,
}

impl<'u> Rival<'u> {
    fn start(
        exchange: &mut Exchange,
        worker: &'u Rc<Worker>,
        upstream: &'u Upstream,
        pick: Pick,
        slot: Slot,
    ) -> Option<Self> {
        let endpoint = pick.endpoint.clone();
        let live = slot.with(|request| exchange.begin_attempt(pick, upstream, Request::headers_mut(request)))?;
        let sending = Box::pin(async move { send::send(worker, upstream, &endpoint, &slot, None).await });
        Some(Self { live, sending })
    }
}

/// A wait that costs next to nothing when it is long, and is exact when it is short.
enum Due {
    Coarse(Timer),
    Exact(Pin<Box<Sleep>>),
}

impl Due {
    /// From here on a tick of the wheel more or less does not matter.
    const LONG: Duration = TICK.saturating_mul(5);

    fn new(worker: &Worker, after: Duration) -> Self {
        if after < Self::LONG {
            return Self::Exact(Box::pin(tokio::time::sleep(after)));
        }
        Self::Coarse(worker.wheel.arm(worker.clock.now() + after))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Coarse(timer) => timer.poll_elapsed(cx),
            Self::Exact(sleep) => sleep.as_mut().poll(cx),
        }
    }
}

enum Event {
    /// Nobody has answered for a while.
    Due,
    /// An attempt, its answer, and whether it was a rival's.
    Ended(Live, Box<Answer>, bool),
}

/// The attempts at one request, and when the next one is due.
struct Race<'f, 'u, F> {
    first: Option<(Live, Pin<&'f mut F>)>,
    rivals: Vec<Rival<'u>>,
    due: Option<Due>,
}

impl<F: Future<Output = Answer>> Race<'_, '_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some((_, sending)) = &mut self.first
            && let Poll::Ready(answer) = sending.as_mut().poll(cx)
            && let Some((live, _)) = self.first.take()
        {
            return Poll::Ready(Event::Ended(live, Box::new(answer), false));
        }
        for place in 0..self.rivals.len() {
            if let Poll::Ready(answer) = self.rivals[place].sending.as_mut().poll(cx) {
                return Poll::Ready(Event::Ended(self.rivals.remove(place).live, Box::new(answer), true));
            }
        }
        if self.due.as_mut().is_some_and(|due| due.poll(cx).is_ready()) {
            self.due = None;
            return Poll::Ready(Event::Due);
        }
        Poll::Pending
    }

    fn is_over(&self) -> bool {
        self.first.is_none() && self.rivals.is_empty()
    }

    /// Those that have not ended.
    fn into_running(self) -> impl Iterator<Item = Live> {
        self.first.map(|(live, _)| live).into_iter().chain(self.rivals.into_iter().map(|rival| rival.live))
    }
}

/// Waits for the answer to an attempt that has begun, and asks others when that takes too long. A 5xx counts only when
/// nobody gives a better answer.
pub async fn race<F: Future<Output = Answer>>(
    exchange: &mut Exchange,
    retries: &mut Retries<'_>,
    slot: &Slot,
    Plan { after, mut extra }: Plan,
    first: Live,
    sending: Pin<&mut F>,
) -> Answer {
    let conn = exchange.conn.clone();
    let (worker, upstream) = (&conn.worker, retries.upstream());
    let timer = |extra: u32| (extra > 0).then(|| Due::new(worker, after));
    let began = first.start();
    let mut race = Race { first: Some((first, sending)), rivals: Vec::new(), due: timer(extra) };
    let mut fallback = None;
    loop {
        let event = {
            let next = pin!(async { Ok::<_, SendError>(poll_fn(|cx| race.poll(cx)).await) });
            exchange.within(began, next).await
        };
        let now = worker.clock.read();
        let (live, answer, rival) = match event {
            Ok(Event::Ended(live, answer, rival)) => (live, *answer, rival),
            Ok(Event::Due) => {
                if let Some(another) = slot.another()
                    && let Some(pick) = retries.hedge(exchange, now)
                {
                    race.rivals.extend(Rival::start(exchange, worker, upstream, pick, another));
                    extra -= 1;
                    race.due = timer(extra);
                }
                continue;
            }
            Err(over) => {
                let queued = slot.was_queued(began, now);
                let over = if queued { obtain::too_late(upstream, &over.refusal) } else { over };
                if let Some((live, _)) = race.first {
                    exchange.attempt_failed(upstream, live, &over, now);
                }
                // The others had less time, and may have waited for a connection.
                for rival in race.rivals {
                    worker.telemetry.metrics.hedged(&retries.target().slot, false);
                    exchange.attempt_cancelled(upstream, rival.live, now);
                }
                return fallback.ok_or(over);
            }
        };
        exchange.attempt_ended(upstream, live, &answer, now);
        let good = answer.as_ref().is_ok_and(|(response, _)| !response.status().is_server_error());
        if rival {
            worker.telemetry.metrics.hedged(&retries.target().slot, good);
        }
        if !good && !race.is_over() {
            fallback = answer.ok().or(fallback);
            continue;
        }
        race.rivals.iter().for_each(|_| worker.telemetry.metrics.hedged(&retries.target().slot, false));
        race.into_running().for_each(|live| exchange.attempt_cancelled(upstream, live, now));
        if answer.is_ok()
            && let Some((response, lease)) = fallback.take()
        {
            retry::drain(exchange, response, lease);
        }
        return answer.or_else(|error| fallback.ok_or(error));
    }
}
