//! Names, hostnames, paths and headers: pure functions from text to a value or a reason.

use std::net::IpAddr;

use crate::config::Hostname;

/// RFC 1123 label: `cart-v2`.
pub(crate) fn label(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 63 {
        return Err("a part is longer than 63 characters");
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("it has upper-case letters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return Err("only lower-case letters, digits and - are allowed");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("it starts or ends with -");
    }
    Ok(())
}

/// RFC 1123 subdomain: `cart-v2` or `a.b.c`.
pub(crate) fn subdomain(text: &str) -> Result<(), &'static str> {
    if text.len() > 253 {
        return Err("it is longer than 253 characters");
    }
    text.split('.').try_for_each(label)
}

/// A hostname of the Gateway API; made lower case.
pub(crate) fn hostname(text: &str) -> Result<Hostname, &'static str> {
    let lower = text.to_ascii_lowercase();
    if lower.parse::<IpAddr>().is_ok() {
        return Err("it is an IP address");
    }
    if lower.contains(':') {
        return Err("it has a port or scheme");
    }
    match lower.strip_prefix("*.") {
        Some(suffix) => {
            subdomain(suffix)?;
            Ok(Hostname::Wildcard(suffix.into()))
        }
        None if lower.contains('*') => Err("a wildcard is only allowed as the whole first label"),
        None => {
            subdomain(&lower)?;
            Ok(Hostname::Exact(lower.into()))
        }
    }
}

/// A path of an `Exact` or `PathPrefix` match, or of a modifier.
pub(crate) fn path(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err("it does not start with /".into());
    }
    if text.len() > 1024 {
        return Err("it is longer than 1024 characters".into());
    }
    for (bad, name) in [("//", "//"), ("/./", "/./"), ("/../", "/../"), ("#", "#"), ("?", "?")] {
        if text.contains(bad) {
            return Err(format!("it contains {name}"));
        }
    }
    let lower = text.to_ascii_lowercase();
    for bad in ["%2f", "%00"] {
        if lower.contains(bad) {
            return Err(format!("it contains {bad}"));
        }
    }
    if text.ends_with("/.") || text.ends_with("/..") {
        return Err("it ends with a . segment".into());
    }
    // Requests are compared after such escapes have been decoded and resolved: this path would never be seen.
    if lower.replace("%2e", ".").split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err("it contains an escaped . segment".into());
    }
    let bytes = text.as_bytes();
    for (i, b) in bytes.iter().enumerate() {
        let fine = match b {
            b'%' => matches!(bytes.get(i + 1..i + 3), Some(hex) if hex.iter().all(u8::is_ascii_hexdigit)),
            _ => b.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@".contains(b),
        };
        if !fine {
            let c = text.get(i..).and_then(|rest| rest.chars().next()).unwrap_or(char::REPLACEMENT_CHARACTER);
            return Err(format!("{c:?} has to be percent-encoded"));
        }
    }
    Ok(())
}

/// A token of HTTP: header names and methods.
pub(crate) fn token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// A value that a header can have.
pub(crate) fn header_value(text: &str) -> Result<(), &'static str> {
    if text.len() > 4096 {
        return Err("it is longer than 4096 bytes");
    }
    if text.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f) {
        return Err("it has a line break or another control character");
    }
    if text.starts_with([' ', '\t']) || text.ends_with([' ', '\t']) {
        return Err("it starts or ends with a space");
    }
    Ok(())
}

/// The methods of the Gateway API.
pub(crate) const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// `10.0.0.0/8`, or one address.
pub(crate) fn ip_block(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| "it does not start with an IP address".to_owned())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => most,
        Some(length) if length.bytes().all(|b| b.is_ascii_digit()) => match length.parse::<u8>() {
            Ok(length) if length <= most => length,
            _ => return Err(format!("the prefix length goes from 0 to {most}")),
        },
        Some(_) => return Err("the prefix length is not a number".into()),
    };
    let masked = mask(address, length);
    if masked != address {
        return Err(format!("it has bits beyond the prefix; {masked}/{length} is the block"));
    }
    Ok((address, length))
}

fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & keep).into())
        }
        IpAddr::V6(v6) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & keep).into())
        }
    }
}

/// Standard base64, with or without padding; white space is skipped, as Kubernetes does.
pub(crate) fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count, mut padding) = (0u32, 0u32, false);
    for b in text.bytes().filter(|b| !b.is_ascii_whitespace()) {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding = true;
                continue;
            }
            _ => return None,
        };
        if padding {
            return None;
        }
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    // One letter alone carries no byte.
    (count < 6).then_some(bytes)
}

/// The last line of a regex error, which says what is wrong; the rest repeats the expression.
pub(crate) fn regex_reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default().trim();
    let reason = last.strip_prefix("error: ").unwrap_or(last);
    match reason.contains("look-around") || reason.contains("backreferences") {
        true => format!("{reason}; expressions are those of RE2"),
        false => reason.to_owned(),
    }
}

/// Names of gRPC statuses; the index is the number.
pub(crate) const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC status by name or number.
pub(crate) fn grpc_status(text: &str) -> Option<u16> {
    let by_name = GRPC.iter().position(|name| name.eq_ignore_ascii_case(text)).and_then(|i| u16::try_from(i).ok());
    by_name.or_else(|| text.parse().ok().filter(|code| usize::from(*code) < GRPC.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hostnames() {
        assert_eq!(hostname("Shop.Local"), Ok(Hostname::Exact("shop.local".into())));
        assert_eq!(hostname("*.shop.local"), Ok(Hostname::Wildcard("shop.local".into())));
        for bad in ["", "*", "a.*.b", "*a.b", "1.2.3.4", "::1", "a:80", "-a.b", "a..b", "a_b.c", "http://x"] {
            assert!(hostname(bad).is_err(), "{bad}");
        }
        assert!(hostname(&format!("{}.com", "a".repeat(64))).is_err());
    }

    #[test]
    fn paths() {
        for good in ["/", "/cart", "/a/b.c/", "/%20x", "/a@b:c", "/.well-known", "/%2ea", "/a%2e", "/...", "/caf%c3%a9"]
        {
            assert_eq!(path(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "cart",
            "/a//b",
            "/a/./b",
            "/a/../b",
            "/a%2Fb",
            "/a%2fb",
            "/a#b",
            "/a?b",
            "/a/..",
            "/a/.",
            "/a b",
            "/%",
            "/é",
            "/a%00b",
            "/%2e",
            "/a/%2E%2e/b",
            "/a/.%2e",
            "/%2e/",
        ] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ip_blocks() {
        assert_eq!(ip_block("10.0.0.0/8"), Ok(("10.0.0.0".parse().unwrap(), 8)));
        assert_eq!(ip_block("10.1.2.3"), Ok(("10.1.2.3".parse().unwrap(), 32)));
        assert_eq!(ip_block("fd00::/8"), Ok(("fd00::".parse().unwrap(), 8)));
        assert_eq!(ip_block("0.0.0.0/0"), Ok(("0.0.0.0".parse().unwrap(), 0)));
        assert_eq!(ip_block("::/0"), Ok(("::".parse().unwrap(), 0)));
        for bad in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0/8", "", "/8", "10.0.0.0/", "10.0.0.0/-1", "::1/64"] {
            assert!(ip_block(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_reads_what_base64_writes() {
        assert_eq!(base64("aGVsbG8="), Some(b"hello".to_vec()));
        assert_eq!(base64("aGVs\nbG8"), Some(b"hello".to_vec()));
        assert_eq!(base64(""), Some(vec![]));
        assert_eq!(base64("a"), None);
        assert_eq!(base64("a=b"), None);
        assert_eq!(base64("aGVs*"), None);
    }

    #[test]
    fn header_values_and_tokens() {
        assert!(token("x-user") && token("X_User") && !token("x user") && !token("") && !token("é") && !token("a:b"));
        assert!(header_value("a b").is_ok() && header_value("é").is_ok() && header_value("").is_ok());
        assert!(header_value("a\r\nb").is_err() && header_value(" a").is_err() && header_value("a\0").is_err());
    }

    #[test]
    fn grpc_statuses() {
        assert_eq!(grpc_status("UNAVAILABLE"), Some(14));
        assert_eq!(grpc_status("unavailable"), Some(14));
        assert_eq!(grpc_status("16"), Some(16));
        assert_eq!(grpc_status("17"), None);
        assert_eq!(grpc_status("NOPE"), None);
    }
}
