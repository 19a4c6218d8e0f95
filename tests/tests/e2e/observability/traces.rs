//! W3C trace context, and spans at a collector.

use std::time::Duration;

use weft_tests::{
    Client, Upstream, Weft, client, eventually,
    otlp::{CLIENT, Collector, SERVER, Span},
    ports, yaml,
};

use crate::{echoed, local};

struct Traced {
    weft: Weft,
    addr: std::net::SocketAddr,
    upstream: Upstream,
    collector: Collector,
}

async fn traced(percent: u32) -> Traced {
    let (upstream, collector) = (Upstream::h1("app").await, Collector::start().await);
    let port = ports::free();
    let tracing = format!(
        "tracing: {{samplePercent: {percent}, otlp: {{endpoint: \"http://{}\", protocol: grpc}}}}",
        collector.upstream.addr
    );
    let config = yaml::docs(&[yaml::simple(port, "http", upstream.addr), yaml::telemetry(&tracing)]);
    Traced { weft: Weft::start(&config).await, addr: local(port), upstream, collector }
}

impl Traced {
    /// The spans of a trace, once there are `count`.
    async fn spans(&self, trace: &str, count: usize) -> Vec<Span> {
        let of = || self.collector.spans().into_iter().filter(|span| span.trace == trace).collect::<Vec<_>>();
        eventually("the spans are exported", Duration::from_secs(20), async || of().len() >= count).await;
        of()
    }
}

/// Trace, parent and flags of a `traceparent`.
fn parts(traceparent: &str) -> (String, String, u8) {
    let parts: Vec<_> = traceparent.split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{traceparent}");
    assert_eq!((parts[1].len(), parts[2].len()), (32, 16), "{traceparent}");
    (parts[1].to_owned(), parts[2].to_owned(), u8::from_str_radix(parts[3], 16).unwrap())
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

#[tokio::test]
async fn a_request_becomes_a_server_and_a_client_span() {
    let stage = traced(100).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    let context = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", context.as_str()), ("tracestate", "vendor=1,other=2"), ("baggage", "user=7")];
    let echo = client.send(client::get_with("shop.local", "/items?secret=1", &headers)).await.unwrap().json();
    let (trace, parent, flags) = parts(echoed(&echo, "traceparent").unwrap());
    assert_eq!((trace.as_str(), flags & 1), (TRACE, 1));
    assert_eq!((echoed(&echo, "tracestate"), echoed(&echo, "baggage")), (Some("vendor=1,other=2"), Some("user=7")));

    let spans = stage.spans(TRACE, 2).await;
    let server = spans.iter().find(|span| span.kind == SERVER).expect("a SERVER span");
    let upstream = spans.iter().find(|span| span.kind == CLIENT).expect("a CLIENT span");
    assert_eq!((server.parent.as_str(), upstream.parent.as_str()), (PARENT, server.id.as_str()));
    assert_eq!(upstream.id, parent, "the upstream continues Weft's CLIENT span");
    for (name, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.path", "/items"),
        ("url.scheme", "http"),
    ] {
        assert_eq!(server.attributes.get(name).map(String::as_str), Some(value), "{name}: {server:?}");
    }
    assert_eq!(upstream.attributes.get("server.port"), Some(&stage.upstream.addr.port().to_string()), "{upstream:?}");
    assert!(!server.error && !upstream.error);
}

#[tokio::test]
async fn a_failure_is_seen_in_its_span() {
    let stage = traced(100).await;
    let addr = stage.upstream.addr;
    let context = format!("00-{TRACE}-{PARENT}-01");
    let mut client = Client::h1(stage.addr).await.unwrap();
    let abort = client.send(client::get_with("a", "/abort", &[("traceparent", &context)])).await.unwrap();
    abort.assert_refused(502, "upstream_reset");
    let spans = stage.spans(TRACE, 2).await;
    assert!(spans.iter().all(|span| span.error), "{spans:?}");
    let server = spans.iter().find(|span| span.kind == SERVER).unwrap();
    assert!(server.attributes.values().any(|value| value == "upstream_reset"), "{server:?} at {addr}");
}

#[tokio::test]
async fn a_decision_not_to_sample_is_kept() {
    let stage = traced(100).await;
    let context = format!("00-{TRACE}-{PARENT}-00");
    let mut client = Client::h1(stage.addr).await.unwrap();
    let echo = client.send(client::get_with("a", "/", &[("traceparent", &context)])).await.unwrap().json();
    let (trace, _, flags) = parts(echoed(&echo, "traceparent").unwrap());
    assert_eq!((trace.as_str(), flags & 1), (TRACE, 0));
    // A sampled request behind it shows that the exporter had its chance.
    let sampled = format!("00-{}-{PARENT}-01", "1".repeat(32));
    client.send(client::get_with("a", "/", &[("traceparent", &sampled)])).await.unwrap();
    stage.spans(&"1".repeat(32), 2).await;
    assert!(stage.collector.spans().iter().all(|span| span.trace != TRACE));
}

#[tokio::test]
async fn a_trace_is_begun_when_there_is_none_or_a_broken_one() {
    let stage = traced(100).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    let zero = format!("00-{}-{PARENT}-01", "0".repeat(32));
    let mut seen = std::collections::BTreeSet::new();
    for broken in
        ["", "nonsense", &zero, "00-xyz-b7ad6b7169203331-01", "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
    {
        let headers = [("traceparent", broken)];
        let headers = if broken.is_empty() { &[][..] } else { &headers[..] };
        let echo = client.send(client::get_with("a", "/", headers)).await.unwrap().json();
        let (trace, _, _) = parts(echoed(&echo, "traceparent").expect("a new trace"));
        assert!(trace != "0".repeat(32) && seen.insert(trace.clone()), "{broken}: {trace}");
        stage.spans(&trace, 2).await;
    }
}

#[tokio::test]
async fn a_share_is_sampled() {
    let stage = traced(20).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    let mut sampled = 0;
    for _ in 0..500 {
        let echo = client.get("a", "/").await.unwrap().json();
        let flags = echoed(&echo, "traceparent").map_or(0, |context| parts(context).2);
        sampled += usize::from(flags & 1);
    }
    assert!((50..=155).contains(&sampled), "20 % of 500 within six standard deviations: {sampled}");
}

#[tokio::test]
async fn recent_traces_are_kept_on_the_node() {
    let stage = traced(100).await;
    let mut client = Client::h1(stage.addr).await.unwrap();
    client.get("a", "/fast").await.unwrap();
    client.get("a", "/slow/120").await.unwrap();
    client.get("a", "/status/503").await.unwrap();
    let count = async |query: &str| {
        let answer = stage.weft.admin_json(&format!("/traces{query}")).await;
        answer["traces"].as_array().unwrap_or_else(|| panic!("{answer}")).len()
    };
    eventually("all three are kept", weft_tests::SOON, async || count("").await == 3).await;
    assert_eq!(count("?min_ms=100").await, 1);
    assert_eq!(count("?status=503").await, 1);
    assert_eq!(count("?route=nobody").await, 0);
    let answer = stage.weft.admin_json("/traces?status=503").await;
    assert_eq!(answer["traces"][0]["spans"].as_array().unwrap().len(), 2, "{answer}");
}

#[tokio::test]
async fn the_last_spans_leave_before_the_process() {
    let stage = traced(100).await;
    client::get_once(stage.addr, "a", "/last").await.unwrap();
    stage.weft.signal(rustix::process::Signal::TERM);
    assert_eq!(stage.weft.wait_exit(weft_tests::SOON).await.code(), Some(0));
    let last = stage.collector.spans();
    assert!(last.iter().any(|span| span.attributes.get("url.path").is_some_and(|path| path == "/last")), "{last:?}");
}

#[tokio::test]
async fn without_tracing_context_passes_untouched() {
    let stage = crate::Stage::h1().await;
    let context = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", context.as_str()), ("b3", "0-1"), ("baggage", "a=b")];
    let echo = stage.client_h1().await.send(client::get_with("a", "/", &headers)).await.unwrap().json();
    assert_eq!(parts(echoed(&echo, "traceparent").unwrap()).0, TRACE);
    assert_eq!(echoed(&echo, "baggage"), Some("a=b"));
}
