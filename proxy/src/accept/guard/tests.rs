#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bodies;
mod heads;
mod holds;
mod props;
mod server;

use std::{cell::Cell, collections::VecDeque, task::Waker, time::Instant};

use super::*;

/// A socket that brings one piece per read, then nothing more, or the end.
#[derive(Debug, Default)]
struct Script {
    pieces: VecDeque<Vec<u8>>,
    ends: bool,
    written: Vec<u8>,
    shut: usize,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.pieces.pop_front() {
            Some(mut piece) => {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None if self.ends => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut += 1;
        Poll::Ready(Ok(()))
    }
}

fn clock() -> Clock {
    Rc::new(Cell::new(Instant::now()))
}

fn guard(pieces: impl IntoIterator<Item = Vec<u8>>, limits: Limits) -> (Guard<Script>, GuardHandle) {
    let script = Script { pieces: pieces.into_iter().filter(|piece| !piece.is_empty()).collect(), ..Script::default() };
    Guard::new(script, BytesMut::new(), limits, clock())
}

/// Reads with a buffer of `size` until nothing more comes. The bytes, and whether the read failed in the end.
fn drain<IO: AsyncRead + AsyncWrite + Unpin>(guard: &mut Guard<IO>, size: usize) -> (Vec<u8>, bool) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut memory = vec![0; size];
    let mut all = Vec::new();
    loop {
        let mut buf = ReadBuf::new(&mut memory);
        match Pin::new(&mut *guard).poll_read(&mut cx, &mut buf) {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return (all, false),
            Poll::Ready(Ok(())) => all.extend_from_slice(buf.filled()),
            Poll::Ready(Err(error)) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                return (all, true);
            }
            Poll::Pending => {
                assert!(buf.filled().is_empty(), "bytes beside a pending read are lost");
                return (all, false);
            }
        }
    }
}

/// What hyper sees of some bytes, and what the guard says.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    bytes: Vec<u8>,
    violation: Option<Violation>,
    requests: u64,
}

impl Seen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

fn see(pieces: impl IntoIterator<Item = Vec<u8>>, limits: Limits, size: usize) -> Seen {
    let (mut guard, handle) = guard(pieces, limits);
    let (bytes, failed) = drain(&mut guard, size);
    let violation = handle.violation();
    assert_eq!(failed, violation.is_some_and(|violation| violation.in_body));
    Seen { bytes, violation, requests: handle.requests() }
}

/// Shows `input` in one piece, byte by byte, cut at every place, and as a prefix: the outcome must not depend on it.
fn seen_with(input: &[u8], limits: Limits) -> Seen {
    let whole = see([input.to_vec()], limits, 1 << 17);
    let bytewise = see(input.iter().map(|byte| vec![*byte]), limits, 100);
    assert_eq!(bytewise, whole, "byte by byte: {}", String::from_utf8_lossy(input));
    let step = 1 + input.len() / 2000;
    for cut in (0..input.len()).step_by(step) {
        let (first, second) = input.split_at(cut);
        let split = see([first.to_vec(), second.to_vec()], limits, 1 << 17);
        assert_eq!(split, whole, "cut at {cut}: {}", String::from_utf8_lossy(input));
    }
    let (mut guard, handle) = Guard::new(Script::default(), BytesMut::from(input), limits, clock());
    let (bytes, _) = drain(&mut guard, 50);
    assert_eq!((bytes, handle.violation()), (whole.bytes.clone(), whole.violation), "as a prefix");
    whole
}

fn seen(input: &[u8]) -> Seen {
    seen_with(input, Limits::default())
}

/// All of `input` passes, unchanged.
#[track_caller]
fn passes(input: &[u8]) {
    let seen = seen(input);
    assert_eq!(seen.violation, None, "{}", String::from_utf8_lossy(input));
    assert_eq!(seen.text(), String::from_utf8_lossy(input));
}

/// Nothing of `input` passes; what the violation says.
#[track_caller]
fn refused(input: &[u8]) -> &'static str {
    let seen = seen(input);
    assert_eq!(seen.text(), "", "of {}", String::from_utf8_lossy(input));
    let violation = seen.violation.unwrap_or_else(|| panic!("passed: {}", String::from_utf8_lossy(input)));
    assert_eq!(violation.reason, Reason::BadRequest);
    assert!(!violation.in_body);
    violation.detail
}
