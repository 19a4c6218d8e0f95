//! Virtual ports: what the connections get that applications make to a service's addresses.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use weft_model::config::{
    AppProtocol, BackendRef, Config, HttpMatch, HttpRoute, Key, PathMatch, Service, ServicePort, TcpRoute,
};

use super::{CompileError, Compiler, attach};
use crate::{
    route::weighted::Weighted,
    route::{Candidate, Rank, RouteTable, hosts::Listeners},
    snapshot::{PortId, PortKind, Rule, TcpTarget, VirtualPort},
};

/// Name of the rule that nobody wrote.
pub(crate) const IMPLICIT: &str = "implicit";

/// Routes that are bound to a service, each with the port that it is meant for, if it is meant for one.
type Bound<R> = Vec<(Option<u16>, R)>;

/// All routes that are bound to services; HTTP routes with their rules.
pub(super) struct Bindings<'c> {
    http: HashMap<&'c Key, Bound<(&'c HttpRoute, &'c [u32])>>,
    tcp: HashMap<&'c Key, Bound<&'c TcpRoute>>,
}

impl<'c> Bindings<'c> {
    pub(super) fn of(config: &'c Config, rules: &'c [Vec<u32>]) -> Self {
        let http = config.http_routes.iter().zip(rules);
        let tcp = config.tcp_routes.iter().map(|route| (&route.key, &*route.parents, route));
        Self {
            http: attach::by_service(http.map(|(route, rules)| (&route.key, &*route.parents, (route, &**rules)))),
            tcp: attach::by_service(tcp),
        }
    }
}

impl Compiler<'_> {
    /// One for each port of each service whose captured connections come to the proxy.
    pub(super) fn virtual_ports(
        &mut self,
        rules: &[Vec<u32>],
    ) -> Result<foldhash::HashMap<PortId, Arc<VirtualPort>>, CompileError> {
        let config = self.input.config.clone();
        let bound = Bindings::of(&config, rules);
        let mut ports = foldhash::HashMap::default();
        for service in config.services.iter().filter(|service| !service.cluster_ips.is_empty()) {
            for port in service.ports.iter().filter(|port| service.is_proxied(port)) {
                let shared = Arc::new(self.virtual_port(service, port, &bound, None)?);
                for ip in &service.cluster_ips {
                    ports.insert(SocketAddr::new(ip.to_canonical(), port.port), shared.clone());
                }
            }
        }
        Ok(ports)
    }

    /// What one port of a service gets. `implicit` is the rule that sends everything to the service itself, if it is there
    /// already.
    pub(super) fn virtual_port(
        &mut self,
        service: &Service,
        port: &ServicePort,
        bound: &Bindings<'_>,
        mut implicit: Option<u32>,
    ) -> Result<VirtualPort, CompileError> {
        let opaque = port.protocol == AppProtocol::Tcp;
        let mut unknown = None;
        if opaque || !port.declared {
            unknown = Some(self.connections(service, port, on(bound.tcp.get(&service.key), port))?);
        }
        let kind = match unknown.take_if(|_| opaque) {
            Some(target) => PortKind::Tcp(Some(target)),
            None => {
                let bound: Vec<(&HttpRoute, &[u32])> = on(bound.http.get(&service.key), port).collect();
                let mut candidates = Vec::new();
                for (route, rules) in &bound {
                    attach::add(&mut candidates, route, rules, None);
                }
                if bound.is_empty() {
                    let rule = match implicit {
                        Some(rule) => rule,
                        None => self.implicit(&service.key, port.port)?,
                    };
                    implicit = Some(rule);
                    candidates.push(Candidate {
                        hostname: None,
                        matcher: HttpMatch {
                            path: PathMatch::Prefix("/".into()),
                            headers: Vec::new(),
                            query: Vec::new(),
                            method: None,
                        },
                        rank: Rank::new(None, &service.key, 0, 0),
                        target: rule,
                    });
                }
                let table = RouteTable::build(candidates)?;
                PortKind::Http { listeners: Listeners::build(vec![(None, table)]), tls: None }
            }
        };
        Ok(VirtualPort { service: service.key.clone(), kind, implicit, unknown })
    }

    /// Where opaque connections to a port go: to the backends of the first TCPRoute that is bound to it, or else to the
    /// service itself.
    fn connections<'r>(
        &mut self,
        service: &Service,
        port: &ServicePort,
        routes: impl Iterator<Item = &'r TcpRoute>,
    ) -> Result<TcpTarget, CompileError> {
        let first = routes.min_by_key(|route| Rank::new(route.created.clone(), &route.key, 0, 0));
        if let Some(route) = first {
            return self.tcp_route(route);
        }
        let name: Arc<str> = service.key.to_string().into();
        let target = self
            .target(&name, "", &itself(&service.key, port.port), None, None)
            .map_err(|source| CompileError::Filter { route: service.key.clone(), source })?;
        Ok(TcpTarget { route: name, backends: Weighted::new(vec![(1, target)]) })
    }

    /// The rule that sends everything to the service that it was meant for. It comes after all that were written.
    fn implicit(&mut self, service: &Key, port: u16) -> Result<u32, CompileError> {
        let route: Arc<str> = service.to_string().into();
        let template: Arc<str> = "/*".into();
        let mut target = self
            .target(&route, &template, &itself(service, port), None, None)
            .map_err(|source| CompileError::Filter { route: service.clone(), source })?;
        if let Some(upstream) = &target.upstream {
            let upstream = upstream.clone();
            target.limits = self.limits(service, None, &upstream.policy);
        }
        let index = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        self.rules.push(Rule {
            // Every request of this rule is one to the service.
            slot: target.slot.clone(),
            route: target.service.clone(),
            name: IMPLICIT.into(),
            template,
            request_headers: None,
            response_headers: None,
            redirect: None,
            rewrite: None,
            mirrors: Vec::new(),
            backends: Weighted::new(vec![(1, target)]),
        });
        Ok(index)
    }
}

/// The routes that are meant for a port.
fn on<R: Copy>(bound: Option<&Bound<R>>, port: &ServicePort) -> impl Iterator<Item = R> {
    let number = port.port;
    let bound = bound.into_iter().flatten();
    bound.filter(move |(only, _)| only.is_none_or(|only| only == number)).map(|(_, route)| *route)
}

fn itself(service: &Key, port: u16) -> BackendRef {
    BackendRef { service: service.clone(), port, weight: 1, filters: Vec::new() }
}
