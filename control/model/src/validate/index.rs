//! Everything that can be referred to. Objects with problems are here too: a reference to them is not a mistake.

use std::collections::{BTreeMap, BTreeSet};

use super::{Document, Written};
use crate::{
    config::{Hostname, Key},
    validate::syntax,
    written::{FromNamespaces, Kind, Protocol},
};

#[derive(Default)]
pub(crate) struct Index {
    pub gateways: BTreeMap<Key, Vec<ListenerInfo>>,
    pub services: BTreeMap<Key, Vec<PortInfo>>,
    pub routes: BTreeSet<(Kind, Key)>,
    pub workloads: BTreeSet<Key>,
    pub material: BTreeMap<(Kind, Key), Material>,
}

pub(crate) struct ListenerInfo {
    pub name: String,
    pub port: u16,
    pub protocol: Protocol,
    pub hostname: Option<Hostname>,
    pub all_namespaces: bool,
}

pub(crate) struct PortInfo {
    pub name: String,
    pub port: u16,
}

/// What a piece of key material holds.
#[derive(Default)]
pub(crate) struct Material {
    pub pair: bool,
    pub ca: bool,
}

impl Index {
    pub(crate) fn new(documents: &[Document]) -> Self {
        let mut index = Self::default();
        for document in documents {
            index.add(document);
        }
        index
    }

    fn add(&mut self, document: &Document) {
        let key = document.key.clone();
        // What is left of a document with problems is not all of it: an empty list stands for "unknown".
        let all = if document.sound { usize::MAX } else { 0 };
        match &document.written {
            Written::Gateway(spec) => {
                let listeners = spec.listeners.iter().flatten().filter_map(|listener| {
                    let from = listener.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref()?.from);
                    Some(ListenerInfo {
                        name: listener.name.clone()?,
                        port: listener.port?,
                        protocol: listener.protocol?,
                        hostname: listener.hostname.as_deref().and_then(|text| syntax::hostname(text).ok()),
                        all_namespaces: from == Some(FromNamespaces::All),
                    })
                });
                self.gateways.insert(key, listeners.take(all).collect());
            }
            Written::Service(spec) => {
                let ports = spec.ports.iter().flatten();
                let ports = ports.filter_map(|port| {
                    Some(PortInfo { name: port.name.clone().unwrap_or_default(), port: port.port? })
                });
                self.services.insert(key, ports.take(all).collect());
            }
            Written::HttpRoute(_) | Written::GrpcRoute(_) | Written::TcpRoute(_) => {
                self.routes.insert((document.kind, key));
            }
            Written::Workload(_) => {
                self.workloads.insert(key);
            }
            Written::Certificate(_) | Written::Secret(_) | Written::ConfigMap(_) if !document.sound => {
                self.material.insert((document.kind, key), Material { pair: true, ca: true });
            }
            Written::Certificate(spec) => {
                let material =
                    Material { pair: spec.cert_file.is_some() && spec.key_file.is_some(), ca: spec.ca_file.is_some() };
                self.material.insert((document.kind, key), material);
            }
            Written::Secret(secret) => {
                let has = |name| secret.data.contains_key(name) || secret.string_data.contains_key(name);
                let material = Material { pair: has("tls.crt") && has("tls.key"), ca: has("ca.crt") };
                self.material.insert((document.kind, key), material);
            }
            Written::ConfigMap(map) => {
                let material = Material { pair: false, ca: map.data.contains_key("ca.crt") };
                self.material.insert((document.kind, key), material);
            }
            _ => {}
        }
    }
}
