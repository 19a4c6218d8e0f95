//! `AccessPolicy`, `TelemetryPolicy` and key material as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::meta::{Metadata, TargetRef};

/// `AccessPolicy.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessPolicySpec {
    /// The Services that it protects.
    #[schemars(required, length(min = 1))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// What happens to matching sources; `Allow` (and refuse the others) when omitted.
    pub action: Option<AccessAction>,
    /// Any of these may match. None: nobody matches.
    #[serde(default)]
    pub rules: Vec<AccessRule>,
}

/// `AccessPolicy.spec.action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AccessAction {
    /// Matching sources are let in, everybody else is refused.
    Allow,
    /// Matching sources are refused.
    Deny,
}

/// `AccessPolicy.spec.rules[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessRule {
    /// Any of these may match.
    #[schemars(required, length(min = 1))]
    pub from: Option<Vec<AccessSource>>,
}

/// `AccessPolicy.spec.rules[].from[]`: everything given must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessSource {
    /// Names of Workloads.
    #[serde(default)]
    pub workloads: Vec<String>,
    /// Addresses or prefixes.
    #[serde(default)]
    pub ip_blocks: Vec<String>,
    /// SPIFFE ids.
    #[serde(default)]
    pub identities: Vec<String>,
}

/// `TelemetryPolicy.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetryPolicySpec {
    /// Tracing; off when omitted.
    pub tracing: Option<Tracing>,
    /// Access log; off when omitted.
    pub access_log: Option<AccessLog>,
}

/// `TelemetryPolicy.spec.tracing`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// Share of the requests that arrive without a decision, 0–100; 100 when omitted.
    #[schemars(range(min = 0, max = 100))]
    pub sample_percent: Option<f64>,
    /// Where spans go; they stay on the node when omitted.
    pub otlp: Option<Otlp>,
}

/// `TelemetryPolicy.spec.tracing.otlp`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Otlp {
    /// `http://host:port`
    #[schemars(required)]
    pub endpoint: Option<String>,
    /// `grpc` when omitted.
    pub protocol: Option<OtlpProtocol>,
}

/// `TelemetryPolicy.spec.tracing.otlp.protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OtlpProtocol {
    Grpc,
    Http,
}

/// `TelemetryPolicy.spec.accessLog`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLog {
    /// `json` when omitted.
    pub format: Option<LogFormat>,
    /// Which requests are logged, for instance `status >= 500 || duration > 1s`; all when omitted.
    pub when: Option<String>,
}

/// `TelemetryPolicy.spec.accessLog.format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogFormat {
    Json,
    Text,
}

/// `Certificate.spec`: files, relative to the directory of the document, read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateSpec {
    /// Certificate chain, PEM, leaf first.
    pub cert_file: Option<String>,
    /// Private key, PEM.
    pub key_file: Option<String>,
    /// CA bundle, PEM.
    pub ca_file: Option<String>,
}

/// A core `Secret` of type `kubernetes.io/tls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Secret {
    /// `v1`
    #[schemars(required)]
    pub api_version: Option<String>,
    /// `Secret`
    #[schemars(required)]
    pub kind: Option<String>,
    /// Name and namespace.
    #[schemars(required)]
    pub metadata: Option<Metadata>,
    /// `kubernetes.io/tls`
    #[serde(rename = "type")]
    pub secret_type: Option<String>,
    /// Base64: `tls.crt`, `tls.key`, `ca.crt`.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Plain text: `tls.crt`, `tls.key`, `ca.crt`.
    #[serde(default)]
    pub string_data: BTreeMap<String, String>,
    /// Ignored.
    pub immutable: Option<bool>,
}

/// A core `ConfigMap` with a CA bundle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConfigMap {
    /// `v1`
    #[schemars(required)]
    pub api_version: Option<String>,
    /// `ConfigMap`
    #[schemars(required)]
    pub kind: Option<String>,
    /// Name and namespace.
    #[schemars(required)]
    pub metadata: Option<Metadata>,
    /// `ca.crt`
    #[serde(default)]
    pub data: BTreeMap<String, String>,
    /// Ignored.
    pub immutable: Option<bool>,
}
