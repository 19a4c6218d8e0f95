use proptest::prelude::*;

use super::*;
use crate::telemetry::sampler::Sampler;

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn get<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// The cases of W3C's test suite (`test/test.py`) that concern `traceparent`, and level 2's.
#[test]
fn traceparent_is_read_as_the_specification_says() {
    let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
    let cases: &[(String, Option<(bool, bool)>)] = &[
        (format!("00-{ids}-01"), Some((true, false))),
        (format!("00-{ids}-00"), Some((false, false))),
        (format!("00-{ids}-03"), Some((true, true))),
        (format!("00-{ids}-02"), Some((false, true))),
        (format!("00-{ids}-ff"), Some((true, true))),
        (format!(" \t00-{ids}-01 \t"), Some((true, false))),
        // Later versions: the part that is known counts.
        (format!("01-{ids}-01"), Some((true, false))),
        (format!("cc-{ids}-01"), Some((true, false))),
        (format!("cc-{ids}-01-what-the-future-brings"), Some((true, false))),
        (format!("fe-{ids}-00-"), Some((false, false))),
        (format!("cc-{ids}-01.what"), None),
        (format!("cc-{ids}-0"), None),
        (format!("ff-{ids}-01"), None),
        // Version 00 has nothing behind the flags.
        (format!("00-{ids}-01-extra"), None),
        (format!("00-{ids}-01."), None),
        (format!("00-{ids}-011"), None),
        // Digits.
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01".into(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01".into(), None),
        (format!("00-{ids}-0A"), None),
        (format!("0A-{ids}-01"), None),
        (format!(".0-{ids}-01"), None),
        (format!("00-{ids}-.0"), None),
        ("00-.bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-.0f067aa0ba902b7-01".into(), None),
        // Zero ids.
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01".into(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".into(), None),
        // Lengths and separators.
        ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01".into(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e47366-00f067aa0ba902b7-01".into(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01".into(), None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01".into(), None),
        (format!("000-{ids}-01"), None),
        (format!("0-{ids}-01"), None),
        ("".into(), None),
        ("00".into(), None),
    ];
    for (text, expected) in cases {
        let read = parse_traceparent(text.as_bytes());
        assert_eq!(read.map(|c| (c.sampled.unwrap(), c.random)), *expected, "{text:?}");
        if let Some(context) = read {
            assert_eq!((context.trace_id, context.parent_span.unwrap().get()), (TRACE, SPAN), "{text:?}");
        }
    }
}

#[test]
fn two_traceparents_are_none() {
    assert_eq!(extract(&headers(&[("traceparent", VALID), ("traceparent", VALID)])), Arrived::Nothing);
    assert!(matches!(extract(&headers(&[("traceparent", VALID)])), Arrived::Context(_)));
}

#[test]
fn b3_is_read_when_there_is_no_traceparent() {
    let (t, s) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let parent = "05e3ac9a4f6e3b90";
    let single = |text: &str| extract(&headers(&[("b3", text)]));
    let context = |sampled, trace_id, form| {
        let parent_span = NonZeroU64::new(SPAN);
        Arrived::Context(TraceContext { trace_id, parent_span, sampled, random: false, form })
    };
    let low = TRACE & u128::from(u64::MAX);
    let cases = [
        (format!("{t}-{s}-1-{parent}"), context(Some(true), TRACE, Form::B3Single)),
        (format!("{t}-{s}-d"), context(Some(true), TRACE, Form::B3Single)),
        (format!("{t}-{s}-0"), context(Some(false), TRACE, Form::B3Single)),
        (format!("{t}-{s}"), context(None, TRACE, Form::B3Single)),
        (format!("{}-{s}-1", &t[16..]), context(Some(true), low, Form::B3Single)),
        ("0".into(), Arrived::Decision(false, Form::B3Single)),
        ("1".into(), Arrived::Decision(true, Form::B3Single)),
        (format!("{t}-{s}-x"), Arrived::Nothing),
        (format!("{t}-{s}-1-{parent}-more"), Arrived::Nothing),
        (format!("{t}-{s}-1-xyz"), Arrived::Nothing),
        (t.to_owned(), Arrived::Nothing),
        (format!("{}-{s}-1", "0".repeat(32)), Arrived::Nothing),
    ];
    for (text, expected) in cases {
        assert_eq!(single(&text), expected, "{text}");
    }
    let multi =
        |rest: &[(&'static str, &str)]| extract(&headers(&[&[("x-b3-traceid", t), ("x-b3-spanid", s)], rest].concat()));
    assert_eq!(multi(&[("x-b3-sampled", "1")]), context(Some(true), TRACE, Form::B3Multi));
    assert_eq!(multi(&[("x-b3-sampled", "0")]), context(Some(false), TRACE, Form::B3Multi));
    assert_eq!(multi(&[("x-b3-flags", "1")]), context(Some(true), TRACE, Form::B3Multi));
    assert_eq!(multi(&[]), context(None, TRACE, Form::B3Multi));
    assert_eq!(extract(&headers(&[("x-b3-sampled", "0")])), Arrived::Decision(false, Form::B3Multi));
    // traceparent wins, also when it is broken.
    let both = headers(&[("traceparent", VALID), ("b3", "0")]);
    assert!(matches!(extract(&both), Arrived::Context(TraceContext { form: Form::W3c, .. })));
    assert_eq!(extract(&headers(&[("traceparent", "nonsense"), ("b3", "1")])), Arrived::Nothing);
}

fn start(headers: &HeaderMap, percent: f64) -> Trace {
    Trace::start(headers, &Sampler::new(percent), &mut fastrand::Rng::with_seed(1))
}

#[test]
fn the_callers_decision_beats_the_share() {
    let unsampled = VALID.replace("-01", "-00");
    for percent in [0.0, 100.0] {
        assert!(start(&headers(&[("traceparent", VALID)]), percent).sampled);
        assert!(!start(&headers(&[("traceparent", &unsampled)]), percent).sampled);
        assert!(!start(&headers(&[("b3", "0")]), percent).sampled);
        assert!(start(&headers(&[("b3", "1")]), percent).sampled);
    }
    // Left open by the caller: the share decides, by the caller's trace id.
    let open = headers(&[("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"), ("x-b3-spanid", "00f067aa0ba902b7")]);
    assert!(start(&open, 100.0).sampled && !start(&open, 0.0).sampled);
}

#[test]
fn a_sampled_request_goes_on_with_the_attempts_span() {
    let mut request =
        headers(&[("traceparent", &VALID.replace("-01", "-03")), ("tracestate", "a=1,b=2"), ("baggage", "k=v")]);
    let trace = start(&request, 0.0);
    assert_eq!((trace.trace_id, trace.parent_span.unwrap().get()), (TRACE, SPAN));
    assert!(trace.span_id != 0 && trace.span_id != SPAN);
    trace.inject(&mut request, 0xbeef);
    assert_eq!(get(&request, "traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-000000000000beef-03");
    assert_eq!((get(&request, "tracestate"), get(&request, "baggage")), ("a=1,b=2", "k=v"));
    assert_eq!(request.len(), 3, "nothing else was added: {request:?}");
    // A later version goes on as version 00.
    let mut future = headers(&[("traceparent", &format!("cc{}-more", &VALID[2..]))]);
    start(&future, 0.0).inject(&mut future, 1);
    assert_eq!(get(&future, "traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000001-01");
}

#[test]
fn a_new_trace_does_not_inherit_a_tracestate() {
    let mut request = headers(&[("traceparent", "broken"), ("tracestate", "a=1")]);
    let trace = start(&request, 100.0);
    assert!(trace.sampled && trace.trace_id != 0 && trace.parent_span.is_none());
    trace.inject(&mut request, 7);
    assert!(!request.contains_key("tracestate"));
    assert_eq!(request.get_all("traceparent").iter().count(), 1);
    assert!(get(&request, "traceparent").ends_with("-0000000000000007-03"), "random ids are marked so");
}

#[test]
fn what_is_not_sampled_keeps_its_headers() {
    let cases: [&[(&str, &str)]; 5] = [
        &[],
        &[("traceparent", "broken"), ("tracestate", "=,=")],
        &[("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"), ("tracestate", "a=1")],
        &[("b3", "0"), ("baggage", "k=v")],
        &[("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"), ("x-b3-spanid", "00f067aa0ba902b7")],
    ];
    for pairs in cases {
        let before = headers(pairs);
        let mut after = before.clone();
        start(&before, 0.0).inject(&mut after, 1);
        assert_eq!(before, after);
        Trace::OFF.inject(&mut after, 1);
        Trace::pass_through(&before).inject(&mut after, 1);
        assert_eq!(before, after);
    }
    let shown = Trace::pass_through(&headers(&[("traceparent", VALID)]));
    assert_eq!((shown.trace_id, shown.sampled), (TRACE, false));
}

#[test]
fn b3_is_answered_in_its_own_form() {
    let (t, s) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut single = headers(&[("b3", &format!("{t}-{s}-1-05e3ac9a4f6e3b90"))]);
    start(&single, 0.0).inject(&mut single, 0xbeef);
    assert_eq!(get(&single, "b3"), format!("{t}-000000000000beef-1"));
    assert_eq!(get(&single, "traceparent"), format!("00-{t}-000000000000beef-01"));

    let all = [("x-b3-traceid", t), ("x-b3-spanid", s), ("x-b3-parentspanid", s), ("x-b3-sampled", "1")];
    let mut multi = headers(&all);
    start(&multi, 0.0).inject(&mut multi, 0xbeef);
    assert_eq!((get(&multi, "x-b3-traceid"), get(&multi, "x-b3-spanid")), (t, "000000000000beef"));
    assert_eq!(get(&multi, "x-b3-sampled"), "1");
    assert!(!multi.contains_key("x-b3-parentspanid") && !multi.contains_key("b3"));

    let mut debug = headers(&[("x-b3-traceid", t), ("x-b3-spanid", s), ("x-b3-flags", "1")]);
    start(&debug, 0.0).inject(&mut debug, 1);
    assert_eq!(get(&debug, "x-b3-flags"), "1");
    assert!(!debug.contains_key("x-b3-sampled"), "debug implies it");
}

#[test]
fn a_tracestate_that_breaks_the_rules_is_dropped() {
    let members = |n: usize| (0..n).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    let cases = [
        (members(32), true),
        (members(33), false),
        ("foo=1, ,bar=2,".to_owned(), true),
        ("vendor@system=x/y,1a*b-c_d/e=!".to_owned(), true),
        ("Foo=1".to_owned(), false),
        ("foo".to_owned(), false),
        ("foo=".to_owned(), false),
        ("foo=a=b".to_owned(), false),
        ("=1".to_owned(), false),
        ("foo=\u{e9}".to_owned(), false),
        (format!("{}=1", "z".repeat(256)), true),
        (format!("{}=1", "z".repeat(257)), false),
        (format!("z={}", "v".repeat(257)), false),
        ((0..20).map(|i| format!("k{i}={}", "v".repeat(250))).collect::<Vec<_>>().join(","), false),
    ];
    for (state, kept) in cases {
        let mut request = headers(&[("traceparent", VALID), ("tracestate", &state)]);
        start(&request, 0.0).inject(&mut request, 1);
        assert_eq!(request.contains_key("tracestate"), kept, "{state}");
    }
    // Several fields are one list.
    let mut split = headers(&[("traceparent", VALID), ("tracestate", &members(20)), ("tracestate", &members(13))]);
    start(&split, 0.0).inject(&mut split, 1);
    assert!(!split.contains_key("tracestate"));
}

fn value() -> impl Strategy<Value = HeaderValue> {
    let near_valid = "[0-9a-fA-F.x-]{0,3}-[0-9a-f]{30,33}-[0-9a-f]{15,17}-[0-9a-f]{0,3}(-.{0,4})?";
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..80),
        near_valid.prop_map(String::into_bytes),
        "[0-9a-f]{16,32}-[0-9a-f]{16}(-[01d]?){0,2}".prop_map(String::into_bytes),
    ]
    .prop_filter_map("a header value", |bytes| HeaderValue::from_bytes(&bytes).ok())
}

proptest! {
    #[test]
    fn any_headers_are_survived_and_what_goes_on_is_valid(
        values in proptest::collection::vec((0usize..8, value()), 0..6), percent in 0.0..=100.0, seed: u64,
    ) {
        let names = [TRACEPARENT, TRACESTATE, B3, B3_TRACE, B3_SPAN, B3_PARENT, B3_SAMPLED, B3_FLAGS];
        let mut request = HeaderMap::new();
        for (name, value) in values {
            request.append(names[name].clone(), value);
        }
        let before = request.clone();
        let trace = Trace::start(&request, &Sampler::new(percent), &mut fastrand::Rng::with_seed(seed));
        trace.inject(&mut request, 9);
        if trace.sampled {
            let sent = parse_traceparent(request[TRACEPARENT].as_bytes()).unwrap();
            prop_assert_eq!((sent.trace_id, sent.parent_span.unwrap().get()), (trace.trace_id, 9));
            prop_assert_eq!(sent.sampled, Some(true));
        } else {
            prop_assert_eq!(before, request);
        }
    }

    #[test]
    fn what_inject_writes_extract_reads(trace_id in 1u128.., span_id in 1u64.., flags in 0u8..4) {
        let mut request = HeaderMap::new();
        inject(&mut request, trace_id, span_id, flags);
        let Arrived::Context(read) = extract(&request) else { panic!("{request:?}") };
        prop_assert_eq!((read.trace_id, read.parent_span.unwrap().get()), (trace_id, span_id));
        prop_assert_eq!((read.sampled, read.random), (Some(flags & 1 != 0), flags & 2 != 0));
    }
}
