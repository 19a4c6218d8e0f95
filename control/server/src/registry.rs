//! Endpoints that registered themselves, as the store keeps them: objects of a kind of their own, each attached to the
//! lease of the agent that speaks for it, if there is one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_model::{
    Registered,
    registry::{Claim, Invalid},
};
use weft_store::types::{Object, ObjectKey};

/// Kind of their objects. Not a kind of the configuration: nobody writes them into files.
pub const ENDPOINT: &str = "Endpoint";

/// An endpoint as stored. The object's namespace is its service's; its name is `SERVICE/ADDRESS:PORT`, so that those of a
/// service lie together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Name of its service.
    pub service: String,
    /// IP address, or a name to resolve.
    pub address: String,
    /// Port on that address.
    pub port: u32,
    /// Relative share.
    #[serde(default = "one")]
    pub weight: u32,
    /// Its zone; empty when it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// It finishes what it has and gets nothing new.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

fn one() -> u32 {
    1
}

impl Endpoint {
    /// What is stored.
    ///
    /// # Errors
    /// When it is not what [`Self::body`] writes.
    pub fn of(object: &Object) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(&object.spec)
    }

    /// Checks it as if it were written in a Service of `namespace`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, namespace: &str) -> Result<Registered, Invalid> {
        Registered::check(&Claim {
            namespace,
            service: &self.service,
            address: &self.address,
            port: self.port,
            weight: self.weight,
            zone: &self.zone,
            draining: self.draining,
        })
    }

    /// What is written.
    pub fn body(&self) -> String {
        // A struct of texts and numbers.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Where it is stored.
pub fn key_of(registered: &Registered) -> ObjectKey {
    ObjectKey::new(ENDPOINT, &registered.service.namespace, &registered.name())
}

/// A registered endpoint as it is shown; `left` is how long its lease lives, where that is known.
pub fn to_show(object: &Object, left: Option<Duration>) -> Value {
    let left = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
    let mut status = json!({"agent": object.lease.as_ref().map(|lease| &*lease.0)});
    if let Some(left) = left {
        status["expiresInMs"] = left.into();
    }
    json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": ENDPOINT,
        "metadata": {
            "namespace": &*object.key.namespace,
            "name": &*object.key.name,
            "resourceVersion": object.modified.to_string(),
            "generation": object.generation,
        },
        "spec": serde_json::from_slice::<Value>(&object.spec).unwrap_or_default(),
        "status": status,
    })
}
