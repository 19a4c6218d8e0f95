//! How a client picks an endpoint: Envoy's policy, and what gRPC's client takes instead.

use weft_model::config::{BalancerKind, HashKey, LoadBalancer};

use super::wire::{self, Typed};

/// The policies of which a client takes the first that it knows. gRPC's client knows round robin and ring hash, and Envoy
/// knows them too, so they come last.
pub(super) fn policies(balancer: &LoadBalancer) -> wire::LbPolicies {
    let slow = (!balancer.slow_start.is_zero())
        .then(|| wire::SlowStart { slow_start_window: Some(balancer.slow_start.into()) });
    let locality = balancer.zone_aware.then_some(wire::LocalityLb { zone_aware_lb_config: Some(()) });
    let by_zone = wire::WrrLocality { endpoint_picking_policy: Some(list([one(&wire::RoundRobin::default())])) };
    let ring = wire::RingHash { hash_function: 1 };
    list(match balancer.kind {
        BalancerKind::PeakEwma | BalancerKind::LeastRequest => {
            let least = wire::LeastRequest { slow_start_config: slow, locality_lb_config: locality };
            vec![one(&least), one(&by_zone)]
        }
        BalancerKind::Random => vec![one(&wire::Random { locality_lb_config: locality }), one(&by_zone)],
        BalancerKind::RoundRobin => {
            vec![one(&wire::RoundRobin { slow_start_config: slow, locality_lb_config: locality })]
        }
        BalancerKind::RingHash => vec![one(&ring)],
        BalancerKind::Maglev => vec![one(&wire::Maglev::default()), one(&ring)],
    })
}

fn list(policies: impl IntoIterator<Item = wire::LbPolicy>) -> wire::LbPolicies {
    wire::LbPolicies { policies: policies.into_iter().collect() }
}

fn one<P: Typed>(policy: &P) -> wire::LbPolicy {
    let extension = wire::Extension { name: P::NAME.to_owned(), typed_config: Some(policy.any()) };
    wire::LbPolicy { typed_extension_config: Some(extension) }
}

/// What a route hashes, for the policies that hash.
pub(super) fn hash(balancer: &LoadBalancer) -> Vec<wire::HashPolicy> {
    if !hashes(balancer) {
        return Vec::new();
    }
    let hashed = match &balancer.hash {
        HashKey::Header(name) => {
            wire::Hashed::Header(wire::HashedHeader { header_name: name.to_string(), regex_rewrite: None })
        }
        HashKey::Cookie(name) => wire::Hashed::Cookie(wire::HashedCookie { name: name.to_string() }),
        HashKey::SourceIp => wire::Hashed::Connection(wire::HashedConnection { source_ip: true }),
        HashKey::Path => wire::Hashed::Header(wire::HashedHeader {
            header_name: ":path".to_owned(),
            // Without the query.
            regex_rewrite: Some(wire::RegexRewrite {
                pattern: Some(wire::Regex { regex: r"\?.*".to_owned() }),
                substitution: String::new(),
            }),
        }),
    };
    vec![wire::HashPolicy { hashed: Some(hashed) }]
}

/// Connections know only where they come from.
pub(super) fn hash_connection(balancer: &LoadBalancer) -> Vec<wire::TcpHash> {
    if hashes(balancer) { vec![wire::TcpHash { source_ip: Some(()) }] } else { Vec::new() }
}

fn hashes(balancer: &LoadBalancer) -> bool {
    matches!(balancer.kind, BalancerKind::RingHash | BalancerKind::Maglev)
}
