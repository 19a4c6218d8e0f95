//! What a control plane wants, what of it is in force, and what is not and why. Decides; does nothing else.
//!
//! ```text
//! response ─▶ receive ─▶ propose ─▶ (App::apply) ─▶ settle ─▶ rejected, accepted
//!                           ▲                          │
//!                           └──── without the blamed ──┘
//! ```
//!
//! What was rejected stays wanted: every later round tries it again.

use std::{mem, sync::Arc};

use bytes::Bytes;
use weft_model::{Config, Diagnostic};
use weft_wire::{
    discovery::DeltaResponse,
    resource::{ENDPOINT, OBJECT},
};

use super::{endpoints::Endpoints, objects::Objects};

/// The types of resources that a node follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Documents of the configuration.
    Object,
    /// Endpoints that registered themselves.
    Endpoint,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Object, Self::Endpoint];

    /// As the wire has it.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Object => OBJECT,
            Self::Endpoint => ENDPOINT,
        }
    }

    /// The type that is called this.
    pub fn of(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == type_url)
    }
}

/// A resource that is not in force as the control plane wants it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rejected {
    /// Which.
    pub name: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
}

/// A version of a resource that is in force, or `None` for one that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its type.
    pub kind: Kind,
    /// What it is called.
    pub name: Arc<str>,
    /// Its version, and the message as it came.
    pub resource: Option<(Arc<str>, Bytes)>,
}

/// A configuration that would be in force next.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// All of it.
    pub config: Arc<Config>,
    /// What to know about its documents, if some are new.
    pub warnings: Vec<Diagnostic>,
    /// Some documents are new; otherwise it is only endpoints.
    pub objects: bool,
}

/// Why a proposal is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// All of it.
    pub reason: String,
    /// Who is to blame, one by one, as far as that is known.
    pub blamed: Vec<Blame>,
}

/// A part of a [`Refusal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// Names of objects, the likeliest group first. Those of the first group that has something new in it are meant.
    pub suspects: Vec<Vec<String>>,
    /// What is wrong.
    pub reason: String,
}

/// A configuration, and what it was made of.
#[derive(Debug, Clone)]
pub(super) struct InForce {
    /// The documents.
    pub base: Arc<Config>,
    /// With the registered endpoints.
    pub config: Arc<Config>,
}

/// The state.
#[derive(Debug, Default)]
pub struct State {
    objects: Objects,
    endpoints: Endpoints,
    /// The last proposal, until it is settled.
    proposed: Option<InForce>,
    in_force: Option<InForce>,
    accepted: Vec<Accepted>,
}

impl State {
    /// Takes what was accepted before a restart: it is wanted, and in force once a proposal of it is.
    pub fn restore(&mut self, saved: impl IntoIterator<Item = Accepted>) {
        for Accepted { kind, name, resource } in saved {
            let Some((version, value)) = resource else { continue };
            match kind {
                Kind::Object => self.objects.want(&name, &version, &value),
                Kind::Endpoint => self.endpoints.want(&name, &version, &value),
            }
        }
        if !self.objects.is_empty() {
            self.objects.begin();
        }
    }

    /// Takes a response.
    pub fn receive(&mut self, kind: Kind, response: &DeltaResponse) {
        for resource in &response.resources {
            let (name, version) = (&*resource.name, &*resource.version);
            let any = resource.resource.as_ref().filter(|any| any.type_url == kind.type_url());
            match (any, kind) {
                (Some(any), Kind::Object) => self.objects.want(name, version, &any.value),
                (Some(any), Kind::Endpoint) => self.endpoints.want(name, version, &any.value),
                (None, Kind::Object) => self.objects.unusable(name, "it is not of the type that it came as".into()),
                (None, Kind::Endpoint) => self.endpoints.unusable(name, "it is not of the type that it came as".into()),
            }
        }
        for name in &response.removed_resources {
            match kind {
                Kind::Object => self.objects.remove(name),
                Kind::Endpoint => self.endpoints.remove(name),
            }
        }
        // Whether documents are valid does not depend on who registered.
        if kind == Kind::Object {
            self.objects.begin();
        }
    }

    /// Gives what was rejected another chance: files and ports may be there now.
    pub fn retry(&mut self) {
        self.objects.begin();
    }

    /// Whether there is something that another try may help.
    pub fn has_refused(&self) -> bool {
        self.objects.has_refused()
    }

    /// What should be in force next; `None` when everything is that can be. To be [settled](Self::settle) before the next.
    pub fn propose(&mut self) -> Option<Proposal> {
        let (base, warnings) = self.objects.candidate();
        let config = self.endpoints.merge(&base, self.in_force.as_ref());
        if self.in_force.as_ref().is_some_and(|in_force| Arc::ptr_eq(&in_force.config, &config)) {
            self.agreed();
            return None;
        }
        let objects = self.objects.is_new(&base);
        self.proposed = Some(InForce { base, config: config.clone() });
        Some(Proposal { config, warnings, objects })
    }

    /// What became of the proposal. False when there is nothing left to propose.
    pub fn settle(&mut self, outcome: Result<(), Refusal>) -> bool {
        let Some(proposed) = self.proposed.take() else { return false };
        match outcome {
            Ok(()) => {
                self.in_force = Some(proposed);
                self.agreed();
                false
            }
            Err(refusal) => {
                if self.objects.refused(&refusal) {
                    return true;
                }
                self.endpoints.refused(&refusal.reason);
                false
            }
        }
    }

    fn agreed(&mut self) {
        self.objects.agreed(&mut self.accepted);
        self.endpoints.agreed(&mut self.accepted);
    }

    /// Whether the next proposal is one of other documents, which takes a while to find.
    pub const fn is_due(&self) -> bool {
        self.objects.is_due()
    }

    /// Whether a configuration is in force.
    pub const fn is_configured(&self) -> bool {
        self.in_force.is_some()
    }

    /// What is not in force, in the order of names.
    pub fn rejected(&self, kind: Kind) -> Vec<Rejected> {
        match kind {
            Kind::Object => self.objects.rejected(),
            Kind::Endpoint => self.endpoints.rejected(),
        }
    }

    /// What is in force, with its versions.
    pub fn versions(&self, kind: Kind) -> Vec<(Arc<str>, Arc<str>)> {
        match kind {
            Kind::Object => self.objects.versions(),
            Kind::Endpoint => self.endpoints.versions(),
        }
    }

    /// What was accepted since the last call.
    pub fn take_accepted(&mut self) -> Vec<Accepted> {
        mem::take(&mut self.accepted)
    }
}

#[cfg(test)]
pub(super) mod tests;
