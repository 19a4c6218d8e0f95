//! `envoy.config.endpoint.v3`

use prost::Message;
use weft_wire::discovery::Locality;

use super::Address;

/// `ClusterLoadAssignment`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct ClusterLoadAssignment {
    #[prost(string, tag = "1")]
    pub cluster_name: String,
    #[prost(message, repeated, tag = "2")]
    pub endpoints: Vec<LocalityEndpoints>,
}

/// `LocalityLbEndpoints`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct LocalityEndpoints {
    #[prost(message, optional, tag = "1")]
    pub locality: Option<Locality>,
    #[prost(message, repeated, tag = "2")]
    pub endpoints: Vec<LbEndpoint>,
    #[prost(message, optional, tag = "3")]
    pub load_balancing_weight: Option<u32>,
}

/// `LbEndpoint`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct LbEndpoint {
    #[prost(message, optional, tag = "1")]
    pub endpoint: Option<Endpoint>,
    #[prost(message, optional, tag = "4")]
    pub load_balancing_weight: Option<u32>,
}

/// `Endpoint`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Endpoint {
    #[prost(message, optional, tag = "1")]
    pub address: Option<Address>,
}
