//! Gateways: their listeners and what those route.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use weft_model::config::{
    AllowedNamespaces, BackendRef, Config, Gateway, Key, Listener, ListenerProtocol, ParentRef, TcpRoute,
};

use super::{
    Built, Kind, Resource, World,
    action::Client,
    balancing,
    hosts::{self, Host},
    names,
    order::{self, Candidate},
    routes, tls, wire,
    wire::Typed,
};

/// A listener with the Gateway that it belongs to.
type Owned<'c> = (&'c Gateway, &'c Listener);

/// The listeners of all Gateways.
pub(super) fn build(world: &World<'_>, built: &mut Built) {
    for (address, listeners) in by_address(world.config) {
        let of = |wanted: fn(&ListenerProtocol) -> bool| -> Vec<Owned<'_>> {
            listeners.iter().filter(|(_, listener)| wanted(&listener.protocol)).copied().collect()
        };
        let tcp = of(|protocol| matches!(protocol, ListenerProtocol::Tcp));
        let https = of(|protocol| matches!(protocol, ListenerProtocol::Https { .. }));
        let http = of(|protocol| matches!(protocol, ListenerProtocol::Http));
        // A valid configuration has one protocol on a port.
        let chains = if let Some(first) = tcp.first() {
            opaque(world, address, *first).into_iter().collect()
        } else if https.is_empty() {
            vec![plain(world, address, &http, built)]
        } else {
            encrypted(world, address, &https, built)
        };
        if chains.is_empty() {
            continue;
        }
        let inspected = chains.iter().any(|chain| chain.transport_socket.is_some());
        let listener = wire::Listener {
            name: names::listener(address),
            address: Some(bound(address)),
            filter_chains: chains,
            listener_filters: if inspected { vec![server_name()] } else { Vec::new() },
            api_listener: None,
        };
        built.resources.insert((Kind::Listener, listener.name.clone()), Resource::listed(&listener));
    }
}

/// The listeners of each address, in the order of the configuration.
fn by_address(config: &Config) -> BTreeMap<SocketAddr, Vec<Owned<'_>>> {
    let mut all: BTreeMap<SocketAddr, Vec<Owned<'_>>> = BTreeMap::new();
    for gateway in &config.gateways {
        for listener in &gateway.listeners {
            let everywhere = [IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
            let addresses = if gateway.addresses.is_empty() { &everywhere[..] } else { &gateway.addresses };
            for address in addresses {
                all.entry(SocketAddr::new(*address, listener.port)).or_default().push((gateway, listener));
            }
        }
    }
    all
}

fn bound(address: SocketAddr) -> wire::Address {
    let mut bound = wire::Address::tcp(address.ip().to_string(), address.port());
    if let Some(socket) = &mut bound.socket_address {
        // Every address of the host, IPv4 as well.
        socket.ipv4_compat = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    }
    bound
}

/// HTTP: one chain, whose virtual hosts are those of all listeners.
fn plain(world: &World<'_>, address: SocketAddr, listeners: &[Owned<'_>], built: &mut Built) -> wire::FilterChain {
    let name = names::listener(address);
    let hosts = virtual_hosts(world, listeners).into_iter().flatten().collect();
    let configuration = routes::configuration(name.clone(), hosts);
    built.resources.insert((Kind::Routes, name.clone()), Resource::listed(&configuration));
    wire::FilterChain { filters: vec![http(&name)], name, ..wire::FilterChain::default() }
}

/// HTTPS: a chain, with routes of its own, for each listener whose certificates can be had.
fn encrypted(
    world: &World<'_>,
    address: SocketAddr,
    listeners: &[Owned<'_>],
    built: &mut Built,
) -> Vec<wire::FilterChain> {
    let mut chains: Vec<wire::FilterChain> = Vec::new();
    for ((gateway, listener), mut hosts) in listeners.iter().zip(virtual_hosts(world, listeners)) {
        let ListenerProtocol::Https { certificates } = &listener.protocol else { continue };
        let socket = match tls::downstream(world.config, certificates) {
            Ok(socket) => socket,
            Err(why) => {
                built.leave_out(format!("Gateway {} listener {}", gateway.key, listener.name), why);
                continue;
            }
        };
        if hosts.is_empty() {
            // Another listener has the same hostname: Envoy takes no two chains with the same names.
            continue;
        }
        // Whoever asked for another server name does not get to the hosts of a more specific listener.
        let own = listener.hostname.as_ref();
        let others = listeners.iter().map(|(_, other)| other.hostname.as_ref());
        let closer: BTreeSet<Host<'_>> = others.filter(|other| *other != own && hosts::includes(own, *other)).collect();
        hosts.extend(closer.into_iter().map(|host| routes::virtual_host(world, host, &[], Client::Envoy)));
        let name = names::own_routes(address, gateway, listener);
        let configuration = routes::configuration(name.clone(), hosts);
        built.resources.insert((Kind::Routes, name.clone()), Resource::listed(&configuration));
        chains.push(wire::FilterChain {
            filter_chain_match: listener
                .hostname
                .as_ref()
                .map(|hostname| wire::FilterChainMatch { server_names: vec![hosts::domain(Some(hostname))] }),
            filters: vec![http(&name)],
            transport_socket: Some(socket),
            name,
        });
    }
    chains
}

/// For each listener of a port its virtual hosts.
fn virtual_hosts(world: &World<'_>, listeners: &[Owned<'_>]) -> Vec<Vec<wire::VirtualHost>> {
    let candidates: Vec<Vec<Candidate<'_>>> =
        listeners.iter().map(|(gateway, listener)| candidates(world.config, gateway, listener)).collect();
    let wanted: Vec<(Host<'_>, Vec<Host<'_>>)> = listeners
        .iter()
        .zip(&candidates)
        .map(|((_, listener), all)| (listener.hostname.as_ref(), all.iter().map(|one| one.host).collect()))
        .collect();
    let hosts = hosts::isolated(&wanted).into_iter().zip(&candidates);
    hosts
        .map(|(hosts, all)| {
            hosts.into_iter().map(|host| routes::virtual_host(world, host, all, Client::Envoy)).collect()
        })
        .collect()
}

fn candidates<'c>(config: &'c Config, gateway: &Gateway, listener: &'c Listener) -> Vec<Candidate<'c>> {
    let attached = config.http_routes.iter().filter(|route| attached(&route.parents, &route.key, gateway, listener));
    attached.flat_map(|route| order::candidates(route, listener.hostname.as_ref())).collect()
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

/// TCP: to the backends of the oldest route that is attached; no listener without one.
fn opaque(world: &World<'_>, address: SocketAddr, (gateway, listener): Owned<'_>) -> Option<wire::FilterChain> {
    let routes = world.config.tcp_routes.iter();
    let route = routes
        .filter(|route| attached(&route.parents, &route.key, gateway, listener))
        .min_by_key(|route| (route.created.is_none(), route.created.clone(), route.key.to_string()))?;
    let proxy = wire::TcpProxy { stat_prefix: names::listener(address), ..connections(world, route)? };
    let filter = wire::Filter { name: "envoy.filters.network.tcp_proxy".to_owned(), typed_config: Some(proxy.any()) };
    Some(wire::FilterChain { filters: vec![filter], name: names::listener(address), ..wire::FilterChain::default() })
}

fn connections(world: &World<'_>, route: &TcpRoute) -> Option<wire::TcpProxy> {
    let live: Vec<_> = route.backends.iter().filter(|backend| backend.weight > 0).collect();
    let first = live.first()?;
    let name = |backend: &BackendRef| names::cluster(&backend.service, backend.port);
    let policy = world.config.policy_for(Some(&first.service), None);
    let target = if live.len() == 1 {
        wire::TcpTarget::Cluster(name(first))
    } else {
        let share = |backend: &&BackendRef| wire::TcpShare { name: name(backend), weight: backend.weight };
        wire::TcpTarget::Weighted(wire::TcpWeighted { clusters: live.iter().map(share).collect() })
    };
    Some(wire::TcpProxy {
        idle_timeout: Some(policy.timeouts.idle.into()),
        hash_policy: balancing::hash_connection(&policy.load_balancer),
        target: Some(target),
        ..wire::TcpProxy::default()
    })
}

/// HTTP over the routes of this name.
fn http(routes: &str) -> wire::Filter {
    let manager = wire::HttpConnectionManager {
        use_remote_address: Some(true),
        upgrade_configs: vec![wire::Upgrade { upgrade_type: "websocket".to_owned() }],
        normalize_path: Some(true),
        server_header_transformation: 2,
        strip_trailing_host_dot: true,
        ..manager(routes)
    };
    let name = "envoy.filters.network.http_connection_manager".to_owned();
    wire::Filter { name, typed_config: Some(manager.any()) }
}

/// What Envoy and gRPC's client both need for HTTP over the routes of this name.
pub(super) fn manager(routes: &str) -> wire::HttpConnectionManager {
    let router = wire::Router::default().any();
    wire::HttpConnectionManager {
        stat_prefix: routes.to_owned(),
        rds: Some(wire::Rds { config_source: Some(wire::ConfigSource::ads()), route_config_name: routes.to_owned() }),
        http_filters: vec![wire::HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            typed_config: Some(router),
        }],
        ..wire::HttpConnectionManager::default()
    }
}

/// Reads the server name that the client asks for, so that a chain can be chosen by it.
fn server_name() -> wire::ListenerFilter {
    let name = "envoy.filters.listener.tls_inspector".to_owned();
    wire::ListenerFilter { name, typed_config: Some(wire::TlsInspector::default().any()) }
}
