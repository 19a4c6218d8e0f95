//! One type of one delta stream: what the client wants, what it has been sent, what is pending.
//!
//! Decides and does nothing else. The rules are those of the xDS protocol; the tests name them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use weft_wire::discovery::DeltaRequest;

use super::{
    exchange::{Answer, Exchange, Now},
    log::{Entry, Log},
};

/// A response, still without its envelope.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    /// Encoded resources.
    pub resources: Vec<Bytes>,
    /// Names of what is gone, or does not exist.
    pub removed: Vec<Arc<str>>,
    /// The revision that it leads to.
    pub revision: u64,
    /// The same for clients that get the state of the world.
    pub version: String,
    /// Resources of the type that goes with this one, to be sent again.
    pub with: Vec<Arc<str>>,
    /// What it holds: names and versions.
    pub contents: Vec<(Arc<str>, Arc<str>)>,
}

/// The client was away for so long that what was removed meanwhile is forgotten. It has to connect again and say what
/// it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooFarBehind;

/// One type of one delta stream.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    named: HashSet<Arc<str>>,
    wildcard: bool,
    /// There was a request.
    begun: bool,
    /// What the client had when it came, until it has been compared with what there is.
    initial: Option<HashMap<String, String>>,
    /// The first request is always answered: the client learns that it has everything.
    owes: bool,
    /// Everything up to this place has been sent, apart from what is due.
    cursor: u64,
    /// Likewise, of what is gone.
    removals: u64,
    /// To be sent whatever the cursor says.
    due: BTreeSet<Arc<str>>,
    /// What the client had when it came, and is not there any more.
    gone: BTreeSet<Arc<str>>,
    pub(super) exchange: Exchange,
}

impl Subscription {
    /// Takes a request.
    pub(super) fn request(&mut self, request: DeltaRequest, log: &Log, now: Now) -> Answer {
        let error = request.error_detail.as_ref();
        let version_of = |name: &str| log.get(name).map(|entry| entry.version.clone());
        let answer = self.exchange.answer(&request.response_nonce, error, true, now, version_of);
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            self.owes = true;
            self.wildcard = request.resource_names_subscribe.is_empty();
            self.initial = Some(request.initial_resource_versions);
        }
        // A name in both lists is one that the client has forgotten and wants again.
        for name in request.resource_names_unsubscribe {
            self.unsubscribe(&name);
        }
        for name in request.resource_names_subscribe {
            self.subscribe(name, first, log);
        }
        if !self.wildcard
            && let Some(initial) = &mut self.initial
        {
            // What it has and does not ask for, it will have forgotten when it asks for it.
            initial.retain(|name, _| self.named.contains(name.as_str()));
        }
        answer
    }

    fn subscribe(&mut self, name: String, first: bool, log: &Log) {
        if name == "*" {
            if !std::mem::replace(&mut self.wildcard, true) {
                self.cursor = 0;
                self.removals = 0;
                // From the beginning means without what is gone: of that, the client may have some by name.
                self.due.extend(self.named.iter().cloned());
            }
            return;
        }
        let name = log.get(&name).map_or_else(|| name.into(), |entry| entry.name.clone());
        // What the client has when it comes is compared; what it asks for later it has forgotten.
        if !first || !self.initial.as_ref().is_some_and(|initial| initial.contains_key(&*name)) {
            self.due.insert(name.clone());
        }
        self.named.insert(name);
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == "*" {
            self.wildcard = false;
        } else if let Some(name) = self.named.take(name) {
            // The client cannot know whether the wildcard still gives it this one.
            if self.wildcard {
                self.due.insert(name);
            } else {
                self.due.remove(&name);
            }
        }
    }

    /// Sends `name` again, if the client has asked for it.
    pub(super) fn resend(&mut self, name: &str) {
        if let Some(name) = self.named.get(name) {
            self.due.insert(name.clone());
        }
    }

    /// The latest version that the client knows, until it has been compared, in a type whose versions are revisions.
    pub(super) fn knows(&self) -> u64 {
        let versions = self.initial.iter().flat_map(HashMap::values);
        versions.filter_map(|version| version.parse().ok()).max().unwrap_or(0)
    }

    /// Is the client ahead of this member?
    pub(super) fn ahead(&self, log: &Log) -> bool {
        log.spec().revisions && self.initial.is_some() && self.knows() > log.revision()
    }

    /// May there be something to send, apart from what is gone?
    pub(super) fn has_changes(&self, log: &Log) -> bool {
        self.begun && (self.owes || self.cursor < log.head() || !self.due.is_empty())
    }

    /// Has everything been sent and answered?
    pub(super) fn is_settled(&self, log: &Log) -> bool {
        let held = self.removals < log.head() || !self.gone.is_empty();
        log.ready() && !self.has_changes(log) && !held && !self.exchange.waiting()
    }

    /// The next response, if there is one. `hold`: what is gone is told later.
    pub(super) fn next(&mut self, log: &Log, hold: bool) -> Result<Option<Batch>, TooFarBehind> {
        if !self.begun || !log.ready() || self.exchange.waiting() || self.ahead(log) {
            return Ok(None);
        }
        if let Some(initial) = self.initial.take() {
            self.compare(initial, log);
        }
        let from = self.cursor.min(self.removals);
        if from > 0 && from < log.trimmed() {
            return Err(TooFarBehind);
        }
        let mut batch = Batch::default();
        let complete = self.changes(log, hold, &mut batch);
        let complete = complete && self.due(log, &mut batch);
        if complete && !hold {
            let gone = std::mem::take(&mut self.gone).into_iter();
            batch.removed.extend(gone.filter(|name| !log.get(name).is_some_and(|entry| self.wants(entry))));
        }
        batch.revision = if complete { log.revision() } else { batch.revision.max(self.exchange.sent_revision()) };
        let empty = batch.resources.is_empty() && batch.removed.is_empty();
        if empty && !self.owes {
            return Ok(None);
        }
        self.owes = false;
        for name in &batch.removed {
            self.exchange.removed(name);
        }
        Ok(Some(batch))
    }

    /// Finds out what the client lacks of what it had when it came.
    fn compare(&mut self, initial: HashMap<String, String>, log: &Log) {
        let same = |entry: &Entry| initial.get(&*entry.name).is_some_and(|version| **version == *entry.version);
        if initial.is_empty() {
            return;
        }
        let lacking = log.present().filter(|entry| self.wants(entry) && !same(entry));
        let gone = initial.keys().filter(|name| {
            (self.wildcard || self.named.contains(name.as_str()))
                && log.get(name).is_none_or(|entry| !entry.listed && !self.named.contains(name.as_str()))
        });
        let lacking = lacking.map(|entry| entry.name.clone());
        let (lacking, gone): (Vec<Arc<str>>, Vec<Arc<str>>) =
            (lacking.collect(), gone.map(|name| name.as_str().into()).collect());
        self.due.extend(lacking);
        self.gone.extend(gone);
        self.cursor = log.head();
        self.removals = log.head();
    }

    fn wants(&self, entry: &Entry) -> bool {
        (self.wildcard && entry.listed) || self.named.contains(&entry.name)
    }

    /// What has changed since the last response. Returns whether that was all.
    fn changes(&mut self, log: &Log, hold: bool, batch: &mut Batch) -> bool {
        let (from, removals, mut size, mut kept) = (self.cursor, self.removals, 0, false);
        for (place, entry) in log.after(from.min(removals)) {
            let wanted = self.wants(entry) && !self.due.contains(&entry.name);
            if wanted && entry.gone && place > removals && entry.since <= from {
                kept |= hold;
                if !hold {
                    batch.removed.push(entry.name.clone());
                }
            } else if wanted && !entry.gone && place > from {
                let resource = entry.resource();
                size += resource.len();
                if size > log.spec().response_max && !batch.resources.is_empty() {
                    batch.revision = entry.revision.saturating_sub(1);
                    return false;
                }
                batch.add(entry, resource);
            }
            self.cursor = self.cursor.max(place);
            if !kept {
                self.removals = place;
            }
        }
        true
    }

    /// What is due. Returns whether that was all.
    fn due(&mut self, log: &Log, batch: &mut Batch) -> bool {
        let mut size: usize = batch.resources.iter().map(Bytes::len).sum();
        let mut left = BTreeSet::new();
        for name in std::mem::take(&mut self.due) {
            self.gone.remove(&name);
            let Some(entry) = log.get(&name).filter(|entry| self.wants(entry)) else {
                batch.removed.push(name);
                continue;
            };
            let resource = entry.resource();
            size += resource.len();
            if size > log.spec().response_max && !batch.resources.is_empty() {
                left.insert(name);
            } else {
                batch.add(entry, resource);
            }
        }
        self.due = left;
        self.due.is_empty()
    }
}

impl Batch {
    pub(super) fn add(&mut self, entry: &Entry, encoded: Bytes) {
        self.resources.push(encoded);
        self.contents.push((entry.name.clone(), entry.version.clone()));
        self.with.extend(entry.with.clone());
    }
}

#[cfg(test)]
mod tests;
