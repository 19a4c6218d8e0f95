//! Load shedding by priority: from which urgency on requests are refused, so that the others are served.
//!
//! Urgency is that of RFC 9218: 0 goes first, 7 goes last. The higher the pressure, the lower the urgency from which
//! requests are refused; urgency 0 is never refused.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};

/// Nothing is shed from this urgency on, because there is none.
pub const NOTHING: u8 = 8;
/// Share of the memory limit at which shedding begins; at the limit it is complete.
const MEMORY_BEGINS: f64 = 0.9;
/// Multiple of the latency budget at which shedding is complete; it begins at the budget.
const LAG_COMPLETE: f64 = 2.0;
/// A level is left only when the pressure is so far below it, as a share of the way from begin to complete.
const MARGIN: f64 = 0.25;
/// A level is left no sooner.
const DWELL: Duration = Duration::from_secs(1);

/// What a node is under.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// Resident memory and its limit, in bytes.
    pub memory: Option<(u64, u64)>,
    /// How late a worker's loop runs, and the budget for it.
    pub lag: Option<(Duration, Duration)>,
}

impl Pressure {
    /// How far shedding has to go: below 0 not at all, from 1 on as far as it can.
    fn memory_severity(&self) -> f64 {
        self.memory.map_or(f64::MIN, |(used, limit)| {
            (used as f64 / limit.max(1) as f64 - MEMORY_BEGINS) / (1.0 - MEMORY_BEGINS)
        })
    }

    fn lag_severity(&self) -> f64 {
        self.lag.map_or(f64::MIN, |(lag, budget)| {
            (lag.as_secs_f64() / budget.as_secs_f64().max(1e-9) - 1.0) / (LAG_COMPLETE - 1.0)
        })
    }

    /// The greater pressure, for people.
    pub fn describe(&self) -> String {
        if self.memory_severity() >= self.lag_severity()
            && let Some((used, limit)) = self.memory
        {
            return format!("memory is at {} of {} (--max-memory)", mebibytes(used), mebibytes(limit));
        }
        match self.lag {
            Some((lag, budget)) => {
                let millis = lag.as_secs_f64() * 1e3;
                format!("a worker runs {millis:.1} ms late (--latency-budget {})", weft_model::duration::format(budget))
            }
            None => "nothing presses".into(),
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Decides how much is shed. Reacts to pressure at once, and to its end step by step.
#[derive(Debug)]
pub struct Shedder {
    from: u8,
    changed: Instant,
}

impl Shedder {
    /// Sheds nothing.
    pub const fn new(now: Instant) -> Self {
        Self { from: NOTHING, changed: now }
    }

    /// The urgency from which on requests are refused; [`NOTHING`] is none.
    pub fn observe(&mut self, pressure: &Pressure, now: Instant) -> u8 {
        let severity = pressure.memory_severity().max(pressure.lag_severity());
        if level(severity) < self.from {
            self.from = level(severity);
            self.changed = now;
        } else if level(severity + MARGIN) > self.from && now >= self.changed + DWELL {
            self.from += 1;
            self.changed = now;
        }
        self.from
    }
}

/// Seven levels from 7 to 1, evenly.
fn level(severity: f64) -> u8 {
    if severity < 0.0 {
        return NOTHING;
    }
    // A little more, so that what is meant to be a whole step is not lost to binary fractions.
    7 - (severity * 6.0 + 1e-9).floor().min(6.0) as u8
}

/// A request's urgency: that of its policy, or what its `priority` header says if that is less urgent.
pub fn urgency_of(headers: &HeaderMap, policy: u8) -> u8 {
    said(headers).map_or(policy, |said| said.max(policy))
}

/// What a request itself says, in its last `priority` header that says anything.
pub fn said(headers: &HeaderMap) -> Option<u8> {
    headers.get_all("priority").iter().filter_map(urgency).next_back()
}

/// `u` of a `priority` field (RFC 9218 §4.1): a structured dictionary, of which everything else is passed over. The last
/// `u` counts (RFC 8941 §3.2); one that is no integer from 0 to 7 is not there.
fn urgency(value: &HeaderValue) -> Option<u8> {
    let mut found = None;
    for member in members(value.as_bytes()) {
        let member = member.split(|byte| *byte == b';').next().unwrap_or_default();
        let value = match member.trim_ascii() {
            [b'u', b'=', value @ ..] => value,
            _ => continue,
        };
        found = match value {
            [digit @ b'0'..=b'7'] => Some(digit - b'0'),
            _ => None,
        };
    }
    found
}

/// The members of a dictionary: parted by commas, except in strings and inner lists.
fn members(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped, mut listed) = (false, false, false);
    text.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'(' if !quoted => listed = true,
            b')' if !quoted => listed = false,
            b',' => return !quoted && !listed,
            _ => {}
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn memory(used: u64) -> Pressure {
        Pressure { memory: Some((used, 1_000)), lag: None }
    }

    fn lag(millis: u64) -> Pressure {
        Pressure { memory: None, lag: Some((ms(millis), ms(100))) }
    }

    #[test]
    fn pressure_is_answered_by_degrees() {
        let both = |used, millis| Pressure { lag: lag(millis).lag, ..memory(used) };
        for (pressure, from) in [
            (Pressure::default(), NOTHING),
            (memory(0), NOTHING),
            (memory(899), NOTHING),
            (memory(900), 7),
            (memory(916), 7),
            (memory(917), 6),
            (memory(950), 4),
            (memory(999), 2),
            (memory(1_000), 1),
            (memory(5_000), 1),
            (lag(99), NOTHING),
            (lag(100), 7),
            (lag(150), 4),
            (lag(199), 2),
            (lag(200), 1),
            (lag(100_000), 1),
            (both(950, 0), 4),
            (both(0, 150), 4),
            (both(910, 199), 2),
            (Pressure { memory: Some((1, 0)), lag: Some((ms(1), ms(0))) }, 1),
        ] {
            let now = Instant::now();
            assert_eq!(Shedder::new(now).observe(&pressure, now), from, "{pressure:?}");
        }
    }

    #[test]
    fn relief_comes_step_by_step_and_only_when_it_is_clear() {
        let start = Instant::now();
        let mut shedder = Shedder::new(start);
        let mut at = |millis: u64, used: u64| shedder.observe(&memory(used), start + ms(millis));
        assert_eq!(at(0, 950), 4);
        assert_eq!(at(500, 0), 4, "too soon");
        assert_eq!(at(1_000, 940), 4, "not clearly less");
        assert_eq!(at(1_100, 900), 5);
        assert_eq!(at(1_200, 900), 5, "one step a second");
        assert_eq!(at(2_100, 900), 6);
        assert_eq!(at(2_200, 980), 3, "worse counts at once");
        assert_eq!([3_200, 4_200, 5_200, 6_200, 7_200, 8_200].map(|millis| at(millis, 0)), [4, 5, 6, 7, 8, 8]);
    }

    #[test]
    fn the_reason_is_the_greater_pressure() {
        let pressure = Pressure { memory: Some((1_910 << 20, 2_000 << 20)), lag: Some((ms(15), ms(10))) };
        assert_eq!(pressure.describe(), "memory is at 1910 MiB of 2000 MiB (--max-memory)");
        let pressure = Pressure { memory: Some((1_850 << 20, 2_000 << 20)), lag: Some((ms(15), ms(10))) };
        assert_eq!(pressure.describe(), "a worker runs 15.0 ms late (--latency-budget 10ms)");
    }

    #[test]
    fn a_client_can_only_make_itself_less_urgent() {
        for (lines, policy, urgency) in [
            (&[][..], 3, 3),
            (&["u=5"], 3, 5),
            (&["u=1"], 3, 3),
            (&["u=0"], 0, 0),
            (&["i, u=6"], 3, 6),
            (&["u=6;x=1, i"], 3, 6),
            (&["u=6,u=4"], 3, 4),
            (&["u=6", "u=5"], 3, 5),
            (&["u=8"], 3, 3),
            (&["u=-1"], 3, 3),
            (&["u=5.0"], 3, 3),
            (&["u=\"5\""], 3, 3),
            (&["u"], 3, 3),
            (&["U=7"], 3, 3),
            (&["a=\"x, u=7\", i"], 3, 3),
            (&["a=\"x\\\", u=7\""], 3, 3),
            (&["a=(\"x\" u), u=7"], 3, 7),
            (&["au=7"], 3, 3),
            (&["  u=7  "], 3, 7),
        ] {
            let headers: HeaderMap =
                lines.iter().map(|line| ("priority".parse().unwrap(), HeaderValue::from_static(line))).collect();
            assert_eq!(urgency_of(&headers, policy), urgency, "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_request_more_urgent(text in "[ -~]{0,40}", policy in 0u8..=7) {
            let mut headers = HeaderMap::new();
            headers.insert("priority", HeaderValue::from_str(&text).unwrap());
            prop_assert!((policy..=7).contains(&urgency_of(&headers, policy)));
        }

        #[test]
        fn more_pressure_never_sheds_less(
            steps in proptest::collection::vec((0u64..1_200, 0u64..300, 0u64..3_000), 1..60)
        ) {
            let mut now = Instant::now();
            let (mut one, mut more) = (Shedder::new(now), Shedder::new(now));
            for (used, late, wait) in steps {
                now += ms(wait);
                let pressure = Pressure { lag: lag(late).lag, ..memory(used) };
                let from = one.observe(&pressure, now);
                prop_assert!((1..=NOTHING).contains(&from));
                prop_assert!(from <= level(pressure.memory_severity().max(pressure.lag_severity())), "at once");
                let higher = Pressure { lag: lag(late + 100).lag, ..memory(used + 100) };
                prop_assert!(more.observe(&higher, now) <= level(pressure.memory_severity()));
            }
        }
    }
}
