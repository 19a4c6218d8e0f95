//! From the model to what the kernel should hold.
//!
//! [`desired`] knows nothing of what the kernel holds already: places in ENDPOINTS and SLOTS, generations and the order of
//! writes are the matter of [`crate::reconcile`].

mod policy;
mod slots;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_ebpf_abi::{Action, Addr, MAX_DEPTH, Policy, access, flag, id};
use weft_model::config::{Config, Key, Service, ServicePort};

pub(crate) use policy::content;
pub use policy::{Access, Block};
pub(crate) use slots::shares;

/// One endpoint as the proxy knows it: names resolved, health and breaker known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// The service.
    pub service: Key,
    /// Its port.
    pub port: u16,
    /// Of the proxy's endpoint, unique in the process.
    pub id: u64,
    /// Where it is.
    pub address: SocketAddr,
    /// Relative share; 0: no new connections.
    pub weight: u32,
    /// Not ejected and not unhealthy.
    pub usable: bool,
    /// The local address from which this host connects to it.
    pub source: Option<IpAddr>,
}

/// What the kernel should hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// In the order of the configuration. Each is put in force as a whole or not at all.
    pub services: Vec<Captured>,
    /// Contents of BLOCKS by [`Policy::group`].
    pub groups: HashMap<u64, Vec<Block>>,
    /// cgroup id → workload.
    pub workloads: HashMap<u64, u64>,
    /// How many levels below the attach point workloads are, at most.
    pub depth: u32,
    /// Workloads whose selectors are deeper than the programs look: they are not recognised.
    pub too_deep: Vec<Key>,
    /// What to call services, their ports and workloads.
    pub names: HashMap<u64, Arc<str>>,
}

/// A service.
#[derive(Debug, Clone, PartialEq)]
pub struct Captured {
    /// `namespace/name`: stands for all ports that it does not have.
    pub id: u64,
    /// Its virtual addresses.
    pub vips: Vec<Addr>,
    /// Who may connect; `None`: everybody.
    pub access: Option<Arc<Access>>,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// `namespace/name:port`.
    pub id: u64,
    /// In host order.
    pub port: u32,
    /// Direct or Proxy.
    pub action: Action,
    /// Of [`flag`].
    pub flags: u8,
    /// Whether the kernel picks endpoints.
    pub table: bool,
    /// Ordered by address and port, each once.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Address.
    pub addr: Addr,
    /// In host order.
    pub port: u32,
    /// The address from which this host connects to it.
    pub source: Addr,
    /// Relative share; those with 0 have a place in ENDPOINTS, for the connections that they have, but are not picked.
    pub weight: u32,
    /// Not ejected and not unhealthy.
    pub usable: bool,
    /// The [`Live::id`]s that have this address.
    pub live: Vec<u64>,
}

/// What the kernel should hold for this configuration and these endpoints. `cgroup` finds the id of a cgroup by its path
/// relative to the attach point, if there is such a cgroup.
pub fn desired(config: &Config, live: &[Live], cgroup: impl Fn(&str) -> Option<u64>) -> Desired {
    let mut desired = Desired::default();
    workloads(config, cgroup, &mut desired);
    let policies = policy::Compiler::new(config);
    let mut endpoints: HashMap<(&Key, u16), Vec<Endpoint>> = HashMap::new();
    for live in live {
        endpoints.entry((&live.service, live.port)).or_default().push(endpoint(live));
    }
    let mut taken = HashSet::new();
    desired.services.reserve(config.services.len());
    for service in &config.services {
        let name = full_name(&service.key);
        let access = policies.access(&service.key, &mut desired.groups).map(Arc::new);
        let protected = access.is_some();
        let by_address = access.as_ref().is_some_and(|access| access.by_address());
        let mut ports: Vec<Port> = Vec::with_capacity(service.ports.len());
        for port in &service.ports {
            let mut flags = 0;
            if service.fail_open {
                flags |= flag::FAIL_OPEN;
            }
            if protected {
                flags |= flag::POLICY;
            }
            let action = action(service, port);
            let id = id(&format!("{name}:{}", port.port));
            desired.names.insert(id, format!("{}:{}", service.key, port.port).into());
            ports.push(Port {
                id,
                port: port.port.into(),
                action,
                flags,
                table: action == Action::Direct || service.fail_open || by_address,
                endpoints: distinct(endpoints.remove(&(&service.key, port.port)).unwrap_or_default()),
            });
        }
        let id = id(&name);
        desired.names.insert(id, service.key.to_string().into());
        // Two services never share an address in a valid configuration; in a partial one from a stream the first has it.
        let vips = service.cluster_ips.iter().map(|&ip| Addr::from(ip)).filter(|vip| taken.insert(*vip)).collect();
        desired.services.push(Captured { id, vips, access, ports });
    }
    desired
}

/// What ids are made from: unlike [`Key`]'s Display it always has the namespace.
fn full_name(key: &Key) -> String {
    format!("{}/{}", key.namespace, key.name)
}

fn action(service: &Service, port: &ServicePort) -> Action {
    if service.is_proxied(port) { Action::Proxy } else { Action::Direct }
}

fn endpoint(live: &Live) -> Endpoint {
    Endpoint {
        addr: live.address.ip().into(),
        port: live.address.port().into(),
        source: live.source.map_or(Addr::NONE, Addr::from),
        weight: live.weight,
        usable: live.usable,
        live: vec![live.id],
    }
}

/// Orders them, so that equal sets make equal tables, and merges those that share an address: two names of one host.
fn distinct(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.sort_by_key(|endpoint| (endpoint.addr.0.map(u32::from_be), endpoint.port));
    endpoints.dedup_by(|next, kept| {
        let same = (next.addr, next.port) == (kept.addr, kept.port);
        if same {
            kept.weight = kept.weight.saturating_add(next.weight);
            kept.usable |= next.usable;
            kept.live.append(&mut next.live);
            if kept.source == Addr::NONE {
                kept.source = next.source;
            }
        }
        same
    });
    endpoints
}

fn workloads(config: &Config, cgroup: impl Fn(&str) -> Option<u64>, desired: &mut Desired) {
    for workload in &config.workloads {
        let id = id(&full_name(&workload.key));
        desired.names.insert(id, workload.key.to_string().into());
        let levels = workload.cgroup.split('/').count() as u32;
        if levels > MAX_DEPTH {
            desired.too_deep.push(workload.key.clone());
            continue;
        }
        desired.depth = desired.depth.max(levels);
        if let Some(cgroup) = cgroup(&workload.cgroup) {
            desired.workloads.entry(cgroup).or_insert(id);
        }
    }
}

impl Access {
    fn by_address(&self) -> bool {
        self.policies.iter().any(|(_, Policy { access, .. })| *access == access::BY_ADDRESS)
    }
}
