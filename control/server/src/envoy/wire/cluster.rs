//! `envoy.config.cluster.v3`

use std::collections::BTreeMap;

use prost::Message;
use weft_wire::discovery::Any;

use super::{ClusterLoadAssignment, ConfigSource, Duration, Extension, HealthCheck, Percent, TransportSocket};

/// `Cluster`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Cluster {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(enumeration = "Discovery", tag = "2")]
    pub discovery: i32,
    #[prost(message, optional, tag = "3")]
    pub eds_cluster_config: Option<EdsConfig>,
    #[prost(message, optional, tag = "4")]
    pub connect_timeout: Option<Duration>,
    #[prost(message, repeated, tag = "8")]
    pub health_checks: Vec<HealthCheck>,
    #[prost(message, optional, tag = "10")]
    pub circuit_breakers: Option<CircuitBreakers>,
    #[prost(enumeration = "DnsFamily", tag = "17")]
    pub dns_lookup_family: i32,
    #[prost(message, optional, tag = "19")]
    pub outlier_detection: Option<OutlierDetection>,
    #[prost(message, optional, tag = "24")]
    pub transport_socket: Option<TransportSocket>,
    #[prost(message, optional, tag = "27")]
    pub common_lb_config: Option<CommonLb>,
    #[prost(bool, tag = "32")]
    pub ignore_health_on_host_removal: bool,
    #[prost(message, optional, tag = "33")]
    pub load_assignment: Option<ClusterLoadAssignment>,
    #[prost(btree_map = "string, message", tag = "36")]
    pub typed_extension_protocol_options: BTreeMap<String, Any>,
    #[prost(message, optional, tag = "41")]
    pub load_balancing_policy: Option<LbPolicies>,
}

/// `Cluster.DiscoveryType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(in crate::envoy) enum Discovery {
    Static = 0,
    StrictDns = 1,
    Eds = 3,
}

/// `Cluster.DnsLookupFamily`
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(in crate::envoy) enum DnsFamily {
    Auto = 0,
    V4Preferred = 3,
}

/// `Cluster.EdsClusterConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct EdsConfig {
    #[prost(message, optional, tag = "1")]
    pub eds_config: Option<ConfigSource>,
}

/// `Cluster.CommonLbConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct CommonLb {
    #[prost(message, optional, tag = "1")]
    pub healthy_panic_threshold: Option<Percent>,
}

/// `CircuitBreakers`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct CircuitBreakers {
    #[prost(message, repeated, tag = "1")]
    pub thresholds: Vec<Thresholds>,
}

/// `CircuitBreakers.Thresholds`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Thresholds {
    #[prost(message, optional, tag = "2")]
    pub max_connections: Option<u32>,
    #[prost(message, optional, tag = "3")]
    pub max_pending_requests: Option<u32>,
    #[prost(message, optional, tag = "4")]
    pub max_requests: Option<u32>,
    #[prost(message, optional, tag = "5")]
    pub max_retries: Option<u32>,
    #[prost(message, optional, tag = "8")]
    pub retry_budget: Option<RetryBudget>,
}

/// `CircuitBreakers.Thresholds.RetryBudget`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RetryBudget {
    #[prost(message, optional, tag = "1")]
    pub budget_percent: Option<Percent>,
    #[prost(message, optional, tag = "2")]
    pub min_retry_concurrency: Option<u32>,
    #[prost(message, optional, tag = "3")]
    pub budget_interval: Option<Duration>,
}

/// `OutlierDetection`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct OutlierDetection {
    #[prost(message, optional, tag = "1")]
    pub consecutive_5xx: Option<u32>,
    #[prost(message, optional, tag = "2")]
    pub interval: Option<Duration>,
    #[prost(message, optional, tag = "3")]
    pub base_ejection_time: Option<Duration>,
    #[prost(message, optional, tag = "4")]
    pub max_ejection_percent: Option<u32>,
    #[prost(message, optional, tag = "5")]
    pub enforcing_consecutive_5xx: Option<u32>,
    #[prost(message, optional, tag = "6")]
    pub enforcing_success_rate: Option<u32>,
    #[prost(message, optional, tag = "16")]
    pub failure_percentage_threshold: Option<u32>,
    #[prost(message, optional, tag = "17")]
    pub enforcing_failure_percentage: Option<u32>,
    #[prost(message, optional, tag = "19")]
    pub failure_percentage_minimum_hosts: Option<u32>,
    #[prost(message, optional, tag = "20")]
    pub failure_percentage_request_volume: Option<u32>,
    #[prost(message, optional, tag = "21")]
    pub max_ejection_time: Option<Duration>,
}

/// `LoadBalancingPolicy`: the first that the client knows counts.
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct LbPolicies {
    #[prost(message, repeated, tag = "1")]
    pub policies: Vec<LbPolicy>,
}

/// `LoadBalancingPolicy.Policy`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct LbPolicy {
    #[prost(message, optional, tag = "4")]
    pub typed_extension_config: Option<Extension>,
}
