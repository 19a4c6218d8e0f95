use super::*;
use crate::telemetry::{
    fixture::Exchange,
    metrics::Metrics,
    span::{Value, spans},
};

/// One exchange: trace, route, status, and how long it took.
fn push(store: &TraceStore, trace: u128, route: &str, status: u16, ms: u64) {
    let mut exchange = Exchange::new(Some(Metrics::default().slot(route, "/", "svc")));
    exchange.trace.trace_id = trace;
    (exchange.status, exchange.took) = (status, Duration::from_millis(ms));
    let facts = exchange.facts();
    store.push(spans(&facts, facts.slot.unwrap(), |at| UNIX_EPOCH + at.duration_since(exchange.start)));
}

fn ids(store: &TraceStore, query: &str) -> Vec<String> {
    let found = store.query(&TraceQuery::parse(query).unwrap());
    let traces = found["traces"].as_array().unwrap();
    traces.iter().map(|trace| trace["trace_id"].as_str().unwrap().trim_start_matches('0').to_owned()).collect()
}

#[test]
fn traces_are_found_by_time_status_and_route() {
    let store = TraceStore::default();
    push(&store, 0x1, "shop", 200, 5);
    push(&store, 0x2, "shop", 503, 50);
    push(&store, 0x3, "pay", 500, 500);
    for (query, expected) in [
        ("", &["3", "2", "1"][..]),
        ("min_ms=50", &["3", "2"]),
        ("min_ms=50.5", &["3"]),
        ("status=503", &["2"]),
        ("status=5xx", &["3", "2"]),
        ("route=shop", &["2", "1"]),
        ("route=sh%6Fp&status=5xx&min_ms=", &["2"]),
        ("limit=1", &["3"]),
        ("route=none", &[]),
    ] {
        assert_eq!(ids(&store, query), expected, "{query}");
    }
}

#[test]
fn a_trace_shows_its_spans() {
    let store = TraceStore::default();
    push(&store, 0x1, "shop", 200, 5);
    push(&store, 0x1, "pay", 200, 3);
    let found = store.query(&TraceQuery::default());
    assert_eq!(found["traces"].as_array().unwrap().len(), 1, "two exchanges of one trace");
    let trace = &found["traces"][0];
    assert_eq!((&trace["route"], &trace["status"]), (&json!("pay"), &json!(200)));
    assert_eq!((&trace["start"], &trace["duration_ms"]), (&json!("1970-01-01T00:00:00.000Z"), &json!(3.0)));
    let spans = trace["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 4);
    assert_eq!((&spans[1]["kind"], &spans[1]["parent_span_id"]), (&json!("client"), &spans[0]["span_id"]));
    assert_eq!(spans[0]["attributes"]["http.request.method"], json!("GET"));
}

#[test]
fn the_oldest_goes_first() {
    let store = TraceStore::default();
    for trace in 1..=CAPACITY as u128 + 5 {
        store.push(vec![SpanRecord {
            trace_id: trace,
            span_id: 1,
            parent: None,
            parent_is_remote: false,
            kind: Kind::Server,
            name: "GET".into(),
            start: UNIX_EPOCH,
            end: UNIX_EPOCH,
            error: None,
            attributes: vec![("http.response.status_code", Value::Int(200))],
        }]);
    }
    let all = ids(&store, "limit=5000");
    assert_eq!((all.len(), all.last().map(String::as_str)), (CAPACITY, Some("6")));
}

#[test]
fn a_query_is_decoded() {
    let query = TraceQuery::parse("min_ms=12.5&status=5xx&route=shop%2Fcart+a&").unwrap();
    let expected = TraceQuery {
        min: Duration::from_micros(12_500),
        status: Some(StatusFilter::Class(5)),
        route: Some("shop/cart a".into()),
        limit: None,
    };
    assert_eq!(query, expected);
}

#[test]
fn a_question_that_makes_no_sense_is_refused() {
    for query in
        ["min_ms=fast", "min_ms=-1", "min_ms=NaN", "status=9xx", "status=42", "status=ok", "limit=-1", "colour=red"]
    {
        assert!(TraceQuery::parse(query).is_err(), "{query}");
    }
}
