//! What a client speaks, by its first bytes: HTTP or not.

use crate::accept::detect::PREFACE;

/// Longest request line that is waited for. What comes after decides nothing.
pub const LOOK: usize = 8 * 1024;

/// Longest method that is looked for; the longest registered one has 17 letters.
const METHOD: usize = 24;

/// What a client's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// A request line of HTTP/1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something else.
    Opaque,
    /// It cannot be told yet.
    More,
}

/// Looks at a client's first bytes. A request line is one whose method is a token, whose target begins as one of the forms
/// of RFC 9112 §3.2 does, and that ends with a version of HTTP/1.
pub fn classify(said: &[u8]) -> Speech {
    if begins(said, PREFACE) {
        return if said.len() >= PREFACE.len() { Speech::Http2 } else { Speech::More };
    }
    let head = &said[..said.len().min(METHOD + 1)];
    let length = head.iter().position(|byte| !is_token(*byte)).unwrap_or(head.len());
    if length == 0 || length > METHOD {
        return Speech::Opaque;
    }
    let (method, rest) = said.split_at(length);
    let target = match rest {
        [] => return Speech::More,
        [b' ', target @ ..] => target,
        _ => return Speech::Opaque,
    };
    let scheme = target[..target.len().min(8)].to_ascii_lowercase();
    // The target of CONNECT is a host with a port, which may be anything.
    let fits = matches!(target, [] | [b'/' | b'*', ..])
        || method == b"CONNECT"
        || begins(&scheme, b"https://")
        || begins(&scheme, b"http://");
    if !fits {
        return Speech::Opaque;
    }
    match memchr::memchr(b'\n', target) {
        Some(end) => {
            let line = target[..end].strip_suffix(b"\r").unwrap_or(&target[..end]);
            if line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") { Speech::Http1 } else { Speech::Opaque }
        }
        None if said.len() >= LOOK => Speech::Http1,
        None => Speech::More,
    }
}

/// Whether `said` is the beginning of `whole`, or goes on after it.
fn begins(said: &[u8], whole: &[u8]) -> bool {
    let seen = said.len().min(whole.len());
    said[..seen] == whole[..seen]
}

/// `tchar` of RFC 9110 §5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        use Speech::{Http1, Http2, More, Opaque};
        let long = format!("GET /{}", "x".repeat(LOOK));
        for (said, expected) in [
            (&b""[..], More),
            (b"GET / HTTP/1.1\r\n", Http1),
            (b"GET / HTTP/1.0\n", Http1),
            (b"POST /a/b?c HTTP/1.1\r\nhost: x\r\n\r\nbody", Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Http1),
            (b"GET HTTP://a/ HTTP/1.1\r\n", Http1),
            (b"GET https://a/ HTTP/1.1\r\n", Http1),
            (b"CONNECT a:443 HTTP/1.1\r\n", Http1),
            (b"UPDATEREDIRECTREF /x HTTP/1.1\r\n", Http1),
            (b"x-method /x HTTP/1.1\r\n", Http1),
            (long.as_bytes(), Http1),
            (PREFACE, Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", Http2),
            (b"P", More),
            (b"PRI * HT", More),
            (b"GET", More),
            (b"GET ", More),
            (b"GET h", More),
            (b"GET /index", More),
            (b"GET / HTTP/1.1", More),
            // TLS, PostgreSQL, MongoDB.
            (b"\x16\x03\x01\x02\x00", Opaque),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Opaque),
            // Redis, memcached, SMTP, IRC, STOMP.
            (b"*1\r\n$4\r\nPING\r\n", Opaque),
            (b"PING\r\n", Opaque),
            (b"get key\r\n", Opaque),
            (b"get /key\r\n", Opaque),
            (b"EHLO mail.example.com\r\n", Opaque),
            (b"NICK x\r\n", Opaque),
            (b"CONNECT\naccept-version:1.2\n", Opaque),
            (b"SSH-2.0-OpenSSH_9.9\r\n", Opaque),
            (b"GET / HTTP/2.0\r\n", Opaque),
            (b"GET /\r\n", Opaque),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Opaque),
            (b"\r\nGET / HTTP/1.1\r\n", Opaque),
            (b"averyveryverylongwordthatisnomethod /", Opaque),
            (b" ", Opaque),
        ] {
            assert_eq!(classify(said), expected, "{:?}", String::from_utf8_lossy(said));
        }
    }

    /// What is known does not change with what comes after, and nothing is decided too late.
    #[test]
    fn a_request_is_waited_for_until_its_line_has_ended() {
        let line = b"GET /index.html HTTP/1.1\r\n";
        for end in 0..line.len() {
            assert_eq!(classify(&line[..end]), Speech::More, "{end}");
        }
        assert_eq!(classify(line), Speech::Http1);
    }
}
