use std::{
    net::SocketAddr,
    sync::mpsc::{Receiver as StdReceiver, Sender as StdSender, channel},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value},
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time,
};
use weft_model::config::{self, Otlp, OtlpProtocol};

use super::*;
use crate::telemetry::{Telemetry, fixture::Exchange, store::TraceQuery};

const LIMIT: Duration = Duration::from_secs(10);

/// A collector that hands over what it gets.
struct Collector(StdSender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).map_err(|_| tonic::Status::internal("test is over"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

async fn grpc_collector(address: SocketAddr) -> StdReceiver<ExportTraceServiceRequest> {
    let (sender, receiver) = channel();
    let service = TraceServiceServer::new(Collector(sender));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve(address));
    while TcpStream::connect(address).await.is_err() {
        time::sleep(Duration::from_millis(5)).await;
    }
    receiver
}

/// Reads requests with a `content-length` from one connection after the other, and answers each with `status`.
async fn http_collector(status: &'static str) -> (SocketAddr, StdReceiver<(String, ExportTraceServiceRequest)>) {
    let (sender, receiver) = channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await? > 0 {
                    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next());
                    let length = length.and_then(|text| text.parse::<usize>().ok()).unwrap();
                    if bytes.len() < end + 4 + length {
                        continue;
                    }
                    let request = ExportTraceServiceRequest::decode(&bytes[end + 4..end + 4 + length]).unwrap();
                    bytes.clear();
                    let _ = sender.send((head, request));
                    stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    (address, receiver)
}

fn node(environment: Environment) -> Telemetry {
    Telemetry::new("node-7", environment, std::io::sink())
}

fn to(address: SocketAddr, protocol: OtlpProtocol) -> config::Telemetry {
    let otlp = Otlp { endpoint: format!("http://{address}").into(), protocol };
    config::Telemetry { sample_percent: 100.0, otlp: Some(otlp), access_log: None }
}

fn finish_one(telemetry: &Telemetry, worker: &crate::telemetry::Worker) {
    let exchange = Exchange::new(Some(telemetry.metrics.slot("shop", "/cart", "cart")));
    worker.finish(&exchange.facts());
}

async fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            match attempt() {
                Some(value) => return value,
                None => time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    time::timeout(LIMIT, wait).await.expect("it happens within 10 s")
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a any_value::Value> {
    attributes.iter().find(|kv| kv.key == key)?.value.as_ref()?.value.as_ref()
}

fn check(request: &ExportTraceServiceRequest, service: &str) {
    let [resource_spans] = &request.resource_spans[..] else { panic!("{request:?}") };
    let resource = &resource_spans.resource.as_ref().unwrap().attributes;
    let string = |text: &str| any_value::Value::StringValue(text.to_owned());
    assert_eq!(attribute(resource, "service.name"), Some(&string(service)));
    assert_eq!(attribute(resource, "service.instance.id"), Some(&string("node-7")));
    assert_eq!(attribute(resource, "host.name"), Some(&string("node-7")));
    let [scope_spans] = &resource_spans.scope_spans[..] else { panic!("{resource_spans:?}") };
    assert_eq!(scope_spans.scope.as_ref().unwrap().name, "weft");
    let [server, client] = &scope_spans.spans[..] else { panic!("{scope_spans:?}") };
    assert_eq!((server.name.as_str(), server.kind), ("GET /cart", 2));
    assert_eq!((client.name.as_str(), client.kind), ("GET", 3));
    assert_eq!(server.trace_id, 0xabcu128.to_be_bytes());
    assert_eq!((&server.span_id[..], &client.parent_span_id[..]), (&1u64.to_be_bytes()[..], &1u64.to_be_bytes()[..]));
    assert!(server.parent_span_id.is_empty() || server.parent_span_id == [0; 8]);
    assert_eq!(server.end_time_unix_nano - server.start_time_unix_nano, 12_000_000);
    assert!(server.start_time_unix_nano > 1_700_000_000_000_000_000);
    let status = attribute(&server.attributes, "http.response.status_code");
    assert_eq!(status, Some(&any_value::Value::IntValue(200)));
    assert_eq!(attribute(&server.attributes, "http.route"), Some(&string("/cart")));
}

#[tokio::test]
async fn spans_reach_a_grpc_collector() {
    let address = free_address().await;
    let received = grpc_collector(address).await;
    let telemetry = node(Environment::default());
    telemetry.configure(&to(address, OtlpProtocol::Grpc));
    let (exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
    finish_one(&telemetry, &worker);
    check(&eventually(|| received.try_recv().ok()).await, "weft");
    eventually(|| (telemetry.metrics.spans_exported.load(Relaxed) == 2).then_some(())).await;

    // The last ones are sent at shutdown, without waiting for a batch.
    finish_one(&telemetry, &worker);
    exporter.shutdown().await;
    check(&received.try_recv().unwrap(), "weft");
    assert_eq!(telemetry.metrics.collect().value("weft_spans_exported_total", &[]), Some(4.0));
}

#[tokio::test]
async fn spans_reach_an_http_collector_named_by_the_environment() {
    let (address, received) = http_collector("200 OK").await;
    let environment = Environment {
        endpoint: Some(format!("http://{address}/base/")),
        service_name: Some("edge".into()),
        ..Environment::default()
    };
    let telemetry = node(environment);
    telemetry.configure(&config::Telemetry::default());
    let (_exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
    assert!(worker.begin(&http::HeaderMap::new()).sampled, "an exporter in the environment samples everything");
    for _ in 0..2 {
        finish_one(&telemetry, &worker);
        let (head, request) = eventually(|| received.try_recv().ok()).await;
        assert!(head.starts_with("post /base/v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains(&format!("host: {address}")) && head.contains("application/x-protobuf"), "{head}");
        check(&request, "edge");
    }
}

#[tokio::test]
async fn another_collector_takes_over() {
    let (first, first_received) = http_collector("200 OK").await;
    let second = free_address().await;
    let second_received = grpc_collector(second).await;
    let telemetry = node(Environment::default());
    telemetry.configure(&to(first, OtlpProtocol::Http));
    let (exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
    finish_one(&telemetry, &worker);
    eventually(|| first_received.try_recv().ok()).await;
    telemetry.configure(&to(second, OtlpProtocol::Grpc));
    time::sleep(Duration::from_millis(50)).await;
    finish_one(&telemetry, &worker);
    check(&eventually(|| second_received.try_recv().ok()).await, "weft");
    exporter.shutdown().await;
    assert!(first_received.try_recv().is_err());
}

#[tokio::test]
async fn what_no_collector_takes_is_counted_and_still_shown() {
    let (refusing, received) = http_collector("400 Bad Request").await;
    for (address, protocol) in [(free_address().await, OtlpProtocol::Grpc), (refusing, OtlpProtocol::Http)] {
        let telemetry = node(Environment::default());
        telemetry.configure(&to(address, protocol));
        let (exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
        finish_one(&telemetry, &worker);
        let failed = || telemetry.metrics.spans_export_failed.load(Relaxed) == 2;
        eventually(|| failed().then_some(())).await;
        let shown = telemetry.traces.query(&TraceQuery::default());
        assert_eq!(shown["traces"].as_array().unwrap().len(), 1);
        exporter.shutdown().await;
    }
    assert_eq!(received.try_iter().count(), 1, "a request that is wrong is not repeated");
}

#[tokio::test]
async fn a_collector_that_hangs_does_not_hold_up_the_shutdown() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let telemetry = node(Environment::default());
    telemetry.configure(&to(silent.local_addr().unwrap(), OtlpProtocol::Http));
    let (exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
    finish_one(&telemetry, &worker);
    time::sleep(Duration::from_millis(1500)).await;
    let begun = Instant::now();
    exporter.shutdown().await;
    assert!(begun.elapsed() < FLUSH + Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn spans_stay_on_the_node_when_there_is_no_collector() {
    let telemetry = node(Environment::default());
    telemetry.configure(&config::Telemetry { sample_percent: 100.0, ..config::Telemetry::default() });
    let (_exporter, worker) = (telemetry.spawn_exporter(), telemetry.worker());
    // Also when the task sleeps already.
    for expected in 1..=3 {
        time::sleep(Duration::from_millis(150)).await;
        finish_one(&telemetry, &worker);
        let kept = || telemetry.traces.query(&TraceQuery::default())["kept"].as_u64() == Some(expected);
        eventually(|| kept().then_some(())).await;
    }
    assert_eq!(telemetry.metrics.spans_export_failed.load(Relaxed), 0);
}

#[test]
fn a_full_queue_drops_and_counts() {
    let telemetry = node(Environment::default());
    telemetry.configure(&config::Telemetry { sample_percent: 100.0, ..config::Telemetry::default() });
    let worker = telemetry.worker();
    for _ in 0..QUEUE + 10 {
        finish_one(&telemetry, &worker);
    }
    let dropped = telemetry.metrics.collect().value("weft_spans_dropped_total", &[("cause", "queue_full")]);
    assert_eq!(dropped, Some(20.0), "two spans for each of ten exchanges");
}

#[test]
fn destinations() {
    use OtlpProtocol::{Grpc, Http};
    let environment = |pairs: &[(&str, &str)]| {
        Environment::from(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    };
    let (endpoint, traces, protocol) =
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_PROTOCOL");
    let cases: [(&[(&str, &str)], _); 8] = [
        (&[], None),
        (&[(endpoint, "")], None),
        (&[(endpoint, "http://c:4317")], Some(("http://c:4317", Grpc))),
        (&[(endpoint, "http://c:4318")], Some(("http://c:4318/v1/traces", Http))),
        (&[(endpoint, "http://c:4317"), (protocol, "http/protobuf")], Some(("http://c:4317/v1/traces", Http))),
        (&[(endpoint, "http://c:9"), (protocol, "grpc")], Some(("http://c:9", Grpc))),
        (&[(traces, "http://c:9/x"), (endpoint, "http://d:9")], Some(("http://c:9/x", Http))),
        (&[(endpoint, "http://c:9/"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")], Some(("http://c:9", Grpc))),
    ];
    for (variables, expected) in cases {
        let chosen = Destination::choose(None, &environment(variables));
        assert_eq!(chosen.as_ref().map(|d| (&*d.endpoint, d.protocol)), expected, "{variables:?}");
    }
    let otlp = Otlp { endpoint: "http://policy:1".into(), protocol: Http };
    let chosen = Destination::choose(Some(&otlp), &environment(&[(endpoint, "http://c:4317")])).unwrap();
    assert_eq!((&*chosen.endpoint, chosen.protocol), ("http://policy:1/v1/traces", Http));
}

#[tokio::test]
async fn a_destination_that_cannot_work_is_refused() {
    for (url, protocol) in [
        ("collector:4317", OtlpProtocol::Grpc),
        ("https://collector:4317", OtlpProtocol::Grpc),
        ("https://collector:4318/v1/traces", OtlpProtocol::Http),
        ("/v1/traces", OtlpProtocol::Http),
        ("http://[::1", OtlpProtocol::Http),
    ] {
        assert!(client::build(&Destination { endpoint: url.into(), protocol }).is_err(), "{url}");
    }
    assert!(client::build(&Destination { endpoint: "http://c:4317".into(), protocol: OtlpProtocol::Grpc }).is_ok());
}
