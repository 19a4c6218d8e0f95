//! `Gateway` and `BackendTLSPolicy` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::meta::TargetRef;

/// `Gateway.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    /// Usually `weft`.
    #[schemars(required)]
    pub gateway_class_name: Option<String>,
    /// Where to listen; every address of the host when omitted.
    #[serde(default)]
    pub addresses: Vec<GatewayAddress>,
    /// What to listen for.
    #[schemars(required, length(min = 1, max = 64))]
    pub listeners: Option<Vec<Listener>>,
}

/// `Gateway.spec.addresses[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayAddress {
    /// `IPAddress` when omitted.
    #[serde(rename = "type")]
    pub kind: Option<AddressType>,
    /// An address of this host.
    #[schemars(required)]
    pub value: Option<String>,
}

/// `Gateway.spec.addresses[].type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum AddressType {
    IPAddress,
}

/// `Gateway.spec.listeners[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    /// Unique within the Gateway.
    #[schemars(required)]
    pub name: Option<String>,
    /// Restricts the hostnames served.
    pub hostname: Option<String>,
    /// TCP port.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What is spoken.
    #[schemars(required)]
    pub protocol: Option<Protocol>,
    /// Certificates, for HTTPS.
    pub tls: Option<ListenerTls>,
    /// Which routes may attach.
    pub allowed_routes: Option<AllowedRoutes>,
}

/// `Gateway.spec.listeners[].protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Protocol {
    HTTP,
    HTTPS,
    TCP,
}

/// `Gateway.spec.listeners[].tls`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ListenerTls {
    /// `Terminate` when omitted.
    pub mode: Option<TlsMode>,
    /// The first is used when no name matches.
    #[serde(default)]
    pub certificate_refs: Vec<CertificateRef>,
}

/// `Gateway.spec.listeners[].tls.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum TlsMode {
    Terminate,
}

/// A reference to key material: a core `Secret` or a `weft.dev` `Certificate`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateRef {
    /// The core group when omitted.
    pub group: Option<String>,
    /// `Secret` when omitted.
    pub kind: Option<String>,
    /// Name.
    #[schemars(required)]
    pub name: Option<String>,
    /// Namespace of the referring object when omitted.
    pub namespace: Option<String>,
}

/// `Gateway.spec.listeners[].allowedRoutes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AllowedRoutes {
    /// `Same` when omitted.
    pub namespaces: Option<RouteNamespaces>,
}

/// `Gateway.spec.listeners[].allowedRoutes.namespaces`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RouteNamespaces {
    /// `Same` when omitted.
    pub from: Option<FromNamespaces>,
}

/// `Gateway.spec.listeners[].allowedRoutes.namespaces.from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum FromNamespaces {
    Same,
    All,
}

/// `BackendTLSPolicy.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTlsPolicySpec {
    /// The Services.
    #[schemars(required, length(min = 1))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// What is checked.
    #[schemars(required)]
    pub validation: Option<BackendTlsValidation>,
}

/// `BackendTLSPolicy.spec.validation`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTlsValidation {
    /// CA bundles to trust: a ConfigMap, a Secret or a weft.dev Certificate.
    #[serde(default, rename = "caCertificateRefs")]
    pub ca_certificate_refs: Vec<CertificateRef>,
    /// Trust the CAs of the system instead.
    #[serde(rename = "wellKnownCACertificates")]
    pub well_known_ca_certificates: Option<WellKnownCa>,
    /// SNI, and the name that the certificate must carry.
    #[schemars(required)]
    pub hostname: Option<String>,
    /// Accepted instead of `hostname`.
    #[serde(default)]
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// `BackendTLSPolicy.spec.validation.wellKnownCACertificates`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum WellKnownCa {
    System,
}

/// `BackendTLSPolicy.spec.validation.subjectAltNames[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SubjectAltName {
    /// Which of the two follows.
    #[serde(rename = "type")]
    #[schemars(required)]
    pub kind: Option<SubjectAltNameType>,
    /// A DNS name.
    pub hostname: Option<String>,
    /// A URI, for instance a SPIFFE id.
    pub uri: Option<String>,
}

/// `BackendTLSPolicy.spec.validation.subjectAltNames[].type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum SubjectAltNameType {
    Hostname,
    URI,
}
