//! The routing state that workers read: one immutable value, compiled from the model, swapped as a whole.
//!
//! Live state (requests in flight, latency, health) belongs to the endpoints and services in it, which a new snapshot
//! takes over from the one before.

pub mod common;
pub mod compile;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_model::config::{
    self, AppProtocol, Config, HedgeAfter, HttpRoute, HttpRule, Key, Policy, PolicyTarget, RouteKind,
};

use common::Common;

use crate::{
    balance::{Balancer, EndpointSet},
    endpoint::{Endpoint, InFlight},
    identity::{client::ClientTls, server::ServerIdentity},
    layer::{access::Access, fault::Fault, hedge::Plan},
    resilience::{
        budget::SharedBudget,
        circuit::Circuit,
        concurrency::SharedGradient,
        limiter::{CircuitView, RateLimits},
        quantile::{HedgeDelay, Latencies},
        retry::RetryPlan,
    },
    route::{
        RouteTable,
        hosts::Listeners,
        rewrite::{CompiledModifier, CompiledRedirect, PathRewrite},
        weighted::Weighted,
    },
    telemetry::metrics::Slot,
    upstream::places::Places,
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
    /// Sorted by id. Shared with the snapshots before it that differ in endpoints only.
    pub ports: Arc<[Port]>,
    /// What captured connections ask for, by the address that they were made to. All addresses of a service's port share
    /// one value.
    pub virtual_ports: foldhash::HashMap<PortId, Arc<VirtualPort>>,
    /// SPIFFE ids of workloads, by the workload's name.
    pub identities: HashMap<Arc<str>, Arc<str>>,
    /// Rules of all HTTP routes; route tables hold indexes into it.
    pub rules: Vec<Rule>,
    /// By service and port.
    pub services: HashMap<(Key, u16), Arc<Service>>,
    /// What rules send to; here for the next snapshot.
    pub upstreams: HashMap<UpstreamId, Arc<Upstream>>,
    /// Rate limits in force, by whose budget it is.
    pub limits: HashMap<PolicyTarget, Arc<RateLimits>>,
}

/// Service, port, and the route whose own policy counts, if it has one.
pub type UpstreamId = (Key, u16, Option<(RouteKind, Key)>);

impl Snapshot {
    /// The state before any configuration.
    pub fn empty() -> Self {
        Self {
            revision: 0,
            config: Arc::default(),
            ports: Arc::default(),
            virtual_ports: foldhash::HashMap::default(),
            identities: HashMap::new(),
            rules: Vec::new(),
            services: HashMap::new(),
            upstreams: HashMap::new(),
            limits: HashMap::new(),
        }
    }

    /// Puts in force what belongs to live state: weights, idle time-outs, policies of breakers, budgets and limits. Not
    /// part of compiling, because what was compiled may still be refused.
    /// Endpoints that are gone are to be marked as removed before: they would count among the others. Services that were
    /// taken over from `previous` as they are need nothing.
    pub fn enforce(&self, previous: &Self, now: Instant) {
        for service in
            self.services.iter().filter(|(id, service)| !previous.has(id, service)).map(|(_, service)| service)
        {
            service.budget.configure(&service.common.retry_budget(), now);
            if let (Some(policy), Some(gradient)) = (&service.common.concurrency, &service.concurrency) {
                gradient.configure(policy);
            }
            let breaker = service.common.breaker.as_ref();
            for (endpoint, weight) in service.endpoints.weighted() {
                endpoint.set_weight(weight, now);
                endpoint.set_idle_timeout(service.policy.connection_pool.idle_timeout);
                // One of weight 0 gets no request that could find out whether it works.
                endpoint.guard().configure(breaker.filter(|_| weight > 0), now);
            }
            let percent = breaker.map_or(0.0, |breaker| breaker.max_ejection_percent);
            service.circuit.configure(percent, service.endpoints(), now);
        }
    }

    /// Whether this snapshot has this very service too.
    pub fn has(&self, id: &(Key, u16), service: &Arc<Service>) -> bool {
        self.services.get(id).is_some_and(|own| Arc::ptr_eq(own, service))
    }

    /// The endpoints of `previous` that this snapshot does not have.
    pub fn removed<'p>(&self, previous: &'p Self) -> impl Iterator<Item = &'p Arc<Endpoint>> {
        let changed = previous.services.iter().filter(|(id, service)| !self.has(id, service));
        changed.flat_map(|(id, before)| {
            let now = self.services.get(id);
            before.endpoints().iter().filter(move |endpoint| {
                let kept = now.and_then(|now| now.by_address.get(&endpoint.address));
                kept.is_none_or(|kept| kept.id != endpoint.id)
            })
        })
    }

    /// The service ports that somebody retries or hedges requests to: those whose budgets matter.
    pub fn retrying(&self) -> HashSet<(Key, u16)> {
        let targets = self.rules.iter().flat_map(|rule| rule.backends.iter());
        let upstreams = targets.filter_map(|target| {
            let upstream = target.upstream.as_ref()?;
            (target.retry.is_some() || upstream.hedge.is_some()).then_some(upstream)
        });
        upstreams.map(|upstream| (upstream.service.key.clone(), upstream.service.port)).collect()
    }

    /// The circuit that these limits are lowered for: of all services that they lead to, the one that is worst off.
    pub fn circuit_of(&self, limits: &Arc<RateLimits>, now: Instant) -> CircuitView {
        let targets = self.rules.iter().flat_map(|rule| rule.backends.iter());
        let services = targets.filter(|target| target.limits.as_ref().is_some_and(|own| Arc::ptr_eq(own, limits)));
        let views = services.filter_map(|target| Some(target.upstream.as_ref()?.service.circuit.view(now)));
        views.min().unwrap_or(CircuitView::Steady)
    }

    /// What the port with this id serves, be it bound or virtual. There are few bound ones, so a linear search beats
    /// hashing.
    pub fn port(&self, id: PortId) -> Option<&PortKind> {
        let bound = self.ports.iter().find(|port| port.id == id).map(|port| &port.kind);
        bound.or_else(|| self.virtual_port(id).map(|port| &port.kind))
    }

    /// What connections get that were made to this address and captured.
    pub fn virtual_port(&self, id: PortId) -> Option<&VirtualPort> {
        self.virtual_ports.get(&id).map(Arc::as_ref)
    }

    /// What [`Self::rules`] were written as, one by one: route, number of the rule in it, rule. The rules that nobody wrote
    /// come after them, see
    /// [`VirtualPort::implicit`].
    pub fn written(&self) -> impl Iterator<Item = (&HttpRoute, usize, &HttpRule)> {
        let routes = self.config.http_routes.iter();
        routes.flat_map(|route| route.rules.iter().enumerate().map(move |(number, rule)| (route, number, rule)))
    }

    /// Puts the limits of connections in force: those who wait have what they may have now. Returns the services that
    /// have more connections than they may, so that idle ones have to be looked for (see [`Places::searched`]).
    ///
    /// Not part of compiling, as little as [`Self::enforce`] is.
    pub fn review_places(&self) -> Vec<Arc<Places>> {
        let services = self.services.values();
        let crowded = services.filter(|service| service.places.review(service.common.limits()));
        crowded.map(|service| service.places.clone()).collect()
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

/// A port of a service whose connections are captured, as if Weft listened on the service's addresses.
#[derive(Debug)]
pub struct VirtualPort {
    /// The service.
    pub service: Key,
    /// What its connections get.
    pub kind: PortKind,
    /// The rule that sends everything to the service itself, if no route is bound to it.
    pub implicit: Option<u32>,
    /// Where connections go that turn out to carry something else than HTTP; `None` where the configuration says what they
    /// carry.
    pub unknown: Option<TcpTarget>,
}

impl VirtualPort {
    /// For people: `HTTP`, `TCP`, or `unknown` where whoever speaks first tells.
    pub const fn protocol(&self) -> &'static str {
        match (&self.kind, &self.unknown) {
            (PortKind::Tcp(_), _) => "TCP",
            (PortKind::Http { .. }, None) => "HTTP",
            (PortKind::Http { .. }, Some(_)) => "unknown",
        }
    }
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
#[derive(Debug, Clone)]
pub struct TcpTarget {
    /// Name of the TCPRoute, or of the service if there is none.
    pub route: Arc<str>,
    /// Weighted.
    pub backends: Weighted<Target>,
}

/// A rule of an HTTPRoute or GRPCRoute, ready to use.
#[derive(Debug, Clone)]
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
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// New authority.
    pub host: Option<http::uri::Authority>,
    /// New path.
    pub path: Option<PathRewrite>,
}

/// RequestMirror, compiled.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where copies go.
    pub upstream: Arc<Upstream>,
    /// Which share of the requests.
    pub numerator: u32,
    /// Never 0.
    pub denominator: u32,
}

/// One backend of a rule.
#[derive(Debug, Clone)]
pub struct Target {
    /// Name of the service, as labels have it.
    pub service: Arc<str>,
    /// `None` when the service or the port does not exist.
    pub upstream: Option<Arc<Upstream>>,
    /// Filters of the backendRef.
    pub request_headers: Option<CompiledModifier>,
    /// Filters of the backendRef.
    pub response_headers: Option<CompiledModifier>,
    /// Rate limits; the budget is shared with all rules and backends that they cover.
    pub limits: Option<Arc<RateLimits>>,
    /// What is sent again when it fails.
    pub retry: Option<Box<RetryPlan>>,
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
    /// When a second endpoint is asked the same.
    pub hedge: Option<Hedge>,
    /// `fault` of the policy.
    pub fault: Option<Fault>,
}

/// `hedge` of a policy.
#[derive(Debug)]
pub struct Hedge {
    delay: HedgeDelay,
    extra: u32,
    /// How long endpoints took lately, if the delay is a quantile of it.
    latencies: Option<Arc<Latencies>>,
}

impl Hedge {
    /// `previous` is what served the same upstream until now: what it has seen is kept.
    pub fn new(policy: &config::Hedge, previous: Option<&Self>, now: Instant) -> Self {
        let latencies = matches!(policy.after, HedgeAfter::Quantile(_)).then(|| {
            let seen = previous.and_then(|previous| previous.latencies.clone());
            seen.unwrap_or_else(|| Arc::new(Latencies::new(now)))
        });
        Self { delay: HedgeDelay::new(policy.after, now), extra: policy.max_extra, latencies }
    }
}

impl Upstream {
    /// How long an attempt waits for company, and how much of it there may be.
    pub fn hedge(&self, now: Instant) -> Option<Plan> {
        let hedge = self.hedge.as_ref()?;
        let after = hedge.delay.get(hedge.latencies.as_deref(), now)?;
        Some(Plan { after, extra: hedge.extra })
    }

    /// An attempt took so long. `overloaded`: it ended with a time-out, or with an answer that says so.
    pub fn took(&self, took: Duration, overloaded: bool, now: Instant) {
        if let Some(gradient) = &self.service.concurrency {
            gradient.sample(took, self.service.in_flight.get(), overloaded, now);
        }
        if let Some(Hedge { latencies: Some(latencies), .. }) = &self.hedge
            && !overloaded
        {
            latencies.record(took, now);
        }
    }

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
    /// What their breakers come to.
    pub circuit: Arc<Circuit>,
    /// What all routes to it share.
    pub common: Common,
    /// How many requests it can take at a time, as its latency tells.
    pub concurrency: Option<Arc<SharedGradient>>,
    /// Requests in flight.
    pub in_flight: Arc<InFlight>,
    /// Open connections, and requests that wait for one.
    pub places: Arc<Places>,
    /// Retries in flight.
    pub retries: Arc<InFlight>,
    /// What retries and hedges may add to the load.
    pub budget: Arc<SharedBudget>,
    /// When it was first seen.
    pub since: Instant,
    /// What it was compiled from.
    pub written: Arc<config::Service>,
    /// The endpoints by address, for the next snapshot.
    by_address: HashMap<SocketAddr, Arc<Endpoint>>,
    /// TLS to the endpoints.
    tls: Option<Arc<ClientTls>>,
    /// Who may come here, if AccessPolicies say something about it.
    pub access: Option<Arc<Access>>,
}

impl Service {
    /// The endpoints, in the order of the configuration.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        self.endpoints.endpoints()
    }

    /// Whether it finishes what it has and gets nothing new.
    pub fn drains(&self, endpoint: &Endpoint) -> bool {
        // Only one of weight 0 can.
        endpoint.weight() == 0
            && self.written.endpoints.iter().filter(|written| written.draining).any(|written| {
                let same = match &written.address {
                    config::Address::Ip(ip) => endpoint.address.ip() == *ip,
                    config::Address::Name(name) => endpoint.hostname.as_ref() == Some(name),
                };
                same && written.port == endpoint.address.port()
            })
    }

    /// TLS to the endpoints.
    pub fn tls(&self) -> Option<&Arc<ClientTls>> {
        self.tls.as_ref()
    }
}
