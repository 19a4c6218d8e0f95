//! The short way: nothing but endpoints is different. Every rule, table and policy stays as it is; what is made anew is
//! the services whose endpoints changed, and what leads to them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use weft_model::config::{Config, Key, Service};

use super::{
    CompileError, Compiler, Input,
    captured::Bindings,
    service::{Terms, by_name},
};
use crate::snapshot::{PortKind, Snapshot, TcpTarget, Upstream, VirtualPort};

/// Services that have other endpoints, by their place in the new configuration. Never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Moved(Vec<usize>);

/// What is different between two configurations, if it is nothing but addresses, weights, zones and states of endpoints.
///
/// `None` also when names have to be resolved for it, and when nothing is different at all: who applies the same once
/// more wants everything looked at again.
pub fn moved(before: &Config, after: &Config) -> Option<Moved> {
    if before.services.len() != after.services.len() {
        return None;
    }
    let mut moved = Vec::new();
    for (at, (old, new)) in before.services.iter().zip(&after.services).enumerate() {
        if Arc::ptr_eq(old, new) {
            continue;
        }
        let Service { key, cluster_ips, mode, fail_open, ports, endpoints } = &**new;
        if (key, cluster_ips, mode, fail_open, ports)
            != (&old.key, &old.cluster_ips, &old.mode, &old.fail_open, &old.ports)
        {
            return None;
        }
        if *endpoints != old.endpoints {
            if by_name(old) || by_name(new) {
                return None;
            }
            moved.push(at);
        }
    }
    // Named one by one, so that whoever adds a field thinks of it here.
    let Config {
        gateways,
        http_routes,
        tcp_routes,
        services: _,
        traffic_policies,
        backend_tls,
        access_policies,
        workloads,
        telemetry,
        certificates,
    } = before;
    let same = *gateways == after.gateways
        && *http_routes == after.http_routes
        && *tcp_routes == after.tcp_routes
        && *traffic_policies == after.traffic_policies
        && *backend_tls == after.backend_tls
        && *access_policies == after.access_policies
        && *workloads == after.workloads
        && *telemetry == after.telemetry
        && *certificates == after.certificates;
    (same && !moved.is_empty()).then_some(Moved(moved))
}

/// What takes an upstream's place.
type Swaps = HashMap<*const Upstream, Arc<Upstream>>;

impl Moved {
    /// `previous` with these endpoints. Its configuration is the one that `self` was found with.
    ///
    /// # Errors
    /// None that did not keep `previous` from being compiled.
    pub fn compile(&self, input: &Input<'_>, previous: &Snapshot) -> Result<Snapshot, CompileError> {
        let mut compiler = Compiler {
            input,
            previous,
            said_by_routes: HashMap::new(),
            access: HashMap::new(),
            same_access: true,
            services: previous.services.clone(),
            upstreams: previous.upstreams.clone(),
            limits: previous.limits.clone(),
            rules: Vec::new(),
            broken: None,
        };
        let swaps = compiler.move_endpoints(self.0.iter().filter_map(|at| input.config.services.get(*at)));
        compiler.rules = previous.rules.clone();
        for rule in &mut compiler.rules {
            rule.backends.iter_mut().for_each(|target| swap(&mut target.upstream, &swaps));
            for mirror in &mut rule.mirrors {
                mirror.upstream = swaps.get(&Arc::as_ptr(&mirror.upstream)).unwrap_or(&mirror.upstream).clone();
            }
        }
        let indexes = indexes(&input.config);
        let touched = previous.ports.iter().any(|port| leads_to(&port.kind, None, &swaps));
        let ports = if touched { compiler.ports(&indexes)?.into() } else { previous.ports.clone() };
        let mut virtual_ports = previous.virtual_ports.clone();
        let bound = Bindings::of(&input.config, &indexes);
        let services: HashMap<&Key, &Arc<Service>> =
            input.config.services.iter().map(|service| (&service.key, service)).collect();
        // All addresses of a port share one value.
        let mut made: HashMap<*const VirtualPort, Arc<VirtualPort>> = HashMap::new();
        for (id, shared) in &mut virtual_ports {
            if !leads_to(&shared.kind, shared.unknown.as_ref(), &swaps) {
                continue;
            }
            let port = services.get(&shared.service).and_then(|service| {
                let port = service.ports.iter().find(|port| port.port == id.port())?;
                Some((*service, port))
            });
            let Some((service, port)) = port else { continue };
            let new = match made.get(&Arc::as_ptr(shared)) {
                Some(new) => new.clone(),
                None => Arc::new(compiler.virtual_port(service, port, &bound, shared.implicit)?),
            };
            made.insert(Arc::as_ptr(shared), new.clone());
            *shared = new;
        }
        let Compiler { services, upstreams, limits, rules, broken, .. } = compiler;
        if let Some(error) = broken {
            return Err(error.into());
        }
        Ok(Snapshot {
            revision: input.revision,
            config: input.config.clone(),
            ports,
            virtual_ports,
            identities: previous.identities.clone(),
            rules,
            services,
            upstreams,
            limits,
        })
    }
}

impl Compiler<'_> {
    /// Makes the services and what is sent to them anew; says which upstream takes whose place.
    fn move_endpoints<'c>(&mut self, services: impl Iterator<Item = &'c Arc<Service>>) -> Swaps {
        let mut keys = HashSet::new();
        for service in services {
            keys.insert(&service.key);
            for port in &service.ports {
                let id = (service.key.clone(), port.port);
                let Some(before) = self.previous.services.get(&id) else { continue };
                let state = self.state(service, port, Some(before), Terms::of(before));
                self.services.insert(id, Arc::new(state));
            }
        }
        let mut swaps = Swaps::new();
        for (id, before) in self.previous.upstreams.iter().filter(|(id, _)| keys.contains(&id.0)) {
            let Some(service) = self.services.get(&(id.0.clone(), id.1)).cloned() else { continue };
            let upstream = Arc::new(self.new_upstream(service, before.policy.clone(), Some(before)));
            swaps.insert(Arc::as_ptr(before), upstream.clone());
            self.upstreams.insert(id.clone(), upstream);
        }
        swaps
    }
}

/// The rules of each HTTP route: they are numbered in the order of the configuration.
fn indexes(config: &Config) -> Vec<Vec<u32>> {
    let mut next = 0;
    let mut count = |rules: usize| {
        let first = next;
        next += u32::try_from(rules).unwrap_or(u32::MAX);
        (first..next).collect()
    };
    config.http_routes.iter().map(|route| count(route.rules.len())).collect()
}

fn swap(upstream: &mut Option<Arc<Upstream>>, swaps: &Swaps) {
    if let Some(new) = upstream.as_ref().and_then(|upstream| swaps.get(&Arc::as_ptr(upstream))) {
        *upstream = Some(new.clone());
    }
}

/// Whether opaque connections to a port go to something that was made anew. HTTP goes by rules.
fn leads_to(kind: &PortKind, unknown: Option<&TcpTarget>, swaps: &Swaps) -> bool {
    let target = match kind {
        PortKind::Tcp(target) => target.as_ref(),
        PortKind::Http { .. } => unknown,
    };
    let mut upstreams =
        target.into_iter().flat_map(|target| target.backends.iter()).filter_map(|one| one.upstream.as_ref());
    upstreams.any(|upstream| swaps.contains_key(&Arc::as_ptr(upstream)))
}
