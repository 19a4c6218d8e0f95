//! `envoy.extensions`: load balancing, retries, and HTTP towards upstreams.

use prost::{Message, Oneof};

use super::{AnyHttpOptions, Duration, Http2Options, LbPolicies};

/// `load_balancing_policies.common.v3.SlowStartConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct SlowStart {
    #[prost(message, optional, tag = "1")]
    pub slow_start_window: Option<Duration>,
}

/// `load_balancing_policies.common.v3.LocalityLbConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct LocalityLb {
    #[prost(message, optional, tag = "1")]
    pub zone_aware_lb_config: Option<()>,
}

/// `load_balancing_policies.least_request.v3.LeastRequest`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct LeastRequest {
    #[prost(message, optional, tag = "3")]
    pub slow_start_config: Option<SlowStart>,
    #[prost(message, optional, tag = "4")]
    pub locality_lb_config: Option<LocalityLb>,
}

/// `load_balancing_policies.round_robin.v3.RoundRobin`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RoundRobin {
    #[prost(message, optional, tag = "1")]
    pub slow_start_config: Option<SlowStart>,
    #[prost(message, optional, tag = "2")]
    pub locality_lb_config: Option<LocalityLb>,
}

/// `load_balancing_policies.random.v3.Random`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Random {
    #[prost(message, optional, tag = "1")]
    pub locality_lb_config: Option<LocalityLb>,
}

/// `load_balancing_policies.maglev.v3.Maglev`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Maglev {}

/// `load_balancing_policies.ring_hash.v3.RingHash`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct RingHash {
    /// 1 is xxHash, the only one that gRPC knows.
    #[prost(int32, tag = "1")]
    pub hash_function: i32,
}

/// `load_balancing_policies.wrr_locality.v3.WrrLocality`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct WrrLocality {
    #[prost(message, optional, tag = "1")]
    pub endpoint_picking_policy: Option<LbPolicies>,
}

/// `retry.host.previous_hosts.v3.PreviousHostsPredicate`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct PreviousHosts {}

/// `upstreams.http.v3.HttpProtocolOptions`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct UpstreamHttp {
    #[prost(message, optional, tag = "1")]
    pub common_http_protocol_options: Option<AnyHttpOptions>,
    #[prost(message, optional, tag = "3")]
    pub explicit_http_config: Option<ExplicitHttp>,
}

/// `upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct ExplicitHttp {
    #[prost(oneof = "HttpVersion", tags = "1, 2")]
    pub version: Option<HttpVersion>,
}

/// Which HTTP an upstream speaks.
#[derive(Clone, PartialEq, Oneof)]
pub(in crate::envoy) enum HttpVersion {
    #[prost(message, tag = "1")]
    Http1(()),
    #[prost(message, tag = "2")]
    Http2(Http2Options),
}
