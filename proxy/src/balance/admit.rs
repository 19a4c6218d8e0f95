//! From an upstream to one of its endpoints: *a probe that is due* → *circuit open?* → the balancer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{
    endpoint::Endpoint,
    error::{Reason, Refusal},
    resilience::guard::Probe,
    snapshot::Upstream,
};

/// Where a request goes.
#[derive(Debug)]
pub struct Pick {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// The request finds out whether the endpoint works again.
    pub probe: Option<Probe>,
}

/// Why a request goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpicked {
    /// There are no endpoints, or none may be used.
    NoEndpoint,
    /// Every endpoint is Open or HalfOpen, and no probe is due.
    CircuitOpen {
        /// Until the next probe; zero when one is out.
        retry_after: Duration,
        /// How many endpoints are open.
        open: u32,
    },
}

impl Upstream {
    /// Picks an endpoint. The arguments are those of [`super::Balancer::pick`].
    ///
    /// # Errors
    /// When the circuit is open or no endpoint may be used.
    #[inline]
    pub fn pick(&self, hash: u64, tried: &[u64], now: Instant, rng: &mut Rng) -> Result<Pick, Unpicked> {
        if !self.service.circuit.quiet()
            && let Some(probe) = self.admit(tried, now)?
        {
            return Ok(Pick { endpoint: probe.endpoint().clone(), probe: Some(probe) });
        }
        self.balance(hash, tried, now, rng)
    }

    /// Whether it is worth while to get ready for [`Self::pick`]: not when the circuit is open and no probe is due.
    ///
    /// # Errors
    /// What [`Self::pick`] would say.
    pub fn check(&self, now: Instant) -> Result<(), Unpicked> {
        if self.service.circuit.is_due(now) { Ok(()) } else { self.check_circuit(now) }
    }

    /// Picks an endpoint for a request that nobody waits for: it never is a probe.
    ///
    /// # Errors
    /// When the circuit is open or no endpoint may be used.
    pub fn pick_for_copy(&self, hash: u64, now: Instant, rng: &mut Rng) -> Result<Pick, Unpicked> {
        self.check_circuit(now)?;
        self.balance(hash, &[], now, rng)
    }

    /// What [`Self::pick`] would come to for a new request, for whoever explains: nothing is picked. The endpoint is the
    /// one that the request would be a probe of.
    ///
    /// # Errors
    /// When the circuit is open or no endpoint may be used.
    pub fn foresee(&self, now: Instant) -> Result<Option<&Arc<Endpoint>>, Unpicked> {
        let circuit = &self.service.circuit;
        if !circuit.quiet() {
            if circuit.is_due(now) {
                let due = circuit.due(self.balancer.may_panic(), now);
                let find = |id: &u64| self.service.endpoints().iter().find(|endpoint| endpoint.id == *id);
                if let Some(endpoint) = due.iter().find_map(find) {
                    return Ok(Some(endpoint));
                }
            }
            self.check_circuit(now)?;
        }
        if self.balancer.is_usable() { Ok(None) } else { Err(Unpicked::NoEndpoint) }
    }

    /// The refusal of one more request now, if it would be one too many.
    pub fn crowded(&self) -> Option<Refusal> {
        let in_flight = self.service.in_flight.get();
        if in_flight >= self.policy.connection_pool.max_requests {
            return Some(self.max_requests());
        }
        let limit = self.service.concurrency.as_ref().map(|gradient| gradient.limit());
        limit.filter(|limit| in_flight >= *limit).map(|limit| self.adaptive_limit(limit))
    }

    /// `maxRequests` are in flight.
    #[cold]
    pub fn max_requests(&self) -> Refusal {
        let limit = self.policy.connection_pool.max_requests;
        Refusal::with(Reason::Overloaded, format!("service {} has maxRequests: {limit} in flight", self.service.name))
    }

    /// As many are in flight as the adaptive limit allows.
    #[cold]
    pub fn adaptive_limit(&self, limit: u32) -> Refusal {
        let name = &self.service.name;
        let detail = format!("service {name} has as many requests in flight as it takes: adaptive limit {limit}");
        Refusal::with(Reason::Overloaded, detail)
    }

    /// What a client is told that got no endpoint.
    pub fn refusal(&self, unpicked: Unpicked, now: Instant) -> Refusal {
        let name = &self.service.name;
        let Unpicked::CircuitOpen { retry_after, open } = unpicked else {
            let detail = match self.service.endpoints().len() {
                0 => format!("service {name} has no endpoints"),
                all => format!("none of the {all} endpoints of service {name} is usable"),
            };
            return Refusal::with(Reason::NoEndpoint, detail);
        };
        let mut detail = match open {
            1 => format!("the only endpoint of service {name} is open"),
            open => format!("all {open} endpoints of service {name} are open"),
        };
        if let (_, Some(last)) = self.service.circuit.outlook(now) {
            detail.push_str(&format!("; last: {}: {}", last.endpoint, last.evidence));
        }
        Refusal { retry_after: Some(retry_after), ..Refusal::with(Reason::CircuitOpen, detail) }
    }

    #[inline]
    fn balance(&self, hash: u64, tried: &[u64], now: Instant, rng: &mut Rng) -> Result<Pick, Unpicked> {
        let endpoint = self.balancer.pick(hash, tried, now, rng).ok_or(Unpicked::NoEndpoint)?;
        Ok(Pick { endpoint: endpoint.clone(), probe: None })
    }

    /// While some breaker is not Closed: the request becomes a probe, is refused, or goes to the balancer.
    #[cold]
    fn admit(&self, tried: &[u64], now: Instant) -> Result<Option<Probe>, Unpicked> {
        let probe = self.due_probe(tried, now);
        if probe.is_none() {
            self.check_circuit(now)?;
            if self.service.circuit.take_vacancy() {
                // Some that fail were kept in rotation because too many others did.
                self.service.endpoints().iter().for_each(|endpoint| endpoint.guard().take_place(now));
            }
        }
        Ok(probe)
    }

    fn check_circuit(&self, now: Instant) -> Result<(), Unpicked> {
        let circuit = &self.service.circuit;
        if !circuit.is_open() {
            return Ok(());
        }
        let (retry_after, _) = circuit.outlook(now);
        Err(Unpicked::CircuitOpen { retry_after, open: circuit.counts().open })
    }

    /// A probe to the endpoint that has been due for the longest time. One that this request has tried comes into
    /// question only when nobody else could take the request.
    fn due_probe(&self, tried: &[u64], now: Instant) -> Option<Probe> {
        let circuit = &self.service.circuit;
        if !circuit.is_due(now) {
            return None;
        }
        let due = circuit.due(self.balancer.may_panic(), now);
        let endpoints = self.service.endpoints();
        // Another configuration than this one may have more endpoints.
        let find = |id: &u64| endpoints.iter().find(|endpoint| endpoint.id == *id);
        let (again, fresh): (Vec<u64>, Vec<u64>) = due.into_iter().partition(|id| tried.contains(id));
        let probe = |ids: &[u64]| ids.iter().filter_map(find).find_map(|endpoint| endpoint.probe(now));
        probe(&fresh).or_else(|| if circuit.is_open() { probe(&again) } else { None })
    }
}

#[cfg(test)]
mod tests;
