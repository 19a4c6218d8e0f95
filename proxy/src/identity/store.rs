//! Every certificate that one configuration uses, loaded, and reloaded when its files change.
//!
//! A new configuration is taken as a whole or not at all. After that each certificate stands for itself: a file that
//! breaks leaves the last good certificate in place and does not hold up the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use tokio::sync::Notify;
use weft_model::config::{BackendTls, Certificate, Config, Gateway, Key, Listener, ListenerProtocol, Pem, Trust};

use super::{
    ClientTls, IdentityError, ListenerCerts, LoadedCert, Problem, ServerIdentity,
    client::system_roots,
    files::{self, Warning},
};

/// A listening socket: `None` is every address.
type Socket = (Option<IpAddr>, u16);

/// All TLS identities of the node. Shared by the workers, which only read.
#[derive(Default)]
pub struct Identities {
    view: ArcSwap<View>,
    inner: Mutex<Inner>,
    /// The set of files has changed.
    pub(super) applied: Notify,
}

/// What workers see.
#[derive(Default)]
struct View {
    servers: BTreeMap<Socket, Arc<ServerIdentity>>,
    clients: BTreeMap<Key, Arc<ClientTls>>,
}

/// What reloading works with.
#[derive(Default, Clone)]
struct Inner {
    gateways: Vec<Gateway>,
    policies: Vec<BackendTls>,
    certificates: Vec<Certificate>,
    pairs: BTreeMap<Key, Held<LoadedCert>>,
    roots: BTreeMap<Key, Held<Arc<RootCertStore>>>,
    system: Option<Arc<RootCertStore>>,
}

/// Something loaded, and what became of the attempt to load it again.
#[derive(Clone)]
struct Held<T> {
    /// Of the content last looked at, good or bad.
    fingerprint: u64,
    /// The last good one.
    value: T,
    /// Why the content last looked at is not in use.
    error: Option<IdentityError>,
}

/// The result of [`Identities::reload`].
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Certificates and bundles that are new.
    pub replaced: Vec<Key>,
    /// Those that broke since the last look. What is still broken is not repeated.
    pub failed: Vec<IdentityError>,
}

/// One certificate, for `/config_dump` and `weft certs`.
#[derive(Debug, Clone)]
pub struct Status {
    /// The Certificate, Secret or ConfigMap.
    pub key: Key,
    /// DNS names of the leaf.
    pub names: Vec<Arc<str>>,
    /// End of validity.
    pub not_after: SystemTime,
    /// As of when it was loaded.
    pub warnings: Vec<Warning>,
    /// Why the files as they are now are not in use.
    pub error: Option<IdentityError>,
}

impl Identities {
    /// No identities: nothing listens for TLS yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The identity of a listening socket; `None` stands for all addresses.
    pub fn server(&self, address: Option<IpAddr>, port: u16) -> Option<Arc<ServerIdentity>> {
        self.view.load().servers.get(&(address, port)).cloned()
    }

    /// TLS towards the targets of a BackendTLSPolicy.
    pub fn client(&self, policy: &Key) -> Option<Arc<ClientTls>> {
        self.view.load().clients.get(policy).cloned()
    }

    /// Takes over everything that `config` needs, or nothing, with every reason. Reads files. Identities of sockets and
    /// policies that stay keep their `Arc`, their session tickets and the connections made with them.
    ///
    /// A certificate that is configured as before and broken on disk just now does not hold up the configuration.
    pub fn apply(&self, config: &Config, now: SystemTime) -> Result<(), Vec<IdentityError>> {
        let mut inner = self.inner();
        let old = self.view.load();
        let mut next = Inner {
            gateways: config.gateways.clone(),
            policies: config.backend_tls.clone(),
            certificates: config.certificates.clone(),
            system: inner.system.clone(),
            ..Inner::default()
        };
        let mut errors = next.load_all(&inner, now);
        let mut view = View::default();
        for (socket, listeners) in next.sockets() {
            let identity = match old.servers.get(&socket) {
                Some(identity) => Ok(identity.clone()),
                None => ServerIdentity::new(&listeners),
            };
            match identity {
                Ok(identity) => drop(view.servers.insert(socket, identity)),
                Err(error) => errors.push(error),
            }
        }
        for policy in &next.policies {
            let Some(roots) = next.roots_of(policy) else { continue };
            let kept = old.clients.get(&policy.key).filter(|_| inner.policies.contains(policy));
            let client = kept.map_or_else(|| ClientTls::new(policy, roots), |client| Ok(client.clone()));
            match client {
                Ok(client) => drop(view.clients.insert(policy.key.clone(), client)),
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let changed: BTreeSet<Key> = next.changed_since(&inner);
        for error in next.publish(&view, &changed, true) {
            tracing::error!(%error, hint = error.hint(), "the old roots stay in use");
        }
        self.view.store(Arc::new(view));
        *inner = next;
        drop(inner);
        self.applied.notify_one();
        Ok(())
    }

    /// Looks at the files again and uses what is new and good. Reads files.
    pub fn reload(&self, now: SystemTime) -> Reloaded {
        let mut inner = self.inner();
        let mut next = Inner { pairs: BTreeMap::new(), roots: BTreeMap::new(), ..inner.clone() };
        // Everything needed has been loaded before, so there is always something to keep.
        let missing = next.load_all(&inner, now);
        let view = self.view.load();
        let changed = next.changed_since(&inner);
        let mut failed = next.publish(&view, &changed, false);
        failed.extend(next.errors().filter(|error| !inner.errors().any(|known| known == *error)).cloned());
        failed.extend(missing);
        *inner = next;
        Reloaded { replaced: changed.into_iter().collect(), failed }
    }

    /// Files that are in use.
    pub fn files(&self) -> Vec<PathBuf> {
        let inner = self.inner();
        let used = inner.certificates.iter().filter(|c| inner.uses(&c.key));
        let parts = used.flat_map(|c| [&c.chain, &c.private_key, &c.ca].into_iter().flatten());
        let files = parts.filter_map(|pem| if let Pem::File(path) = pem { Some(path.clone()) } else { None });
        files.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Certificates shown to clients.
    pub fn status(&self) -> Vec<Status> {
        let status = |held: &Held<LoadedCert>| Status {
            key: held.value.key.clone(),
            names: held.value.dns_names.clone(),
            not_after: held.value.not_after,
            warnings: held.value.warnings.clone(),
            error: held.error.clone(),
        };
        self.inner().pairs.values().map(status).collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Fills `pairs`, `roots` and `system` with what the rest of `self` asks for.
    fn load_all(&mut self, old: &Self, now: SystemTime) -> Vec<IdentityError> {
        let mut errors = Vec::new();
        for key in self.pair_keys() {
            let result =
                self.find(&key, "a certificate chain and key", |c| c.chain.is_some() && c.private_key.is_some());
            let held = result.and_then(|certificate| {
                let keep = old.pairs.get(&key).filter(|_| old.certificates.contains(certificate));
                let parts = [certificate.chain.as_ref(), certificate.private_key.as_ref()];
                Held::load(keep, fingerprint(parts), || LoadedCert::load(certificate, now))
            });
            match held {
                Ok(held) => drop(self.pairs.insert(key, held)),
                Err(error) => errors.push(error),
            }
        }
        for key in self.bundle_keys() {
            let result = self.find(&key, "a CA bundle", |c| c.ca.is_some());
            let held = result.and_then(|certificate| {
                let keep = old.roots.get(&key).filter(|_| old.certificates.contains(certificate));
                Held::load(keep, fingerprint([certificate.ca.as_ref()]), || {
                    let mut roots = RootCertStore::empty();
                    files::load_authorities(certificate, &mut roots).map(|()| Arc::new(roots))
                })
            });
            match held {
                Ok(held) => drop(self.roots.insert(key, held)),
                Err(error) => errors.push(error),
            }
        }
        // Once per process: hundreds of files, which packages change and nobody rotates.
        if let (None, Some(policy)) = (&self.system, self.policies.iter().find(|p| p.trust == Trust::System)) {
            match system_roots() {
                Ok(roots) => self.system = Some(roots),
                Err(problem) => {
                    let place = "wellKnownCACertificates".into();
                    errors.push(IdentityError { certificate: policy.key.clone(), place, problem });
                }
            }
        }
        errors
    }

    /// Hands the new material to the identities that use it, all of them if `all`.
    fn publish(&self, view: &View, changed: &BTreeSet<Key>, all: bool) -> Vec<IdentityError> {
        let mut errors = Vec::new();
        for (socket, listeners) in self.sockets() {
            let affected = all || listeners.iter().flat_map(|l| &l.certificates).any(|c| changed.contains(&c.key));
            if let (true, Some(identity)) = (affected, view.servers.get(&socket)) {
                identity.replace(&listeners);
            }
        }
        for policy in &self.policies {
            let Trust::Bundles(bundles) = &policy.trust else { continue };
            if !bundles.iter().any(|key| changed.contains(key)) {
                continue;
            }
            if let (Some(roots), Some(client)) = (self.roots_of(policy), view.clients.get(&policy.key)) {
                errors.extend(client.replace(policy, roots).err());
            }
        }
        errors
    }

    /// Keys whose material is in use now and was not before.
    fn changed_since(&self, old: &Self) -> BTreeSet<Key> {
        let pairs = self.pairs.iter().filter(|(key, held)| {
            old.pairs.get(key).is_none_or(|old| !Arc::ptr_eq(&old.value.certified, &held.value.certified))
        });
        let roots = self
            .roots
            .iter()
            .filter(|(key, held)| old.roots.get(key).is_none_or(|old| !Arc::ptr_eq(&old.value, &held.value)));
        pairs.map(|(key, _)| key).chain(roots.map(|(key, _)| key)).cloned().collect()
    }

    fn errors(&self) -> impl Iterator<Item = &IdentityError> {
        let pairs = self.pairs.values().filter_map(|held| held.error.as_ref());
        pairs.chain(self.roots.values().filter_map(|held| held.error.as_ref()))
    }

    /// Kinds share one name space, so the one that has the part is meant.
    fn find(
        &self,
        key: &Key,
        part: &'static str,
        has: impl Fn(&Certificate) -> bool,
    ) -> Result<&Certificate, IdentityError> {
        self.certificates.iter().find(|c| c.key == *key && has(c)).ok_or_else(|| IdentityError {
            certificate: key.clone(),
            place: "reference".into(),
            problem: Problem::Missing(part),
        })
    }

    fn uses(&self, key: &Key) -> bool {
        self.pairs.contains_key(key) || self.roots.contains_key(key)
    }

    fn https(&self) -> impl Iterator<Item = (&Gateway, &Listener, &[Key])> {
        self.gateways.iter().flat_map(|gateway| {
            gateway.listeners.iter().filter_map(move |listener| match &listener.protocol {
                ListenerProtocol::Https { certificates } => Some((gateway, listener, certificates.as_slice())),
                _ => None,
            })
        })
    }

    fn pair_keys(&self) -> BTreeSet<Key> {
        self.https().flat_map(|(_, _, keys)| keys).cloned().collect()
    }

    fn bundle_keys(&self) -> BTreeSet<Key> {
        let bundles = self.policies.iter().filter_map(|policy| match &policy.trust {
            Trust::Bundles(keys) => Some(keys),
            Trust::System => None,
        });
        bundles.flatten().cloned().collect()
    }

    /// What each socket serves. Gateways that share a socket share its identity.
    fn sockets(&self) -> BTreeMap<Socket, Vec<ListenerCerts>> {
        let mut sockets: BTreeMap<Socket, Vec<ListenerCerts>> = BTreeMap::new();
        for (gateway, listener, keys) in self.https() {
            let certificates = keys.iter().filter_map(|key| self.pairs.get(key)).map(|held| held.value.clone());
            let certs = ListenerCerts { hostname: listener.hostname.clone(), certificates: certificates.collect() };
            let every = gateway.addresses.is_empty().then_some(None);
            for address in gateway.addresses.iter().copied().map(Some).chain(every) {
                sockets.entry((address, listener.port)).or_default().push(certs.clone());
            }
        }
        sockets
    }

    fn roots_of(&self, policy: &BackendTls) -> Option<Arc<RootCertStore>> {
        match &policy.trust {
            Trust::System => self.system.clone(),
            Trust::Bundles(keys) => {
                let bundles: Option<Vec<_>> = keys.iter().map(|key| self.roots.get(key)).collect();
                match bundles?.as_slice() {
                    [one] => Some(one.value.clone()),
                    several => {
                        let mut roots = RootCertStore::empty();
                        several.iter().for_each(|held| roots.extend(held.value.roots.iter().cloned()));
                        Some(Arc::new(roots))
                    }
                }
            }
        }
    }
}

impl<T: Clone> Held<T> {
    /// What is held stays when the content is the same, or is no good.
    fn load(
        old: Option<&Self>,
        fingerprint: u64,
        load: impl FnOnce() -> Result<T, IdentityError>,
    ) -> Result<Self, IdentityError> {
        match old {
            Some(old) if old.fingerprint == fingerprint => Ok(old.clone()),
            Some(old) => Ok(match load() {
                Ok(value) => Self { fingerprint, value, error: None },
                Err(error) => Self { fingerprint, value: old.value.clone(), error: Some(error) },
            }),
            None => load().map(|value| Self { fingerprint, value, error: None }),
        }
    }
}

/// Of the content, or of the reason why there is none.
fn fingerprint<'a>(parts: impl IntoIterator<Item = Option<&'a Pem>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for part in parts {
        match part.map(files::bytes) {
            None => 0_u8.hash(&mut hasher),
            Some(Ok(bytes)) => bytes.hash(&mut hasher),
            Some(Err(problem)) => problem.to_string().hash(&mut hasher),
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;
