//! `Service` and `Workload` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `Service.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Virtual addresses that applications connect to.
    #[serde(default, rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// Whether captured connections need the proxy; `Auto` when omitted.
    pub mode: Option<ServiceMode>,
    /// Whether captured connections go straight to an endpoint while the proxy is down; false when omitted.
    pub fail_open: Option<bool>,
    /// At least one.
    #[schemars(required, length(min = 1))]
    pub ports: Option<Vec<ServicePort>>,
    /// Where it runs.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
}

/// `Service.spec.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceMode {
    /// Proxy for HTTP protocols, Direct for tcp.
    Auto,
    /// Always through the proxy.
    Proxy,
    /// Balanced in the kernel, never through the proxy.
    Direct,
}

/// `Service.spec.ports[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// Needed when there are several.
    pub name: Option<String>,
    /// The port that clients use.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What the endpoints speak; `http` when omitted, and then captured connections that carry something else pass too.
    pub app_protocol: Option<AppProtocol>,
}

/// `Service.spec.ports[].appProtocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// HTTP/1.1
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// HTTP/2 without TLS.
    H2c,
    /// gRPC over HTTP/2 without TLS.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// HTTP/2 without TLS, in Kubernetes' spelling.
    #[serde(rename = "kubernetes.io/h2c")]
    KubernetesH2c,
    /// HTTP/1.1 with WebSocket upgrades, in Kubernetes' spelling.
    #[serde(rename = "kubernetes.io/ws")]
    KubernetesWs,
}

/// `Service.spec.endpoints[]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// IP address, or a name to resolve.
    #[schemars(required)]
    pub address: Option<String>,
    /// Port on that address.
    #[schemars(required, range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Relative share; 1 when omitted, 0 for none.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<u32>,
    /// Zone, for zone-aware balancing.
    pub zone: Option<String>,
}

/// `Workload.spec`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// How its processes are found.
    #[schemars(required)]
    pub selector: Option<WorkloadSelector>,
    /// Last part of its SPIFFE id.
    pub service_account: Option<String>,
}

/// `Workload.spec.selector`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// cgroup2 path, relative to the attach point.
    #[schemars(required)]
    pub cgroup: Option<String>,
}
