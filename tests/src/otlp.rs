//! An OTLP/gRPC collector in this process.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use tonic::{Request, Response, Status, codegen::Service};

use crate::upstream::{Handler, Seen, Upstream};

/// OTLP's numbers of span kinds.
pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;

/// A span as the collector got it; ids in lower-case hex.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub kind: i32,
    pub error: bool,
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<Span>>>);

/// The collector; ends when dropped.
pub struct Collector {
    pub upstream: Upstream,
    sink: Sink,
}

impl Collector {
    pub async fn start() -> Self {
        let sink = Sink::default();
        let server = TraceServiceServer::new(sink.clone());
        let handler: Handler = Arc::new(move |request, _seen: Arc<Seen>| {
            let mut server = server.clone();
            Box::pin(async move {
                let response = match server.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                };
                Ok(response.map(crate::grpc::boxed))
            })
        });
        Self { upstream: Upstream::h2_with(handler).await, sink }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.sink.0.lock().unwrap().clone()
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().unwrap();
        for resource in request.into_inner().resource_spans {
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    kind: span.kind,
                    error: span.status.is_some_and(|status| status.code == 2),
                    attributes: span
                        .attributes
                        .into_iter()
                        .map(|pair| (pair.key, pair.value.and_then(|v| v.value).map_or(String::new(), text)))
                        .collect(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn text(value: Value) -> String {
    match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(truth) => truth.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
