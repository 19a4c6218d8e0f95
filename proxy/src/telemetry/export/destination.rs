//! Which collector, and who we say we are.

use std::sync::Arc;

use http::Uri;
use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use weft_model::config::{Otlp, OtlpProtocol};

/// What OpenTelemetry's environment variables say
/// (<https://opentelemetry.io/docs/specs/otel/protocol/exporter/>). Headers and the time-out are read by the exporter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Environment {
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: `/v1/traces` is appended for HTTP.
    pub endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`: used as it is, before the other.
    pub traces_endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL`, else `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Option<String>,
    /// `OTEL_SERVICE_NAME`
    pub service_name: Option<String>,
}

impl Environment {
    /// That of the process.
    pub fn read() -> Self {
        Self::from(|name| std::env::var(name).ok())
    }

    /// From any look-up; empty values count as absent.
    pub fn from(get: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name| get(name).filter(|value| !value.is_empty());
        Self {
            endpoint: get("OTEL_EXPORTER_OTLP_ENDPOINT"),
            traces_endpoint: get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
            protocol: get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL")),
            service_name: get("OTEL_SERVICE_NAME"),
        }
    }
}

/// A collector.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// URL, with the path for HTTP.
    pub endpoint: Arc<str>,
    /// Transport.
    pub protocol: OtlpProtocol,
}

impl Destination {
    /// The one configured, else the one in the environment, else none.
    pub fn choose(otlp: Option<&Otlp>, environment: &Environment) -> Option<Self> {
        if let Some(Otlp { endpoint, protocol }) = otlp {
            return Some(Self { endpoint: with_path(endpoint, *protocol), protocol: *protocol });
        }
        let url = environment.traces_endpoint.as_ref().or(environment.endpoint.as_ref())?;
        let protocol = match environment.protocol.as_deref() {
            Some("grpc") => OtlpProtocol::Grpc,
            Some(_) => OtlpProtocol::Http,
            // The specification's default is HTTP, but a URL with gRPC's port means gRPC.
            None if url.parse::<Uri>().is_ok_and(|uri| uri.port_u16() == Some(4317)) => OtlpProtocol::Grpc,
            None => OtlpProtocol::Http,
        };
        let as_it_is = environment.traces_endpoint.is_some();
        Some(Self { endpoint: if as_it_is { url.as_str().into() } else { with_path(url, protocol) }, protocol })
    }

    /// As in `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub fn protocol_name(&self) -> &'static str {
        match self.protocol {
            OtlpProtocol::Grpc => "grpc",
            OtlpProtocol::Http => "http/protobuf",
        }
    }
}

/// OTLP/HTTP posts to `<base>/v1/traces`.
fn with_path(base: &str, protocol: OtlpProtocol) -> Arc<str> {
    let base = base.trim_end_matches('/');
    match protocol {
        OtlpProtocol::Http if !base.ends_with("/v1/traces") => format!("{base}/v1/traces").into(),
        _ => base.into(),
    }
}

/// Resource attributes of everything that this node exports. `OTEL_RESOURCE_ATTRIBUTES` adds to them.
pub(super) fn resource(environment: &Environment, node: &str) -> Resource {
    Resource::builder()
        .with_service_name(environment.service_name.clone().unwrap_or_else(|| "weft".to_owned()))
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", node.to_owned()),
            KeyValue::new("host.name", node.to_owned()),
        ])
        .build()
}
