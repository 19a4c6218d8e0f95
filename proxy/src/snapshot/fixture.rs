//! Snapshots from configuration as text.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use weft_model::{Options, config::Config, load_str};

use super::{
    Snapshot,
    compile::{CompileError, Input, compile},
};
use crate::{
    identity::Identities,
    telemetry::{Telemetry, export::Environment},
};

/// A `Gateway` on 127.0.0.1 in the namespace `default`; `listeners` is the text of a list.
pub fn gateway(name: &str, listeners: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}}}\n\
         spec: {{gatewayClassName: weft, addresses: [{{value: 127.0.0.1}}], listeners: {listeners}}}\n"
    )
}

/// An object of the Gateway API; `spec` is the text of a mapping.
pub fn object(kind: &str, metadata: &str, spec: &str) -> String {
    let version = if kind == "TCPRoute" { "v1alpha2" } else { "v1" };
    format!(
        "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {{{spec}}}\n"
    )
}

/// An object of ours.
pub fn ours(kind: &str, name: &str, spec: &str) -> String {
    format!("---\napiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

/// The configuration in `text`.
pub fn config(text: &str) -> Config {
    load_str("test.yaml", text, Options::default()).unwrap_or_else(|problems| panic!("{problems}\nin\n{text}")).config
}

/// What a node has besides its configuration.
pub struct Node {
    pub zone: Option<Arc<str>>,
    pub resolved: HashMap<Arc<str>, Vec<IpAddr>>,
    pub identities: Identities,
    pub telemetry: Telemetry,
}

impl Node {
    pub fn new() -> Self {
        Self {
            zone: None,
            resolved: HashMap::new(),
            identities: Identities::new(),
            telemetry: Telemetry::new("test", Environment::default(), std::io::sink()),
        }
    }

    pub fn compile(&self, config: Config, previous: &Snapshot) -> Result<Snapshot, CompileError> {
        self.identities.apply(&config, SystemTime::now()).unwrap();
        let input = Input {
            config: Arc::new(config),
            revision: previous.revision + 1,
            zone: self.zone.clone(),
            resolved: &self.resolved,
            identities: &self.identities,
            telemetry: &self.telemetry,
            now: Instant::now(),
        };
        compile(&input, previous)
    }

    /// What follows on `previous`.
    pub fn next(&self, text: &str, previous: &Snapshot) -> Snapshot {
        self.compile(config(text), previous).unwrap()
    }
}

/// The snapshot of a node that has just started.
pub fn snapshot(text: &str) -> Snapshot {
    Node::new().next(text, &Snapshot::empty())
}
