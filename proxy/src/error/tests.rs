use std::collections::BTreeSet;

use super::*;

/// As users were promised; fault_injected has the status that is configured.
const CONTRACT: [(&str, u16); 20] = [
    ("no_route", 404),
    ("method_not_allowed", 405),
    ("rate_limited", 429),
    ("access_denied", 403),
    ("no_endpoint", 503),
    ("circuit_open", 503),
    ("overloaded", 503),
    ("connect_failed", 503),
    ("upstream_reset", 502),
    ("bad_upstream_response", 502),
    ("upstream_timeout", 504),
    ("request_timeout", 408),
    ("request_too_large", 413),
    ("headers_too_large", 431),
    ("bad_request", 400),
    ("draining", 503),
    ("fault_injected", 503),
    ("loop_detected", 508),
    ("deadline_exceeded", 504),
    ("retry_budget_exhausted", 503),
];

#[test]
fn every_promised_reason_has_its_status() {
    for (name, status) in CONTRACT {
        let found = Reason::ALL.iter().find(|reason| reason.row().name == name);
        assert_eq!(found.map(|reason| reason.row().status.as_u16()), Some(status), "{name}");
    }
}

#[test]
fn the_table_is_consistent() {
    let names: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.row().name).collect();
    assert_eq!(names.len(), Reason::ALL.len(), "no name twice");
    for (position, reason) in Reason::ALL.into_iter().enumerate() {
        let Row { name, status, grpc, error_type, advice, .. } = reason.row();
        assert_eq!(reason as usize, position, "{name}: ALL is in the order of the declaration");
        assert_eq!(reason.to_string(), name);
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert!(status.is_client_error() || status.is_server_error(), "{name}");
        assert!((1..=16).contains(&grpc), "{name}");
        assert!(!error_type.is_empty() && !advice.is_empty() && advice.is_ascii(), "{name}");
    }
}

#[test]
fn nothing_that_an_upstream_may_have_seen_is_retryable() {
    let retryable: Vec<_> = Reason::ALL.iter().filter(|reason| reason.row().retryable).map(|r| r.row().name).collect();
    assert_eq!(retryable, ["no_endpoint", "overloaded", "connect_failed", "draining"]);
}

#[test]
fn a_refusal_names_reason_and_detail() {
    let refusal = Refusal::with(Reason::NoEndpoint, "service a has no endpoints");
    assert_eq!(refusal.to_string(), "no_endpoint: service a has no endpoints");
    assert_eq!((refusal.retry_after, Refusal::new(Reason::Draining, "x").retry_after), (None, None));
}
