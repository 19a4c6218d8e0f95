//! `envoy.config.listener.v3`

use prost::Message;
use weft_wire::discovery::Any;

use super::{Address, TransportSocket};

/// `Listener`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Listener {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub address: Option<Address>,
    #[prost(message, repeated, tag = "3")]
    pub filter_chains: Vec<FilterChain>,
    #[prost(message, repeated, tag = "9")]
    pub listener_filters: Vec<ListenerFilter>,
    #[prost(message, optional, tag = "19")]
    pub api_listener: Option<ApiListener>,
}

/// `FilterChain`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct FilterChain {
    #[prost(message, optional, tag = "1")]
    pub filter_chain_match: Option<FilterChainMatch>,
    #[prost(message, repeated, tag = "3")]
    pub filters: Vec<Filter>,
    #[prost(message, optional, tag = "6")]
    pub transport_socket: Option<TransportSocket>,
    #[prost(string, tag = "7")]
    pub name: String,
}

/// `FilterChainMatch`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct FilterChainMatch {
    #[prost(string, repeated, tag = "11")]
    pub server_names: Vec<String>,
}

/// `Filter`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct Filter {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "4")]
    pub typed_config: Option<Any>,
}

/// `ListenerFilter` has its configuration under another number.
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct ListenerFilter {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "3")]
    pub typed_config: Option<Any>,
}

/// `ApiListener`
#[derive(Clone, PartialEq, Message)]
pub(in crate::envoy) struct ApiListener {
    #[prost(message, optional, tag = "1")]
    pub api_listener: Option<Any>,
}
