//! Circuit breakers: whose policy counts, and when it begins to.

use std::{collections::HashMap, sync::Arc, time::Instant};

use weft_model::{
    config::{Config, HttpRoute, Key, RouteKind},
    policy::CircuitBreaker,
};

use super::Snapshot;

/// A breaker belongs to an endpoint, which all routes share. Where the service itself has no policy for it, that of the
/// first route (by key) counts whose own policy has one.
pub(super) fn of_routes(config: &Config) -> HashMap<(Key, u16), Arc<CircuitBreaker>> {
    let mut breakers = HashMap::new();
    let mut routes: Vec<&HttpRoute> =
        config.http_routes.iter().filter(|route| config.has_route_policy(route.kind, &route.key)).collect();
    routes.sort_by_key(|route| (&route.key, route.kind == RouteKind::Grpc));
    for route in routes {
        let policy = config.policy_for(None, Some((route.kind, &route.key)));
        let Some(breaker) = policy.circuit_breaker.map(Arc::new) else { continue };
        for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
            breakers.entry((backend.service.clone(), backend.port)).or_insert_with(|| breaker.clone());
        }
    }
    breakers
}

impl Snapshot {
    /// Puts the breakers' policies in force. Not part of compiling, because what was compiled may still be refused.
    /// Endpoints that are gone are to be marked as removed before: they would count among the others.
    pub fn enforce(&self, now: Instant) {
        for service in self.services.values() {
            let breaker = service.breaker.as_ref();
            for endpoint in service.endpoints() {
                // One of weight 0 gets no request that could find out whether it works.
                endpoint.guard().configure(breaker.filter(|_| endpoint.weight() > 0), now);
            }
            let percent = breaker.map_or(0.0, |breaker| breaker.max_ejection_percent);
            service.circuit.configure(percent, service.endpoints(), now);
        }
    }
}
