//! Endpoints that registered themselves: checked one by one, merged into their services.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use weft_model::{
    Config, Registered,
    config::{self, Key, Service},
    registry::{Claim, merged},
};
use weft_wire::{prost::Message, resource};

use super::{
    objects::shortened,
    state::{Accepted, InForce, Kind, Rejected},
};

/// One of them, as it is wanted.
#[derive(Debug)]
struct Held {
    version: Arc<str>,
    endpoint: config::Endpoint,
}

/// A service with its registered endpoints.
#[derive(Debug)]
struct Merged {
    /// As it is written.
    written: Arc<Service>,
    /// With them.
    merged: Arc<Service>,
}

/// The endpoints.
#[derive(Debug, Default)]
pub struct Endpoints {
    /// By service, then in the order of their names: on every node the same.
    services: HashMap<Key, BTreeMap<Arc<str>, Held>>,
    /// Services whose endpoints have changed since they were merged.
    moved: HashSet<Key>,
    merged: HashMap<Key, Merged>,
    /// Wanted, and not yet said to be in force.
    pending: BTreeMap<Arc<str>, Option<(Arc<str>, Bytes)>>,
    reasons: BTreeMap<Arc<str>, Arc<str>>,
}

impl Endpoints {
    /// A version of an endpoint.
    pub fn want(&mut self, name: &str, version: &str, value: &Bytes) {
        let Registered { service, endpoint } = match read(name, value) {
            Ok(registered) => registered,
            Err(reason) => return self.unusable(name, reason),
        };
        self.reasons.remove(name);
        let name: Arc<str> = name.into();
        let version: Arc<str> = version.into();
        let held = Held { version: version.clone(), endpoint };
        let own = self.services.entry(service.clone()).or_default();
        let before = own.insert(name.clone(), held);
        let same = before.is_some_and(|before| own.get(&name).is_some_and(|held| held.endpoint == before.endpoint));
        if !same {
            self.moved.insert(service);
        }
        self.pending.insert(name, Some((version, Bytes::copy_from_slice(value))));
    }

    /// It does not exist any more.
    pub fn remove(&mut self, name: &str) {
        self.reasons.remove(name);
        let Some(service) = service_of(name) else { return };
        let Some(own) = self.services.get_mut(&service) else { return };
        let Some((name, _)) = own.remove_entry(name) else { return };
        if own.is_empty() {
            self.services.remove(&service);
        }
        self.moved.insert(service);
        self.pending.insert(name, None);
    }

    /// What came under this name cannot be one. The one of before, if there is one, stays.
    pub fn unusable(&mut self, name: &str, reason: String) {
        self.reasons.insert(name.into(), shortened(&reason));
    }

    /// `base` with the endpoints in it; what is in force itself when that would be the same.
    pub fn merge(&mut self, base: &Arc<Config>, in_force: Option<&InForce>) -> Arc<Config> {
        let mut before = std::mem::take(&mut self.merged);
        let services: Vec<Arc<Service>> = base
            .services
            .iter()
            .map(|written| {
                let Some(own) = self.services.get(&written.key) else { return written.clone() };
                let known = before.remove(&written.key).filter(|known| Arc::ptr_eq(&known.written, written));
                let merged = match known {
                    Some(known) if !self.moved.contains(&written.key) => known.merged,
                    known => {
                        let new = Arc::new(merged(written, own.values().map(|held| &held.endpoint)));
                        known.map(|known| known.merged).filter(|known| *known == new).unwrap_or(new)
                    }
                };
                self.merged.insert(written.key.clone(), Merged { written: written.clone(), merged: merged.clone() });
                merged
            })
            .collect();
        self.moved.clear();
        let same = in_force.filter(|now| Arc::ptr_eq(&now.base, base) && now.config.services == services);
        same.map_or_else(|| Arc::new(Config { services, ..Config::clone(base) }), |now| now.config.clone())
    }

    /// What was merged last is in force.
    pub fn agreed(&mut self, accepted: &mut Vec<Accepted>) {
        let pending = std::mem::take(&mut self.pending).into_iter();
        accepted.extend(pending.map(|(name, resource)| {
            self.reasons.remove(&name);
            Accepted { kind: Kind::Endpoint, name, resource }
        }));
    }

    /// What was merged last cannot be in force, and no document is to blame.
    pub fn refused(&mut self, reason: &str) {
        let reason = shortened(reason);
        for name in self.pending.keys() {
            self.reasons.insert(name.clone(), reason.clone());
        }
    }

    /// What is not in force.
    pub fn rejected(&self) -> Vec<Rejected> {
        let rejected = |(name, reason): (&Arc<str>, &Arc<str>)| Rejected { name: name.clone(), reason: reason.clone() };
        self.reasons.iter().map(rejected).collect()
    }

    /// What is.
    pub fn versions(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let all = self.services.values().flatten().filter(|(name, _)| !self.pending.contains_key(*name));
        all.map(|(name, held)| (name.clone(), held.version.clone())).collect()
    }
}

/// The service that an endpoint of this name belongs to.
fn service_of(name: &str) -> Option<Key> {
    let (namespace, rest) = name.split_once('/')?;
    let (service, _) = rest.split_once('/')?;
    Some(Key::new(namespace, service))
}

/// The endpoint, if it can be one and is what it is called.
fn read(name: &str, value: &Bytes) -> Result<Registered, String> {
    let endpoint = resource::Endpoint::decode(&**value).map_err(|error| format!("it cannot be decoded: {error}"))?;
    let registered = Registered::check(&Claim {
        namespace: &endpoint.namespace,
        service: &endpoint.service,
        address: &endpoint.address,
        port: endpoint.port,
        weight: endpoint.weight,
        zone: &endpoint.zone,
        draining: endpoint.draining,
    });
    let registered = registered.map_err(|invalid| format!("{invalid} ({})", invalid.hint))?;
    let own = format!("{}/{}", registered.service.namespace, registered.name());
    if own == name { Ok(registered) } else { Err(format!("it says that it is {own}")) }
}
