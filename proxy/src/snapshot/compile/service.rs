//! Services and upstreams: what live state goes on, and under which policy.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_model::config::{self, Address, BackendTls, Config, Key, Policy, PolicyTarget, RouteKind, ServicePort};

use super::Compiler;
use crate::{
    balance::{Balancer, EndpointSet},
    endpoint::Endpoint,
    identity::ClientTls,
    layer::{access::Access, fault::Fault},
    resilience::{budget::SharedBudget, circuit::Circuit, concurrency::SharedGradient},
    snapshot::{Hedge, Service, Upstream, common::Common},
    upstream::places::Places,
};

impl Compiler<'_> {
    pub(super) fn service(&mut self, service: &Arc<config::Service>, port: &ServicePort) {
        let config = &self.input.config;
        let id = (service.key.clone(), port.port);
        let before = self.previous.services.get(&id);
        let own = Common::of(&PolicyTarget::Service(service.key.clone()), config);
        let terms = Terms {
            common: own.or(self.said_by_routes.get(&id).cloned().unwrap_or_default()),
            policy: config.policy_for(Some(&service.key), None),
            tls: self.client_tls(&service.key, port),
            access: match before {
                Some(before) if self.same_access => before.access.clone(),
                _ => self.access.get(&service.key).cloned(),
            },
        };
        let same =
            before.filter(|before| !by_name(service) && before.written == *service && terms.are_those_of(before));
        let state = same.map_or_else(|| Arc::new(self.state(service, port, before, terms)), Arc::clone);
        self.services.insert(id, state);
    }

    /// A port of a service under these terms, with the live state of `before`.
    pub(super) fn state(
        &self,
        service: &Arc<config::Service>,
        port: &ServicePort,
        before: Option<&Arc<Service>>,
        terms: Terms,
    ) -> Service {
        let Terms { common, policy, tls, access } = terms;
        // Connections to the endpoints of before go on counting, whatever happens to those.
        let places = before.map_or_else(|| Arc::new(Places::new(common.limits())), |before| before.places.clone());
        // Pooled connections belong to endpoints: what changes how they are opened makes them other endpoints.
        let before = before.filter(|before| {
            before.protocol == port.protocol && before.tls.as_ref().map(Arc::as_ptr) == tls.as_ref().map(Arc::as_ptr)
        });
        let name: Arc<str> = service.key.to_string().into();
        let circuit = match before {
            Some(before) => before.circuit.clone(),
            None => {
                let ejections = self.input.telemetry.metrics.ejections.clone();
                Arc::new(Circuit::new(name.clone(), ejections, self.input.now))
            }
        };
        let mut by_address = HashMap::new();
        let mut endpoints = Vec::new();
        for written in &service.endpoints {
            let (addresses, hostname): (&[IpAddr], _) = match &written.address {
                Address::Ip(ip) => (std::slice::from_ref(ip), None),
                Address::Name(name) => (self.input.resolved.get(name).map_or(&[], Vec::as_slice), Some(name.clone())),
            };
            for ip in addresses {
                let address = SocketAddr::new(*ip, written.port);
                // Two names may lead to one address. The first counts: its state is the one that is found again.
                if by_address.contains_key(&address) {
                    continue;
                }
                let kept = before.and_then(|before| before.by_address.get(&address));
                let kept = kept.filter(|kept| kept.zone == written.zone && kept.hostname == hostname);
                let endpoint = match kept {
                    Some(kept) => kept.clone(),
                    None => Arc::new(Endpoint::new(
                        address,
                        hostname.clone(),
                        written.zone.clone(),
                        written.share(),
                        circuit.clone(),
                        self.input.now,
                    )),
                };
                by_address.insert(address, endpoint.clone());
                endpoints.push((endpoint, written.share()));
            }
        }
        let budget = before.map_or_else(
            || Arc::new(SharedBudget::new(&common.retry_budget(), self.input.now)),
            |before| before.budget.clone(),
        );
        let concurrency = common.concurrency.as_ref().map(|policy| {
            let learned = before.and_then(|before| before.concurrency.clone());
            learned.unwrap_or_else(|| Arc::new(SharedGradient::new(policy, self.input.now)))
        });
        let endpoints = Arc::new(EndpointSet::new(endpoints, circuit.clone(), self.input.zone.clone()));
        Service {
            key: service.key.clone(),
            port: port.port,
            name,
            protocol: port.protocol,
            policy,
            endpoints,
            circuit,
            common,
            concurrency,
            in_flight: before.map_or_else(Arc::default, |before| before.in_flight.clone()),
            places,
            retries: before.map_or_else(Arc::default, |before| before.retries.clone()),
            budget,
            since: before.map_or(self.input.now, |before| before.since),
            written: service.clone(),
            by_address,
            tls,
            access,
        }
    }

    /// The BackendTLSPolicy for a port: one that names the port wins over one that does not.
    fn client_tls(&self, service: &Key, port: &ServicePort) -> Option<Arc<ClientTls>> {
        backend_tls(&self.input.config, service, port).and_then(|policy| self.input.identities.client(&policy.key))
    }

    pub(super) fn upstream(&mut self, key: &Key, port: u16, route: Option<(RouteKind, &Key)>) -> Option<Arc<Upstream>> {
        let config = self.input.config.clone();
        let own = route.filter(|(kind, key)| config.has_route_policy(*kind, key));
        let id = (key.clone(), port, own.map(|(kind, key)| (kind, key.clone())));
        if let Some(upstream) = self.upstreams.get(&id) {
            return Some(upstream.clone());
        }
        let service = self.services.get(&(key.clone(), port))?.clone();
        let policy = match own {
            Some(_) => config.policy_for(Some(key), own),
            None => service.policy.clone(),
        };
        let before = self.previous.upstreams.get(&id);
        let upstream = match before {
            Some(before) if Arc::ptr_eq(&before.service, &service) && before.policy == policy => before.clone(),
            _ => Arc::new(self.new_upstream(service, policy, before)),
        };
        self.upstreams.insert(id, upstream.clone());
        Some(upstream)
    }

    /// A service's port under a policy; what `before` has learned is kept.
    pub(super) fn new_upstream(
        &mut self,
        service: Arc<Service>,
        policy: Policy,
        before: Option<&Arc<Upstream>>,
    ) -> Upstream {
        let balancer =
            Balancer::new(&policy.load_balancer, service.endpoints.clone(), before.map(|before| &before.balancer));
        let fault = policy.fault.as_ref().map(Fault::new).transpose();
        let fault = fault.unwrap_or_else(|error| {
            self.broken = Some(error);
            None
        });
        let hedged = before.and_then(|before| before.hedge.as_ref());
        let hedge = policy.hedge.as_ref().map(|hedge| Hedge::new(hedge, hedged, self.input.now));
        Upstream { protocol: service.protocol, tls: service.tls.clone(), policy, balancer, hedge, fault, service }
    }
}

/// What the configuration says about a port of a service besides the Service itself.
pub(super) struct Terms {
    common: Common,
    policy: Policy,
    tls: Option<Arc<ClientTls>>,
    access: Option<Arc<Access>>,
}

impl Terms {
    pub(super) fn of(service: &Service) -> Self {
        Self {
            common: service.common.clone(),
            policy: service.policy.clone(),
            tls: service.tls.clone(),
            access: service.access.clone(),
        }
    }

    fn are_those_of(&self, service: &Service) -> bool {
        self.policy == service.policy
            && self.common == service.common
            && self.tls.as_ref().map(Arc::as_ptr) == service.tls.as_ref().map(Arc::as_ptr)
            && self.access.as_ref().map(Arc::as_ptr) == service.access.as_ref().map(Arc::as_ptr)
    }
}

/// Whether it has endpoints whose addresses depend on more than the configuration.
pub(super) fn by_name(service: &config::Service) -> bool {
    service.endpoints.iter().any(|endpoint| matches!(endpoint.address, Address::Name(_)))
}

fn backend_tls<'c>(config: &'c Config, service: &Key, port: &ServicePort) -> Option<&'c BackendTls> {
    let named = |section: &Option<Arc<str>>| section.as_ref() == Some(&port.name);
    let find = |wanted: &dyn Fn(&Option<Arc<str>>) -> bool| {
        config.backend_tls.iter().find(|tls| tls.targets.iter().any(|(key, section)| key == service && wanted(section)))
    };
    find(&named).or_else(|| find(&|section| section.is_none()))
}
