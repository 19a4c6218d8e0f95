//! A request's body that is kept while it streams through, so that another attempt can be sent the same bytes.
//!
//! Nothing is read ahead: an attempt gets each frame as it comes, and what has come so far stays until it is more than
//! the policy's `maxBodyBytes`. From then on the body streams on and cannot be had again.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::{BodyError, RequestBody, longer};

/// Kept frames are joined beyond this many: a client that sends single bytes must not make us keep a list of them.
const MOST_FRAMES: usize = 64;
/// Smaller frames are copied: each would otherwise keep the whole buffer that it was read into.
const SMALL: usize = 2048;

/// A body and what has been read of it.
#[derive(Debug)]
pub(super) struct Kept {
    inner: RefCell<Inner>,
    /// Number of the reader that may go on. An attempt that was given up may still be polled by its connection.
    current: Cell<u32>,
}

#[derive(Debug)]
struct Inner {
    body: RequestBody,
    limit: u64,
    bytes: u64,
    frames: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    /// All of it has been read.
    ended: bool,
    /// It was too long, or the client broke it off: it cannot be had again.
    lost: bool,
}

/// One attempt's view of the body.
#[derive(Debug)]
pub(super) struct Reader {
    kept: Rc<Kept>,
    number: u32,
    /// The next kept frame to hand out.
    next: usize,
    done: bool,
}

impl Kept {
    /// Keeps up to `limit` bytes of `body`; the first reader of it.
    pub(super) fn first(body: RequestBody, limit: u64) -> Reader {
        let inner = Inner { body, limit, bytes: 0, frames: Vec::new(), trailers: None, ended: false, lost: false };
        let kept = Rc::new(Self { inner: RefCell::new(inner), current: Cell::new(0) });
        Reader { kept, number: 0, next: 0, done: false }
    }
}

impl Reader {
    /// The same body from its beginning, if all that was read is still there. Readers before it come to an end.
    pub(super) fn again(&self) -> Option<Self> {
        let inner = self.kept.inner.borrow();
        if inner.lost {
            return None;
        }
        Some(Self { kept: self.kept.clone(), number: self.number + 1, next: 0, done: false })
    }

    /// Whether nothing of it has been given up.
    pub(super) fn is_whole(&self) -> bool {
        !self.kept.inner.borrow().lost
    }

    /// The attempt begins: this reader is the one that goes on.
    fn take_over(&self, inner: &Inner) -> bool {
        let current = self.kept.current.get();
        if self.number > current {
            self.kept.current.set(self.number);
            inner.body.restarted();
        }
        self.number >= current
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let kept = self.kept.clone();
        let mut inner = kept.inner.borrow_mut();
        if !self.take_over(&inner) {
            return Poll::Ready(Some(Err("another attempt has taken over".into())));
        }
        if self.done {
            return Poll::Ready(None);
        }
        if let Some(data) = inner.frames.get(self.next).cloned() {
            self.next += 1;
            self.end_with(&mut inner);
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if inner.ended {
            self.done = true;
            inner.body.ended();
            return Poll::Ready(inner.trailers.clone().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if Rc::strong_count(&kept) <= 2 {
            // This one, and the count above: nobody will ask again.
            inner.lose();
        }
        let read = ready!(Pin::new(&mut inner.body).poll_frame(cx));
        match &read {
            Some(Ok(frame)) => {
                inner.keep(frame);
                self.next = inner.frames.len();
                // After trailers nothing comes.
                self.done = inner.ended;
            }
            Some(Err(_)) => inner.lose(),
            None => {
                inner.ended = true;
                self.done = true;
            }
        }
        Poll::Ready(read)
    }

    /// Says that all has been sent as soon as the last kept frame is on its way: nobody may ask once more.
    fn end_with(&mut self, inner: &mut Inner) {
        if inner.ended && self.next == inner.frames.len() && inner.trailers.is_none() {
            self.done = true;
            inner.body.ended();
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.done
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let inner = self.kept.inner.borrow();
        let ahead = inner.frames.iter().skip(self.next).map(|frame| frame.len() as u64).sum::<u64>();
        if inner.ended {
            return SizeHint::with_exact(ahead);
        }
        longer(&inner.body.size_hint(), ahead)
    }
}

impl Inner {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        self.ended = self.body.is_end_stream() || frame.is_trailers();
        if self.lost {
            return;
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        let Some(data) = frame.data_ref() else { return };
        self.bytes += data.len() as u64;
        if self.bytes > self.limit {
            return self.lose();
        }
        self.frames.push(if data.len() < SMALL { Bytes::copy_from_slice(data) } else { data.clone() });
        if self.frames.len() > MOST_FRAMES {
            let mut joined = BytesMut::with_capacity(self.frames.iter().map(Bytes::len).sum());
            self.frames.drain(..).for_each(|frame| joined.extend_from_slice(&frame));
            self.frames.push(joined.freeze());
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.frames = Vec::new();
        self.trailers = None;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;

    use tokio::sync::mpsc;

    use super::*;
    use crate::body::{Copied, Progress, Source};

    /// A body that is fed by hand.
    fn fed() -> (mpsc::Sender<Copied>, RequestBody, Rc<Progress>) {
        let (feed, receiver) = mpsc::channel(256);
        let progress = Rc::new(Progress::default());
        let body =
            RequestBody { source: Source::Copy(receiver), progress: Some(progress.clone()), ..RequestBody::empty() };
        (feed, body, progress)
    }

    async fn feed(to: &mpsc::Sender<Copied>, text: &str) {
        to.send(Some(Frame::data(Bytes::copy_from_slice(text.as_bytes())))).await.unwrap();
    }

    async fn next(reader: &mut Reader) -> Option<Result<String, String>> {
        let frame = poll_fn(|cx| reader.poll_frame(cx)).await?;
        Some(match frame {
            Ok(frame) => Ok(match frame.into_data() {
                Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                Err(trailers) => format!("trailers {}", trailers.into_trailers().unwrap().len()),
            }),
            Err(error) => Err(error.to_string()),
        })
    }

    async fn all(reader: &mut Reader) -> String {
        let mut text = String::new();
        while let Some(part) = next(reader).await {
            text += &part.unwrap();
        }
        text
    }

    #[tokio::test]
    async fn an_attempt_gets_what_came_before_and_then_the_rest() {
        let (to, body, progress) = fed();
        let mut first = Kept::first(body, 100);
        let _spare = first.again();
        feed(&to, "one ").await;
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "one ");
        let mut second = first.again().unwrap();
        feed(&to, "two").await;
        to.send(None).await.unwrap();
        assert_eq!(all(&mut second).await, "one two");
        assert!(next(&mut first).await.unwrap().unwrap_err().contains("taken over"));
        assert!(second.is_end_stream());
        let mut third = second.again().unwrap();
        assert_eq!(third.size_hint().exact(), Some(7));
        assert_eq!(next(&mut third).await.unwrap().unwrap(), "one ");
        assert!(!progress.done.get(), "a new attempt has not sent everything yet");
        assert_eq!(next(&mut third).await.unwrap().unwrap(), "two");
        assert!(progress.done.get() && third.is_end_stream());
    }

    #[tokio::test]
    async fn trailers_are_kept_too() {
        let (to, body, _) = fed();
        let mut first = Kept::first(body, 100);
        let _spare = first.again();
        feed(&to, "a").await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        to.send(Some(Frame::trailers(trailers))).await.unwrap();
        assert_eq!(all(&mut first).await, "atrailers 1");
        assert_eq!(all(&mut first.again().unwrap()).await, "atrailers 1");
    }

    #[tokio::test]
    async fn what_is_too_long_streams_on_but_cannot_be_had_again() {
        let (to, body, _) = fed();
        let mut first = Kept::first(body, 4);
        let _spare = first.again();
        feed(&to, "1234").await;
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "1234");
        assert!(first.is_whole());
        feed(&to, "5").await;
        to.send(None).await.unwrap();
        assert_eq!(all(&mut first).await, "5");
        assert!(first.again().is_none() && !first.is_whole());
    }

    #[tokio::test]
    async fn a_body_that_broke_off_is_not_sent_again() {
        let (to, body, _) = fed();
        let mut first = Kept::first(body, 100);
        let _spare = first.again();
        feed(&to, "half").await;
        drop(to);
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "half");
        assert!(next(&mut first).await.unwrap().is_err());
        assert!(first.again().is_none());
    }

    #[tokio::test]
    async fn what_nobody_can_ask_for_again_is_not_kept() {
        let (to, body, _) = fed();
        let mut first = Kept::first(body, 100);
        let spare = first.again();
        feed(&to, "one").await;
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "one");
        assert!(first.is_whole());
        drop(spare);
        feed(&to, "two").await;
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "two");
        assert!(first.kept.inner.borrow().frames.is_empty());
    }

    #[tokio::test]
    async fn many_small_frames_are_joined() {
        let (to, body, _) = fed();
        let mut first = Kept::first(body, 1000);
        let _spare = first.again();
        let text: String = ('a'..='z').cycle().take(500).collect();
        for letter in text.chars() {
            feed(&to, &letter.to_string()).await;
            next(&mut first).await.unwrap().unwrap();
        }
        to.send(None).await.unwrap();
        assert_eq!(next(&mut first).await, None);
        assert!(first.kept.inner.borrow().frames.len() <= MOST_FRAMES);
        assert_eq!(all(&mut first.again().unwrap()).await, text);
    }
}
