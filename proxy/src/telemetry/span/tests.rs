use std::{num::NonZeroU64, time::Duration};

use http::Method;

use super::*;
use crate::{
    error::Reason,
    telemetry::{
        fixture::{Exchange, attempt},
        metrics::Metrics,
    },
};

const MS: Duration = Duration::from_millis(1);

fn exchange() -> Exchange {
    Exchange::new(Some(Metrics::default().slot("shop", "/cart", "cart")))
}

fn record(exchange: &Exchange) -> Vec<SpanRecord> {
    let anchor = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
    let facts = exchange.facts();
    spans(&facts, facts.slot.unwrap(), |at| anchor + (at - exchange.start))
}

fn text<'a>(span: &'a SpanRecord, name: &str) -> Option<&'a str> {
    span.attribute(name).and_then(Value::as_str)
}

fn int(span: &SpanRecord, name: &str) -> Option<i64> {
    match span.attribute(name)? {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

#[test]
fn a_request_is_a_server_and_a_client_span() {
    let mut exchange = exchange();
    exchange.query = Some("color=red&sig=secret".into());
    exchange.trace.parent_span = NonZeroU64::new(9);
    exchange.workload = Some("web".into());
    let spans = record(&exchange);
    let [server, client] = &spans[..] else { panic!("{spans:?}") };

    assert_eq!((&*server.name, server.kind, server.error), ("GET /cart", Kind::Server, None));
    assert_eq!((server.trace_id, server.span_id, server.parent), (0xabc, 1, NonZeroU64::new(9)));
    assert!(server.parent_is_remote);
    assert_eq!(server.end.duration_since(server.start).unwrap(), 12 * MS);
    for (name, expected) in [
        ("http.request.method", "GET"),
        ("url.path", "/cart/7"),
        ("url.query", "color=red&sig=REDACTED"),
        ("url.scheme", "http"),
        ("http.route", "/cart"),
        ("server.address", "shop.example.com"),
        ("client.address", "192.0.2.1"),
        ("network.protocol.version", "1.1"),
        ("user_agent.original", "curl/8"),
        ("weft.route", "shop"),
        ("weft.service", "cart"),
        ("weft.rule", "rule-0"),
        ("weft.source.workload", "web"),
    ] {
        assert_eq!(text(server, name), Some(expected), "{name}");
    }
    assert_eq!((int(server, "http.response.status_code"), int(server, "server.port")), (Some(200), Some(8080)));
    for absent in ["error.type", "weft.reason", "rpc.system.name", "http.request.method_original"] {
        assert_eq!(server.attribute(absent), None, "{absent}");
    }

    assert_eq!((&*client.name, client.kind, client.error), ("GET", Kind::Client, None));
    assert_eq!((client.trace_id, client.span_id, client.parent), (0xabc, 2, NonZeroU64::new(1)));
    assert!(!client.parent_is_remote);
    assert_eq!(text(client, "url.full"), Some("http://10.0.0.1:9000/cart/7?color=red&sig=REDACTED"));
    assert_eq!((text(client, "server.address"), int(client, "server.port")), (Some("10.0.0.1"), Some(9000)));
    assert_eq!(int(client, "http.request.resend_count"), None);
}

#[test]
fn every_attempt_is_a_span_and_says_how_often_it_was_sent() {
    let mut exchange = exchange();
    let mut failed = attempt(exchange.start);
    (failed.status, failed.reason, failed.end) = (0, Some(Reason::ConnectFailed), Some(exchange.start + 2 * MS));
    let mut unavailable = attempt(exchange.start + 3 * MS);
    (unavailable.status, unavailable.end) = (503, Some(exchange.start + 5 * MS));
    exchange.attempts = vec![failed, unavailable, attempt(exchange.start + 6 * MS)];
    let spans = record(&exchange);
    let [server, first, second, third] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(server.error, None, "the client got its answer");
    assert_eq!((first.error, text(first, "error.type")), (Some("connect_failed"), Some("connect_error")));
    assert_eq!((text(first, "weft.reason"), int(first, "http.response.status_code")), (Some("connect_failed"), None));
    assert_eq!((second.error, text(second, "error.type")), (Some(""), Some("503")));
    assert_eq!(second.end.duration_since(second.start).unwrap(), 2 * MS);
    assert_eq!((third.error, third.end), (None, server.end));
    let resends = [first, second, third].map(|span| int(span, "http.request.resend_count"));
    assert_eq!(resends, [None, Some(1), Some(2)]);
}

#[test]
fn a_client_error_is_an_error_for_the_client_span_only() {
    let mut exchange = exchange();
    (exchange.status, exchange.attempts[0].status) = (404, 404);
    let spans = record(&exchange);
    assert_eq!((spans[0].error, spans[0].attribute("error.type")), (None, None));
    assert_eq!((spans[1].error, text(&spans[1], "error.type")), (Some(""), Some("404")));

    exchange.attempts.clear();
    (exchange.status, exchange.reason) = (429, Some(Reason::RateLimited));
    let refused = &record(&exchange)[0];
    assert_eq!((refused.error, text(refused, "error.type")), (None, Some("rate_limited")));
    assert_eq!(text(refused, "weft.reason"), Some("rate_limited"));

    (exchange.status, exchange.reason) = (503, Some(Reason::CircuitOpen));
    assert_eq!(record(&exchange)[0].error, Some("circuit_open"));
}

#[test]
fn grpc_has_its_own_status() {
    let mut exchange = exchange();
    exchange.path = "/shop.Cart/Get".into();
    let cases = [(0, None, None), (5, None, Some("NOT_FOUND")), (14, Some(""), Some("UNAVAILABLE"))];
    for (code, server_error, client_type) in cases {
        (exchange.grpc, exchange.attempts[0].grpc_status) = (Some(Some(code)), Some(code));
        let spans = record(&exchange);
        assert_eq!(spans[0].error, server_error, "{code}");
        assert_eq!(text(&spans[1], "error.type"), client_type, "{code}");
        for span in &spans {
            assert_eq!(text(span, "rpc.system.name"), Some("grpc"));
            assert_eq!(text(span, "rpc.method"), Some("shop.Cart/Get"));
            assert_eq!(text(span, "rpc.response.status_code"), names::grpc_status(code));
        }
    }
}

#[test]
fn an_unknown_method_is_other_and_kept() {
    let mut exchange = exchange();
    exchange.method = Method::from_bytes(b"BREW").unwrap();
    let span = &record(&exchange)[0];
    assert_eq!(&*span.name, "HTTP /cart");
    assert_eq!(text(span, "http.request.method"), Some("_OTHER"));
    assert_eq!(text(span, "http.request.method_original"), Some("BREW"));
    exchange.method = Method::GET;
    exchange.slot = Some(Metrics::default().slot("", "", ""));
    assert_eq!(&*record(&exchange)[0].name, "GET", "never the path");
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let mut exchange = exchange();
    exchange.path = format!("/{}", "é".repeat(4000));
    let spans = record(&exchange);
    let path = text(&spans[0], "url.path").unwrap();
    assert!(path.len() <= MAX_TEXT && path.ends_with('é'));
    assert!(text(&spans[1], "url.full").unwrap().len() <= MAX_TEXT);
}

#[test]
fn hosts_are_split() {
    for (host, expected) in [
        ("example.com", ("example.com", None)),
        ("example.com:80", ("example.com", Some(80))),
        ("[::1]:8443", ("::1", Some(8443))),
        ("[::1]", ("::1", None)),
        ("::1", ("::1", None)),
        ("a:b", ("a:b", None)),
        ("a:", ("a", None)),
        ("a:99999", ("a", None)),
        ("", ("", None)),
    ] {
        assert_eq!(split_host(host), expected, "{host}");
    }
}

#[test]
fn the_attempt_that_changed_a_breaker_says_so() {
    use crate::resilience::{breaker::State, circuit::Event};

    let mut exchange = exchange();
    let clean = attempt(exchange.start);
    let event = Event {
        at: SystemTime::UNIX_EPOCH,
        endpoint: "10.0.0.1:9000".into(),
        from: State::Closed,
        to: State::Open,
        evidence: "5 of 5 failed: 503 ×5".into(),
        cause: None,
        ejected: true,
        lasts: Some(5000 * MS),
    };
    exchange.attempts = vec![clean.clone(), Attempt { breaker: Some(event.into()), ..clean }];
    let spans = record(&exchange);
    let told = |span: &SpanRecord| {
        (text(span, "weft.breaker.state").map(str::to_owned), text(span, "weft.breaker.evidence").map(str::to_owned))
    };
    assert_eq!(told(&spans[1]), (None, None));
    assert_eq!(told(&spans[2]), (Some("open".into()), Some("5 of 5 failed: 503 ×5".into())));
}
