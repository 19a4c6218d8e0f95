//! The configuration as written: one struct per mapping of a document, nothing checked but names and types.
//!
//! The JSON Schema of these types is what documents are checked against before they are read, and what editors use. A
//! field that the schema marks as required is still an `Option` here: its absence has been reported by then, and the
//! other fields are looked at all the same.

pub mod gateway;
pub mod meta;
pub mod policy;
pub mod route;
pub mod scalar;
pub mod security;
pub mod service;

pub use gateway::*;
pub use meta::*;
pub use policy::*;
pub use route::*;
pub use scalar::*;
pub use security::*;
pub use service::*;

/// The kinds of documents that Weft reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Gateway,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    BackendTlsPolicy,
    Service,
    TrafficPolicy,
    AccessPolicy,
    TelemetryPolicy,
    Workload,
    Certificate,
    Secret,
    ConfigMap,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 13] = [
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::BackendTlsPolicy,
        Self::Service,
        Self::TrafficPolicy,
        Self::AccessPolicy,
        Self::TelemetryPolicy,
        Self::Workload,
        Self::Certificate,
        Self::Secret,
        Self::ConfigMap,
    ];

    /// `kind` as written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::Service => "Service",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AccessPolicy => "AccessPolicy",
            Self::TelemetryPolicy => "TelemetryPolicy",
            Self::Workload => "Workload",
            Self::Certificate => "Certificate",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    /// `a Gateway`, `an HTTPRoute`.
    pub(crate) fn with_article(self) -> String {
        let an = matches!(self, Self::HttpRoute | Self::AccessPolicy);
        format!("{} {}", if an { "an" } else { "a" }, self.name())
    }

    /// The API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Gateway | Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::BackendTlsPolicy => GATEWAY_API,
            Self::Secret | Self::ConfigMap => "",
            _ => WEFT,
        }
    }

    /// The values of `apiVersion` that are read; the first is the usual one.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Gateway | Self::HttpRoute | Self::GrpcRoute => &["gateway.networking.k8s.io/v1"],
            Self::TcpRoute => &["gateway.networking.k8s.io/v1alpha2", "gateway.networking.k8s.io/v1"],
            Self::BackendTlsPolicy => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha3"],
            Self::Secret | Self::ConfigMap => &["v1"],
            _ => &["weft.dev/v1alpha1"],
        }
    }

    /// The kind called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Group of the Gateway API.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// Group of Weft's own kinds.
pub const WEFT: &str = "weft.dev";
