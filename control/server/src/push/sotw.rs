//! One type of one state-of-the-world stream: as `subscription.rs`, with the rules of the older protocol.
//!
//! Each request names everything that is wanted. Where the type is full (listeners, clusters), each response holds
//! everything, and what it does not hold is gone; for other types it holds what has changed or is newly wanted.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use weft_wire::discovery::SotwRequest;

use super::{
    exchange::{Answer, Exchange, Now},
    log::{Entry, Log},
    subscription::{Batch, TooFarBehind},
};

/// One type of one state-of-the-world stream.
#[derive(Debug, Default)]
pub(super) struct Sotw {
    names: HashSet<Arc<str>>,
    wildcard: bool,
    begun: bool,
    /// The client has named something: from now on, naming nothing means nothing.
    explicit: bool,
    /// It wants more than before, or says for the first time what it wants.
    owes: bool,
    cursor: u64,
    removals: u64,
    due: BTreeSet<Arc<str>>,
    /// Version of the last response.
    version: String,
    pub(super) exchange: Exchange,
}

impl Sotw {
    /// Takes a request.
    pub(super) fn request(&mut self, request: SotwRequest, log: &Log, now: Now) -> Answer {
        let error = request.error_detail.as_ref();
        let version_of = |name: &str| log.get(name).map(|entry| entry.version.clone());
        // After a NACK, a request that only changes the names repeats the version before: that is no ACK.
        let is_ack = request.version_info == self.version;
        let answer = self.exchange.answer(&request.response_nonce, error, is_ack, now, version_of);
        self.explicit |= !request.resource_names.is_empty();
        let wildcard = !self.explicit || request.resource_names.iter().any(|name| name == "*");
        let known = |name: String| log.get(&name).map_or_else(|| name.into(), |entry| entry.name.clone());
        let names = request.resource_names.into_iter().filter(|name| name != "*");
        let names: HashSet<Arc<str>> = names.map(known).collect();
        let more: Vec<Arc<str>> = names.difference(&self.names).cloned().collect();
        if wildcard && !self.wildcard {
            self.cursor = 0;
            self.removals = 0;
        }
        self.owes |= !self.begun || !more.is_empty() || (wildcard && !self.wildcard);
        self.due.extend(more);
        self.due.retain(|name| names.contains(name));
        (self.begun, self.wildcard, self.names) = (true, wildcard, names);
        answer
    }

    /// Sends `name` again, if the client has asked for it.
    pub(super) fn resend(&mut self, name: &str) {
        if let Some(name) = self.names.get(name) {
            self.due.insert(name.clone());
        }
    }

    /// May there be something to send, apart from what is gone?
    pub(super) fn has_changes(&self, log: &Log) -> bool {
        let due = self.due.iter().any(|name| log.get(name).is_some());
        self.begun && ((self.owes && log.spec().full) || self.cursor < log.head() || due)
    }

    /// Has everything been sent and answered?
    pub(super) fn is_settled(&self, log: &Log) -> bool {
        let removals = log.spec().full && self.removals < log.head();
        log.ready() && !self.has_changes(log) && !removals && !self.exchange.waiting()
    }

    fn wants(&self, entry: &Entry) -> bool {
        (self.wildcard && entry.listed) || self.names.contains(&entry.name)
    }

    /// The next response, if there is one. `hold`: what is gone is kept in it for the time being.
    pub(super) fn next(&mut self, log: &Log, hold: bool) -> Result<Option<Batch>, TooFarBehind> {
        if !self.begun || !log.ready() || self.exchange.waiting() {
            return Ok(None);
        }
        let batch = if log.spec().full { self.full(log, hold)? } else { self.partial(log) };
        let Some(mut batch) = batch else { return Ok(None) };
        self.owes = false;
        batch.revision = log.revision();
        self.version = batch.version.clone();
        Ok(Some(batch))
    }

    fn full(&mut self, log: &Log, hold: bool) -> Result<Option<Batch>, TooFarBehind> {
        let from = self.cursor.min(self.removals);
        if from > 0 && from < log.trimmed() {
            return Err(TooFarBehind);
        }
        let mut kept = Vec::new();
        let mut changed = self.owes || !self.due.is_empty();
        for (place, entry) in log.after(from).filter(|(_, entry)| self.wants(entry)) {
            let gone = entry.gone && place > self.removals && entry.since <= self.cursor;
            if gone && hold {
                kept.push(entry);
            }
            changed |= (gone && !hold) || (!entry.gone && place > self.cursor);
        }
        let before = self.cursor;
        self.cursor = log.head();
        if kept.is_empty() {
            self.removals = log.head();
        }
        if !changed {
            return Ok(None);
        }
        self.due.clear();
        let mut batch = Batch { version: log.revision().to_string(), ..Batch::default() };
        if !kept.is_empty() {
            // Followed by another of the same revision, without what is gone.
            batch.version.push_str("+removed");
        }
        let all: BTreeMap<&str, &Entry> =
            log.present().filter(|entry| self.wants(entry)).chain(kept).map(|entry| (&*entry.name, entry)).collect();
        for entry in all.into_values() {
            batch.add(entry, entry.any());
        }
        // Only with what is new in it: the rest was sent before.
        batch.with.clear();
        let new = log.after(before).filter(|(_, entry)| !entry.gone && self.wants(entry));
        batch.with.extend(new.filter_map(|(_, entry)| entry.with.clone()));
        Ok(Some(batch))
    }

    fn partial(&mut self, log: &Log) -> Option<Batch> {
        let changed = log.after(self.cursor).filter(|(_, entry)| !entry.gone && self.wants(entry));
        let due = self.due.iter().filter_map(|name| log.get(name));
        let all: BTreeMap<&str, &Entry> =
            changed.map(|(_, entry)| entry).chain(due).map(|entry| (&*entry.name, entry)).collect();
        let mut batch = Batch { version: log.revision().to_string(), ..Batch::default() };
        for entry in all.into_values() {
            batch.add(entry, entry.any());
        }
        self.cursor = log.head();
        self.due.retain(|name| log.get(name).is_none());
        (!batch.resources.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests;
