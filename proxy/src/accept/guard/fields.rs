//! What the fields of a request mean for its framing. The rules are in the table of `head.rs`.

use super::{
    Violation,
    class::{TOKEN, is, trim},
    host::{Port, is_host},
};
use crate::error::Reason;

/// Lower case. Fields that frame, route or authenticate a request come before its body or not at all (RFC 9110 §6.5.1).
const NEVER_TRAILERS: [&str; 20] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "max-forwards",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// How the body behind a head is framed (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

pub(super) type Verdict<T> = Result<T, Violation>;

pub(super) fn bad<T>(detail: &'static str) -> Verdict<T> {
    Err(Violation::in_head(Reason::BadRequest, detail))
}

/// The fields that decide, as far as they have come.
#[derive(Debug)]
pub(super) struct Fields {
    host: bool,
    chunked: bool,
    /// Asks for another protocol than h2c.
    pub upgrade: bool,
    close: bool,
    keep_alive: bool,
    length: Option<u64>,
}

impl Fields {
    pub(super) const fn new() -> Self {
        Self { host: false, chunked: false, upgrade: false, close: false, keep_alive: false, length: None }
    }

    /// Takes a complete field. Its value may be surrounded by white space.
    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) -> Verdict<()> {
        match (name.len(), name[0] | 0x20) {
            (4, b'h') if is_name(name, b"host") => {
                if self.host {
                    return bad("more than one Host");
                }
                self.host = true;
                if !is_host(trim(value), Port::Optional) {
                    return bad("Host is not host or host:port");
                }
            }
            (7, b'u') if name.eq_ignore_ascii_case(b"upgrade") => {
                self.upgrade |= elements(value).any(|protocol| !protocol.eq_ignore_ascii_case(b"h2c"));
            }
            (10, b'c') if name.eq_ignore_ascii_case(b"connection") => self.connection(value)?,
            (14, b'c') if name.eq_ignore_ascii_case(b"content-length") => {
                if self.length.is_some() {
                    return bad("more than one Content-Length");
                }
                self.length = match parse_length(trim(value)) {
                    None => return bad("Content-Length is not a length"),
                    length => length,
                };
            }
            (17, b't') if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if self.chunked {
                    return bad("more than one Transfer-Encoding");
                }
                if !trim(value).eq_ignore_ascii_case(b"chunked") {
                    return bad("a Transfer-Encoding other than chunked");
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn connection(&mut self, value: &[u8]) -> Verdict<()> {
        for option in elements(value) {
            if !option.iter().all(|&byte| is(byte, TOKEN)) {
                return bad("Connection is not a list of tokens");
            }
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
        Ok(())
    }

    /// Whether they go together, now that all have come.
    #[inline]
    pub(super) fn complete(&self, http10: bool, connect: bool) -> Verdict<()> {
        if !self.host && !http10 {
            return bad("no Host");
        }
        if self.chunked && http10 {
            return bad("Transfer-Encoding in HTTP/1.0");
        }
        if self.chunked && self.length.is_some() {
            return bad("both Content-Length and Transfer-Encoding");
        }
        if connect && (self.chunked || self.length.is_some_and(|length| length > 0)) {
            return bad("a CONNECT with a body");
        }
        Ok(())
    }

    #[inline]
    pub(super) fn framing(&self) -> Framing {
        if self.chunked { Framing::Chunked } else { Framing::Length(self.length.unwrap_or(0)) }
    }

    /// Whether no other request may follow (RFC 9112 §9.3).
    #[inline]
    pub(super) fn last(&self, http10: bool) -> bool {
        self.close || (http10 && !self.keep_alive)
    }
}

/// Whether a field may be a trailer.
pub(super) fn trailer(name: &[u8]) -> Verdict<()> {
    if NEVER_TRAILERS.iter().any(|never| name.eq_ignore_ascii_case(never.as_bytes())) {
        return bad("a field that must not be a trailer");
    }
    Ok(())
}

/// Whether a field name of this length can be one that [`Fields::take`] knows.
#[inline]
pub(super) const fn is_special(len: usize) -> bool {
    const LENGTHS: u32 = 1 << 4 | 1 << 7 | 1 << 10 | 1 << 14 | 1 << 17;
    len < 32 && LENGTHS >> len & 1 != 0
}

/// Whether a token of four bytes is `lower`, in any case: no other token becomes letters by setting that bit.
#[inline]
fn is_name(name: &[u8], lower: &[u8; 4]) -> bool {
    const LOWER: u32 = 0x2020_2020;
    name.first_chunk().is_some_and(|name| u32::from_le_bytes(*name) | LOWER == u32::from_le_bytes(*lower))
}

/// The elements of a list, without the empty ones.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

fn parse_length(digits: &[u8]) -> Option<u64> {
    if !(1..=19).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let length = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    (length <= i64::MAX as u64).then_some(length)
}
