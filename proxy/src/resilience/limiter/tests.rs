#![allow(clippy::unwrap_used, clippy::panic)]
use proptest::prelude::*;
use weft_model::config::OnBreakerOpen;

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

fn told(standing: Standing) -> (String, String) {
    let mut headers = HeaderMap::new();
    standing.apply(&mut headers);
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
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
fn keys_have_budgets_of_their_own_and_those_without_share_one() {
    let now = Instant::now();
    let limits = limits(&[limit(2, S, 2, user())], now);
    assert_eq!(admitted(&limits, Some("ann"), 9, now), 2);
    assert_eq!(admitted(&limits, Some("bob"), 9, now), 2);
    assert_eq!(admitted(&limits, Some(""), 9, now), 2);
    assert_eq!(admitted(&limits, None, 9, now), 2);
    let report = &limits.report(CircuitView::Steady, now)[0];
    assert_eq!((report.keys, report.remaining, report.refused), (4, None, 28));
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
    assert_eq!(exceeded.summary, "shop.2 (2 per 60s, burst 2, key global)");
    assert_eq!(told(exceeded.standing), (policy.into(), r#""shop.1";r=100;t=0, "shop.2";r=0;t=29"#.into()));
}
