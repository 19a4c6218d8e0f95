//! `envoy.extensions.filters`: HTTP and TCP over a listener's connections.

use prost::{Message, Oneof};
use weft_wire::discovery::Any;

use super::{ConfigSource, Duration};

/// `network.http_connection_manager.v3.HttpConnectionManager`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HttpConnectionManager {
    #[prost(string, tag = "2")]
    pub stat_prefix: String,
    #[prost(message, optional, tag = "3")]
    pub rds: Option<Rds>,
    #[prost(message, repeated, tag = "5")]
    pub http_filters: Vec<HttpFilter>,
    #[prost(message, optional, tag = "14")]
    pub use_remote_address: Option<bool>,
    #[prost(message, repeated, tag = "23")]
    pub upgrade_configs: Vec<Upgrade>,
    #[prost(message, optional, tag = "30")]
    pub normalize_path: Option<bool>,
    /// 2: what the upstream says stays.
    #[prost(int32, tag = "34")]
    pub server_header_transformation: i32,
    #[prost(bool, tag = "47")]
    pub strip_trailing_host_dot: bool,
}

/// `Rds`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Rds {
    #[prost(message, optional, tag = "1")]
    pub config_source: Option<ConfigSource>,
    #[prost(string, tag = "2")]
    pub route_config_name: String,
}

/// `HttpFilter`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct HttpFilter {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "4")]
    pub typed_config: Option<Any>,
}

/// `HttpConnectionManager.UpgradeConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Upgrade {
    #[prost(string, tag = "1")]
    pub upgrade_type: String,
}

/// `http.router.v3.Router`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Router {}

/// `listener.tls_inspector.v3.TlsInspector`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TlsInspector {}

/// `network.tcp_proxy.v3.TcpProxy`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TcpProxy {
    #[prost(string, tag = "1")]
    pub stat_prefix: String,
    #[prost(message, optional, tag = "8")]
    pub idle_timeout: Option<Duration>,
    #[prost(message, repeated, tag = "11")]
    pub hash_policy: Vec<TcpHash>,
    #[prost(oneof = "TcpTarget", tags = "2, 10")]
    pub target: Option<TcpTarget>,
}

/// Where connections go.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum TcpTarget {
    #[prost(string, tag = "2")]
    Cluster(String),
    #[prost(message, tag = "10")]
    Weighted(TcpWeighted),
}

/// `TcpProxy.WeightedCluster`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TcpWeighted {
    #[prost(message, repeated, tag = "1")]
    pub clusters: Vec<TcpShare>,
}

/// `TcpProxy.WeightedCluster.ClusterWeight`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TcpShare {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(uint32, tag = "2")]
    pub weight: u32,
}

/// `envoy.type.v3.HashPolicy`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct TcpHash {
    #[prost(message, optional, tag = "1")]
    pub source_ip: Option<()>,
}
