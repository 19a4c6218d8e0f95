//! From the model to a [`Snapshot`]: attaches routes to listeners, merges policies, takes over live state.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_model::config::{
    Address, AllowedNamespaces, BackendRef, BackendTls, Config, Filter, Gateway, HttpRoute, HttpRule, Key, Listener,
    ListenerProtocol, ParentRef, PathMatch, Policy, PolicyTarget, RouteKind, ServicePort, TcpRoute, Timeouts,
};

use super::{
    Deadlines, Hedge, Mirror, Port, PortId, PortKind, Rewrite, Rule, Service, Snapshot, Target, TcpTarget, Upstream,
    UpstreamId,
    common::{Common, said_by_routes},
};
use crate::{
    balance::{Balancer, EndpointSet},
    endpoint::Endpoint,
    identity::{ClientTls, Identities, ServerIdentity},
    layer::fault::Fault,
    resilience::{
        budget::SharedBudget, circuit::Circuit, concurrency::SharedGradient, limiter::RateLimits, retry::RetryPlan,
    },
    route::{
        Candidate, Rank, RouteError, RouteTable,
        hosts::{Listeners, intersect},
        rewrite::{CompiledModifier, CompiledRedirect, PathRewrite, RewriteError},
        weighted::Weighted,
    },
    telemetry::Telemetry,
    upstream::places::Limits,
};

/// What a snapshot is made from.
pub struct Input<'a> {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its revision.
    pub revision: u64,
    /// This node's zone.
    pub zone: Option<Arc<str>>,
    /// Addresses of endpoints that are written as names.
    pub resolved: &'a HashMap<Arc<str>, Vec<IpAddr>>,
    /// Certificates and trust of this configuration.
    pub identities: &'a Identities,
    /// Hands out metric series.
    pub telemetry: &'a Telemetry,
    /// Start of the slow start of new endpoints.
    pub now: Instant,
}

/// Why a valid configuration cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// A route's expressions.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A filter.
    #[error("route `{route}`: {source}")]
    Filter {
        /// The route.
        route: Key,
        /// What is wrong.
        source: RewriteError,
    },
}

/// Compiles `input`, taking over live state from `previous`.
///
/// # Errors
/// When expressions, filters or key material turn out to be unusable; `previous` stays as it is.
pub fn compile(input: &Input<'_>, previous: &Snapshot) -> Result<Snapshot, CompileError> {
    let mut compiler = Compiler {
        input,
        previous,
        said_by_routes: said_by_routes(&input.config),
        services: HashMap::new(),
        upstreams: HashMap::new(),
        limits: HashMap::new(),
        rules: Vec::new(),
        broken: None,
    };
    for service in &input.config.services {
        for port in &service.ports {
            compiler.service(service, port);
        }
    }
    let ports = compiler.ports()?;
    let Compiler { services, rules, upstreams, limits, broken, .. } = compiler;
    if let Some(error) = broken {
        return Err(error.into());
    }
    Ok(Snapshot { revision: input.revision, config: input.config.clone(), ports, rules, services, upstreams, limits })
}

struct Compiler<'a> {
    input: &'a Input<'a>,
    previous: &'a Snapshot,
    /// For services whose own policy does not say it.
    said_by_routes: HashMap<(Key, u16), Common>,
    services: HashMap<(Key, u16), Arc<Service>>,
    /// By service, port, and the route whose own policy counts.
    upstreams: HashMap<UpstreamId, Arc<Upstream>>,
    limits: HashMap<PolicyTarget, Arc<RateLimits>>,
    rules: Vec<Rule>,
    /// A fault that cannot be compiled.
    broken: Option<RouteError>,
}

impl Compiler<'_> {
    fn service(&mut self, service: &weft_model::config::Service, port: &ServicePort) {
        let config = &self.input.config;
        let id = (service.key.clone(), port.port);
        let before = self.previous.services.get(&id);
        // Connections to the endpoints of before go on counting, whatever happens to those.
        let places = before.map_or_else(Arc::default, |before| before.places.clone());
        let policy = config.policy_for(Some(&service.key), None);
        let tls = self.client_tls(&service.key, port);
        // Pooled connections belong to endpoints: what changes how they are opened makes them other endpoints.
        let before = before.filter(|before| {
            before.protocol == port.protocol && before.tls.as_ref().map(Arc::as_ptr) == tls.as_ref().map(Arc::as_ptr)
        });
        let name: Arc<str> = service.key.to_string().into();
        let circuit = match before {
            Some(before) => before.circuit.clone(),
            None => {
                let ejections = self.input.telemetry.metrics.ejections.clone();
                Arc::new(Circuit::new(name.clone(), ejections, self.input.now))
            }
        };
        let own = Common::of(&PolicyTarget::Service(service.key.clone()), config);
        let common = own.or(self.said_by_routes.get(&id).cloned().unwrap_or_default());
        let mut by_address = HashMap::new();
        let mut endpoints = Vec::new();
        for written in &service.endpoints {
            let (addresses, hostname): (&[IpAddr], _) = match &written.address {
                Address::Ip(ip) => (std::slice::from_ref(ip), None),
                Address::Name(name) => (self.input.resolved.get(name).map_or(&[], Vec::as_slice), Some(name.clone())),
            };
            for ip in addresses {
                let address = SocketAddr::new(*ip, written.port);
                // Two names may lead to one address. The first counts: its state is the one that is found again.
                if by_address.contains_key(&address) {
                    continue;
                }
                let kept = before.and_then(|before| before.by_address.get(&address));
                let kept = kept.filter(|kept| kept.zone == written.zone && kept.hostname == hostname);
                let endpoint = match kept {
                    Some(kept) => kept.clone(),
                    None => Arc::new(Endpoint::new(
                        address,
                        hostname.clone(),
                        written.zone.clone(),
                        written.weight,
                        circuit.clone(),
                        self.input.now,
                    )),
                };
                endpoint.set_weight(written.weight);
                endpoint.set_idle_timeout(policy.connection_pool.idle_timeout);
                by_address.insert(address, endpoint.clone());
                endpoints.push(endpoint);
            }
        }
        let budget = before.map_or_else(
            || Arc::new(SharedBudget::new(&common.retry_budget(), self.input.now)),
            |before| before.budget.clone(),
        );
        let concurrency = common.concurrency.as_ref().map(|policy| {
            let learned = before.and_then(|before| before.concurrency.clone());
            learned.unwrap_or_else(|| Arc::new(SharedGradient::new(policy, self.input.now)))
        });
        let endpoints = Arc::new(EndpointSet::new(endpoints, circuit.clone(), self.input.zone.clone()));
        let state = Service {
            key: service.key.clone(),
            port: port.port,
            name,
            protocol: port.protocol,
            policy,
            endpoints,
            circuit,
            common,
            concurrency,
            in_flight: before.map_or_else(Arc::default, |before| before.in_flight.clone()),
            places,
            retries: before.map_or_else(Arc::default, |before| before.retries.clone()),
            budget,
            since: before.map_or(self.input.now, |before| before.since),
            by_address,
            tls,
        };
        self.services.insert(id, Arc::new(state));
    }

    /// The BackendTLSPolicy for a port: one that names the port wins over one that does not.
    fn client_tls(&self, service: &Key, port: &ServicePort) -> Option<Arc<ClientTls>> {
        backend_tls(&self.input.config, service, port).and_then(|policy| self.input.identities.client(&policy.key))
    }

    fn upstream(&mut self, key: &Key, port: u16, route: Option<(RouteKind, &Key)>) -> Option<Arc<Upstream>> {
        let config = self.input.config.clone();
        let own = route.filter(|(kind, key)| config.has_route_policy(*kind, key));
        let id = (key.clone(), port, own.map(|(kind, key)| (kind, key.clone())));
        if let Some(upstream) = self.upstreams.get(&id) {
            return Some(upstream.clone());
        }
        let service = self.services.get(&(key.clone(), port))?.clone();
        let policy = match own {
            Some(_) => config.policy_for(Some(key), own),
            None => service.policy.clone(),
        };
        let before = self.previous.upstreams.get(&id);
        let balancer =
            Balancer::new(&policy.load_balancer, service.endpoints.clone(), before.map(|before| &before.balancer));
        let fault = policy.fault.as_ref().map(Fault::new).transpose();
        let fault = fault.unwrap_or_else(|error| {
            self.broken = Some(error);
            None
        });
        let hedged = before.and_then(|before| before.hedge.as_ref());
        let hedge = policy.hedge.as_ref().map(|hedge| Hedge::new(hedge, hedged, self.input.now));
        let pool = &policy.connection_pool;
        let limits = before.map_or_else(|| Arc::new(Limits::new(pool)), |before| before.limits.clone());
        limits.set(pool);
        let upstream = Arc::new(Upstream {
            protocol: service.protocol,
            tls: service.tls.clone(),
            policy,
            balancer,
            hedge,
            fault,
            limits,
            service,
        });
        self.upstreams.insert(id, upstream.clone());
        Some(upstream)
    }

    /// The budget that a route's requests to a service count against.
    fn limits(&mut self, service: &Key, route: (RouteKind, &Key), policy: &Policy) -> Option<Arc<RateLimits>> {
        if policy.rate_limits.is_empty() {
            return None;
        }
        let (written, owner) = self.input.config.rate_limit_owner(service, Some(route))?;
        let before = self.previous.limits.get(&owner);
        let new = || {
            let name = &written.key.name;
            Arc::new(RateLimits::new(name, &policy.rate_limits, before.map(Arc::as_ref), self.input.now))
        };
        Some(self.limits.entry(owner).or_insert_with(new).clone())
    }

    fn ports(&mut self) -> Result<Vec<Port>, CompileError> {
        let config = self.input.config.clone();
        // A rule is compiled once, however many listeners it is attached to.
        let rules = self.rules(&config)?;
        let mut ports = Vec::new();
        for (id, listeners) in by_port(&config) {
            let tcp = listeners.iter().find(|(_, listener)| listener.protocol == ListenerProtocol::Tcp);
            let kind = if let Some((gateway, listener)) = tcp {
                PortKind::Tcp(self.tcp_target(&config, gateway, listener)?)
            } else {
                let mut tables = Vec::new();
                for (gateway, listener) in &listeners {
                    let table = RouteTable::build(candidates(&config, gateway, listener, &rules))?;
                    tables.push((listener.hostname.clone(), table));
                }
                PortKind::Http { listeners: Listeners::build(tables), tls: self.server_tls(id, &listeners) }
            };
            ports.push(Port { id, kind });
        }
        Ok(ports)
    }

    fn server_tls(&self, id: PortId, listeners: &[(&Gateway, &Listener)]) -> Option<Arc<ServerIdentity>> {
        let https = |listener: &Listener| matches!(listener.protocol, ListenerProtocol::Https { .. });
        if !listeners.iter().any(|(_, listener)| https(listener)) {
            return None;
        }
        let address = (!id.ip().is_unspecified()).then(|| id.ip());
        self.input.identities.server(address, id.port())
    }

    fn rules(&mut self, config: &Config) -> Result<Vec<Vec<u32>>, CompileError> {
        let mut all = Vec::with_capacity(config.http_routes.len());
        for route in &config.http_routes {
            let mut indexes = Vec::with_capacity(route.rules.len());
            for (number, rule) in route.rules.iter().enumerate() {
                let compiled = self
                    .rule(route, rule, number)
                    .map_err(|source| CompileError::Filter { route: route.key.clone(), source })?;
                indexes.push(u32::try_from(self.rules.len()).unwrap_or(u32::MAX));
                self.rules.push(compiled);
            }
            all.push(indexes);
        }
        Ok(all)
    }

    fn rule(&mut self, route: &HttpRoute, rule: &HttpRule, number: usize) -> Result<Rule, RewriteError> {
        let name: Arc<str> = rule.name.clone().unwrap_or_else(|| number.to_string().into());
        let label: Arc<str> = route.key.to_string().into();
        let template = rule.matches.first().map_or_else(|| "/".into(), |first| path_template(&first.path));
        let filters = Filters::compile(&rule.filters)?;
        let mut mirrors = Vec::new();
        for mirror in &filters.mirrors {
            if let Some(upstream) = self.upstream(&mirror.service, mirror.port, None) {
                mirrors.push(Mirror { upstream, numerator: mirror.numerator, denominator: mirror.denominator });
            }
        }
        let mut backends = Vec::with_capacity(rule.backends.len());
        for backend in &rule.backends {
            let target = self.target(&label, &template, backend, Some((route.kind, &route.key)), Some(rule))?;
            backends.push((backend.weight, target));
        }
        Ok(Rule {
            slot: self.input.telemetry.metrics.slot(&label, &template, ""),
            route: label,
            name,
            template,
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
            redirect: filters.redirect,
            rewrite: filters.rewrite,
            mirrors,
            backends: Weighted::new(backends),
        })
    }

    fn target(
        &mut self,
        route_label: &str,
        template: &str,
        backend: &BackendRef,
        route: Option<(RouteKind, &Key)>,
        rule: Option<&HttpRule>,
    ) -> Result<Target, RewriteError> {
        let service: Arc<str> = backend.service.to_string().into();
        let upstream = self.upstream(&backend.service, backend.port, route);
        let filters = Filters::compile(&backend.filters)?;
        let policy = upstream.as_ref().map_or_else(Policy::default, |upstream| upstream.policy.clone());
        Ok(Target {
            slot: self.input.telemetry.metrics.slot(route_label, template, &service),
            service,
            retry: RetryPlan::compile(policy.retry.as_ref(), rule.and_then(|rule| rule.retry.as_ref())).map(Box::new),
            limits: route.and_then(|route| self.limits(&backend.service, route, &policy)),
            upstream,
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
            deadlines: deadlines(rule, &policy),
        })
    }

    fn tcp_target(
        &mut self,
        config: &Config,
        gateway: &Gateway,
        listener: &Listener,
    ) -> Result<Option<TcpTarget>, CompileError> {
        let mut routes: Vec<&TcpRoute> =
            config.tcp_routes.iter().filter(|route| attached(&route.parents, &route.key, gateway, listener)).collect();
        routes.sort_by_key(|route| Rank::new(route.created.clone(), &route.key, 0, 0));
        let Some(route) = routes.first() else { return Ok(None) };
        let label: Arc<str> = route.key.to_string().into();
        let mut backends = Vec::new();
        for backend in &route.backends {
            let target = self
                .target(&label, "", backend, None, None)
                .map_err(|source| CompileError::Filter { route: route.key.clone(), source })?;
            backends.push((backend.weight, target));
        }
        Ok(Some(TcpTarget { route: label, backends: Weighted::new(backends) }))
    }
}

#[derive(Default)]
struct Filters {
    request_headers: Option<CompiledModifier>,
    response_headers: Option<CompiledModifier>,
    redirect: Option<CompiledRedirect>,
    rewrite: Option<Rewrite>,
    mirrors: Vec<weft_model::config::Mirror>,
}

impl Filters {
    fn compile(written: &[Filter]) -> Result<Self, RewriteError> {
        let mut filters = Self::default();
        for filter in written {
            match filter {
                Filter::RequestHeaders(modifier) => filters.request_headers = Some(CompiledModifier::new(modifier)?),
                Filter::ResponseHeaders(modifier) => filters.response_headers = Some(CompiledModifier::new(modifier)?),
                Filter::Redirect(redirect) => filters.redirect = Some(CompiledRedirect::new(redirect)?),
                Filter::Rewrite(rewrite) => {
                    let host = rewrite
                        .hostname
                        .as_ref()
                        .map(|host| host.parse().map_err(|_| RewriteError::Header(host.clone())));
                    let path = rewrite.path.as_ref().map(PathRewrite::new);
                    filters.rewrite = Some(Rewrite { host: host.transpose()?, path: path.transpose()? });
                }
                Filter::Mirror(mirror) => filters.mirrors.push(mirror.clone()),
            }
        }
        Ok(filters)
    }
}

fn deadlines(rule: Option<&HttpRule>, policy: &Policy) -> Deadlines {
    let on = |duration: Duration| (!duration.is_zero()).then_some(duration);
    let written = rule.and_then(|rule| rule.request_timeout).or(policy.timeouts.request);
    let per_try = policy.retry.as_ref().and_then(|retry| retry.per_try_timeout);
    let attempt = rule.and_then(|rule| rule.backend_timeout).and_then(on);
    Deadlines {
        request: on(written.unwrap_or(Timeouts::DEFAULT_REQUEST)),
        whole: written.is_some(),
        attempt: [attempt, per_try].into_iter().flatten().min(),
        idle: on(policy.timeouts.idle),
    }
}

fn backend_tls<'c>(config: &'c Config, service: &Key, port: &ServicePort) -> Option<&'c BackendTls> {
    let named = |section: &Option<Arc<str>>| section.as_ref() == Some(&port.name);
    let find = |wanted: &dyn Fn(&Option<Arc<str>>) -> bool| {
        config.backend_tls.iter().find(|tls| tls.targets.iter().any(|(key, section)| key == service && wanted(section)))
    };
    find(&named).or_else(|| find(&|section| section.is_none()))
}

/// The listeners of each port, in the order of the configuration.
pub(crate) fn by_port(config: &Config) -> BTreeMap<PortId, Vec<(&Gateway, &Listener)>> {
    let mut by_port: BTreeMap<PortId, Vec<(&Gateway, &Listener)>> = BTreeMap::new();
    for gateway in &config.gateways {
        for listener in &gateway.listeners {
            for address in bind_addresses(gateway) {
                by_port.entry(SocketAddr::new(address, listener.port)).or_default().push((gateway, listener));
            }
        }
    }
    by_port
}

fn bind_addresses(gateway: &Gateway) -> Vec<IpAddr> {
    if gateway.addresses.is_empty() {
        // Dual stack: IPv4 clients arrive as v4-mapped addresses.
        return vec![IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    }
    gateway.addresses.clone()
}

fn attached(parents: &[ParentRef], route: &Key, gateway: &Gateway, listener: &Listener) -> bool {
    let allowed = match listener.allowed_namespaces {
        AllowedNamespaces::All => true,
        AllowedNamespaces::Same => route.namespace == gateway.key.namespace,
    };
    allowed
        && parents.iter().any(|parent| match parent {
            ParentRef::Gateway { key, section, port } => {
                *key == gateway.key
                    && section.as_ref().is_none_or(|section| *section == listener.name)
                    && port.is_none_or(|port| port == listener.port)
            }
            ParentRef::Service { .. } => false,
        })
}

fn candidates(config: &Config, gateway: &Gateway, listener: &Listener, rules: &[Vec<u32>]) -> Vec<Candidate<u32>> {
    let mut candidates = Vec::new();
    for (route, rules) in config.http_routes.iter().zip(rules) {
        if !attached(&route.parents, &route.key, gateway, listener) {
            continue;
        }
        for hostname in intersect(listener.hostname.as_ref(), &route.hostnames) {
            for (number, (rule, index)) in route.rules.iter().zip(rules).enumerate() {
                for (position, matcher) in rule.matches.iter().enumerate() {
                    candidates.push(Candidate {
                        hostname: hostname.clone(),
                        matcher: matcher.clone(),
                        rank: Rank::new(route.created.clone(), &route.key, number, position),
                        target: *index,
                    });
                }
            }
        }
    }
    candidates
}

pub(crate) fn path_template(path: &PathMatch) -> Arc<str> {
    match path {
        PathMatch::Exact(path) | PathMatch::Regex(path) => path.clone(),
        PathMatch::Prefix(path) if &**path == "/" => "/*".into(),
        PathMatch::Prefix(path) => format!("{path}/*").into(),
    }
}
