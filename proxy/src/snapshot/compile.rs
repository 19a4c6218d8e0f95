//! From the model to a [`Snapshot`]: attaches routes to listeners, merges policies, takes over live state.

mod attach;
mod captured;
mod moved;
mod service;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use weft_model::config::{
    BackendRef, Config, Filter, Gateway, HttpRoute, HttpRule, Key, Listener, ListenerProtocol, PathMatch, Policy,
    PolicyTarget, RouteKind, TcpRoute, Timeouts, Workload,
};

use self::attach::{attached, candidates};
pub use self::moved::{Moved, moved};
pub(crate) use self::{attach::by_port, captured::IMPLICIT};
use super::{
    Deadlines, Mirror, Port, PortId, PortKind, Rewrite, Rule, Service, Snapshot, Target, TcpTarget, Upstream,
    UpstreamId,
    common::{Common, said_by_routes},
};
use crate::{
    identity::{Identities, ServerIdentity},
    layer::access::Access,
    resilience::{limiter::RateLimits, retry::RetryPlan},
    route::{
        Rank, RouteError, RouteTable,
        hosts::Listeners,
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
        said_by_routes: said_by_routes(&input.config),
        access: access(&input.config),
        same_access: input.config.access_policies == previous.config.access_policies,
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
    let config = input.config.clone();
    // A rule is compiled once, however many listeners it is attached to.
    let rules = compiler.rules(&config)?;
    let ports = compiler.ports(&rules)?;
    let virtual_ports = compiler.virtual_ports(&rules)?;
    let Compiler { services, rules, upstreams, limits, broken, .. } = compiler;
    if let Some(error) = broken {
        return Err(error.into());
    }
    let identity = |workload: &Workload| Some((workload.key.to_string().into(), workload.identity()?.into()));
    let identities = config.workloads.iter().filter_map(identity).collect();
    Ok(Snapshot {
        revision: input.revision,
        config,
        ports: ports.into(),
        virtual_ports,
        identities,
        rules,
        services,
        upstreams,
        limits,
    })
}

/// The policies of every service that has any.
fn access(config: &Config) -> HashMap<Key, Arc<Access>> {
    let protected = config.access_policies.iter().flat_map(|policy| &policy.services);
    protected
        .filter_map(|service| Some((service.clone(), Arc::new(Access::of(service, &config.access_policies)?))))
        .collect()
}

struct Compiler<'a> {
    input: &'a Input<'a>,
    previous: &'a Snapshot,
    /// For services whose own policy does not say it.
    said_by_routes: HashMap<(Key, u16), Common>,
    access: HashMap<Key, Arc<Access>>,
    /// The AccessPolicies are those of before.
    same_access: bool,
    services: HashMap<(Key, u16), Arc<Service>>,
    /// By service, port, and the route whose own policy counts.
    upstreams: HashMap<UpstreamId, Arc<Upstream>>,
    limits: HashMap<PolicyTarget, Arc<RateLimits>>,
    rules: Vec<Rule>,
    /// A fault that cannot be compiled.
    broken: Option<RouteError>,
}

impl Compiler<'_> {
    /// The budget that a route's requests to a service count against, or those that come without one.
    fn limits(&mut self, service: &Key, route: Option<(RouteKind, &Key)>, policy: &Policy) -> Option<Arc<RateLimits>> {
        if policy.rate_limits.is_empty() {
            return None;
        }
        let (written, owner) = self.input.config.rate_limit_owner(service, route)?;
        let before = self.previous.limits.get(&owner);
        let new = || {
            let name = &written.key.name;
            Arc::new(RateLimits::new(name, &policy.rate_limits, before.map(Arc::as_ref), self.input.now))
        };
        Some(self.limits.entry(owner).or_insert_with(new).clone())
    }

    fn ports(&mut self, rules: &[Vec<u32>]) -> Result<Vec<Port>, CompileError> {
        let config = self.input.config.clone();
        let mut ports = Vec::new();
        for (id, listeners) in by_port(&config) {
            let tcp = listeners.iter().find(|(_, listener)| listener.protocol == ListenerProtocol::Tcp);
            let kind = if let Some((gateway, listener)) = tcp {
                PortKind::Tcp(self.tcp_target(&config, gateway, listener)?)
            } else {
                let mut tables = Vec::new();
                for (gateway, listener) in &listeners {
                    let table = RouteTable::build(candidates(&config, gateway, listener, rules))?;
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
            limits: route.and_then(|route| self.limits(&backend.service, Some(route), &policy)),
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
        routes.first().map(|route| self.tcp_route(route)).transpose()
    }

    fn tcp_route(&mut self, route: &TcpRoute) -> Result<TcpTarget, CompileError> {
        let label: Arc<str> = route.key.to_string().into();
        let mut backends = Vec::new();
        for backend in &route.backends {
            let target = self
                .target(&label, "", backend, None, None)
                .map_err(|source| CompileError::Filter { route: route.key.clone(), source })?;
            backends.push((backend.weight, target));
        }
        Ok(TcpTarget { route: label, backends: Weighted::new(backends) })
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

pub(crate) fn path_template(path: &PathMatch) -> Arc<str> {
    match path {
        PathMatch::Exact(path) | PathMatch::Regex(path) => path.clone(),
        PathMatch::Prefix(path) if &**path == "/" => "/*".into(),
        PathMatch::Prefix(path) => format!("{path}/*").into(),
    }
}
