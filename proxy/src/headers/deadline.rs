//! Deadlines that clients state in header fields: how they are read, and passed on with what is left.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Seen;

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
static EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// No deadline is later: more than a year is a year.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// The deadline that a gRPC client states (gRPC over HTTP/2, "Timeout"): at most eight digits and a unit. What is not
/// one counts as none; more than a year is a year.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(timeout.min(LONGEST))
}

/// The deadline that a proxy in front of this one states, in Envoy's words: whole milliseconds. What is not a number
/// counts as none; more than a year is a year.
pub fn expected_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&EXPECTED_TIMEOUT)?.to_str().ok()?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // More digits than fit are more than a year.
    Some(text.parse().map_or(LONGEST, Duration::from_millis).min(LONGEST))
}

/// How long the client will wait, if it says so: the least of what it says.
pub fn deadline(headers: &HeaderMap, seen: Seen) -> Option<Duration> {
    if !seen.deadline {
        return None;
    }
    let grpc = if seen.grpc { grpc_timeout(headers) } else { None };
    [grpc, expected_timeout(headers)].into_iter().flatten().min()
}

/// Tells the upstream how much of the client's deadline is left, in those of `grpc-timeout` and
/// `x-envoy-expected-rq-timeout-ms` that the client sent. A deadline that cannot be read is passed on as it is.
///
/// What is left is rounded down, but never to nothing: whether a deadline is over is decided here, and 0 would mean no
/// deadline to Envoy.
pub fn forward_deadline(headers: &mut HeaderMap, remaining: Duration) {
    if grpc_timeout(headers).is_some()
        && let Ok(value) = HeaderValue::try_from(grpc_timeout_text(remaining))
    {
        headers.insert(GRPC_TIMEOUT.clone(), value);
    }
    if expected_timeout(headers).is_some() {
        let millis = u64::try_from(remaining.min(LONGEST).as_millis()).unwrap_or(u64::MAX);
        headers.insert(EXPECTED_TIMEOUT.clone(), HeaderValue::from(millis.max(1)));
    }
}

/// The finest unit in which the number has at most eight digits.
fn grpc_timeout_text(timeout: Duration) -> String {
    const UNITS: [(u128, char); 6] = [
        (1, 'n'),
        (1_000, 'u'),
        (1_000_000, 'm'),
        (1_000_000_000, 'S'),
        (60 * 1_000_000_000, 'M'),
        (3_600 * 1_000_000_000, 'H'),
    ];
    let nanos = timeout.min(LONGEST).as_nanos().max(1);
    let fits = UNITS.iter().find(|(unit, _)| nanos / unit < 100_000_000);
    fits.map_or_else(|| "99999999H".into(), |(unit, letter)| format!("{}{letter}", nanos / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn grpc_timeouts_are_digits_and_a_unit() {
        let parse = |text: &str| grpc_timeout(&map(&[("grpc-timeout", text)]));
        assert_eq!(parse("200m"), Some(Duration::from_millis(200)));
        assert_eq!(parse("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse("0S"), Some(Duration::ZERO));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(365 * 24 * 3600)), "clamped");
        for bad in ["S", "5x", "-1S", "123456789S", "", "1 S", "+1S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn envoys_deadline_is_whole_milliseconds() {
        let parse = |text: &str| expected_timeout(&map(&[("x-envoy-expected-rq-timeout-ms", text)]));
        assert_eq!(parse("250"), Some(Duration::from_millis(250)));
        assert_eq!(parse("0"), Some(Duration::ZERO));
        for long in ["99999999999999999", "99999999999999999999999"] {
            assert_eq!(parse(long), Some(LONGEST), "clamped");
        }
        for bad in ["", "-1", "+1", "1.5", "1 ", "1s", "0x1"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        assert_eq!(expected_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn a_deadline_is_forwarded_where_the_client_stated_one() {
        let left = Duration::from_micros(1_999_999);
        for (before, after) in [
            (map(&[]), map(&[])),
            (map(&[("grpc-timeout", "3S")]), map(&[("grpc-timeout", "1999999u")])),
            (map(&[("grpc-timeout", "soon")]), map(&[("grpc-timeout", "soon")])),
            (
                map(&[("x-envoy-expected-rq-timeout-ms", "3000"), ("a", "b")]),
                map(&[("x-envoy-expected-rq-timeout-ms", "1999"), ("a", "b")]),
            ),
            (
                map(&[("grpc-timeout", "3S"), ("x-envoy-expected-rq-timeout-ms", "9")]),
                map(&[("grpc-timeout", "1999999u"), ("x-envoy-expected-rq-timeout-ms", "1999")]),
            ),
        ] {
            let mut headers = before;
            forward_deadline(&mut headers, left);
            assert_eq!(headers, after);
        }
        let mut headers = map(&[("grpc-timeout", "3S"), ("x-envoy-expected-rq-timeout-ms", "9")]);
        forward_deadline(&mut headers, Duration::ZERO);
        assert_eq!(headers, map(&[("grpc-timeout", "1n"), ("x-envoy-expected-rq-timeout-ms", "1")]), "never nothing");
    }

    #[test]
    fn a_grpc_timeout_is_written_in_the_finest_unit_that_fits() {
        for (timeout, text) in [
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "31536000S"),
        ] {
            assert_eq!(grpc_timeout_text(timeout), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn a_forwarded_deadline_reads_back_a_little_shorter(nanos in 1u64..40_000_000_000_000_000) {
            let left = Duration::from_nanos(nanos).min(LONGEST);
            let mut headers = map(&[("grpc-timeout", "1H"), ("x-envoy-expected-rq-timeout-ms", "1")]);
            forward_deadline(&mut headers, Duration::from_nanos(nanos));
            let read = grpc_timeout(&headers).unwrap();
            proptest::prop_assert!(read <= left && left - read <= left / 10_000, "{left:?} became {read:?}");
            let millis = expected_timeout(&headers).unwrap();
            proptest::prop_assert!(millis <= left.max(Duration::from_millis(1)) && left.saturating_sub(millis) < Duration::from_millis(1));
        }
    }
}
