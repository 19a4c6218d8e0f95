//! The part of Envoy's v3 messages that Weft fills in. Field numbers are Envoy's; fields that Weft leaves alone are not
//! there, which is the same on the wire.
//!
//! Written as structs for the reason that `weft_wire` gives. `Option<u32>`, `Option<bool>` and `Option<()>` as messages
//! are protobuf's `UInt32Value`, `BoolValue` and messages without fields.

mod cluster;
mod core;
mod endpoint;
mod extensions;
mod http;
mod listener;
mod route;
mod tls;

pub(super) use self::{cluster::*, core::*, endpoint::*, extensions::*, http::*, listener::*, route::*, tls::*};
use weft_wire::{discovery::Any, prost::Message};

/// A message that may stand in an `Any`.
pub(super) trait Typed: Message + Default {
    /// Its full name.
    const NAME: &str;

    /// `type.googleapis.com/` and its name.
    fn type_url() -> String {
        format!("type.googleapis.com/{}", Self::NAME)
    }

    /// Packed.
    fn any(&self) -> Any {
        Any::of(&Self::type_url(), self)
    }
}

macro_rules! typed {
    ($($message:ty = $name:literal),* $(,)?) => {$(
        impl Typed for $message {
            const NAME: &str = $name;
        }
    )*};
}

typed! {
    Cluster = "envoy.config.cluster.v3.Cluster",
    ClusterLoadAssignment = "envoy.config.endpoint.v3.ClusterLoadAssignment",
    Listener = "envoy.config.listener.v3.Listener",
    RouteConfiguration = "envoy.config.route.v3.RouteConfiguration",
    HttpConnectionManager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    TcpProxy = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
    Router = "envoy.extensions.filters.http.router.v3.Router",
    TlsInspector = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    UpstreamHttp = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    PreviousHosts = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    DownstreamTlsContext = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    UpstreamTlsContext = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    LeastRequest = "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
    RoundRobin = "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
    Random = "envoy.extensions.load_balancing_policies.random.v3.Random",
    Maglev = "envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
    RingHash = "envoy.extensions.load_balancing_policies.ring_hash.v3.RingHash",
    WrrLocality = "envoy.extensions.load_balancing_policies.wrr_locality.v3.WrrLocality",
}
