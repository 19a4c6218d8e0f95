//! Envoy's own resources, made of the same state that Weft's nodes get: an unmodified Envoy, and gRPC's xDS client, are
//! clients too.
//!
//! ```text
//!  Config ──▶ clusters.rs ──┬─ balancing.rs          Cluster                 NAMESPACE/SERVICE:PORT
//!             endpoints.rs  │                         ClusterLoadAssignment   NAMESPACE/SERVICE:PORT
//!             listeners.rs ─┼─ tls.rs                Listener                gateway/ADDRESS:PORT
//!             routes.rs ────┼─ hosts.rs, order.rs    RouteConfiguration      gateway/ADDRESS:PORT[/GATEWAY/LISTENER]
//!             targets.rs ───┘─ matching.rs, action.rs, retry.rs
//!                              for gRPC's client: Listener NAME[.NAMESPACE][:PORT], RouteConfiguration service/…
//! ```
//!
//! All of this is a pure function of the configuration: the same on every member, byte for byte. That is why a version is a
//! hash of the content, and why a client that moves to another member is sent nothing again. `mesh.rs` does it for what is
//! stored, change by change; `producer.rs` follows the store and hands the result to the push, while somebody asks for it.
//!
//! # What becomes of what
//! - A service is one cluster for each of its ports, over EDS. If one of its endpoints is a name it is a `STRICT_DNS`
//!   cluster instead, which Envoy resolves every 5 s; gRPC's client does not know that sort, so it cannot reach such a service.
//! - An endpoint that drains, or has no weight, is left out of the assignment: as `DRAINING` Envoy would still send it
//!   requests once all of a service's endpoints drain, and gRPC leaves it out in any case. What is in flight is finished.
//! - A Gateway's listeners that share an address and a port are one Envoy listener, whose virtual hosts keep to Gateway
//!   API's order and its isolation of listeners.
//! - For gRPC's client every HTTP port of a service is a target: `xds:///web:80`, `xds:///web.default:80`, and without the
//!   port when the service has only one; without the namespace in `default`. HTTPRoutes and GRPCRoutes bound to the
//!   service decide, as they do for captured connections. These listeners are handed out when they are asked for by name.
//!
//! # What is not handed on
//! - Services that an AccessPolicy protects, listeners whose private key is not in a file, and services with TLS that
//!   cannot be verified from files are **left out**, with the reason in the log: without them they would be open.
//! - Rate limits, adaptive concurrency, hedging, faults, priorities, slow calls and the kernel's signals of a breaker,
//!   `halfOpenRequests`, `maxBodyBytes`, deadlines of clients, tracing and access logs are for Weft's nodes only. So is a
//!   gRPC health check of an upstream that speaks HTTP/1.1.
//! - Load balancer, pool, breaker and health check are those of the service's own TrafficPolicy; a route's own decides
//!   about time-outs, retries and what is hashed. With several backends the first one's policy decides for the rule.
//! - Where nobody wrote a time-out, Weft waits 15 s for the head of a response; Envoy can only limit the whole of it,
//!   which would end streams, so it does not limit it.
//! - PeakEWMA is Envoy's least request. gRPC's client knows round robin, by zone, and ring hash, and takes the nearer of
//!   them. It cannot express redirects, rewrites, header modifications, mirrors, and TLS towards upstreams.
//! - A method that no route serves is a 404 and not a 405; retries are limited by what is in flight and not by a rate;
//!   a client's `x-forwarded-for` is added to, and not replaced.

mod action;
mod balancing;
mod clusters;
mod endpoints;
mod hosts;
mod listeners;
mod matching;
mod mesh;
mod names;
mod order;
pub(crate) mod producer;
mod retry;
mod routes;
mod targets;
mod tls;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use weft_model::config::{Config, Key, Service};

use wire::Typed;

/// Which of Envoy's resources, in the order in which Envoy wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// `Cluster`, CDS.
    Cluster,
    /// `ClusterLoadAssignment`, EDS.
    Assignment,
    /// `Listener`, LDS.
    Listener,
    /// `RouteConfiguration`, RDS.
    Routes,
}

impl Kind {
    /// The type that a client asks for.
    pub(crate) const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Assignment => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }
}

/// A resource as a client gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resource {
    /// The message.
    pub body: Bytes,
    /// Belongs to "all there are"; otherwise it is sent to those who ask for it by name.
    pub listed: bool,
}

impl Resource {
    fn listed(message: &impl Typed) -> Self {
        Self { body: message.encode_to_vec().into(), listed: true }
    }

    fn by_name(message: &impl Typed) -> Self {
        Self { listed: false, ..Self::listed(message) }
    }

    /// Its version: the same wherever it has the same content.
    pub(crate) fn version(&self) -> String {
        format!("{:016x}", twox_hash::XxHash64::oneshot(0, &self.body))
    }
}

/// Something that is not handed out, because handing it out in part would be worse.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeftOut {
    /// What.
    pub what: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// Everything that a configuration comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Built {
    /// By kind and name.
    pub resources: BTreeMap<(Kind, String), Resource>,
    /// What is not among them.
    pub left_out: Vec<LeftOut>,
}

impl Built {
    fn leave_out(&mut self, what: String, why: impl Into<String>) {
        self.left_out.push(LeftOut { what, why: why.into() });
    }
}

/// Makes everything of a configuration whose services have their registered endpoints.
pub(crate) fn build(config: &Config) -> Built {
    let world = World::new(config);
    let mut built = Built::default();
    for service in &config.services {
        clusters::build(&world, service, &mut built);
        for (name, assignment) in assignments(service) {
            if built.resources.contains_key(&(Kind::Cluster, name.clone())) {
                built.resources.insert((Kind::Assignment, name), assignment);
            }
        }
    }
    listeners::build(&world, &mut built);
    targets::build(&world, &mut built);
    built.left_out.sort();
    built
}

/// The load assignments of a service, by name; none when Envoy resolves its endpoints itself.
pub(crate) fn assignments(service: &Service) -> Vec<(String, Resource)> {
    if endpoints::by_name(service) {
        return Vec::new();
    }
    let endpoints = endpoints::localities(service);
    let assignment = |port: u16| {
        let name = names::cluster(&service.key, port);
        let assignment = wire::ClusterLoadAssignment { cluster_name: name.clone(), endpoints: endpoints.clone() };
        (name, Resource::listed(&assignment))
    };
    service.ports.iter().map(|port| assignment(port.port)).collect()
}

/// Whether a change of its endpoints changes more of a service than its load assignments.
pub(crate) fn resolved_by_clients(service: &Service) -> bool {
    endpoints::by_name(service)
}

/// A configuration, with what is looked up often.
struct World<'c> {
    config: &'c Config,
    protected: HashSet<&'c Key>,
}

impl<'c> World<'c> {
    fn new(config: &'c Config) -> Self {
        Self { config, protected: config.access_policies.iter().flat_map(|policy| &policy.services).collect() }
    }
}
