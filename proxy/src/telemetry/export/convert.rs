//! Our span records as OpenTelemetry's.

use std::sync::LazyLock;

use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, StringValue, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::telemetry::span::{Kind, SpanRecord, Value};

static SCOPE: LazyLock<InstrumentationScope> = LazyLock::new(|| {
    InstrumentationScope::builder("weft")
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url("https://opentelemetry.io/schemas/1.44.0")
        .build()
});

/// A copy for the exporter.
pub(super) fn span_data(span: &SpanRecord) -> SpanData {
    let context = SpanContext::new(
        TraceId::from(span.trace_id),
        SpanId::from(span.span_id),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    SpanData {
        span_context: context,
        parent_span_id: span.parent.map_or(SpanId::INVALID, |id| SpanId::from(id.get())),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
        },
        name: span.name.to_string().into(),
        start_time: span.start,
        end_time: span.end,
        attributes: span.attributes.iter().map(|(key, value)| KeyValue::new(*key, convert(value))).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: span.error.map_or(Status::Unset, Status::error),
        instrumentation_scope: SCOPE.clone(),
    }
}

fn convert(value: &Value) -> opentelemetry::Value {
    match value {
        Value::Static(text) => StringValue::from(*text).into(),
        Value::Shared(text) => StringValue::from(text.clone()).into(),
        Value::Text(text) => StringValue::from(text.to_string()).into(),
        Value::Int(number) => (*number).into(),
    }
}
