//! The routing state that workers read: one immutable value, compiled from the model, swapped as a whole.
//!
//! Live state (requests in flight, latency, health) belongs to the endpoints and services in it, which a new snapshot
//! takes over from the one before.

pub mod compile;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use weft_model::config::{AppProtocol, Config, HttpRoute, HttpRule, Key, Policy, RouteKind};

use crate::{
    balance::{Balancer, EndpointSet},
    endpoint::{Endpoint, InFlight},
    identity::{client::ClientTls, server::ServerIdentity},
    route::{
        RouteTable,
        hosts::Listeners,
        rewrite::{CompiledModifier, CompiledRedirect, PathRewrite},
        weighted::Weighted,
    },
    telemetry::metrics::Slot,
};

/// A socket address that Weft listens on; the same in every snapshot that has it.
pub type PortId = SocketAddr;

/// Everything that workers need to route.
#[derive(Debug)]
pub struct Snapshot {
    /// +1 with every accepted configuration.
    pub revision: u64,
    /// What it was compiled from.
    pub config: Arc<Config>,
    /// Sorted by id.
    pub ports: Vec<Port>,
    /// Rules of all HTTP routes; route tables hold indexes into it.
    pub rules: Vec<Rule>,
    /// By service and port.
    pub services: HashMap<(Key, u16), Arc<Service>>,
    /// What rules send to; here for the next snapshot.
    pub upstreams: HashMap<UpstreamId, Arc<Upstream>>,
}

/// Service, port, and the route whose own policy counts, if it has one.
pub type UpstreamId = (Key, u16, Option<(RouteKind, Key)>);

impl Snapshot {
    /// The state before any configuration.
    pub fn empty() -> Self {
        Self {
            revision: 0,
            config: Arc::default(),
            ports: Vec::new(),
            rules: Vec::new(),
            services: HashMap::new(),
            upstreams: HashMap::new(),
        }
    }

    /// The port with this id. There are few, so a linear search beats hashing.
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.iter().find(|port| port.id == id)
    }

    /// What [`Self::rules`] were written as, one by one: route, number of the rule in it, rule.
    pub fn written(&self) -> impl Iterator<Item = (&HttpRoute, usize, &HttpRule)> {
        let routes = self.config.http_routes.iter();
        routes.flat_map(|route| route.rules.iter().enumerate().map(move |(number, rule)| (route, number, rule)))
    }
}

/// One bound port.
#[derive(Debug)]
pub struct Port {
    /// Where.
    pub id: PortId,
    /// What for.
    pub kind: PortKind,
}

/// What a port serves.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a handful of ports")]
pub enum PortKind {
    /// HTTP/1.1 and HTTP/2, over TLS if there is an identity.
    Http {
        /// The most specific listener for a host, and its routes.
        listeners: Listeners<RouteTable<u32>>,
        /// Terminates TLS.
        tls: Option<Arc<ServerIdentity>>,
    },
    /// Opaque bytes. `None` when no TCPRoute is attached.
    Tcp(Option<TcpTarget>),
}

/// Where the connections of a TCP listener go.
#[derive(Debug)]
pub struct TcpTarget {
    /// Name of the TCPRoute.
    pub route: Arc<str>,
    /// Weighted.
    pub backends: Weighted<Target>,
}

/// A rule of an HTTPRoute or GRPCRoute, ready to use.
#[derive(Debug)]
pub struct Rule {
    /// Name of the route.
    pub route: Arc<str>,
    /// `name` of the rule, or its number.
    pub name: Arc<str>,
    /// What spans call `http.route`: the path of the rule's first match.
    pub template: Arc<str>,
    /// RequestHeaderModifier.
    pub request_headers: Option<CompiledModifier>,
    /// ResponseHeaderModifier.
    pub response_headers: Option<CompiledModifier>,
    /// RequestRedirect: answered here.
    pub redirect: Option<CompiledRedirect>,
    /// URLRewrite.
    pub rewrite: Option<Rewrite>,
    /// RequestMirror.
    pub mirrors: Vec<Mirror>,
    /// Where requests go.
    pub backends: Weighted<Target>,
    /// For requests of this rule that reach no service.
    pub slot: Arc<Slot>,
}

/// URLRewrite, compiled.
#[derive(Debug)]
pub struct Rewrite {
    /// New authority.
    pub host: Option<http::uri::Authority>,
    /// New path.
    pub path: Option<PathRewrite>,
}

/// RequestMirror, compiled.
#[derive(Debug)]
pub struct Mirror {
    /// Where copies go.
    pub upstream: Arc<Upstream>,
    /// Which share of the requests.
    pub numerator: u32,
    /// Never 0.
    pub denominator: u32,
}

/// One backend of a rule.
#[derive(Debug)]
pub struct Target {
    /// Name of the service, as labels have it.
    pub service: Arc<str>,
    /// `None` when the service or the port does not exist.
    pub upstream: Option<Arc<Upstream>>,
    /// Filters of the backendRef.
    pub request_headers: Option<CompiledModifier>,
    /// Filters of the backendRef.
    pub response_headers: Option<CompiledModifier>,
    /// Time-outs in force for this rule and backend.
    pub deadlines: Deadlines,
    /// Metric series of this rule and service.
    pub slot: Arc<Slot>,
}

/// Time-outs of a request.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// The whole exchange if it was asked for, otherwise (`whole` is false) from the end of the request to the
    /// response's head.
    pub request: Option<Duration>,
    /// Whether `request` covers the response's body too. Only a time-out that somebody wrote does: the default must not
    /// cut a long download or stream.
    pub whole: bool,
    /// One attempt, to the response's head.
    pub attempt: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
}

/// A service's port under a policy: what a request is sent to.
#[derive(Debug)]
pub struct Upstream {
    /// Shared by all routes to it.
    pub service: Arc<Service>,
    /// The policy in force, a route's own one included.
    pub policy: Policy,
    /// What the endpoints speak.
    pub protocol: AppProtocol,
    /// TLS to them.
    pub tls: Option<Arc<ClientTls>>,
    /// Picks one.
    pub balancer: Balancer,
}

impl Upstream {
    /// Whether the endpoints are spoken to in HTTP/2.
    pub const fn is_h2(&self) -> bool {
        matches!(self.protocol, AppProtocol::Http2 | AppProtocol::Grpc)
    }
}

/// Live state of one port of a service.
#[derive(Debug)]
pub struct Service {
    /// Identity.
    pub key: Key,
    /// Its port.
    pub port: u16,
    /// As labels have it.
    pub name: Arc<str>,
    /// What the endpoints speak.
    pub protocol: AppProtocol,
    /// The service's own policy.
    pub policy: Policy,
    /// All endpoints.
    pub endpoints: Arc<EndpointSet>,
    /// How many of them cannot be used.
    pub unusable: Arc<AtomicU32>,
    /// Requests in flight.
    pub in_flight: Arc<InFlight>,
    /// When it was first seen.
    pub since: Instant,
    /// The endpoints by address, for the next snapshot.
    by_address: HashMap<SocketAddr, Arc<Endpoint>>,
    /// TLS to the endpoints.
    tls: Option<Arc<ClientTls>>,
}

impl Service {
    /// The endpoints, in the order of the configuration.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        self.endpoints.endpoints()
    }

    /// TLS to the endpoints.
    pub fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.tls.as_ref()
    }
}
