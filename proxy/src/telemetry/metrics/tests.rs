use std::{collections::BTreeSet, thread};

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Two workers on two threads, as in a node.
fn traffic() -> Arc<Metrics> {
    let metrics = Arc::<Metrics>::default();
    let threads = (0..2).map(|_| {
        let metrics = Arc::clone(&metrics);
        thread::spawn(move || {
            let worker = Rc::new(metrics.worker());
            let cart = metrics.slot("shop", "/cart", "cart");
            let none = metrics.slot("", "", "");
            for _ in 0..3 {
                worker.request_done(&cart, &Method::GET, 200, None, None, 2 * MS);
                worker.client_done(&cart, &Method::GET, 200, None, None, MS);
            }
            let reason = Some(Reason::ConnectFailed);
            worker.request_done(&cart, &Method::POST, 503, reason, None, 40 * MS);
            worker.client_done(&cart, &Method::POST, 0, reason, None, 30 * MS);
            worker.request_done(&none, &Method::GET, 404, Some(Reason::NoRoute), None, MS / 10);
            worker.retried(&cart, RetryOutcome::Failed);
            let mut connection = worker.connection(ConnectionSide::Upstream, ConnectionState::Active);
            connection.set(ConnectionState::Idle);
            // Kept beyond the thread: what it counts stays.
            std::mem::forget((worker.in_flight(&cart), connection));
        })
    });
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    metrics
}

#[test]
fn workers_are_summed() {
    let samples = traffic().collect();
    let requests = |labels: &[(&str, &str)]| samples.value("weft_requests_total", labels);
    assert_eq!(requests(&[("route", "shop"), ("service", "cart"), ("code", "200")]), Some(6.0));
    let refused = [("route", "shop"), ("service", "cart"), ("code", "503"), ("reason", "connect_failed")];
    assert_eq!(requests(&refused), Some(2.0));
    assert_eq!(requests(&[("code", "404"), ("reason", "no_route")]), Some(2.0));
    assert_eq!(samples.value("weft_retries_total", &[("service", "cart"), ("outcome", "failed")]), Some(2.0));
    assert_eq!(samples.value("weft_requests_in_flight", &[("service", "cart")]), Some(2.0));
    let connections = |state| samples.value("weft_connections", &[("side", "upstream"), ("state", state)]);
    assert_eq!((connections("idle"), connections("active")), (Some(2.0), Some(0.0)));
    let client = [("http_request_method", "POST"), ("error_type", "connect_error"), ("service", "cart")];
    let failed = samples.distribution("http_client_request_duration_seconds", &client).unwrap();
    assert_eq!(failed.count(), 2);
    assert!((failed.sum - 0.06).abs() < 1e-9);
}

#[test]
fn guards_count_down() {
    let metrics = Metrics::default();
    let worker = Rc::new(metrics.worker());
    let slot = metrics.slot("r", "/", "s");
    let guards = (worker.in_flight(&slot), worker.in_flight(&slot));
    let connection = worker.connection(ConnectionSide::Downstream, ConnectionState::Idle);
    let in_flight = || metrics.collect().value("weft_requests_in_flight", &[("service", "s")]).unwrap();
    let idle = || metrics.collect().value("weft_connections", &[("side", "downstream"), ("state", "idle")]).unwrap();
    assert_eq!((in_flight(), idle()), (2.0, 1.0));
    drop(guards.0);
    assert_eq!(in_flight(), 1.0);
    drop((guards.1, connection));
    assert_eq!((in_flight(), idle()), (0.0, 0.0));
}

#[test]
fn a_slot_is_found_again() {
    let metrics = Metrics::default();
    let first = metrics.slot("r", "/a", "s");
    assert!(Arc::ptr_eq(&first, &metrics.slot("r", "/a", "s")));
    assert!(!Arc::ptr_eq(&first, &metrics.slot("r", "/b", "s")));
}

#[test]
fn clients_and_upstreams_cannot_make_series_without_end() {
    let metrics = Metrics::default();
    let worker = metrics.worker();
    let slot = metrics.slot("r", "/", "s");
    for n in 0..1000 {
        let method = Method::from_bytes(format!("M{n}").as_bytes()).unwrap();
        worker.request_done(&slot, &method, 200, None, None, MS);
    }
    assert_eq!(worker.cells.borrow().len(), 1);
    for n in 0..60 {
        let slot = metrics.slot("r", &format!("/{n}"), "s");
        for code in 100..600 {
            worker.client_done(&slot, &Method::GET, code, None, None, MS);
        }
    }
    // Folded beyond the limit: one cell per slot and class.
    assert!(worker.cells.borrow().len() <= MAX_CELLS + 60 * 5, "{}", worker.cells.borrow().len());
    let total = lock(&worker.shared.cells).iter().map(|cell| cell.duration.read().count()).sum::<u64>();
    assert_eq!(total, 1000 + 60 * 500, "every request is counted once");
}

#[test]
fn keys_are_distinct() {
    let mut keys = BTreeSet::new();
    let mut all = 0;
    for slot in [0, 1, u32::MAX] {
        for side in [Side::Server, Side::Client] {
            for method in 0..10 {
                for code in [0, 200, 999] {
                    for reason in Reason::ALL.map(Some).into_iter().chain([None]) {
                        for grpc in [None, Some(0), Some(16)] {
                            keys.insert(Labels { side, method, code, reason, grpc }.pack(slot));
                            all += 1;
                        }
                    }
                }
            }
        }
    }
    assert_eq!(keys.len(), all);
}

/// The lines of families that do not depend on the machine.
fn ours(text: &str) -> String {
    let kept = |line: &&str| line.contains("http_server") || line.contains("weft_requests_total") || *line == "# EOF";
    text.lines().filter(kept).filter(|line| !line.contains("_bucket")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn prometheus_text() {
    let (text, content_type) = traffic().scrape(Some("text/plain"));
    assert_eq!(content_type, "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(
        ours(&text),
        r#"# HELP http_server_request_duration_seconds Time from a request's head to the end of its response, as clients of this node see it
# TYPE http_server_request_duration_seconds histogram
http_server_request_duration_seconds_sum{http_request_method="GET",http_response_status_code="404",error_type="no_route"} 0.0002
http_server_request_duration_seconds_count{http_request_method="GET",http_response_status_code="404",error_type="no_route"} 2
http_server_request_duration_seconds_sum{http_request_method="GET",http_route="/cart",http_response_status_code="200",route="shop",service="cart"} 0.012
http_server_request_duration_seconds_count{http_request_method="GET",http_route="/cart",http_response_status_code="200",route="shop",service="cart"} 6
http_server_request_duration_seconds_sum{http_request_method="POST",http_route="/cart",http_response_status_code="503",error_type="connect_error",route="shop",service="cart"} 0.08
http_server_request_duration_seconds_count{http_request_method="POST",http_route="/cart",http_response_status_code="503",error_type="connect_error",route="shop",service="cart"} 2
# HELP weft_requests_total Requests answered, by the route that matched, the service chosen, the status sent, and why Weft answered itself if it did
# TYPE weft_requests_total counter
weft_requests_total{route="",service="",code="404",reason="no_route"} 2
weft_requests_total{route="shop",service="cart",code="200",reason=""} 6
weft_requests_total{route="shop",service="cart",code="503",reason="connect_failed"} 2
"#
    );
    let bucket = r#"_bucket{le="0.0025",http_request_method="GET",http_route="/cart",http_response_status_code="200",route="shop",service="cart"} 6"#;
    assert!(text.contains(bucket), "{text}");
    assert!(text.contains(r#"_bucket{le="+Inf",http_request_method="POST""#));
}

#[test]
fn open_metrics_text() {
    let accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let (text, content_type) = traffic().scrape(Some(accept));
    assert_eq!(content_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# TYPE weft_requests counter\n"));
    assert!(text.contains("weft_requests_total{route=\"shop\",service=\"cart\",code=\"200\",reason=\"\"} 6\n"));
    for accept in [None, Some("*/*"), Some("text/plain"), Some("application/openmetrics-text;q=0, text/plain")] {
        assert_eq!(Format::from_accept(accept), Format::Prometheus, "{accept:?}");
    }
}

#[test]
fn labels_are_escaped() {
    let metrics = Metrics::default();
    let worker = metrics.worker();
    worker.request_done(&metrics.slot("a\"b\\c\nd", "/", "s"), &Method::GET, 200, None, None, MS);
    let (text, _) = metrics.scrape(None);
    assert!(text.contains(r#"route="a\"b\\c\nd""#), "{text}");
}

#[test]
fn whatever_is_exposed_is_in_the_table() {
    let metrics = traffic();
    metrics.add_source(|samples| {
        samples.add("weft_endpoint_health", &[("service", "s"), ("port", "80"), ("endpoint", "e")], 1.0)
    });
    let (text, _) = metrics.scrape(None);
    let mut families = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        let row = METRICS.iter().find(|metric| metric.name == name);
        assert_eq!(row.map(|row| row.kind.as_str()), Some(kind), "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        families += 1;
    }
    assert!(families >= 15, "{families} families");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let known = METRICS.iter().any(|metric| match metric.kind {
            table::Kind::Histogram => {
                name.strip_prefix(metric.name).is_some_and(|s| matches!(s, "_sum" | "_count" | "_bucket"))
            }
            _ => metric.name == name,
        });
        assert!(known, "{line}");
    }
    assert!(text.contains("weft_endpoint_health{service=\"s\",port=\"80\",endpoint=\"e\"} 1\n"));
}

#[test]
fn the_table_is_consistent() {
    let names = METRICS.iter().map(|metric| metric.name).collect::<BTreeSet<_>>();
    assert_eq!(names.len(), METRICS.len(), "no name twice");
    for metric in METRICS {
        assert_eq!(metric.kind == table::Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
        assert!(!metric.help.is_empty() && !metric.help.contains(['\n', '\\', '|']), "{}", metric.name);
    }
}

#[test]
fn the_documentation_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md");
    let table = table::markdown();
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    let hint = "WEFT_BLESS=1 cargo test -p weft-proxy the_documentation_is_the_table";
    assert!(written == table, "METRICS.md is out of date; write it with: {hint}");
}
