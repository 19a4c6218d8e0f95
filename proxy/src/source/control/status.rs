//! How a node stands with its control plane, for its admin port and its metrics.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use serde_json::{Value, json};

use super::state::Rejected;
use crate::telemetry::metrics::Samples;

/// Rejections that `/config_dump` lists; there may be as many as there are endpoints.
const SHOWN: usize = 1000;

/// How a node stands with its control plane.
#[derive(Debug, Default)]
pub struct Status {
    connected: AtomicBool,
    revision: AtomicU64,
    reconnects: AtomicU64,
    now: Mutex<Now>,
}

#[derive(Debug, Default)]
struct Now {
    member: Option<String>,
    problem: Option<String>,
    rejected: Vec<Rejected>,
}

impl Status {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A member answers.
    pub(super) fn connected(&self, member: &str) {
        self.connected.store(true, Relaxed);
        let mut now = self.now();
        now.member = Some(member.to_owned());
        now.problem = None;
    }

    /// Nobody does.
    pub(super) fn lost(&self, problem: &str) {
        if self.connected.swap(false, Relaxed) {
            self.reconnects.fetch_add(1, Relaxed);
        }
        let mut now = self.now();
        now.member = None;
        now.problem = Some(problem.to_owned());
    }

    /// What is in force now leads to this revision.
    pub(super) fn leads_to(&self, revision: u64) {
        self.revision.fetch_max(revision, Relaxed);
    }

    /// What is not in force now; what of it is new.
    pub(super) fn reject(&self, rejected: Vec<Rejected>) -> Vec<Rejected> {
        let mut now = self.now();
        let before: HashSet<Rejected> = std::mem::take(&mut now.rejected).into_iter().collect();
        now.rejected = rejected;
        now.rejected.iter().filter(|one| !before.contains(*one)).cloned().collect()
    }

    /// Whether a member is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Why there is no configuration yet.
    pub fn waiting_for(&self) -> String {
        match (&self.now().problem, self.is_connected()) {
            (_, true) => "no configuration yet: the control plane has not sent any".into(),
            (Some(problem), false) => format!("no configuration yet: {problem}"),
            (None, false) => "no configuration yet: connecting to the control plane".into(),
        }
    }

    /// For `/config_dump`.
    pub fn shown(&self) -> Value {
        let now = self.now();
        let rejected = now.rejected.iter().take(SHOWN);
        json!({
            "kind": "control",
            "member": now.member,
            "connected": self.is_connected(),
            "problem": now.problem,
            "revision": self.revision.load(Relaxed),
            "reconnects": self.reconnects.load(Relaxed),
            "rejected": rejected.map(|one| json!({ "name": &*one.name, "reason": &*one.reason })).collect::<Vec<_>>(),
        })
    }

    /// For `/metrics`.
    pub fn collect(&self, samples: &mut Samples) {
        samples.add("weft_control_connected", &[], f64::from(u8::from(self.is_connected())));
        samples.add("weft_control_revision", &[], self.revision.load(Relaxed) as f64);
        samples.add("weft_control_rejected", &[], self.now().rejected.len() as f64);
        samples.add("weft_control_reconnects_total", &[], self.reconnects.load(Relaxed) as f64);
    }

    /// For somebody who shows it.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}
