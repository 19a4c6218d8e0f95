//! Gateway API durations (GEP-2257): `250ms`, `1m30s`, `0s`.

use std::time::Duration;

/// The units, largest first, with their length in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Why a duration was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// `""`
    #[error("a duration is empty")]
    Empty,
    /// `15`
    #[error("a duration needs a unit: h, m, s or ms")]
    NoUnit,
    /// `15d`
    #[error("a duration has an unknown unit; the units are h, m, s and ms")]
    UnknownUnit,
    /// `1.5s`
    #[error("a duration has no fractions; write 1s500ms instead of 1.5s")]
    Fraction,
    /// `-1s`
    #[error("a duration cannot be negative")]
    Negative,
    /// `123456s`
    #[error("a duration has at most 5 digits before each unit")]
    TooManyDigits,
    /// `1s1s1s1s1s`
    #[error("a duration has at most 4 parts")]
    TooManyParts,
    /// Anything else.
    #[error("a duration is made of whole numbers with units")]
    Malformed,
}

/// Reads a Gateway API duration.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut total = 0;
    let mut parts = 0;
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        if number.is_empty() {
            return Err(match after.chars().next() {
                Some('-') => DurationError::Negative,
                Some('.') => DurationError::Fraction,
                _ => DurationError::Malformed,
            });
        }
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        if unit.is_empty() {
            return Err(match next.chars().next() {
                None => DurationError::NoUnit,
                Some('.') => DurationError::Fraction,
                Some(_) => DurationError::Malformed,
            });
        }
        let Some((_, length)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(DurationError::UnknownUnit);
        };
        if number.len() > 5 {
            return Err(DurationError::TooManyDigits);
        }
        parts += 1;
        if parts > 4 {
            return Err(DurationError::TooManyParts);
        }
        let number: u64 = number.parse().map_err(|_| DurationError::Malformed)?;
        total += number * length;
        rest = next;
    }
    Ok(Duration::from_millis(total))
}

/// Writes a duration so that [`parse`] reads it back. Parts of a millisecond are dropped, and so is what exceeds
/// 99999 hours.
pub fn format(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(99_999 * 3_600_000 + 3_599_999);
    if rest == 0 {
        return "0s".into();
    }
    let mut text = String::new();
    for (unit, length) in UNITS {
        let count = rest / length;
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
            rest %= length;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_of_the_gateway_api() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("1h2m3s4ms", 3_723_004),
            ("99999h", 359_996_400_000),
            ("10s30m1h", 5_410_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", DurationError::Empty),
            ("15", DurationError::NoUnit),
            ("1d", DurationError::UnknownUnit),
            ("1S", DurationError::UnknownUnit),
            ("10us", DurationError::UnknownUnit),
            ("1.5s", DurationError::Fraction),
            (".5s", DurationError::Fraction),
            ("-1s", DurationError::Negative),
            ("100000s", DurationError::TooManyDigits),
            ("1s1s1s1s1s", DurationError::TooManyParts),
            ("1 s", DurationError::Malformed),
            ("s", DurationError::Malformed),
            (" 1s", DurationError::Malformed),
            ("1s ", DurationError::Malformed),
        ] {
            assert_eq!(parse(text), Err(reason), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_written_duration_reads_back(millis in 0u64..99_999 * 3_600_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)).unwrap(), duration);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            let _ = parse(&text);
        }
    }
}
