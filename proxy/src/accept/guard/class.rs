//! Character classes as one table of bits, and the two loops that scan with them.

/// `tchar` (RFC 9110 §5.6.2).
pub(super) const TOKEN: u8 = 1;
/// Bytes of a path that pass: what `http::Uri` takes, without `\` and non-ASCII (see the decisions in `head.rs`).
pub(super) const PATH: u8 = 2;
/// Bytes of a query that pass: what `http::Uri` takes, without non-ASCII.
pub(super) const QUERY: u8 = 4;
/// Registered names: unreserved (RFC 3986 §2.3). No percent-encoding and no sub-delims: no DNS name has them.
pub(super) const HOST: u8 = 8;
/// `qdtext` of a quoted string (RFC 9110 §5.6.4).
pub(super) const QDTEXT: u8 = 16;
/// Bytes of a field value: HTAB, SP, VCHAR, obs-text (RFC 9110 §5.5).
pub(super) const VALUE: u8 = 32;

static CLASSES: [u8; 256] = table();

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let byte = i as u8;
        let alnum = byte.is_ascii_alphanumeric();
        let mut class = 0;
        if alnum || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~') {
            class |= TOKEN;
        }
        if matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'<' | b'>' | b'?' | b'\\' | b'`') {
            class |= PATH;
        }
        if matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'#' | b'<' | b'>') {
            class |= QUERY;
        }
        if alnum || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            class |= HOST;
        }
        if matches!(byte, b'\t' | 0x20..=0x7e | 0x80..) {
            class |= VALUE;
            if !matches!(byte, b'"' | b'\\') {
                class |= QDTEXT;
            }
        }
        table[i] = class;
        i += 1;
    }
    table
}

/// Whether `byte` belongs to `class`.
#[inline]
pub(super) fn is(byte: u8, class: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

/// How many of the first bytes belong to `class`.
#[inline]
pub(super) fn span(bytes: &[u8], class: u8) -> usize {
    let mut rest = bytes;
    // Four at a time: one bound to check instead of four.
    while let [a, b, c, d, next @ ..] = rest {
        let at = bytes.len() - rest.len();
        if !is(*a, class) {
            return at;
        }
        if !is(*b, class) {
            return at + 1;
        }
        if !is(*c, class) {
            return at + 2;
        }
        if !is(*d, class) {
            return at + 3;
        }
        rest = next;
    }
    while let [byte, next @ ..] = rest
        && is(*byte, class)
    {
        rest = next;
    }
    bytes.len() - rest.len()
}

/// `span(bytes, VALUE)`, eight bytes at a time: field values are most of a head.
#[inline]
pub(super) fn value_span(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES * 0x80;
    let mut rest = bytes;
    while let Some((&eight, next)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(eight);
        let del = word ^ (ONES * 0x7f);
        // The lowest bit set is exact: a borrow spoils only the bytes above one that really matches.
        let odd = ((word.wrapping_sub(ONES * 0x20) & !word) | (del.wrapping_sub(ONES) & !del)) & HIGH;
        if odd == 0 {
            rest = next;
            continue;
        }
        let byte = (odd.trailing_zeros() / 8) as usize;
        if rest.get(byte) != Some(&b'\t') {
            return bytes.len() - rest.len() + byte;
        }
        rest = &rest[byte + 1..];
    }
    bytes.len() - rest.len() + span(rest, VALUE)
}

/// Without the optional white space around a field value (RFC 9110 §5.6.3).
#[inline]
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_rfc_9110_says() {
        for byte in 0..=255u8 {
            let tchar = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is(byte, TOKEN), tchar, "{byte:#x}");
            let value = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
            assert_eq!(is(byte, VALUE), value, "{byte:#x}");
        }
    }

    proptest::proptest! {
        #[test]
        fn spans_end_at_the_first_other_byte(bytes in "[a-z/?# ]{0,20}") {
            for class in [TOKEN, PATH, QUERY, HOST, PATH | QUERY] {
                let first = bytes.bytes().position(|byte| !is(byte, class)).unwrap_or(bytes.len());
                proptest::prop_assert_eq!(span(bytes.as_bytes(), class), first);
            }
        }
    }

    #[test]
    fn whatever_passes_as_a_target_is_a_uri_for_http() {
        for byte in 0..=255u8 {
            if is(byte, PATH) {
                assert!(http::Uri::try_from(&[b'/', byte, b'a'][..]).is_ok(), "{byte:#x} in a path");
            }
            if is(byte, QUERY) {
                assert!(http::Uri::try_from(&[b'/', b'?', byte][..]).is_ok(), "{byte:#x} in a query");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn eight_at_a_time_is_one_at_a_time(bytes: Vec<u8>) {
            let printable: Vec<u8> = bytes.iter().map(|b| if b % 16 == 0 { *b } else { b | 0x20 }).collect();
            for input in [&bytes, &printable] {
                proptest::prop_assert_eq!(value_span(input), span(input, VALUE));
            }
        }
    }
}
