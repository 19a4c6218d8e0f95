#![allow(clippy::unwrap_used, clippy::panic)]
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use weft_model::config::{OnBreakerOpen, RateKey};

use super::*;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn limit(requests: u32, per: Duration, burst: u32, key: RateKey) -> RateLimit {
    let on_breaker_open = OnBreakerOpen { factor: 0.3, recover_percent_per_minute: 5.0 };
    RateLimit { requests, per, burst, key, on_breaker_open }
}

fn user() -> RateKey {
    RateKey::Header("x-user".into())
}

fn limits(list: &[RateLimit], now: Instant) -> RateLimits {
    RateLimits::new("shop", list, None, now)
}

fn admits(limits: &RateLimits, user: Option<&str>, now: Instant) -> bool {
    limits.admit(|_| user.map(str::as_bytes), CircuitView::Steady, now).is_ok()
}

/// How many of `offered` requests at once are admitted.
fn admitted(limits: &RateLimits, user: Option<&str>, offered: usize, now: Instant) -> usize {
    (0..offered).filter(|_| admits(limits, user, now)).count()
}

/// `RateLimit-Policy` and `RateLimit`; the latter is empty when it is not there.
fn told(standing: Standing) -> (String, String) {
    let mut headers = HeaderMap::new();
    standing.apply(&mut headers);
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    (text("ratelimit-policy"), text("ratelimit"))
}

#[test]
fn a_burst_and_then_the_rate() {
    let start = Instant::now();
    let limits = limits(&[limit(10, S, 5, RateKey::Global)], start);
    // When, how many are offered, how many pass.
    let table = [(0, 20, 5), (99, 3, 0), (100, 3, 1), (350, 9, 2), (400, 9, 1), (10_000, 9, 5)];
    for (at, offered, passed) in table {
        assert_eq!(admitted(&limits, None, offered, start + at * MS), passed, "at {at}");
    }
}

#[test]
fn keys_have_budgets_of_their_own_and_those_without_have_none() {
    let now = Instant::now();
    let limits = limits(&[limit(2, S, 2, user())], now);
    assert_eq!(admitted(&limits, Some("ann"), 9, now), 2);
    assert_eq!(admitted(&limits, Some("bob"), 9, now), 2);
    assert_eq!(admitted(&limits, Some(""), 9, now), 2);
    // The limit does not apply to them.
    assert_eq!(admitted(&limits, None, 9, now), 9);
    let report = &limits.report(CircuitView::Steady, now)[0];
    assert_eq!((report.keys, report.remaining, report.refused), (3, None, 21));
}

#[test]
fn a_limit_that_does_not_apply_is_neither_asked_nor_charged_nor_told() {
    let now = Instant::now();
    let list = [limit(1, S, 1, user()), limit(3, 60 * S, 3, RateKey::Global), limit(1, S, 1, RateKey::Identity)];
    let limits = limits(&list, now);
    let policy = r#""shop.1";q=1;w=1, "shop.2";q=3;w=60, "shop.3";q=1;w=1"#;
    let of = |user: Option<&'static str>| move |key: &Key| user.filter(|_| *key != Key::Identity).map(str::as_bytes);
    let standing = limits.admit(of(Some("ann")), CircuitView::Steady, now).unwrap();
    assert_eq!(told(standing), (policy.into(), r#""shop.1";r=0;t=1, "shop.2";r=2;t=20"#.into()));
    // Without a user only the one for everybody is left, and that does refuse.
    for left in [1, 0] {
        let standing = limits.admit(of(None), CircuitView::Steady, now).unwrap();
        assert!(told(standing).1.starts_with(&format!("\"shop.2\";r={left};t=")));
    }
    let exceeded = limits.admit(of(None), CircuitView::Steady, now).unwrap_err();
    assert_eq!((&*exceeded.limit, exceeded.retry_after), ("shop.2", 20 * S));
    assert_eq!(told(exceeded.standing), (policy.into(), r#""shop.2";r=0;t=20"#.into()));
    let peeked = |user| {
        let peeked = limits.peek(of(user), CircuitView::Steady, now);
        peeked.iter().map(|peek| (peek.applies, peek.remaining, peek.wait)).collect::<Vec<_>>()
    };
    let off = (false, 0, Duration::ZERO);
    assert_eq!(peeked(None), [off, (true, 0, 20 * S), off]);
    assert_eq!(peeked(Some("bob")), [(true, 1, Duration::ZERO), (true, 0, 20 * S), off]);
    let keys: Vec<usize> = limits.report(CircuitView::Steady, now).iter().map(|report| report.keys).collect();
    assert_eq!(keys, [1, 1, 0]);
}

#[test]
fn without_a_limit_that_applies_there_is_nothing_to_tell_but_the_policy() {
    let now = Instant::now();
    let limits = limits(&[limit(1, S, 1, user()), limit(1, S, 1, RateKey::Identity)], now);
    for _ in 0..9 {
        let standing = limits.admit(|_| None, CircuitView::Steady, now).unwrap();
        let mut headers = HeaderMap::new();
        standing.apply(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["ratelimit-policy"]);
        assert_eq!(headers["ratelimit-policy"], r#""shop.1";q=1;w=1, "shop.2";q=1;w=1"#);
    }
}

#[test]
fn nobody_is_charged_when_another_refuses() {
    let now = Instant::now();
    let limits = limits(&[limit(100, S, 10, RateKey::Global), limit(1, S, 1, user())], now);
    assert!(admits(&limits, Some("ann"), now));
    assert_eq!(admitted(&limits, Some("ann"), 50, now), 0);
    let peeked = limits.peek(|_| Some(b"bob"), CircuitView::Steady, now);
    assert_eq!((peeked[0].remaining, peeked[1].remaining), (9, 1));
    // Peeking does not charge either.
    assert_eq!(limits.peek(|_| Some(b"bob"), CircuitView::Steady, now), peeked);
    let peeked = limits.peek(|_| Some(b"ann"), CircuitView::Steady, now);
    assert_eq!((peeked[1].remaining, peeked[1].wait), (0, S));
    // And the other way round: the key of a refused request is not charged.
    assert_eq!((0..20).filter(|n| admits(&limits, Some(&n.to_string()), now)).count(), 9);
    let peeked = limits.peek(|_| Some(b"19"), CircuitView::Steady, now);
    assert_eq!((peeked[0].remaining, peeked[1].remaining), (0, 1));
}

#[test]
fn clients_are_told_what_is_left() {
    let now = Instant::now();
    let limits = limits(&[limit(50, S, 100, user()), limit(2, 60 * S, 2, RateKey::Global)], now);
    let policy = r#""shop.1";q=50;w=1, "shop.2";q=2;w=60"#;
    let standing = limits.admit(|_| Some(b"ann"), CircuitView::Steady, now).unwrap();
    assert_eq!(told(standing), (policy.into(), r#""shop.1";r=99;t=1, "shop.2";r=1;t=30"#.into()));
    let standing = limits.admit(|_| Some(b"ann"), CircuitView::Steady, now).unwrap();
    assert_eq!(told(standing), (policy.into(), r#""shop.1";r=98;t=1, "shop.2";r=0;t=30"#.into()));
    let exceeded = limits.admit(|_| Some(b"ann"), CircuitView::Steady, now + S).unwrap_err();
    assert_eq!(exceeded.retry_after, 29 * S);
    assert_eq!(&*exceeded.limit, "shop.2");
    assert_eq!(exceeded.summary, "shop.2 (2 per 1m, burst 2, key global)");
    assert_eq!(told(exceeded.standing), (policy.into(), r#""shop.1";r=100;t=0, "shop.2";r=0;t=29"#.into()));
}

#[test]
fn fields_are_structured_fields() {
    let now = Instant::now();
    let list = [limit(5, 100 * MS, 5, RateKey::Path), limit(1, 1500 * MS, 1, RateKey::SourceIp)];
    let (policy, left) = told(limits(&list, now).admit(|_| Some(b"/"), CircuitView::Steady, now).unwrap());
    // Windows are whole seconds: 5 in 100ms are 50 in a second, 1 in 1.5s is 1 in two.
    assert_eq!(policy, r#""shop.1";q=50;w=1, "shop.2";q=1;w=2"#);
    assert_eq!(left, r#""shop.1";r=4;t=1, "shop.2";r=0;t=2"#);
    // RFC 9651 integers have 15 digits at most.
    let list = [limit(u32::MAX, Duration::from_millis(1), u32::MAX, RateKey::Global)];
    let (policy, left) = told(limits(&list, now).admit(|_| None, CircuitView::Steady, now).unwrap());
    assert_eq!(policy, r#""shop.1";q=4294967295000;w=1"#);
    assert_eq!(left, r#""shop.1";r=4294967294;t=1"#);
}

#[test]
fn the_longest_wait_counts() {
    let now = Instant::now();
    let list = [limit(1, S, 1, RateKey::Global), limit(1, 60 * S, 1, RateKey::Path), limit(1, 5 * S, 1, user())];
    let limits = limits(&list, now);
    assert!(admits(&limits, Some("ann"), now));
    let exceeded = limits.admit(|_| Some(b"ann"), CircuitView::Steady, now).unwrap_err();
    assert_eq!((&*exceeded.limit, exceeded.retry_after), ("shop.2", 60 * S));
    let refused: Vec<u64> = limits.report(CircuitView::Steady, now).iter().map(|report| report.refused).collect();
    assert_eq!(refused, [0, 1, 0]);
}

#[test]
fn quotas_at_the_edge_of_what_can_be_written() {
    let now = Instant::now();
    for requests in [1, 3, 1_000_000, u32::MAX] {
        for per in [MS, S, Duration::from_secs(4 * 99_999 * 3600)] {
            for burst in [1, 7, u32::MAX] {
                let limits = limits(&[limit(requests, per, burst, RateKey::Global)], now);
                assert!(admits(&limits, None, now));
                for circuit in [CircuitView::Steady, CircuitView::Open] {
                    let later = now + Duration::from_secs(10 * 365 * 86_400);
                    let left = limits.peek(|_| None, circuit, later)[0].remaining;
                    assert!(left <= burst, "{requests} per {per:?}, burst {burst}: {left}");
                }
            }
        }
    }
}

#[test]
fn an_open_circuit_takes_its_share_and_gives_it_back() {
    let policy = |factor, recover_percent_per_minute| OnBreakerOpen { factor, recover_percent_per_minute };
    let after = |minutes| CircuitView::Recovering(Duration::from_secs(60 * minutes));
    let table = [
        (policy(0.3, 5.0), CircuitView::Steady, 100),
        (policy(0.3, 5.0), CircuitView::Open, 30),
        (policy(0.3, 5.0), after(0), 30),
        (policy(0.3, 5.0), after(4), 50),
        (policy(0.3, 5.0), after(14), 100),
        (policy(0.3, 5.0), after(u64::from(u32::MAX)), 100),
        (policy(0.3, 0.0), after(1000), 30),
        (policy(0.3, 6.0), CircuitView::Recovering(10 * S), 31),
        // Something has to get through, to find out whether the service is well.
        (policy(0.0, 5.0), CircuitView::Open, 1),
        (policy(1.0, 5.0), CircuitView::Open, 100),
    ];
    for (policy, circuit, expected) in table {
        assert_eq!(percent(&policy, circuit), expected, "{policy:?} {circuit:?}");
    }

    let start = Instant::now();
    let limits = limits(&[limit(100, S, 10, RateKey::Global), limit(500, S, 2, RateKey::Global)], start);
    let admitted = |circuit, from: Instant| {
        let offered = (0..10_000).map(|at| from + at * MS);
        offered.filter(|now| limits.admit(|_| None, circuit, *now).is_ok()).count()
    };
    // In ten seconds, with the burst as it was and as it has become.
    let table = [(CircuitView::Open, 300..=303), (after(4), 499..=503), (CircuitView::Steady, 999..=1006)];
    for (at, (circuit, expected)) in table.into_iter().enumerate() {
        let admitted = admitted(circuit, start + at as u32 * 10 * S);
        assert!(expected.contains(&admitted), "{circuit:?}: {admitted}");
    }
    let report = limits.report(CircuitView::Open, start + 40 * S);
    // The burst shrinks too, but never below 1.
    assert_eq!(
        report.iter().map(|report| (report.percent, report.remaining)).collect::<Vec<_>>(),
        [(30, Some(3)), (30, Some(1))]
    );
}

#[test]
fn what_was_used_survives_a_new_configuration() {
    let now = Instant::now();
    let list = [limit(10, 60 * S, 10, RateKey::Global), limit(5, 60 * S, 5, user())];
    let old = limits(&list, now);
    assert_eq!(admitted(&old, Some("ann"), 9, now), 5);
    let remaining = |limits: &RateLimits| {
        limits.peek(|_| Some(b"ann"), CircuitView::Steady, now).iter().map(|peek| peek.remaining).collect::<Vec<_>>()
    };
    let next = |list: &[RateLimit], before: &RateLimits| RateLimits::new("other", list, Some(before), now + S);

    // In any order, with another limit between them.
    let swapped = next(&[list[1].clone(), limit(3, S, 3, RateKey::Path), list[0].clone()], &old);
    assert_eq!(remaining(&swapped), [0, 3, 5]);
    // Workers that have not yet changed over count in the same budgets.
    assert!(admits(&old, Some("bob"), now));
    assert_eq!(remaining(&swapped), [0, 3, 4]);
    assert_eq!(admitted(&swapped, Some("bob"), 9, now), 3);
    assert_eq!(remaining(&old), [1, 0]);
    assert_eq!(old.report(CircuitView::Steady, now)[1].refused, swapped.report(CircuitView::Steady, now)[0].refused);
    // Another key is another budget, and a limit that was not there begins afresh.
    let other = next(&[list[0].clone(), limit(5, 60 * S, 5, RateKey::Cookie("id".into())), list[0].clone()], &swapped);
    assert_eq!(remaining(&other), [1, 5, 10]);
    // What nobody uses any more goes.
    drop(old);
    drop(swapped);
    assert_eq!(other.ledger.lock().budgets.iter().filter(|budgets| budgets.users > 0).count(), 3);
    assert_eq!(remaining(&next(&[list[1].clone()], &other)), [5]);
}

#[test]
fn a_new_quota_counts_at_once() {
    let now = Instant::now();
    let hourly = limits(&[limit(1, 3600 * S, 1, RateKey::Global)], now);
    assert!(admits(&hourly, None, now));
    assert_eq!(hourly.admit(|_| None, CircuitView::Steady, now + S).unwrap_err().retry_after, 3599 * S);
    // From one an hour to a hundred a second: the budget is empty, but it does not wait for the hour to end.
    let now = now + S;
    let fast = RateLimits::new("shop", &[limit(100, S, 10, RateKey::Global)], Some(&hourly), now);
    assert_eq!(fast.admit(|_| None, CircuitView::Steady, now).unwrap_err().retry_after, 10 * MS);
    assert_eq!(admitted(&fast, None, 9, now + 50 * MS), 5);
    // And back: what is left is at most the new burst.
    let slow = RateLimits::new("shop", &[limit(1, 3600 * S, 2, RateKey::Global)], Some(&fast), now);
    assert_eq!(admitted(&slow, None, 9, now + 10 * S), 2);
}

#[test]
fn offered_more_the_rate_is_used_up() {
    for (requests, per) in
        [(1, S), (7, S), (100, S), (3333, S), (100_000, S), (1_000_000, S), (90, 60 * S), (1, 10 * S)]
    {
        let start = Instant::now();
        let limits = limits(&[limit(requests, per, 2, RateKey::Global)], start);
        // Ten thousand tokens, three and a bit offered for each.
        let step = per * 10 / requests / 33;
        let steps = 33 * 1000;
        let admitted = (0..steps).filter(|at| admits(&limits, None, start + step * *at)).count();
        let expected = (step * steps).as_secs_f64() / per.as_secs_f64() * f64::from(requests);
        let share = admitted as f64 / expected;
        assert!((0.98..=1.0002).contains(&share), "{requests} per {per:?}: {admitted} of {expected}");
    }
}

#[test]
fn threads_share_a_budget() {
    let start = Instant::now();
    let list = [limit(5000, S, 50, RateKey::Global), limit(4000, S, 40, user())];
    let limits = limits(&list, start);
    // A clock of their own, so that a busy machine does not let the budgets fill up.
    let clock = AtomicU32::new(0);
    let admitted: usize = std::thread::scope(|scope| {
        let worker = || {
            let mut admitted = 0;
            loop {
                let now = clock.fetch_add(1, Ordering::Relaxed);
                if now > 200_000 {
                    return admitted;
                }
                admitted += usize::from(admits(&limits, Some("ann"), start + now * Duration::from_micros(20)));
            }
        };
        let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    // Four seconds.
    assert!(admitted <= 16_000 + 40, "{admitted}");
    assert!(admitted >= 16_000 * 98 / 100, "{admitted}");
}

#[test]
fn clocks_that_lag_do_not_refill_a_budget() {
    let start = Instant::now();
    let limits = limits(&[limit(100_000, S, 10, RateKey::Global)], start);
    let mut now = start + S;
    let mut admitted = 0;
    for _ in 0..1000 {
        now += Duration::from_micros(10);
        admitted += (0..5).filter(|n| admits(&limits, None, now - *n * MS)).count();
    }
    assert!(admitted <= 1000 + 10, "{admitted}");
}

#[test]
fn a_flood_of_keys_is_bounded_and_forgotten() {
    let start = Instant::now();
    let limits = limits(&[limit(1, S, 2, user())], start);
    for n in 0..1_000_000_u32 {
        let key = n.to_le_bytes();
        assert!(limits.admit(|_| Some(&key), CircuitView::Steady, start).is_ok());
    }
    let keys = || limits.report(CircuitView::Steady, start)[0].keys;
    assert!((CAPACITY * 99 / 100..=CAPACITY).contains(&keys()), "{}", keys());
    // Ordinary requests tidy up on their way.
    let later = start + 10 * S;
    for _ in 0..64 * 256 {
        admits(&limits, Some("ann"), later);
    }
    assert_eq!(keys(), 1);
    limits.tidy(later + 10 * S);
    assert_eq!(keys(), 0);
}

proptest! {
    /// Whatever comes, and whatever the circuit does: never more than the rate and one burst.
    #[test]
    fn never_more_than_rate_and_burst(
        requests in 1..50_u32,
        per in 1..5000_u32,
        burst in 1..20_u32,
        factor in 0.0..1.0,
        pauses in prop::collection::vec((0..400_000_000_u64, 1..4_usize, 0..3_u8), 1..200),
    ) {
        let start = Instant::now();
        let per = per * MS;
        let written = RateLimit {
            on_breaker_open: OnBreakerOpen { factor, recover_percent_per_minute: 100.0 },
            ..limit(requests, per, burst, RateKey::Global)
        };
        let limits = limits(&[written], start);
        let mut now = 0;
        let mut admitted = Vec::new();
        for (pause, at_once, circuit) in pauses {
            // Small pauses are as interesting as long ones.
            now += pause >> (pause % 24);
            let circuit =
                [CircuitView::Steady, CircuitView::Open, CircuitView::Recovering(30 * S)][usize::from(circuit)];
            for _ in 0..at_once {
                if limits.admit(|_| None, circuit, start + Duration::from_nanos(now)).is_ok() {
                    admitted.push(now);
                }
            }
        }
        for (first, from) in admitted.iter().enumerate() {
            for (last, to) in admitted.iter().enumerate().skip(first) {
                let beyond_burst = (last - first + 1).saturating_sub(burst as usize) as u128;
                let allowed = u128::from(to - from) * u128::from(requests);
                prop_assert!(beyond_burst * per.as_nanos() <= allowed, "{} from {from} to {to}", last - first + 1);
            }
        }
    }

    /// All or none of those that apply, whichever limit refuses: what is left adds up. User 4 has no name.
    #[test]
    fn only_what_was_admitted_is_charged(users in prop::collection::vec(0..5_u8, 1..100), own in 1..9_u32) {
        let now = Instant::now();
        let limits = limits(&[limit(20, 3600 * S, 20, RateKey::Global), limit(own, 3600 * S, own, user())], now);
        let name = |user: usize| (user < 4).then(|| user.to_string());
        let mut charged = [0; 5];
        for user in users {
            if admits(&limits, name(user.into()).as_deref(), now) {
                charged[usize::from(user)] += 1;
            }
        }
        for (user, charged_to_user) in charged.iter().enumerate() {
            let name = name(user);
            let left = limits.peek(|_| name.as_deref().map(str::as_bytes), CircuitView::Steady, now);
            prop_assert_eq!(left[0].remaining, 20 - charged.iter().sum::<u32>());
            prop_assert_eq!(left[1].applies, name.is_some());
            prop_assert_eq!(left[1].remaining, if name.is_some() { own - charged_to_user } else { 0 });
        }
        let keyed = charged[..4].iter().filter(|charged| **charged > 0).count();
        prop_assert_eq!(limits.report(CircuitView::Steady, now)[1].keys, keyed);
    }

    /// Whichever limits apply, a client is told of exactly those, in their order and with separators between them.
    #[test]
    fn clients_are_told_of_what_applies(has in prop::collection::vec(any::<bool>(), 1..30)) {
        let now = Instant::now();
        let header = |n: usize| format!("x-{n}");
        let list: Vec<_> = (0..has.len()).map(|n| limit(2, S, 2, RateKey::Header(header(n).into()))).collect();
        let value = |key: &Key| {
            let Key::Header(name) = key else { return None };
            let at = has.iter().enumerate().position(|(n, _)| *name == *header(n))?;
            has[at].then_some(b"1".as_slice())
        };
        let standing = limits(&list, now).admit(value, CircuitView::Steady, now).unwrap();
        let applied = has.iter().enumerate().filter(|(_, has)| **has);
        let expected: Vec<_> = applied.map(|(n, _)| format!("\"shop.{}\";r=1;t=1", n + 1)).collect();
        prop_assert_eq!(standing.left.is_some(), !expected.is_empty());
        prop_assert_eq!(told(standing).1, expected.join(", "));
    }
}
