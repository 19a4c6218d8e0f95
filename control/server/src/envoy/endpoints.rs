//! Endpoints of a service, by zone.

use std::collections::{BTreeMap, HashSet};

use weft_model::config::{Address, Endpoint, Service};
use weft_wire::discovery::Locality;

use super::wire;

/// Whether an endpoint is a name, which somebody has to resolve.
pub(super) fn by_name(service: &Service) -> bool {
    service.endpoints.iter().any(|endpoint| matches!(endpoint.address, Address::Name(_)))
}

/// The endpoints that take something new. Of two at the same place the first counts: gRPC's client takes no assignment
/// with both.
pub(super) fn localities(service: &Service) -> Vec<wire::LocalityEndpoints> {
    let mut seen = HashSet::new();
    let live = service.endpoints.iter().filter(|endpoint| endpoint.share() > 0);
    let live: Vec<&Endpoint> = live.filter(|endpoint| seen.insert((&endpoint.address, endpoint.port))).collect();
    let divisor = divisor(live.iter().map(|endpoint| endpoint.share()));
    let mut zones: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in live {
        zones.entry(endpoint.zone.as_deref().unwrap_or_default()).or_default().push(endpoint);
    }
    let locality = |(zone, mut endpoints): (&str, Vec<&Endpoint>)| {
        // The order in which they are written must not matter: a version is a hash.
        endpoints.sort_by_key(|endpoint| (endpoint.address.to_string(), endpoint.port));
        let endpoints: Vec<_> = endpoints.into_iter().map(|endpoint| lb_endpoint(endpoint, divisor)).collect();
        let weight = endpoints.iter().filter_map(|endpoint| endpoint.load_balancing_weight).sum();
        wire::LocalityEndpoints {
            locality: Some(Locality { zone: zone.to_owned(), ..Locality::default() }),
            endpoints,
            // gRPC's client ignores a locality without a weight.
            load_balancing_weight: Some(weight),
        }
    };
    zones.into_iter().map(locality).collect()
}

/// Envoy and gRPC take no assignment whose weights add up to more than 32 bits hold.
fn divisor(shares: impl Iterator<Item = u32> + Clone) -> u32 {
    let count = shares.clone().count() as u64;
    let sum: u64 = shares.map(u64::from).sum();
    // What is rounded up to 1 adds at most 1 each.
    let most = u64::from(u32::MAX).saturating_sub(count).max(1);
    u32::try_from(sum.div_ceil(most)).unwrap_or(u32::MAX).max(1)
}

fn lb_endpoint(endpoint: &Endpoint, divisor: u32) -> wire::LbEndpoint {
    let address = wire::Address::tcp(endpoint.address.to_string(), endpoint.port);
    wire::LbEndpoint {
        endpoint: Some(wire::Endpoint { address: Some(address) }),
        load_balancing_weight: Some((endpoint.share() / divisor).max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(shares: &[u32]) -> u64 {
        let divisor = divisor(shares.iter().copied());
        shares.iter().map(|share| u64::from((share / divisor).max(1))).sum()
    }

    #[test]
    fn weights_add_up_to_what_32_bits_hold() {
        assert_eq!(total(&[1, 2, 3]), 6, "small ones stay as they are");
        let large = vec![1_000_000; 10_000];
        assert!(total(&large) <= u64::from(u32::MAX));
        let mixed: Vec<u32> = (0..20_000).map(|n| if n % 2 == 0 { 1 } else { 1_000_000 }).collect();
        assert!(total(&mixed) <= u64::from(u32::MAX));
        assert!(total(&mixed) > u64::from(u32::MAX) / 2, "no more is lost than has to be");
    }
}
