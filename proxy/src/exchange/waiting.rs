//! The time-outs of a request, and which of them is due. Pure: `now` is passed in.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use crate::{
    body::Progress,
    error::{Reason, Refusal},
    snapshot::Deadlines,
};

impl Deadlines {
    /// The client waits no longer than this; only ever shortens what somebody wrote. Whether the client's word counts now.
    pub(crate) fn limit(&mut self, timeout: Duration) -> bool {
        let shorter = self.request.filter(|request| self.whole && *request <= timeout);
        self.request = Some(shorter.unwrap_or(timeout));
        self.whole = true;
        shorter.is_none()
    }

    /// The end of an exchange whose request time-out covers the response's body.
    pub(super) fn whole_deadline(&self, start: Instant) -> Option<Instant> {
        self.request.filter(|_| self.whole).map(|request| start + request)
    }
}

/// Waiting for a response's head.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) deadlines: Deadlines,
    /// Of the request.
    pub(super) start: Instant,
    /// Of this attempt.
    pub(super) attempt: Instant,
    /// Last progress of the request's body.
    pub(super) heard: Instant,
    pub(super) progress: Option<Rc<Progress>>,
    /// The request's time-out is the client's own deadline.
    pub(super) client: bool,
}

/// What is over.
#[derive(Debug)]
pub struct TimedOut {
    /// What the client is told.
    pub refusal: Refusal,
    /// Only this attempt's time is over; the request has time left.
    pub per_try: bool,
    /// The time was the client's own: it says nothing about the endpoint.
    pub client: bool,
}

impl Waiting {
    /// When to look again, or what is over.
    pub(super) fn check(&mut self, now: Instant) -> Result<Option<Instant>, TimedOut> {
        let sending = self.progress.as_ref().is_some_and(|progress| !progress.done.get());
        let mut due: Option<Instant> = None;
        let mut sooner = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        if sending {
            if self.progress.as_ref().is_some_and(|progress| progress.moved.replace(false)) {
                self.heard = now;
            }
            if let Some(idle) = self.deadlines.idle {
                if now >= self.heard + idle {
                    let detail = "the request's body stood still for the idle time-out";
                    return Err(Refusal::new(Reason::RequestTimeout, detail).into());
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
                let what = if self.client { "the client itself" } else { "the request" };
                return Err(TimedOut { client: self.client, ..over(what, request, sending).into() });
            }
            sooner(at);
        }
        if let Some(limit) = self.deadlines.attempt {
            if now >= self.attempt + limit {
                return Err(TimedOut { per_try: true, ..over("this attempt", limit, sending).into() });
            }
            sooner(self.attempt + limit);
        }
        Ok(due)
    }
}

impl From<Refusal> for TimedOut {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, per_try: false, client: false }
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
        Waiting { deadlines, start, attempt: start, heard: start, progress, client: false }
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
        assert_eq!(wait.check(start + 44 * S).unwrap_err().refusal.reason, Reason::UpstreamTimeout);
    }

    #[test]
    fn a_written_time_out_covers_everything_and_blames_who_is_late() {
        let start = Instant::now();
        let deadlines = Deadlines { request: Some(2 * S), whole: true, attempt: None, idle: None };
        let mut wait = waiting(start, deadlines, None);
        assert_eq!(wait.check(start).unwrap(), Some(start + 2 * S));
        assert_eq!(wait.check(start + 2 * S).unwrap_err().refusal.reason, Reason::UpstreamTimeout);
        let mut wait = waiting(start, deadlines, Some(Rc::default()));
        assert_eq!(wait.check(start + 2 * S).unwrap_err().refusal.reason, Reason::RequestTimeout);
    }

    #[test]
    fn the_earliest_of_several_counts() {
        let start = Instant::now();
        let deadlines = Deadlines { request: Some(9 * S), whole: true, attempt: Some(S), idle: None };
        let mut wait = waiting(start, deadlines, None);
        assert_eq!(wait.check(start).unwrap(), Some(start + S));
        let over = wait.check(start + S).unwrap_err();
        assert!(over.per_try && over.refusal.detail.contains("this attempt"));
        assert!(!wait.check(start + 9 * S).unwrap_err().per_try, "the request has no time left");
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
        assert_eq!(wait.check(start + 10 * S).unwrap_err().refusal.reason, Reason::RequestTimeout);
    }
}
