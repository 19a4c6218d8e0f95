//! Interim responses (1xx) on their way from an endpoint to an HTTP/1.1 client (RFC 9110 §15.2).
//!
//! hyper reports them from the task of the upstream's connection, through a callback that has to be `Send`; so they
//! cross over to the client's exchange here. `100 Continue` is not among them: Weft answers expectations itself.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use http::{HeaderMap, Request, StatusCode};

use crate::{accept::guard::Injection, conn::Conn};

/// Interim heads that have not been passed on yet. One per client connection, which waits for one response at a time.
#[derive(Debug, Default)]
pub struct Interim {
    any: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Complete heads, as HTTP/1.1 writes them.
    heads: Vec<u8>,
    waiting: Option<Waker>,
}

/// An endpoint that sends more than this without a final response is not heard any further.
const MOST: usize = 16 * 1024;

impl Interim {
    /// Has hyper report what comes before the final response to `request`.
    pub fn listen<B>(self: &Arc<Self>, request: &mut Request<B>) {
        let interim = self.clone();
        hyper::ext::on_informational(request, move |response| interim.push(response.status(), response.headers()));
    }

    fn push(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let mut inner = self.lock();
        if inner.heads.len() > MOST {
            return;
        }
        write(&mut inner.heads, status, headers);
        self.any.store(true, Ordering::Release);
        if let Some(waker) = inner.waiting.take() {
            waker.wake();
        }
    }

    /// What has come since the last time; the task is woken when there is more.
    pub fn take(&self, cx: &Context<'_>) -> Option<Vec<u8>> {
        if self.any.swap(false, Ordering::Acquire) {
            return Some(std::mem::take(&mut self.lock().heads));
        }
        let waiting = &mut self.lock().waiting;
        if !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs an attempt, and passes on to the client what comes before its end.
pub async fn relay<T>(conn: &Conn, mut attempt: Pin<&mut impl Future<Output = T>>) -> T {
    let (Some(interim), Some(guard)) = (conn.interim.get(), conn.guard.get()) else { return attempt.await };
    let mut ended = None;
    let mut writing: Option<Injection> = None;
    poll_fn(|cx| {
        if ended.is_none()
            && let Poll::Ready(output) = attempt.as_mut().poll(cx)
        {
            ended = Some(output);
        }
        // Whatever came first is written first, also before a final response that is there already.
        loop {
            if let Some(injection) = &mut writing {
                ready!(Pin::new(injection).poll(cx));
                writing = None;
            }
            match interim.take(cx) {
                Some(heads) => writing = Some(guard.inject(&heads)),
                None => break,
            }
        }
        ended.take().map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// An interim head without the fields that belong to the upstream's connection.
fn write(heads: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    heads.extend_from_slice(b"HTTP/1.1 ");
    heads.extend_from_slice(status.as_str().as_bytes());
    heads.push(b' ');
    heads.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    heads.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        if matches!(name.as_str(), "connection" | "keep-alive" | "transfer-encoding" | "content-length" | "upgrade") {
            continue;
        }
        heads.extend_from_slice(name.as_str().as_bytes());
        heads.extend_from_slice(b": ");
        heads.extend_from_slice(value.as_bytes());
        heads.extend_from_slice(b"\r\n");
    }
    heads.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keeps_heads_until_they_are_taken_and_wakes_who_waits() {
        let interim = Interim::default();
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(interim.take(&cx), None);
        let headers = [("link", "</a>"), ("connection", "close")];
        let headers: HeaderMap = headers
            .into_iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        interim.push(StatusCode::CONTINUE, &headers);
        interim.push(StatusCode::EARLY_HINTS, &headers);
        interim.push(StatusCode::PROCESSING, &HeaderMap::new());
        let heads = interim.take(&cx).unwrap();
        assert_eq!(heads, b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n");
        assert_eq!(interim.take(&cx), None);
    }

    #[test]
    fn an_endless_series_is_cut_off() {
        let interim = Interim::default();
        for _ in 0..10_000 {
            interim.push(StatusCode::PROCESSING, &HeaderMap::new());
        }
        assert!(interim.take(&Context::from_waker(Waker::noop())).unwrap().len() < MOST + 100);
    }
}
