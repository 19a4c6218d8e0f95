use std::cell::RefCell;

use super::*;

fn shown(output: Output, wide: bool) -> Shown {
    Shown {
        only: Only { verdict: Vec::new(), workload: None, service: None },
        output,
        look: Look { wide, ..Look::default() },
        zone: TimeZone::fixed(jiff::tz::offset(2)),
    }
}

fn flow(number: u64, verdict: &str, reason: &str) -> Value {
    json!({
        "number": number, "at_ms": 1_700_000_000_007_u64, "verdict": verdict, "reason": reason, "workload": "web",
        "pid": 42, "command": "curl", "destination": "10.96.0.20:6379", "service": "redis:6379",
        "endpoint": "127.0.0.1:9006",
    })
}

#[test]
fn columns() {
    let mut other = flow(2, "deny", "access_denied");
    other["workload"] = Value::Null;
    other["endpoint"] = Value::Null;
    other["command"] = "e\x1b[2J\u{202e}'x\n".into();
    let flows = [flow(1, "direct", "service"), other];
    let text = shown(Output::Table, false).more(true, &flows, 0).unwrap();
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "TIME          WORKLOAD                    DESTINATION            VERDICT  ENDPOINT               REASON",
            "00:13:20.007  web                         10.96.0.20:6379        direct   127.0.0.1:9006         \
             the service needs no proxy",
            "00:13:20.007  e\\u{1b}[2J\\u{202e}'x\\n[42]  10.96.0.20:6379        deny     -                      \
             an AccessPolicy refuses it",
        ]
    );
    let wide = shown(Output::Wide, true).more(true, &flows[..1], 3).unwrap();
    let lines: Vec<Vec<&str>> = wide.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    assert_eq!(lines[0], ["... 3 more were lost: too many at once"]);
    let full: Vec<Vec<&str>> =
        lines[1..].iter().map(|line| line.iter().copied().filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(full[0], ["TIME", "WORKLOAD", "PROCESS", "DESTINATION", "SERVICE", "VERDICT", "ENDPOINT", "REASON"]);
    assert_eq!(full[1][..5], ["2023-11-15 00:13:20.007", "web", "curl[42]", "10.96.0.20:6379", "redis:6379"]);
}

#[test]
fn json_is_one_object_a_line() {
    let flows = [flow(1, "direct", "service"), flow(2, "deny", "no_port")];
    let text = shown(Output::Json, false).more(false, &flows, 5).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines, [json!({"lost": 5}), flows[0].clone(), flows[1].clone()]);
    assert_eq!(shown(Output::Json, false).more(false, &[], 0).unwrap(), "");
    assert_eq!(shown(Output::Table, false).more(false, &[], 0).unwrap(), "");
}

#[test]
fn only_what_was_asked_for() {
    let flow = flow(1, "deny", "no_port");
    let only = |verdict: &[Verdict], workload: Option<&str>, service: Option<&str>| {
        let only =
            Only { verdict: verdict.into(), workload: workload.map(Into::into), service: service.map(Into::into) };
        only.admits(&flow)
    };
    assert!(only(&[], None, None));
    assert!(only(&[Verdict::Deny, Verdict::Pass], Some("web"), Some("redis")));
    assert!(only(&[], None, Some("redis:6379")));
    assert!(!only(&[Verdict::Direct], None, None));
    assert!(!only(&[], Some("batch"), None));
    assert!(!only(&[], None, Some("red")));
    for (name, wanted, expected) in [
        ("shop/cart:80", "cart", true),
        ("shop/cart:80", "shop/cart", true),
        ("shop/cart:80", "shop/cart:80", true),
        ("shop/cart:80", "cart:80", true),
        ("shop/cart:80", "cart:81", false),
        ("shop/cart:80", "shop", false),
        ("cart", "cart", true),
    ] {
        assert_eq!(is_called(name, wanted), expected, "{name} {wanted}");
    }
}

/// Answers in turn, and what was asked for.
fn follow(answers: Vec<Value>) -> (Vec<String>, Vec<u64>) {
    let mut follow = Follow::default();
    let shown = shown(Output::Json, false);
    let asked = RefCell::new(Vec::new());
    let mut texts = Vec::new();
    while asked.borrow().len() < answers.len() {
        let ask = |after| {
            asked.borrow_mut().push(after);
            Ok(answers[asked.borrow().len() - 1].clone())
        };
        texts.push(follow.next(2, &shown, ask).unwrap());
    }
    (texts, asked.into_inner())
}

fn numbers(text: &str) -> Vec<String> {
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
    let name = |value: Value| match &value["lost"] {
        Value::Null => value["number"].to_string(),
        lost => format!("lost {lost}"),
    };
    text.lines().map(line).map(name).collect()
}

#[test]
fn following_shows_what_is_new_and_what_was_lost() {
    let of = |numbers: &[u64]| numbers.iter().map(|number| flow(*number, "deny", "no_port")).collect::<Vec<_>>();
    let (texts, asked) = follow(vec![
        json!({"next": 3, "lost": 9, "flows": of(&[1, 2, 3])}),
        json!({"next": 3, "lost": 9, "flows": []}),
        json!({"next": 5, "lost": 11, "flows": of(&[4, 5])}),
        // The node has kept only the last.
        json!({"next": 9, "lost": 11, "flows": of(&[9])}),
        // It was started again.
        json!({"next": 1, "lost": 11, "flows": []}),
        json!({"next": 1, "lost": 11, "flows": of(&[1])}),
    ]);
    assert_eq!(asked, [0, 3, 3, 5, 9, 0]);
    let shown: Vec<Vec<String>> = texts.iter().map(|text| numbers(text)).collect();
    assert_eq!(shown, [vec!["2", "3"], vec![], vec!["lost 2", "4", "5"], vec!["lost 3", "9"], vec!["1"]]);
}

#[test]
fn reasons_are_words() {
    for reason in [
        "not_a_service",
        "own_connection",
        "fail_open",
        "access_denied",
        "proxy_down",
        "other_namespace",
        "no_port",
        "no_endpoint",
        "refused",
        "timed_out",
    ] {
        assert!(!super::reason(&json!({"reason": reason})).contains('_'), "{reason}");
    }
    assert_eq!(super::reason(&json!({"reason": "service", "verdict": "proxy"})), "the service needs the proxy");
    assert_eq!(super::reason(&json!({"reason": "new_one"})), "new_one");
}
