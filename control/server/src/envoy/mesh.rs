//! What is stored, as Envoy's resources: kept up to date change by change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use weft_model::{
    Options, Registered,
    config::{Config, Endpoint, Key, Service},
    load_texts, registry,
};
use weft_store::types::{Object, ObjectKey};

use super::{Kind, LeftOut, Resource, assignments, build, resolved_by_clients};
use crate::registry as stored;

/// What a change of the store comes to: by kind and name, nothing for what is gone.
pub(crate) type Changes = BTreeMap<(Kind, String), Option<Resource>>;

/// The resources of what is stored.
#[derive(Debug, Default)]
pub(crate) struct Mesh {
    documents: BTreeMap<ObjectKey, Arc<Object>>,
    /// By service, then by where they are stored.
    registered: HashMap<Key, BTreeMap<ObjectKey, Endpoint>>,
    /// The services as they are written, and where they are in `config`.
    written: HashMap<Key, (usize, Arc<Service>)>,
    /// Its services have their registered endpoints.
    config: Config,
    resources: BTreeMap<(Kind, String), Resource>,
    left_out: BTreeSet<LeftOut>,
}

impl Mesh {
    /// Everything that is stored. What it comes to is everything there is.
    pub(crate) fn new<'o>(objects: impl IntoIterator<Item = &'o Arc<Object>>) -> Self {
        let mut mesh = Self::default();
        mesh.apply(objects.into_iter().map(|object| (&object.key, Some(object))));
        mesh
    }

    /// Everything there is.
    pub(crate) fn resources(&self) -> &BTreeMap<(Kind, String), Resource> {
        &self.resources
    }

    /// Takes changed objects, those that are gone without a new version.
    pub(crate) fn apply<'o>(
        &mut self,
        changes: impl IntoIterator<Item = (&'o ObjectKey, Option<&'o Arc<Object>>)>,
    ) -> Changes {
        let mut services = BTreeSet::new();
        let mut documents = false;
        for (key, object) in changes {
            if &*key.kind == stored::ENDPOINT {
                services.extend(self.register(key, object));
                continue;
            }
            documents = true;
            match object {
                Some(object) => drop(self.documents.insert(key.clone(), object.clone())),
                None => drop(self.documents.remove(key)),
            }
        }
        if documents && self.load() { self.rebuild() } else { self.endpoints(services) }
    }

    /// Takes a registered endpoint; says whose.
    fn register(&mut self, key: &ObjectKey, object: Option<&Arc<Object>>) -> Option<Key> {
        let registered = object.and_then(|object| {
            let checked = stored::Endpoint::of(object).map_err(|error| error.to_string());
            let checked =
                checked.and_then(|endpoint| endpoint.check(&key.namespace).map_err(|error| error.to_string()));
            checked.map_err(|error| tracing::error!(%key, error, "an endpoint is not as it is written")).ok()
        });
        let Some(Registered { service, endpoint }) = registered else {
            // The name of a service has no `/`.
            let service = Key::new(&key.namespace, key.name.split('/').next().unwrap_or_default());
            let endpoints = self.registered.get_mut(&service)?;
            endpoints.remove(key)?;
            if endpoints.is_empty() {
                self.registered.remove(&service);
            }
            return Some(service);
        };
        self.registered.entry(service.clone()).or_default().insert(key.clone(), endpoint);
        Some(service)
    }

    /// Reads all documents anew. What is stored was checked as a whole, so only a defect keeps it from being read.
    fn load(&mut self) -> bool {
        let text = |(key, object): (&ObjectKey, &Arc<Object>)| {
            (key.to_string(), String::from_utf8_lossy(&object.spec).into_owned())
        };
        let texts: Vec<(String, String)> = self.documents.iter().map(text).collect();
        match load_texts(&texts, Options { require_refs: false }) {
            Ok(checked) => self.config = checked.config,
            Err(problems) => {
                tracing::error!(?problems, "what is stored cannot be read: Envoys keep what they have");
                return false;
            }
        }
        let services = self.config.services.iter().enumerate();
        self.written = services.map(|(at, service)| (service.key.clone(), (at, service.clone()))).collect();
        for key in self.registered.keys() {
            if let Some((at, written)) = self.written.get(key) {
                self.config.services[*at] = registry::merged(written, self.registered[key].values()).into();
            }
        }
        true
    }

    fn rebuild(&mut self) -> Changes {
        let built = build(&self.config);
        let left_out: BTreeSet<LeftOut> = built.left_out.into_iter().collect();
        for LeftOut { what, why } in left_out.difference(&self.left_out) {
            tracing::warn!(what, why, "not handed out to Envoy and gRPC");
        }
        self.left_out = left_out;
        let mut changes: Changes = BTreeMap::new();
        for name in self.resources.keys().filter(|name| !built.resources.contains_key(*name)) {
            changes.insert(name.clone(), None);
        }
        for (name, resource) in &built.resources {
            if self.resources.get(name) != Some(resource) {
                changes.insert(name.clone(), Some(resource.clone()));
            }
        }
        self.resources = built.resources;
        changes
    }

    /// Only the endpoints of these services have changed: only their load assignments are made anew.
    fn endpoints(&mut self, services: BTreeSet<Key>) -> Changes {
        let (mut changes, mut anew) = (Changes::new(), false);
        for key in services {
            let Some((at, written)) = self.written.get(&key) else { continue };
            let registered = self.registered.get(&key).into_iter().flat_map(BTreeMap::values);
            let after = registry::merged(written, registered).into();
            let before = std::mem::replace(&mut self.config.services[*at], after);
            let after = &self.config.services[*at];
            if resolved_by_clients(&before) || resolved_by_clients(after) {
                // The cluster holds them, or is another one now.
                anew = true;
                continue;
            }
            for (name, assignment) in assignments(after) {
                let name = (Kind::Assignment, name);
                // None for a cluster that is left out.
                if self.resources.get(&name).is_some_and(|before| *before != assignment) {
                    self.resources.insert(name.clone(), assignment.clone());
                    changes.insert(name, Some(assignment));
                }
            }
        }
        if anew {
            changes.append(&mut self.rebuild());
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::json;
    use weft_store::types::Revision;

    use super::*;

    fn object(key: ObjectKey, spec: String) -> Arc<Object> {
        let revision = Revision(1);
        let (created, modified) = (revision, revision);
        Arc::new(Object { key, spec: spec.into(), status: Bytes::new(), created, modified, generation: 1, lease: None })
    }

    fn service(name: &str, ports: &[u16]) -> Arc<Object> {
        let ports: Vec<_> = ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        let document = json!({
            "apiVersion": "weft.dev/v1alpha1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"ports": ports, "endpoints": [{"address": "10.0.0.1", "port": 80}]},
        });
        object(ObjectKey::new("Service", "default", name), document.to_string())
    }

    fn endpoint(service: &str, address: &str, draining: bool) -> Arc<Object> {
        let key = ObjectKey::new(stored::ENDPOINT, "default", &format!("{service}/{address}:80"));
        let (address, zone) = (address.to_owned(), String::new());
        let endpoint = stored::Endpoint { service: service.into(), address, port: 80, weight: 1, zone, draining };
        object(key, endpoint.body())
    }

    fn put(object: &Arc<Object>) -> (&ObjectKey, Option<&Arc<Object>>) {
        (&object.key, Some(object))
    }

    fn names(changes: &Changes) -> Vec<String> {
        let name = |((kind, name), resource): (&(Kind, String), &Option<Resource>)| {
            format!("{}{kind:?} {name}", if resource.is_some() { "+" } else { "-" })
        };
        changes.iter().map(name).collect()
    }

    #[test]
    fn a_change_of_endpoints_is_one_of_their_assignment_only() {
        let mut mesh = Mesh::new([&service("web", &[80, 81]), &service("cart", &[80])]);
        let added = endpoint("web", "10.0.0.2", false);
        let both = ["+Assignment default/web:80", "+Assignment default/web:81"];
        assert_eq!(names(&mesh.apply([put(&added)])), both);
        assert!(mesh.apply([put(&added)]).is_empty(), "nothing has changed");
        assert_eq!(names(&mesh.apply([put(&endpoint("web", "10.0.0.2", true))])), both);
        assert!(mesh.apply([(&added.key, None)]).is_empty(), "it had drained, and got nothing");
        assert!(mesh.apply([put(&endpoint("nobody", "10.0.0.2", false))]).is_empty(), "they may come first");
        let late = mesh.apply([put(&service("nobody", &[80]))]);
        let assignment = late[&(Kind::Assignment, "default/nobody:80".to_owned())].clone().unwrap();
        assert!(assignment.body.windows(8).any(|window| window == b"10.0.0.2"));
        let named = mesh.apply([put(&endpoint("cart", "cart.test", false))]);
        assert!(names(&named).contains(&"-Assignment default/cart:80".to_owned()), "{:?}", names(&named));
        assert!(names(&named).contains(&"+Cluster default/cart:80".to_owned()));
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let mut mesh = Mesh::new([&service("web", &[80])]);
        let before = mesh.resources().clone();
        let key = ObjectKey::new("Service", "default", "broken");
        assert!(mesh.apply([put(&object(key.clone(), "{".into()))]).is_empty());
        assert_eq!(*mesh.resources(), before);
        let added = mesh.apply([(&key, None), put(&endpoint("web", "10.0.0.2", false))]);
        assert_eq!(names(&added), ["+Assignment default/web:80"]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Service { name: usize, there: bool, ports: usize },
        Endpoint { service: usize, address: usize, there: bool, draining: bool },
    }

    fn a_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            1 => (0..3usize, any::<bool>(), 1..3usize)
                .prop_map(|(name, there, ports)| Step::Service { name, there, ports }),
            4 => (0..3usize, 0..4usize, any::<bool>(), any::<bool>())
                .prop_map(|(service, address, there, draining)| Step::Endpoint { service, address, there, draining }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Change by change, or all at once: the same in the end, and the changes lead there.
        #[test]
        fn changes_lead_to_what_a_new_start_has(steps in prop::collection::vec(a_step(), 1..40)) {
            const NAMES: [&str; 3] = ["web", "cart", "files"];
            const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "named.test"];
            let mut mesh = Mesh::default();
            let mut stored: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
            let mut known: BTreeMap<(Kind, String), Resource> = BTreeMap::new();
            for step in steps {
                let (object, there) = match step {
                    Step::Service { name, there, ports } => (service(NAMES[name], &[80, 81][..ports]), there),
                    Step::Endpoint { service, address, there, draining } => {
                        (endpoint(NAMES[service], ADDRESSES[address], draining), there)
                    }
                };
                let changes = if there {
                    stored.insert(object.key.clone(), object.clone());
                    mesh.apply([put(&object)])
                } else {
                    stored.remove(&object.key);
                    mesh.apply([(&object.key, None)])
                };
                for (name, resource) in changes {
                    match resource {
                        Some(resource) => {
                            let before = known.insert(name, resource.clone());
                            prop_assert!(before != Some(resource), "told for nothing");
                        }
                        None => prop_assert!(known.remove(&name).is_some(), "gone for nothing"),
                    }
                }
                let anew = Mesh::new(stored.values());
                prop_assert_eq!(&known, anew.resources());
                prop_assert_eq!(mesh.resources(), anew.resources());
            }
        }
    }
}
