//! What belongs to a service however many routes lead to it: circuit breakers, the retry budget, adaptive concurrency,
//! the connections.

use std::{collections::HashMap, sync::Arc};

use weft_model::config::{
    CircuitBreaker, Concurrency, Config, HttpRoute, Key, Policy, PolicyTarget, RetryBudget, RouteKind,
};

use crate::upstream::places::Limits;

/// What all routes to a service share, as its policy says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Common {
    /// `circuitBreaker`
    pub breaker: Option<Arc<CircuitBreaker>>,
    /// `retryBudget`
    pub retry_budget: Option<RetryBudget>,
    /// `concurrency`
    pub concurrency: Option<Concurrency>,
    /// `connectionPool.maxConnections`
    pub max_connections: Option<u32>,
    /// `connectionPool.maxPendingRequests`
    pub max_pending_requests: Option<u32>,
}

impl Common {
    /// What the policy on `target` itself says.
    pub fn of(target: &PolicyTarget, config: &Config) -> Self {
        let Some(written) = config.policy_on(target) else { return Self::default() };
        let policy = Policy::new(&written.spec);
        let pool = written.spec.connection_pool.as_ref();
        Self {
            breaker: policy.circuit_breaker.map(Arc::new),
            retry_budget: written.spec.retry_budget.is_some().then_some(policy.retry_budget),
            concurrency: policy.concurrency,
            max_connections: pool.and_then(|pool| pool.max_connections),
            max_pending_requests: pool.and_then(|pool| pool.max_pending_requests),
        }
    }

    /// This, and where it says nothing the other.
    pub fn or(self, other: Self) -> Self {
        Self {
            breaker: self.breaker.or(other.breaker),
            retry_budget: self.retry_budget.or(other.retry_budget),
            concurrency: self.concurrency.or(other.concurrency),
            max_connections: self.max_connections.or(other.max_connections),
            max_pending_requests: self.max_pending_requests.or(other.max_pending_requests),
        }
    }

    /// The budget in force.
    pub fn retry_budget(&self) -> RetryBudget {
        self.retry_budget.clone().unwrap_or_else(|| Policy::default().retry_budget)
    }

    /// The limits of its connections.
    pub fn limits(&self) -> Limits {
        let default = Policy::default().connection_pool;
        Limits {
            connections: self.max_connections.unwrap_or(default.max_connections),
            pending: self.max_pending_requests.unwrap_or(default.max_pending_requests),
        }
    }
}

/// Breakers, retry budgets, concurrency and connections belong to a service, which all routes to it share. What the service's own
/// policy leaves out, that of the first route (by key) says whose own policy has it.
pub fn said_by_routes(config: &Config) -> HashMap<(Key, u16), Common> {
    let mut said: HashMap<(Key, u16), Common> = HashMap::new();
    let mut routes: Vec<&HttpRoute> =
        config.http_routes.iter().filter(|route| config.has_route_policy(route.kind, &route.key)).collect();
    routes.sort_by_key(|route| (&route.key, route.kind == RouteKind::Grpc));
    for route in routes {
        let common = Common::of(&PolicyTarget::route(route.kind, &route.key), config);
        for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
            let before = said.entry((backend.service.clone(), backend.port)).or_default();
            *before = std::mem::take(before).or(common.clone());
        }
    }
    said
}
