//! From the model to a [`Snapshot`]: attaches routes to listeners, merges policies, takes over live state.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_model::{
    config::{
        Address, AllowedNamespaces, BackendRef, BackendTls, Config, Filter, Gateway, HttpRoute, HttpRule, Key,
        Listener, ListenerProtocol, ParentRef, PathMatch, Policy, RouteKind, ServicePort, TcpRoute, Timeouts,
    },
    policy::CircuitBreaker,
};

use super::{
    Deadlines, Mirror, Port, PortId, PortKind, Rewrite, Rule, Service, Snapshot, Target, TcpTarget, Upstream,
    UpstreamId, breakers,
};
use crate::{
    balance::{Balancer, EndpointSet},
    endpoint::Endpoint,
    identity::{ClientTls, Identities, ServerIdentity},
    resilience::circuit::Circuit,
    route::{
        Candidate, Rank, RouteError, RouteTable,
        hosts::{Listeners, intersect},
        rewrite::{CompiledModifier, CompiledRedirect, PathRewrite, RewriteError},
        weighted::Weighted,
    },
    telemetry::Telemetry,
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
        breakers: breakers::of_routes(&input.config),
        services: HashMap::new(),
        upstreams: HashMap::new(),
        rules: Vec::new(),
    };
    for service in &input.config.services {
        for port in &service.ports {
            compiler.service(service, port);
        }
    }
    let ports = compiler.ports()?;
    let Compiler { services, rules, upstreams, .. } = compiler;
    Ok(Snapshot { revision: input.revision, config: input.config.clone(), ports, rules, services, upstreams })
}

struct Compiler<'a> {
    input: &'a Input<'a>,
    previous: &'a Snapshot,
    /// For services whose own policy has none.
    breakers: HashMap<(Key, u16), Arc<CircuitBreaker>>,
    services: HashMap<(Key, u16), Arc<Service>>,
    /// By service, port, and the route whose own policy counts.
    upstreams: HashMap<UpstreamId, Arc<Upstream>>,
    rules: Vec<Rule>,
}

impl Compiler<'_> {
    fn service(&mut self, service: &weft_model::config::Service, port: &ServicePort) {
        let config = &self.input.config;
        let id = (service.key.clone(), port.port);
        let before = self.previous.services.get(&id);
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
        let own = policy.circuit_breaker.clone().map(Arc::new);
        let breaker = own.or_else(|| self.breakers.get(&id).cloned());
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
        let endpoints = Arc::new(EndpointSet::new(endpoints, circuit.clone(), self.input.zone.clone()));
        let state = Service {
            key: service.key.clone(),
            port: port.port,
            name,
            protocol: port.protocol,
            policy,
            endpoints,
            circuit,
            breaker,
            in_flight: before.map_or_else(Arc::default, |before| before.in_flight.clone()),
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
        let upstream =
            Arc::new(Upstream { protocol: service.protocol, tls: service.tls.clone(), policy, balancer, service });
        self.upstreams.insert(id, upstream.clone());
        Some(upstream)
    }

    fn ports(&mut self) -> Result<Vec<Port>, CompileError> {
        let config = self.input.config.clone();
        let mut by_port: BTreeMap<PortId, Vec<(&Gateway, &Listener)>> = BTreeMap::new();
        for gateway in &config.gateways {
            for listener in &gateway.listeners {
                for address in bind_addresses(gateway) {
                    by_port.entry(SocketAddr::new(address, listener.port)).or_default().push((gateway, listener));
                }
            }
        }
        // A rule is compiled once, however many listeners it is attached to.
        let rules = self.rules(&config)?;
        let mut ports = Vec::new();
        for (id, listeners) in by_port {
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
    let attempt = rule.and_then(|rule| rule.backend_timeout);
    Deadlines {
        request: on(written.unwrap_or(Timeouts::DEFAULT_REQUEST)),
        whole: written.is_some(),
        attempt: attempt.and_then(on),
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

fn path_template(path: &PathMatch) -> Arc<str> {
    match path {
        PathMatch::Exact(path) | PathMatch::Regex(path) => path.clone(),
        PathMatch::Prefix(path) if &**path == "/" => "/*".into(),
        PathMatch::Prefix(path) => format!("{path}/*").into(),
    }
}
