use std::{
    io,
    sync::{Mutex, atomic::Ordering::Relaxed},
};

use http::HeaderMap;
use weft_model::config::{AccessLog, LogFormat};

use super::{fixture::Exchange, *};
use crate::telemetry::store::TraceQuery;

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl io::Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn arriving(flags: &str) -> HeaderMap {
    let value = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    HeaderMap::from_iter([(http::header::HeaderName::from_static("traceparent"), value.parse().unwrap())])
}

fn with_log() -> config::Telemetry {
    config::Telemetry { access_log: Some(AccessLog { format: LogFormat::Json, when: None }), ..Default::default() }
}

#[test]
fn what_is_off_does_nothing_and_what_is_on_counts_at_once() {
    let telemetry = Telemetry::new("n", Environment::default(), io::sink());
    let worker = telemetry.worker();
    let trace = worker.begin(&arriving("01"));
    assert_eq!((trace.trace_id, trace.sampled, worker.keeps_details(&trace)), (0, false, false));

    telemetry.configure(&with_log());
    let trace = worker.begin(&arriving("01"));
    assert_eq!((trace.sampled, worker.keeps_details(&trace)), (false, true));
    assert_eq!(trace.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, "for the log");
    assert_eq!(worker.attempt_span(&trace), 0);

    telemetry.configure(&config::Telemetry { sample_percent: 100.0, ..Default::default() });
    let trace = worker.begin(&HeaderMap::new());
    assert!(trace.sampled && worker.keeps_details(&trace));
    assert_ne!(worker.attempt_span(&trace), worker.attempt_span(&trace));
    let unsampled = worker.begin(&arriving("00"));
    assert!(!unsampled.sampled && !worker.keeps_details(&unsampled));

    telemetry.configure(&config::Telemetry::default());
    assert!(!worker.begin(&arriving("01")).sampled);
}

#[tokio::test]
async fn one_call_feeds_metrics_spans_and_log() {
    let memory = Memory::default();
    let telemetry = Telemetry::new("n", Environment::default(), memory.clone());
    telemetry.configure(&config::Telemetry { sample_percent: 100.0, ..with_log() });
    let (exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
    let mut exchange = Exchange::new(Some(telemetry.metrics.slot("shop", "/cart", "cart")));
    exchange.trace = worker.begin(&arriving("01"));
    worker.finish(&exchange.facts());
    let mut lost = Exchange::new(None);
    lost.attempts.clear();
    (lost.status, lost.reason, lost.trace) = (404, Some(Reason::NoRoute), Trace::OFF);
    worker.finish(&lost.facts());
    exporter.shutdown().await;
    telemetry.flush_access_log(Duration::from_secs(10));

    let samples = telemetry.metrics.collect();
    let shop = [("route", "shop"), ("service", "cart"), ("code", "200")];
    assert_eq!(samples.value("weft_requests_total", &shop), Some(1.0));
    assert_eq!(samples.value("weft_requests_total", &[("code", "404"), ("reason", "no_route")]), Some(1.0));
    let client = [("http_request_method", "GET"), ("http_response_status_code", "200"), ("service", "cart")];
    let client = samples.distribution("http_client_request_duration_seconds", &client);
    assert_eq!(client.map(|d| d.count()), Some(1));

    let traces = telemetry.traces.query(&TraceQuery::default());
    assert_eq!(traces["traces"].as_array().unwrap().len(), 1, "only what was sampled");
    assert_eq!(traces["traces"][0]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");

    let log = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["trace_id"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!((&lines[1]["reason"], lines[1].get("trace_id")), (&"no_route".into(), None));
    assert_eq!(telemetry.metrics.access_log_dropped.load(Relaxed), 0);
}

#[test]
fn instants_have_a_time_of_day() {
    let telemetry = Telemetry::new("n", Environment::default(), io::sink());
    let worker = telemetry.worker();
    let (instant, system) = worker.anchor.get();
    assert_eq!(worker.wall(instant + Duration::from_secs(1)), system + Duration::from_secs(1));
    assert_eq!(worker.wall(instant - Duration::from_millis(1)), system - Duration::from_millis(1));
    // A later one reads the clock again.
    worker.wall(instant + ANCHOR_AGE + Duration::from_secs(1));
    assert_ne!(worker.anchor.get().0, instant);
}
