//! Which documents are to blame when this host cannot have a configuration.

use weft_model::{Config, config::Key};
use weft_wire::resource::object_name;

use super::state::{Blame, Refusal};
use crate::{
    app::ApplyError,
    identity::IdentityError,
    snapshot::compile::{CompileError, by_port},
};

/// Why `config` is not in force, for the control plane.
pub fn refusal(error: &ApplyError, config: &Config) -> Refusal {
    let reason = error.to_string();
    let blamed = match error {
        ApplyError::Bind { address, .. } => {
            let listeners = by_port(config).remove(address).unwrap_or_default();
            let gateways = listeners.iter().map(|(gateway, _)| named("Gateway", &gateway.key));
            vec![Blame { suspects: vec![gateways.collect()], reason: reason.clone() }]
        }
        ApplyError::Identity(errors) => errors.iter().map(|error| identity(error, config)).collect(),
        ApplyError::Compile(CompileError::Filter { route, .. }) => {
            let kinds = ["HTTPRoute", "GRPCRoute", "TCPRoute", "Service"];
            vec![Blame { suspects: vec![kinds.map(|kind| named(kind, route)).into()], reason: reason.clone() }]
        }
        ApplyError::Compile(CompileError::Route(_)) => Vec::new(),
    };
    Refusal { reason, blamed }
}

/// The material itself, or else whoever has begun to use it.
fn identity(error: &IdentityError, config: &Config) -> Blame {
    let key = &error.certificate;
    let material = ["Certificate", "Secret", "ConfigMap", "BackendTLSPolicy"].map(|kind| named(kind, key));
    let mut users = Vec::new();
    for gateway in &config.gateways {
        let uses = |certificates: &[Key]| certificates.contains(key);
        if gateway.listeners.iter().any(|listener| match &listener.protocol {
            weft_model::config::ListenerProtocol::Https { certificates } => uses(certificates),
            _ => false,
        }) {
            users.push(named("Gateway", &gateway.key));
        }
    }
    for policy in &config.backend_tls {
        if matches!(&policy.trust, weft_model::config::Trust::Bundles(keys) if keys.contains(key)) {
            users.push(named("BackendTLSPolicy", &policy.key));
        }
    }
    Blame { suspects: vec![material.into(), users], reason: format!("{error} ({})", error.hint()) }
}

fn named(kind: &str, key: &Key) -> String {
    object_name(kind, &key.namespace, &key.name)
}
