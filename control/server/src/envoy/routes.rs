//! Virtual hosts and their routes.

use super::{
    World,
    action::{self, Client},
    hosts::{self, Host},
    matching,
    order::{self, Candidate},
    wire,
};

/// Routes of this name, of which the virtual hosts follow.
pub(super) fn configuration(name: String, virtual_hosts: Vec<wire::VirtualHost>) -> wire::RouteConfiguration {
    wire::RouteConfiguration {
        name,
        virtual_hosts,
        // A backend's filters come after the rule's.
        most_specific_header_mutations_wins: true,
        ignore_port_in_host_matching: true,
    }
}

/// The virtual host of a hostname: every match that includes it, the most specific first. A less specific one is still
/// tried when no other fits, and Envoy looks at one virtual host only.
pub(super) fn virtual_host(
    world: &World<'_>,
    host: Host<'_>,
    candidates: &[Candidate<'_>],
    client: Client,
) -> wire::VirtualHost {
    let mut fitting: Vec<Candidate<'_>> =
        candidates.iter().filter(|candidate| hosts::includes(candidate.host, host)).copied().collect();
    order::sort(&mut fitting);
    let routes = fitting.iter().filter_map(|candidate| {
        let matcher = match client {
            Client::Envoy => matching::envoy(candidate.matcher),
            Client::Grpc => matching::grpc(candidate.matcher)?,
        };
        Some(wire::Route { matcher: Some(matcher), ..action::route(world, candidate, client) })
    });
    let domain = hosts::domain(host);
    wire::VirtualHost { name: domain.clone(), domains: vec![domain], routes: routes.collect() }
}
