use fastrand::Rng;
use proptest::prelude::*;
use weft_model::config::Policy;

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn policy(retry_on: Vec<RetryOn>) -> Retry {
    Retry {
        attempts: 2,
        retry_on,
        methods: Vec::new(),
        unsafe_methods: false,
        per_try_timeout: None,
        backoff: Backoff { base: ms(25), max: ms(250), jitter: Jitter::None },
        max_body_bytes: 1024,
        avoid_previous_hosts: true,
    }
}

fn plan(retry_on: Vec<RetryOn>) -> RetryPlan {
    RetryPlan::compile(Some(&policy(retry_on)), None).unwrap()
}

fn rule(attempts: Option<u32>, backoff: Option<u64>, codes: &[u16]) -> RuleRetry {
    RuleRetry { attempts, backoff: backoff.map(ms), codes: codes.to_vec() }
}

fn status(status: u16) -> Failed {
    Failed { status: Some(status), sent: true, repeatable: true, ..Failed::default() }
}

fn grpc(status: u8) -> Failed {
    Failed { grpc: Some(status), ..self::status(200) }
}

fn reason(reason: Reason) -> Failed {
    Failed { reason: Some(reason), status: None, ..status(0) }
}

fn decide(plan: &RetryPlan, failed: &Failed) -> Decision {
    let now = Instant::now();
    plan.decide(failed, &mut RetryState::new(true), now, None, true, &mut Rng::with_seed(1))
}

fn retried(plan: &RetryPlan, failed: &Failed) -> bool {
    matches!(decide(plan, failed), Decision::Retry { .. })
}

#[test]
fn each_condition_means_its_failures() {
    let refused = Failed { unprocessed: true, ..reason(Reason::UpstreamReset) };
    let half_sent = Failed { sent: false, ..reason(Reason::UpstreamReset) };
    let per_try = Failed { per_try_timeout: true, ..reason(Reason::UpstreamTimeout) };
    let connect = Failed { unprocessed: true, sent: false, ..reason(Reason::ConnectFailed) };
    let failures = [
        ("connect", connect),
        ("refused", refused),
        ("half sent", half_sent),
        ("reset", reason(Reason::UpstreamReset)),
        ("garbage", reason(Reason::BadUpstreamResponse)),
        ("per try", per_try),
        ("timeout", reason(Reason::UpstreamTimeout)),
        ("overloaded", reason(Reason::Overloaded)),
        ("client", reason(Reason::RequestTimeout)),
        ("500", status(500)),
        ("503", status(503)),
        ("504", status(504)),
        ("429", status(429)),
        ("unavailable", grpc(14)),
        ("internal", grpc(13)),
        ("200", status(200)),
    ];
    let five: Vec<RetryOn> = (500..=599).map(RetryOn::Status).collect();
    let table: [(&str, Vec<RetryOn>, &[&str]); 9] = [
        ("connect-failure", vec![RetryOn::ConnectFailure], &["connect"]),
        ("refused-stream", vec![RetryOn::RefusedStream], &["refused"]),
        ("reset-before-request", vec![RetryOn::ResetBeforeRequest], &["refused", "half sent"]),
        ("reset", vec![RetryOn::Reset], &["refused", "half sent", "reset", "garbage"]),
        ("per-try-timeout", vec![RetryOn::PerTryTimeout], &["per try"]),
        ("504", vec![RetryOn::Status(504)], &["per try", "504"]),
        ("429", vec![RetryOn::Status(429)], &["429"]),
        ("5xx", five, &["connect", "refused", "half sent", "reset", "garbage", "per try", "500", "503", "504"]),
        ("grpc", vec![RetryOn::Grpc(14)], &["unavailable"]),
    ];
    for (name, retry_on, expected) in table {
        let plan = plan(retry_on);
        let found: Vec<_> =
            failures.iter().filter(|(_, failed)| retried(&plan, failed)).map(|(name, _)| *name).collect();
        assert_eq!(found, expected, "{name}");
        for (name, failed) in failures.iter().filter(|(name, _)| !expected.contains(name)) {
            assert_eq!(decide(&plan, failed), Decision::Stop(Why::NotRetryable), "{name}");
        }
    }
}

#[test]
fn methods_need_a_reason_to_be_safe() {
    let headers = HeaderMap::new();
    let mut key = HeaderMap::new();
    key.insert("idempotency-key", HeaderValue::from_static("1"));
    let plain = plan(vec![RetryOn::Status(503)]);
    let on_grpc = plan(vec![RetryOn::Grpc(14)]);
    let patch = Retry { methods: vec!["PATCH".into()], ..policy(vec![RetryOn::Status(503)]) };
    let patch = RetryPlan::compile(Some(&patch), None).unwrap();
    let any = Retry { unsafe_methods: true, ..policy(vec![RetryOn::Status(503)]) };
    let any = RetryPlan::compile(Some(&any), None).unwrap();
    for (plan, method, headers, grpc, allowed) in [
        (&plain, Method::GET, &headers, false, true),
        (&plain, Method::PUT, &headers, false, true),
        (&plain, Method::DELETE, &headers, false, true),
        (&plain, Method::POST, &headers, false, false),
        (&plain, Method::PATCH, &headers, false, false),
        (&plain, Method::POST, &key, false, true),
        (&plain, Method::POST, &headers, true, false),
        (&on_grpc, Method::POST, &headers, true, true),
        (&on_grpc, Method::POST, &headers, false, false),
        (&patch, Method::PATCH, &headers, false, true),
        (&patch, Method::POST, &headers, false, false),
        (&any, Method::POST, &headers, false, true),
        (&any, Method::CONNECT, &headers, false, false),
    ] {
        assert_eq!(plan.allows_method(&method, headers, grpc), allowed, "{method} {grpc} {plan:?}");
    }
}

#[test]
fn an_unsafe_method_is_repeated_only_when_nobody_saw_it() {
    let plan = plan(vec![RetryOn::ConnectFailure, RetryOn::RefusedStream, RetryOn::Reset, RetryOn::Status(503)]);
    let decide = |failed: &Failed| {
        plan.decide(failed, &mut RetryState::new(false), Instant::now(), None, true, &mut Rng::with_seed(1))
    };
    for seen in [status(503), reason(Reason::UpstreamReset)] {
        assert_eq!(decide(&seen), Decision::Stop(Why::Method));
        let unseen = Failed { unprocessed: true, ..seen };
        assert_eq!(decide(&unseen), Decision::Retry { after: ms(25) });
    }
}

#[test]
fn attempts_end() {
    let plan = plan(vec![RetryOn::Status(503)]);
    let (mut state, mut rng, now) = (RetryState::new(true), Rng::with_seed(1), Instant::now());
    let mut next = || plan.decide(&status(503), &mut state, now, None, true, &mut rng);
    assert_eq!(next(), Decision::Retry { after: ms(25) });
    assert_eq!(next(), Decision::Retry { after: ms(50) });
    assert_eq!(next(), Decision::Stop(Why::AttemptsUsed));
    assert_eq!(state.retries, 2);
    let lost = Failed { repeatable: false, ..status(503) };
    assert_eq!(decide(&plan, &lost), Decision::Stop(Why::BodyTooLarge));
}

#[test]
fn retry_after_is_heeded_up_to_the_longest_wait() {
    let plan = plan(vec![RetryOn::Status(503)]);
    for (wanted, others, expected) in [
        (0, true, Decision::Retry { after: ms(25) }),
        (10, false, Decision::Retry { after: ms(25) }),
        (250, false, Decision::Retry { after: ms(250) }),
        (251, true, Decision::Retry { after: ms(25) }),
        (251, false, Decision::Stop(Why::RetryAfter)),
    ] {
        let failed = Failed { retry_after: Some(ms(wanted)), ..status(503) };
        let mut state = RetryState::new(true);
        let decision = plan.decide(&failed, &mut state, Instant::now(), None, others, &mut Rng::with_seed(1));
        assert_eq!(decision, expected, "{wanted} ms, others: {others}");
    }
}

#[test]
fn nothing_is_repeated_after_the_deadline() {
    let plan = plan(vec![RetryOn::Status(503)]);
    let now = Instant::now();
    for (left, expected) in [
        (26, Decision::Retry { after: ms(25) }),
        (25, Decision::Stop(Why::Deadline)),
        (0, Decision::Stop(Why::Deadline)),
    ] {
        let mut state = RetryState::new(true);
        let decision = plan.decide(&status(503), &mut state, now, Some(now + ms(left)), true, &mut Rng::with_seed(1));
        assert_eq!(decision, expected, "{left} ms left");
        assert_eq!(state.retries, u32::from(matches!(expected, Decision::Retry { .. })));
    }
}

#[test]
fn a_rule_wins_over_its_policy() {
    assert_eq!(RetryPlan::compile(None, None), None);
    let base = policy(vec![RetryOn::ConnectFailure, RetryOn::Status(500), RetryOn::Grpc(14)]);
    let both = RetryPlan::compile(Some(&base), Some(&rule(Some(5), Some(100), &[503]))).unwrap();
    assert_eq!(both.attempts, 5);
    assert!(both.retries_status(503) && !both.retries_status(500) && both.retries_grpc(14) && both.on.connect_failure);
    assert_eq!((both.backoff.base, both.backoff.max, both.max_body_bytes), (ms(100), ms(250), 1024));
    let inherits = RetryPlan::compile(Some(&base), Some(&rule(None, None, &[]))).unwrap();
    assert_eq!(inherits, RetryPlan::compile(Some(&base), None).unwrap());
    for none in [rule(Some(0), None, &[503]), rule(Some(0), Some(1), &[])] {
        assert_eq!(RetryPlan::compile(Some(&base), Some(&none)), None);
    }
    assert_eq!(RetryPlan::compile(Some(&Retry { attempts: 0, ..base.clone() }), None), None);
}

#[test]
fn a_rule_alone_also_retries_what_nobody_processed() {
    let alone = RetryPlan::compile(None, Some(&rule(None, None, &[500, 503]))).unwrap();
    assert_eq!(alone.attempts, ATTEMPTS);
    let connect = Failed { unprocessed: true, ..reason(Reason::ConnectFailed) };
    assert!(retried(&alone, &connect) && retried(&alone, &status(500)) && retried(&alone, &status(503)));
    assert!(!retried(&alone, &status(502)) && !retried(&alone, &reason(Reason::UpstreamReset)));
    let defaults = Policy::new(&weft_model::written::TrafficPolicySpec {
        retry: Some(weft_model::written::Retry::default()),
        ..Default::default()
    });
    let defaults = defaults.retry.unwrap();
    let same = rule_alone(&rule(None, None, &[]));
    assert_eq!(
        (same.attempts, same.backoff, same.max_body_bytes),
        (defaults.attempts, defaults.backoff, defaults.max_body_bytes)
    );
}

#[test]
fn a_rules_backoff_is_the_least_wait() {
    for (jitter, longest) in
        [(Jitter::Full, 1_000), (Jitter::Equal, 1_000), (Jitter::Decorrelated, 1_000), (Jitter::None, 400)]
    {
        let mut base = policy(vec![]);
        base.backoff.jitter = jitter;
        let plan = RetryPlan::compile(Some(&base), Some(&rule(Some(3), Some(500), &[503]))).unwrap();
        assert_eq!(plan.backoff.max, ms(5_000), "{longest}");
        let mut rng = Rng::with_seed(3);
        for _ in 0..100 {
            let mut state = RetryState::new(true);
            for _ in 0..3 {
                let decision = plan.decide(&status(503), &mut state, Instant::now(), None, true, &mut rng);
                let Decision::Retry { after } = decision else { panic!("{decision:?}") };
                assert!(after >= ms(500) && after <= ms(5_000), "{jitter:?}: {after:?}");
            }
        }
    }
}

#[test]
fn a_plan_can_be_read() {
    let base = policy(vec![
        RetryOn::ConnectFailure,
        RetryOn::Status(502),
        RetryOn::Status(503),
        RetryOn::Status(429),
        RetryOn::Grpc(14),
    ]);
    let plan = RetryPlan::compile(Some(&Retry { methods: vec!["PATCH".into()], ..base }), None).unwrap();
    let expected = json!({
        "attempts": 2,
        "retry_on": ["connect-failure", "429", "502-503", "grpc:UNAVAILABLE"],
        "methods": ["idempotent", "Idempotency-Key", "PATCH"],
        "backoff": { "base_ms": 25.0, "max_ms": 250.0, "least_ms": 0.0, "jitter": "None" },
        "max_body_bytes": 1024,
        "avoid_previous_hosts": true,
    });
    assert_eq!(plan.describe(), expected);
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    for (text, expected) in [
        ("0", Some(0)),
        ("120", Some(120)),
        (" 7 ", Some(7)),
        ("99999999999999999999", Some(u64::from(u32::MAX))),
        ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
        ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
        ("Sun Nov  6 08:49:47 1994", Some(10)),
        ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("1, 2", None),
    ] {
        let value = HeaderValue::from_str(text).unwrap();
        assert_eq!(retry_after(&value, now), expected.map(Duration::from_secs), "{text:?}");
    }
}

fn conditions() -> impl Strategy<Value = Vec<RetryOn>> {
    let one = prop_oneof![
        Just(RetryOn::ConnectFailure),
        Just(RetryOn::RefusedStream),
        Just(RetryOn::ResetBeforeRequest),
        Just(RetryOn::Reset),
        Just(RetryOn::PerTryTimeout),
        (400u16..600).prop_map(RetryOn::Status),
        (0u16..17).prop_map(RetryOn::Grpc),
    ];
    proptest::collection::vec(one, 0..8)
}

fn failures() -> impl Strategy<Value = Failed> {
    let reason = proptest::option::of((0..Reason::ALL.len()).prop_map(|index| Reason::ALL[index]));
    let flags = any::<[bool; 4]>();
    let retry_after = proptest::option::of((0u64..2_000).prop_map(ms));
    (proptest::option::of(400u16..600), proptest::option::of(0u8..17), reason, flags, retry_after).prop_map(
        |(status, grpc, reason, [unprocessed, sent, repeatable, per_try_timeout], retry_after)| Failed {
            status,
            grpc,
            reason,
            unprocessed,
            sent,
            repeatable,
            retry_after,
            per_try_timeout,
        },
    )
}

proptest! {
    #[test]
    fn no_retry_breaks_its_promises(
        retry_on in conditions(), attempts in 1u32..6, failures in proptest::collection::vec(failures(), 1..12),
        method: bool, left in proptest::option::of(0u64..2_000), others: bool, least in 0u64..500, seed: u64
    ) {
        let base = Retry { attempts, backoff: Backoff { base: ms(25), max: ms(250), jitter: Jitter::Full }, ..policy(retry_on.clone()) };
        let plan = RetryPlan::compile(Some(&base), Some(&rule(None, Some(least), &[]))).unwrap();
        let (mut state, mut rng, now) = (RetryState::new(method), Rng::with_seed(seed), Instant::now());
        let deadline = left.map(|left| now + ms(left));
        let mut count = 0;
        for failed in failures {
            let Decision::Retry { after } = plan.decide(&failed, &mut state, now, deadline, others, &mut rng) else { continue };
            count += 1;
            prop_assert!(failed.repeatable && (method || failed.unprocessed));
            prop_assert!(after >= ms(least) && after <= plan.backoff.max);
            prop_assert!(deadline.is_none_or(|deadline| now + after < deadline));
            prop_assert!(failed.retry_after.is_none_or(|wanted| after >= wanted || others));
            let listed = failed.status.is_some_and(|status| retry_on.contains(&RetryOn::Status(status)))
                || failed.grpc.is_some_and(|status| retry_on.contains(&RetryOn::Grpc(u16::from(status))));
            prop_assert!(listed || failed.reason.is_some());
        }
        prop_assert!(count <= attempts);
        prop_assert_eq!(state.retries, count);
    }
}
