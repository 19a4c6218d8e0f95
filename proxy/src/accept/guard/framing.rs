//! Where one message of a client ends and the next begins. No I/O: bytes in, a verdict out.

use super::{
    Limits, Violation,
    chunk::{Chunks, Progress},
    fields::Framing as Body,
    head::{Head, HeadScan},
};
use crate::error::Reason;

/// A client may send that many empty lines before a request (RFC 9112 §2.2).
const MAX_EMPTY_LINES: u8 = 2;

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Head,
    Length(u64),
    Chunked,
    Trailers,
    /// The service decides about CONNECT or Upgrade; nobody may interpret the bytes until then.
    Hold,
    Tunnel,
    /// The last request is complete. What follows is nobody's.
    Closed,
    Refused,
}

/// Why [`Framing::advance`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// All bytes are passed.
    End,
    /// The remaining bytes are good so far, but must wait for more.
    Partial,
    /// The remaining bytes can be looked at again at once.
    Again,
    /// The remaining bytes must wait for [`Framing::decided`].
    Hold,
    /// The remaining bytes are to be thrown away, like all that follow.
    Closed,
    /// So are these.
    Refused(Violation),
}

/// What to do with the bytes shown: pass the first ones, or drop them, then see why it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub pass: usize,
    /// Zero unless `pass` is.
    pub drop: usize,
    pub stop: Stop,
}

impl Step {
    const fn at(pass: usize, stop: Stop) -> Self {
        Self { pass, drop: 0, stop }
    }
}

/// Follows the messages of one connection.
#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    /// What comes behind the body.
    after: State,
    connect: bool,
    last: bool,
    empty_lines: u8,
    scan: HeadScan,
    chunks: Chunks,
    limits: Limits,
    heads: u64,
}

impl Framing {
    pub(super) const fn new(limits: Limits) -> Self {
        Self {
            state: State::Head,
            after: State::Head,
            connect: false,
            last: false,
            empty_lines: 0,
            scan: HeadScan::request(),
            chunks: Chunks::new(),
            limits,
            heads: 0,
        }
    }

    #[inline]
    pub(super) const fn state(&self) -> State {
        self.state
    }

    /// How many heads have passed.
    #[inline]
    pub(super) const fn heads(&self) -> u64 {
        self.heads
    }

    /// The service has decided what the bytes behind a CONNECT or Upgrade are. Behind a refused CONNECT they are nobody's: what the
    /// client meant for the tunnel must not become requests.
    pub(super) fn decided(&mut self, tunnel: bool) {
        if self.state == State::Hold {
            self.state = match tunnel {
                true => State::Tunnel,
                false if self.connect || self.last => State::Closed,
                false => State::Head,
            };
        }
    }

    /// Looks at the bytes that follow those passed and dropped so far. Bytes neither passed nor dropped must be shown again.
    #[inline]
    pub(super) fn advance(&mut self, data: &[u8]) -> Step {
        let mut at = 0;
        loop {
            let rest = &data[at..];
            if rest.is_empty() && !matches!(self.state, State::Hold | State::Closed) {
                return Step::at(at, Stop::End);
            }
            match self.state {
                State::Head => {
                    if rest[0] == b'\r' && self.scan.is_fresh() {
                        return self.empty_line(at, rest);
                    }
                    match self.scan.run(rest, &self.limits) {
                        Ok(Some(head)) => {
                            at += head.len;
                            self.enter(&head);
                        }
                        Ok(None) => return Step::at(at, Stop::Partial),
                        Err(violation) => return self.refuse(at, violation),
                    }
                }
                State::Length(left) => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    at += here;
                    self.state = match left - here as u64 {
                        0 => self.after,
                        left => State::Length(left),
                    };
                }
                State::Chunked => match self.chunks.advance(rest) {
                    Progress::All => return Step::at(data.len(), Stop::End),
                    Progress::Last(used) => {
                        at += used;
                        self.scan = HeadScan::trailers();
                        self.state = State::Trailers;
                    }
                    Progress::Bad(used, violation) => return self.refuse(at + used, violation),
                },
                State::Trailers => match self.scan.run(rest, &self.limits) {
                    Ok(Some(end)) => {
                        at += end.len;
                        self.scan = HeadScan::request();
                        self.state = self.after;
                    }
                    Ok(None) => return Step::at(at, Stop::Partial),
                    Err(violation) => return self.refuse(at, Violation { in_body: true, ..violation }),
                },
                State::Tunnel => return Step::at(data.len(), Stop::End),
                State::Hold => return Step::at(at, Stop::Hold),
                State::Closed | State::Refused => return Step::at(at, Stop::Closed),
            }
        }
    }

    #[inline]
    fn enter(&mut self, head: &Head) {
        self.heads += 1;
        self.empty_lines = 0;
        self.scan = HeadScan::request();
        (self.connect, self.last) = (head.connect, head.last);
        self.after = match head {
            Head { connect: true, .. } | Head { upgrade: true, .. } => State::Hold,
            Head { last: true, .. } => State::Closed,
            _ => State::Head,
        };
        self.state = match head.body {
            Body::Length(0) => self.after,
            Body::Length(length) => State::Length(length),
            Body::Chunked => {
                self.chunks = Chunks::new();
                State::Chunked
            }
        };
    }

    #[cold]
    fn empty_line(&mut self, at: usize, rest: &[u8]) -> Step {
        if at > 0 {
            return Step::at(at, Stop::Again);
        }
        let detail = match rest.get(1) {
            None => return Step::at(at, Stop::Partial),
            Some(b'\n') if self.empty_lines < MAX_EMPTY_LINES => {
                self.empty_lines += 1;
                return Step { pass: 0, drop: 2, stop: Stop::Again };
            }
            Some(b'\n') => "too many empty lines before a request",
            Some(_) => "a bare CR",
        };
        self.refuse(at, Violation::in_head(Reason::BadRequest, detail))
    }

    #[cold]
    fn refuse(&mut self, at: usize, violation: Violation) -> Step {
        self.state = State::Refused;
        Step::at(at, Stop::Refused(violation))
    }
}
