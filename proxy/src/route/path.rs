//! The one form of a request target that Weft compares, and forwards.
//!
//! A proxy that matches one spelling of a path and forwards another can be talked around: `/public/%2e%2e/admin` passes
//! as public here and is served as `/admin` there. So a request is normalised once, before anything looks at it
//! (RFC 3986 §6.2.2), and from then on the normal form is the request. What different servers are known to read
//! differently is not repaired but refused, with a 400: `\`, NUL, control characters, bytes outside ASCII, broken
//! escapes, `#`, and dot segments that climb above the root.
//!
//! Two things stay as they are, because applications depend on them: `%2F` and `%5C` are data and never separators,
//! and empty segments (`//`) are kept. A service that decodes `%2F` before it resolves `..` must not be protected by
//! path alone.

use std::{borrow::Cow, net::Ipv6Addr};

/// Longest hostname in bytes (RFC 1035 §2.3.4, as text without the trailing dot).
const MAX_HOST: usize = 253;

/// Why a path is refused. The texts contain nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Does not start with `/` and is not `*`.
    #[error("the path does not start with /")]
    NotAbsolute,
    /// A byte that has to be escaped: white space, a control character, or one outside ASCII.
    #[error("the path contains a byte that has to be percent-encoded")]
    Byte,
    /// `\`, which some servers take for `/`.
    #[error("the path contains a backslash")]
    Backslash,
    /// `?` or `#`: this is not only a path.
    #[error("the path contains ? or #")]
    Delimiter,
    /// `%` without two hexadecimal digits.
    #[error("the path contains a broken percent-encoding")]
    Escape,
    /// `%00`
    #[error("the path contains an encoded NUL")]
    Nul,
    /// More `..` than segments before them.
    #[error("the path climbs above the root")]
    AboveRoot,
}

/// The normal form of `path`, borrowed when it has that form already: escaped unreserved characters are decoded, the
/// digits of other escapes are upper case, and dot segments are resolved. `*`, as in `OPTIONS *`, stays what it is.
///
/// # Errors
/// When the path cannot be trusted to mean the same to everybody: answer 400.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !path.starts_with('/') {
        return if path == "*" { Ok(Cow::Borrowed(path)) } else { Err(PathError::NotAbsolute) };
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    for byte in path.bytes() {
        match byte {
            b'\\' => return Err(PathError::Backslash),
            b'?' | b'#' => return Err(PathError::Delimiter),
            0x21..=0x7e => {}
            _ => return Err(PathError::Byte),
        }
    }
    let decoded = decode(path)?;
    if decoded.split('/').any(|segment| matches!(segment, "." | "..")) {
        return resolve(&decoded).map(Cow::Owned);
    }
    Ok(decoded)
}

/// Whether nothing has to be done: the answer for nearly every path. Both loops are free of branches, so that the
/// compiler turns them into vector instructions.
fn is_plain(path: &[u8]) -> bool {
    let odd = path.iter().fold(false, |odd, &byte| {
        odd | !(0x21..=0x7e).contains(&byte) | (byte == b'%') | (byte == b'\\') | (byte == b'?') | (byte == b'#')
    });
    let hidden = path.windows(2).fold(false, |hidden, pair| hidden | ((pair[0] == b'/') & (pair[1] == b'.')));
    !odd & !hidden
}

/// Decodes what need not be encoded and spells the rest in upper case.
fn decode(path: &str) -> Result<Cow<'_, str>, PathError> {
    let mut decoded = String::new();
    // Everything before is in `decoded`. The path starts with `/`, so 0 means that nothing had to change.
    let mut copied = 0;
    for start in memchr::memchr_iter(b'%', path.as_bytes()) {
        let escape = path.get(start..start + 3).ok_or(PathError::Escape)?;
        let (Some(high), Some(low)) = (hex(escape.as_bytes()[1]), hex(escape.as_bytes()[2])) else {
            return Err(PathError::Escape);
        };
        let byte = high << 4 | low;
        if byte == 0 {
            return Err(PathError::Nul);
        }
        if is_unreserved(byte) {
            decoded.push_str(&path[copied..start]);
            decoded.push(char::from(byte));
            copied = start + 3;
        } else if escape.bytes().any(|digit| digit.is_ascii_lowercase()) {
            decoded.push_str(&path[copied..start]);
            decoded.extend(escape.chars().map(|digit| digit.to_ascii_uppercase()));
            copied = start + 3;
        }
    }
    if copied == 0 {
        return Ok(Cow::Borrowed(path));
    }
    decoded.push_str(&path[copied..]);
    Ok(Cow::Owned(decoded))
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// RFC 3986 §2.3
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 §5.2.4, but climbing above the root is an error instead of being ignored.
fn resolve(path: &str) -> Result<String, PathError> {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => {
                let parent = resolved.rfind('/').ok_or(PathError::AboveRoot)?;
                resolved.truncate(parent);
            }
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            resolved.push('/');
        }
    }
    Ok(resolved)
}

/// Why an authority (`Host`, `:authority`) is refused. The texts contain nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No host, or a host of which an empty label is left.
    #[error("the host is empty or has an empty label")]
    Empty,
    /// `user@host`
    #[error("the host contains user information")]
    Userinfo,
    /// A character that no hostname has, or brackets without an IPv6 address in them.
    #[error("the host contains an invalid character")]
    Character,
    /// Not a number from 1 to 65535.
    #[error("the port is not a port number")]
    Port,
    /// Longer than 253 bytes.
    #[error("the host is too long")]
    TooLong,
}

/// Host and port of an authority. The host is in lower case (borrowed if it was), without a trailing dot, and with the
/// brackets of an IPv6 address.
///
/// Stricter than RFC 3986, which allows user information, escapes and punctuation that no client needs and that
/// servers disagree about.
///
/// # Errors
/// When this is not a plain host with an optional port: answer 400.
pub fn host_of(authority: &str) -> Result<(Cow<'_, str>, Option<u16>), HostError> {
    if memchr::memchr(b'@', authority.as_bytes()).is_some() {
        return Err(HostError::Userinfo);
    }
    if authority.starts_with('[') {
        let end = authority.find(']').ok_or(HostError::Character)?;
        authority[1..end].parse::<Ipv6Addr>().map_err(|_| HostError::Character)?;
        let port = match &authority[end + 1..] {
            "" => None,
            rest => Some(port_of(rest.strip_prefix(':').ok_or(HostError::Character)?)?),
        };
        return Ok((lower_case(&authority[..=end]), port));
    }
    let (host, port) = match memchr::memchr(b':', authority.as_bytes()) {
        Some(colon) => (&authority[..colon], Some(&authority[colon + 1..])),
        None => (authority, None),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.len() > MAX_HOST {
        return Err(HostError::TooLong);
    }
    let mut before = b'.';
    for byte in host.bytes() {
        match byte {
            b'.' if before == b'.' => return Err(HostError::Empty),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => before = byte,
            _ => return Err(HostError::Character),
        }
    }
    if before == b'.' {
        return Err(HostError::Empty);
    }
    Ok((lower_case(host), port.map(port_of).transpose()?))
}

fn port_of(digits: &str) -> Result<u16, HostError> {
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(HostError::Port);
    }
    digits.parse().ok().filter(|&port| port != 0).ok_or(HostError::Port)
}

fn lower_case(host: &str) -> Cow<'_, str> {
    if host.bytes().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
mod tests;
