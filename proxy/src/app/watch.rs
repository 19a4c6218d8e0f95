//! What changes without a new configuration: addresses behind names, and the health of endpoints.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
};
use weft_model::config::{self, Address, AppProtocol, Config, HealthCheck, Key};

use crate::{
    endpoint::{Endpoint, Health},
    health::{Checker, OnChange},
    identity::ClientTls,
    resolve::Resolver,
    snapshot::{Service, Snapshot},
};

/// Resolvers and health checkers of the configuration in force.
pub struct Watch {
    handle: Handle,
    resolver: Resolver,
    addresses: HashMap<Arc<str>, Vec<IpAddr>>,
    names: HashMap<Arc<str>, Name>,
    changed: Arc<Notify>,
    /// The names in services that have been looked through, by where those are.
    known: HashMap<usize, (Arc<config::Service>, Vec<Arc<str>>)>,
    checkers: HashMap<(Key, u16), (Checked, Checker)>,
    on_change: OnChange,
}

/// What a checker was started with: anything else needs another one.
#[derive(Clone)]
struct Checked {
    /// Whose endpoints it checks.
    service: Arc<Service>,
    spec: HealthCheck,
    protocol: AppProtocol,
    tls: Option<Arc<ClientTls>>,
}

impl PartialEq for Checked {
    fn eq(&self, other: &Self) -> bool {
        let identity = |checked: &Self| checked.tls.as_ref().map(Arc::as_ptr);
        self.spec == other.spec && self.protocol == other.protocol && identity(self) == identity(other)
    }
}

/// A name that is being resolved.
struct Name {
    answers: watch::Receiver<Vec<IpAddr>>,
    /// Passes changes on; ends with this.
    task: JoinHandle<()>,
}

impl Drop for Name {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The endpoints that are written as names.
fn names_in(service: &config::Service) -> Vec<Arc<str>> {
    let names = service.endpoints.iter().filter_map(|endpoint| match &endpoint.address {
        Address::Name(name) => Some(name.clone()),
        Address::Ip(_) => None,
    });
    names.collect()
}

impl Watch {
    /// Watches nothing yet; its tasks run on the runtime of `handle`.
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            resolver: Resolver::new(),
            addresses: HashMap::new(),
            names: HashMap::new(),
            changed: Arc::default(),
            known: HashMap::new(),
            checkers: HashMap::new(),
            on_change: Arc::new(|endpoint: &Endpoint, health: Health, why: &str| {
                tracing::info!(endpoint = &*endpoint.label, health = health.as_str(), why, "health changed");
            }),
        }
    }

    /// What names resolve to.
    pub fn addresses(&self) -> &HashMap<Arc<str>, Vec<IpAddr>> {
        &self.addresses
    }

    /// Starts and stops checkers and resolvers so that they fit `snapshot`.
    pub fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        self.follow_names(snapshot);
        self.follow_health(snapshot);
    }

    /// Resolves the names of a configuration that is about to be put in force; those that take longer than `limit`
    /// follow later.
    pub async fn resolve(&mut self, config: &Config, limit: Duration) {
        let names = self.names_of(config);
        self.start(names.iter().cloned());
        let deadline = tokio::time::Instant::now() + limit;
        for name in names {
            let Some(resolved) = self.names.get_mut(&name) else { continue };
            let answer = resolved.answers.wait_for(|answer| !answer.is_empty());
            if let Ok(Ok(answer)) = tokio::time::timeout_at(deadline, answer).await {
                let answer = answer.clone();
                self.addresses.insert(name, answer);
            }
        }
    }

    /// The endpoints of a configuration that are written as names. Most services are those of the one before.
    fn names_of(&mut self, config: &Config) -> HashSet<Arc<str>> {
        let mut before = std::mem::take(&mut self.known);
        for service in &config.services {
            let at = Arc::as_ptr(service).addr();
            let known = before.remove(&at).unwrap_or_else(|| (service.clone(), names_in(service)));
            self.known.insert(at, known);
        }
        self.known.values().flat_map(|(_, names)| names).cloned().collect()
    }

    fn follow_names(&mut self, snapshot: &Snapshot) {
        let wanted = self.names_of(&snapshot.config);
        self.names.retain(|name, _| wanted.contains(name));
        self.addresses.retain(|name, _| wanted.contains(name));
        self.start(wanted.into_iter());
    }

    fn start(&mut self, names: impl Iterator<Item = Arc<str>>) {
        for name in names {
            if self.names.contains_key(&name) {
                continue;
            }
            let answers = self.resolver.watch(&self.handle, &name);
            let (mut news, changed) = (answers.clone(), self.changed.clone());
            let task = self.handle.spawn(async move {
                while news.changed().await.is_ok() {
                    changed.notify_one();
                }
            });
            self.names.insert(name, Name { answers, task });
        }
    }

    fn follow_health(&mut self, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.checkers);
        for (id, service) in &snapshot.services {
            let Some(spec) = &service.policy.health_check else { continue };
            let now = Checked {
                service: service.clone(),
                spec: spec.clone(),
                protocol: service.protocol,
                tls: service.tls().cloned(),
            };
            let endpoints = || service.endpoints().to_vec();
            let checker = match before.remove(id) {
                Some((old, checker)) if Arc::ptr_eq(&old.service, service) => checker,
                Some((old, mut checker)) if old == now => {
                    checker.update(endpoints());
                    checker
                }
                _ => {
                    let endpoints = endpoints();
                    let tls = service.tls().map(|tls| tls.parts(service.protocol));
                    Checker::start(&self.handle, spec.clone(), endpoints, service.protocol, tls, self.on_change.clone())
                }
            };
            self.checkers.insert(id.clone(), (now, checker));
        }
        for (_, checker) in before.into_values() {
            checker.forget();
        }
    }

    /// Waits until a name resolves to something else.
    pub async fn changed(&mut self) {
        loop {
            self.changed.notified().await;
            let mut news = false;
            for (name, resolved) in &mut self.names {
                let answer = resolved.answers.borrow_and_update().clone();
                if self.addresses.get(name) != Some(&answer) {
                    self.addresses.insert(name.clone(), answer);
                    news = true;
                }
            }
            if news {
                return;
            }
        }
    }
}
