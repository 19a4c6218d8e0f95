//! Which routes are attached to which listeners, and which listeners share a port.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use weft_model::config::{AllowedNamespaces, Config, Gateway, Hostname, HttpRoute, Key, Listener, ParentRef};

use crate::{
    route::{Candidate, Rank, hosts::intersect},
    snapshot::PortId,
};

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

pub(super) fn attached(parents: &[ParentRef], route: &Key, gateway: &Gateway, listener: &Listener) -> bool {
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

pub(super) fn candidates(
    config: &Config,
    gateway: &Gateway,
    listener: &Listener,
    rules: &[Vec<u32>],
) -> Vec<Candidate<u32>> {
    let mut candidates = Vec::new();
    for (route, rules) in config.http_routes.iter().zip(rules) {
        if !attached(&route.parents, &route.key, gateway, listener) {
            continue;
        }
        add(&mut candidates, route, rules, listener.hostname.as_ref());
    }
    candidates
}

/// The matches of a route that is attached to something with this hostname.
pub(super) fn add(candidates: &mut Vec<Candidate<u32>>, route: &HttpRoute, rules: &[u32], listener: Option<&Hostname>) {
    for hostname in intersect(listener, &route.hostnames) {
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

/// Routes by the services that they are bound to. Only those of the service's own namespace count: nobody else may lead
/// its clients elsewhere.
pub(super) fn by_service<'c, R>(
    routes: impl IntoIterator<Item = (&'c Key, &'c [ParentRef], R)>,
) -> HashMap<&'c Key, Vec<(Option<u16>, R)>>
where
    R: Copy,
{
    let mut bound: HashMap<&Key, Vec<(Option<u16>, R)>> = HashMap::new();
    for (route, parents, value) in routes {
        for parent in parents {
            if let ParentRef::Service { key, port } = parent
                && key.namespace == route.namespace
            {
                bound.entry(key).or_default().push((*port, value));
            }
        }
    }
    bound
}
