//! `uri-host [ ":" port ]` (RFC 9110 §4.2.1, §7.2), the only form of an authority that passes.

use std::{net::Ipv6Addr, str};

use super::class::{HOST, span};

/// A DNS name has at most 253 octets.
const MAX_HOST: usize = 255;

/// Whether a port must be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Optional,
    Required,
}

/// Whether `authority` is a name or an address with an optional port: no userinfo, no percent-encoding, no zone, and a port is
/// a number.
#[inline]
pub(super) fn is_host(authority: &[u8], port: Port) -> bool {
    let host = match authority.first() {
        Some(b'[') => match memchr::memchr(b']', authority) {
            Some(end) if str::from_utf8(&authority[1..end]).is_ok_and(|a| a.parse::<Ipv6Addr>().is_ok()) => end + 1,
            _ => return false,
        },
        _ => span(authority, HOST),
    };
    if host == 0 || host > MAX_HOST {
        return false;
    }
    match &authority[host..] {
        [] => port == Port::Optional,
        [b':', digits @ ..] => is_port(digits),
        _ => false,
    }
}

#[inline]
fn is_port(digits: &[u8]) -> bool {
    let mut port = 0;
    for &digit in digits {
        let value = u32::from(digit.wrapping_sub(b'0'));
        if value > 9 {
            return false;
        }
        port = port * 10 + value;
    }
    (1..=5).contains(&digits.len()) && port <= u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_an_optional_port() {
        for good in [
            "a",
            "example.com",
            "example.com.",
            "a_b-c~d",
            "10.0.0.1",
            "h:0",
            "h:80",
            "h:65535",
            "[::1]",
            "[::ffff:1.2.3.4]:443",
        ] {
            assert!(is_host(good.as_bytes(), Port::Optional), "{good}");
            assert!(http::uri::Authority::try_from(good).is_ok(), "{good} must suit http");
        }
        for bad in [
            "",
            ":80",
            "h:",
            "h:65536",
            "h:000080",
            "h:+1",
            "h:8 0",
            "a b",
            "a@b",
            "u:p@h",
            "a/b",
            "a?b",
            "a#b",
            "a,b",
            "a%20b",
            "a\\b",
            "[::1",
            "::1",
            "[::1]x",
            "[fe80::1%eth0]",
            "[v1.x]",
            "[]",
            "h:1:2",
            "é",
        ] {
            assert!(!is_host(bad.as_bytes(), Port::Optional), "{bad}");
        }
        assert!(!is_host(&[b'a'; 256], Port::Optional));
        assert!(is_host(b"h:443", Port::Required) && !is_host(b"h", Port::Required));
    }
}
