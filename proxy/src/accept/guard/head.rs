//! The grammar of a request head, and of the trailers of a chunked body.
//!
//! One pass, and it can stop after any byte: a verdict depends on the bytes only, never on how they were split. Whole good lines are
//! taken at one go; everything else goes through the states of [`At`], which alone say no. Stricter than the RFCs wherever two
//! readers of one head could disagree:
//!
//! | Part | What passes |
//! |---|---|
//! | line ends | CRLF only; a bare CR or LF, and folded lines, are refused (RFC 9112 §2.2, §5.2) |
//! | method | a token of at most 32 bytes, followed by one space |
//! | target | origin-form; absolute-form of `http` and `https`; authority-form for CONNECT, with a port; `*` for OPTIONS (RFC 9112 §3.2) |
//! | path, query | visible ASCII without `#`, `<`, `>`; nor `\`, `` ` `` in a path, nor `"` in a query: what browsers send raw, and `http::Uri` takes |
//! | version | `HTTP/1.1` or `HTTP/1.0` |
//! | field name | a token of at most 256 bytes, the colon right behind it |
//! | field value | HTAB, SP, VCHAR, obs-text (RFC 9110 §5.5) |
//! | `Host` | exactly one (at most one in 1.0), see [`super::host`] |
//! | `Content-Length` | one, 1 to 19 digits, at most 2⁶³ − 1; repetitions are refused even if they agree |
//! | `Transfer-Encoding` | one, `chunked`, never in 1.0, never beside `Content-Length` (RFC 9112 §6.1) |
//! | `Connection` | a list of tokens; empty elements are skipped (RFC 9110 §5.6.1) |
//! | CONNECT | no body |

use super::{
    Limits, Violation,
    class::{PATH, QUERY, TOKEN, span, value_span},
    fields::{Fields, Framing, Verdict, bad, is_special, trailer},
    host::{Port, is_host},
};
use crate::error::Reason;

const MAX_METHOD: usize = 32;
const MAX_NAME: usize = 256;
/// hyper takes 16 KiB of trailers.
const MAX_TRAILER_BYTES: usize = 8 * 1024;
/// What follows from a complete, valid head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of the head with the empty line.
    pub len: usize,
    pub body: Framing,
    /// A CONNECT.
    pub connect: bool,
    /// Asks for another protocol than h2c.
    pub upgrade: bool,
    /// No further request may follow.
    pub last: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Method,
    Target,
    Path,
    Query,
    /// Absolute-form or authority-form: judged when it is complete.
    Authority,
    Version,
    Line,
    Name,
    Value,
    ValueLf,
    EndLf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Other,
    Connect,
    Options,
}

/// A head as far as it is known.
#[derive(Debug)]
pub(super) struct HeadScan {
    at: At,
    trailer: bool,
    method: Method,
    http10: bool,
    fields: Fields,
    /// How many fields have begun.
    count: usize,
    /// Next byte to look at.
    pos: usize,
    /// First byte of the target or line that `pos` is in.
    start: usize,
    colon: usize,
}

impl HeadScan {
    pub(super) const fn request() -> Self {
        Self {
            at: At::Method,
            trailer: false,
            method: Method::Other,
            http10: false,
            fields: Fields::new(),
            count: 0,
            pos: 0,
            start: 0,
            colon: 0,
        }
    }

    /// Field lines up to an empty line.
    pub(super) const fn trailers() -> Self {
        Self { at: At::Line, trailer: true, ..Self::request() }
    }

    /// Whether no byte has been looked at.
    #[inline]
    pub(super) const fn is_fresh(&self) -> bool {
        self.pos == 0
    }

    /// Goes on with a head whose first bytes are `bytes`: those of the last call and more. `None` means that more are needed.
    #[inline]
    pub(super) fn run(&mut self, bytes: &[u8], limits: &Limits) -> Verdict<Option<Head>> {
        let cap = if self.trailer { MAX_TRAILER_BYTES } else { limits.head_bytes };
        let input = bytes.get(..cap).unwrap_or(bytes);
        if self.is_fresh() && !self.trailer {
            self.good_request_line(input, limits);
        }
        if self.at == At::Line && self.good_lines(input, limits)? {
            return self.end().map(Some);
        }
        self.run_states(bytes, input, limits)
    }

    /// The same byte by byte, and with a reason if the answer is no.
    fn run_states(&mut self, bytes: &[u8], input: &[u8], limits: &Limits) -> Verdict<Option<Head>> {
        while let Some(&byte) = input.get(self.pos) {
            match self.at {
                At::Method => self.method(input)?,
                At::Target => self.target_form(byte)?,
                At::Path => self.target_part(input, PATH, limits)?,
                At::Query => self.target_part(input, QUERY, limits)?,
                At::Authority => self.target_part(input, PATH | QUERY, limits)?,
                At::Version => self.version(input)?,
                At::Line => self.line(byte, limits)?,
                At::Name => self.name(input)?,
                At::Value => {
                    self.pos += value_span(&input[self.pos..]);
                    match input.get(self.pos) {
                        None => {}
                        Some(b'\r') => {
                            self.field(&input[self.start..self.colon], &input[self.colon + 1..self.pos])?;
                            self.go(At::ValueLf);
                        }
                        Some(b'\n') => return bad("a line ends with a bare LF"),
                        Some(_) => return bad("a control character in a field value"),
                    }
                }
                At::ValueLf if byte == b'\n' => self.go(At::Line),
                At::EndLf if byte == b'\n' => {
                    self.pos += 1;
                    return self.end().map(Some);
                }
                At::ValueLf | At::EndLf => return bad("a bare CR"),
            }
        }
        if bytes.len() > input.len() {
            return Err(Violation::in_head(
                Reason::HeadersTooLarge,
                if self.trailer { "the trailers are too large" } else { "the head is too large" },
            ));
        }
        Ok(None)
    }

    /// Takes the most usual request line: origin-form, HTTP/1.1, and all there.
    #[inline]
    fn good_request_line(&mut self, input: &[u8], limits: &Limits) {
        let method = span(input, TOKEN);
        let target = method + 1;
        let usual = (1..=MAX_METHOD).contains(&method)
            && input.get(method..method + 2) == Some(b" /")
            && &input[..method] != b"CONNECT";
        if !usual {
            return;
        }
        let mut end = target + span(&input[target..], PATH);
        if input.get(end) == Some(&b'?') {
            end += 1;
            end += span(&input[end..], QUERY);
        }
        if end - target <= limits.uri_bytes && input[end..].starts_with(b" HTTP/1.1\r\n") {
            self.pos = end + 11;
            self.start = self.pos;
            self.at = At::Line;
        }
    }

    /// Takes all good field lines that are all there; true if the empty line was there, too.
    #[inline]
    fn good_lines(&mut self, input: &[u8], limits: &Limits) -> Verdict<bool> {
        let mut rest = &input[self.pos..];
        let mut count = self.count;
        let end = loop {
            let name = span(rest, TOKEN);
            if name == 0 {
                break rest.starts_with(b"\r\n");
            }
            if rest.get(name) != Some(&b':') || name > MAX_NAME || count == limits.headers {
                break false;
            }
            let value = &rest[name + 1..];
            let len = value_span(value);
            let Some(next) = value[len..].strip_prefix(b"\r\n") else {
                break false;
            };
            count += 1;
            if self.trailer || is_special(name) {
                self.field(&rest[..name], &value[..len])?;
            }
            rest = next;
        };
        self.count = count;
        self.pos = input.len() - rest.len() + if end { 2 } else { 0 };
        self.start = self.pos;
        Ok(end)
    }

    #[inline]
    fn go(&mut self, at: At) {
        self.pos += 1;
        self.start = self.pos;
        self.at = at;
    }

    fn method(&mut self, input: &[u8]) -> Verdict<()> {
        self.pos += span(&input[self.pos..], TOKEN);
        if self.pos > MAX_METHOD {
            return bad("the method is too long");
        }
        match input.get(self.pos) {
            None => {}
            Some(b' ') if self.pos > 0 => {
                self.method = match &input[..self.pos] {
                    b"CONNECT" => Method::Connect,
                    b"OPTIONS" => Method::Options,
                    _ => Method::Other,
                };
                self.go(At::Target);
            }
            Some(_) => return bad("the request does not start with a method and a space"),
        }
        Ok(())
    }

    fn target_form(&mut self, first: u8) -> Verdict<()> {
        self.at = match (self.method, first) {
            (Method::Connect, b'/' | b'*') => return bad("the target of CONNECT is not host:port"),
            (_, b'/') => At::Path,
            (Method::Options, b'*') | (_, b'A'..=b'Z' | b'a'..=b'z') => At::Authority,
            (Method::Connect, b'0'..=b'9' | b'[' | b'_') => At::Authority,
            _ => return bad("the target is neither a path nor an absolute http URL"),
        };
        Ok(())
    }

    fn target_part(&mut self, input: &[u8], class: u8, limits: &Limits) -> Verdict<()> {
        self.pos += span(&input[self.pos..], class);
        if self.pos - self.start > limits.uri_bytes {
            return Err(Violation::in_head(Reason::UriTooLong, "the target is too long"));
        }
        match input.get(self.pos) {
            None => {}
            Some(b' ') => {
                if self.at == At::Authority {
                    self.whole_target(&input[self.start..self.pos])?;
                }
                self.go(At::Version);
            }
            Some(b'?') if self.at == At::Path => {
                self.pos += 1;
                self.at = At::Query;
            }
            Some(b'#') => return bad("a fragment in the target"),
            Some(b'\r' | b'\n') => return bad("the request line has no version"),
            Some(_) => return bad("a character that is not allowed in the target"),
        }
        Ok(())
    }

    fn whole_target(&self, target: &[u8]) -> Verdict<()> {
        if target == b"*" {
            return Ok(());
        }
        if self.method == Method::Connect {
            return if is_host(target, Port::Required) {
                Ok(())
            } else {
                bad("the target of CONNECT is not host:port")
            };
        }
        let rest = [&b"http://"[..], b"https://"]
            .iter()
            .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
            .map(|scheme| &target[scheme.len()..]);
        let Some(rest) = rest else {
            return bad("the target is neither a path nor an absolute http URL");
        };
        let slash = memchr::memchr(b'/', rest).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        if !is_host(authority, Port::Optional) {
            return bad("the target's authority is not host or host:port");
        }
        let query = span(path, PATH);
        match &path[query..] {
            [] => Ok(()),
            [b'?', query @ ..] if span(query, QUERY) == query.len() => Ok(()),
            _ => bad("a character that is not allowed in the target"),
        }
    }

    fn version(&mut self, input: &[u8]) -> Verdict<()> {
        let rest = &input[self.start..];
        if rest.starts_with(b"HTTP/1.1\r\n") {
            self.pos = self.start + 9;
            self.go(At::Line);
            return Ok(());
        }
        while let Some(&byte) = input.get(self.pos) {
            match (self.pos - self.start, byte) {
                (at @ 0..=6, _) if byte == b"HTTP/1."[at] => {}
                (7, b'1') => {}
                (7, b'0') => self.http10 = true,
                (8, b'\r') => {}
                (9, b'\n') => {
                    self.go(At::Line);
                    return Ok(());
                }
                (0..=7, _) => return bad("the version is neither HTTP/1.1 nor HTTP/1.0"),
                (8, b'\n') => return bad("a line ends with a bare LF"),
                (8, _) => return bad("the request line goes on behind the version"),
                _ => return bad("a bare CR"),
            }
            self.pos += 1;
        }
        Ok(())
    }

    #[inline]
    fn line(&mut self, first: u8, limits: &Limits) -> Verdict<()> {
        match first {
            b'\r' => self.go(At::EndLf),
            b' ' | b'\t' => return bad("a folded line, or white space before the first field"),
            _ => {
                self.count += 1;
                if self.count > limits.headers {
                    return Err(Violation::in_head(Reason::HeadersTooLarge, "too many fields"));
                }
                self.at = At::Name;
            }
        }
        Ok(())
    }

    #[inline]
    fn name(&mut self, input: &[u8]) -> Verdict<()> {
        self.pos += span(&input[self.pos..], TOKEN);
        if self.pos - self.start > MAX_NAME {
            return Err(Violation::in_head(Reason::HeadersTooLarge, "a field name is too long"));
        }
        match input.get(self.pos) {
            None => {}
            Some(b':') if self.pos > self.start => {
                self.colon = self.pos;
                self.pos += 1;
                self.at = At::Value;
            }
            Some(b':') => return bad("an empty field name"),
            Some(b' ' | b'\t') => return bad("white space before a colon"),
            Some(b'\n') => return bad("a line ends with a bare LF"),
            Some(b'\r') => return bad("a field line without a colon"),
            Some(_) => return bad("a character that is not allowed in a field name"),
        }
        Ok(())
    }

    fn field(&mut self, name: &[u8], value: &[u8]) -> Verdict<()> {
        if self.trailer { trailer(name) } else { self.fields.take(name, value) }
    }

    #[inline]
    fn end(&self) -> Verdict<Head> {
        if !self.trailer {
            self.fields.complete(self.http10, self.method == Method::Connect)?;
        }
        Ok(Head {
            len: self.pos,
            body: self.fields.framing(),
            connect: self.method == Method::Connect,
            upgrade: self.fields.upgrade && !self.http10,
            last: self.fields.last(self.http10),
        })
    }
}
