//! The resources of one type, in the order of their latest change.
//!
//! A stream is a cursor into it: what is after the cursor is pending, each resource once, in its latest version. So a
//! client that is slow costs nothing, and what it gets when it comes back is the latest only.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use weft_wire::{
    discovery::{self, Any},
    prost::{self, Message},
};

/// How many removed resources are remembered.
const TOMBSTONES: usize = 100_000;

/// What a type is like. The engine knows types by this alone.
#[derive(Debug, Clone, Copy)]
pub struct TypeSpec {
    /// `type.googleapis.com/` and the name of the message.
    pub url: &'static str,
    /// How many bytes of resources a delta response may hold; what is more comes in the next one.
    pub response_max: usize,
    /// Versions are revisions of the store: a client that has a later one than this member is ahead of it.
    pub revisions: bool,
    /// State of the world: every response holds all that is wanted, and what it does not hold is gone.
    pub full: bool,
    /// Types whose changes a stream gets first.
    pub after: &'static [&'static str],
    /// Types whose changes a stream gets before it is told that a resource of this one is gone.
    pub removed_after: &'static [&'static str],
    /// The type that [`Resource::with`] names a resource of.
    pub with: Option<&'static str>,
}

/// A resource, as its producer gives it.
#[derive(Debug, Clone)]
pub struct Resource {
    /// Its name.
    pub name: Arc<str>,
    /// Its version: the same on every member.
    pub version: Arc<str>,
    /// The message.
    pub message: Bytes,
    /// Part of a wildcard; otherwise only for who asks for it by name. The same for all versions of a name.
    pub listed: bool,
    /// A resource of another type that is sent again after this one, even if it has not changed.
    pub with: Option<Arc<str>>,
}

/// A change of one resource.
#[derive(Debug, Clone)]
pub enum Change {
    /// It is new, or has changed. Nothing happens if this version is there already.
    Put(Resource),
    /// It is gone.
    Remove(Arc<str>),
}

/// A resource in the log.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: Arc<str>,
    pub version: Arc<str>,
    /// When this version was published.
    pub revision: u64,
    pub listed: bool,
    pub with: Option<Arc<str>>,
    /// Removed: what is left is to be told, once, to who had it.
    pub gone: bool,
    /// The place of the first version that is remembered: a stream that has not been so far has never sent it.
    pub since: u64,
    resource: Bytes,
    any: Range<usize>,
}

impl Entry {
    /// For delta: an encoded `Resource`.
    pub(super) fn resource(&self) -> Bytes {
        self.resource.clone()
    }

    /// For state of the world: an encoded `Any`. It is there for what is gone too, if the type is told late about it.
    pub(super) fn any(&self) -> Bytes {
        self.resource.slice(self.any.clone())
    }
}

/// The log of a type.
#[derive(Debug)]
pub(super) struct Log {
    spec: TypeSpec,
    entries: BTreeMap<u64, Entry>,
    places: HashMap<Arc<str>, u64>,
    tombstones: VecDeque<u64>,
    tombstones_max: usize,
    head: u64,
    trimmed: u64,
    revision: u64,
    ready: bool,
}

impl Log {
    pub(super) fn new(spec: TypeSpec) -> Self {
        Self {
            spec,
            entries: BTreeMap::new(),
            places: HashMap::new(),
            tombstones: VecDeque::new(),
            tombstones_max: TOMBSTONES,
            head: 0,
            trimmed: 0,
            revision: 0,
            ready: false,
        }
    }

    pub(super) fn spec(&self) -> &TypeSpec {
        &self.spec
    }

    /// The place of the latest change.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// What was removed up to this place is forgotten.
    pub(super) fn trimmed(&self) -> u64 {
        self.trimmed
    }

    /// It is complete up to this revision.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Does it hold what there is? Otherwise streams wait.
    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// It is not kept up to date any more.
    pub(super) fn suspend(&mut self) {
        self.ready = false;
    }

    /// What changed after `place`, in order.
    pub(super) fn after(&self, place: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries.range(place + 1..).map(|(place, entry)| (*place, entry))
    }

    /// A resource that exists.
    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.entry(name).filter(|entry| !entry.gone)
    }

    /// Every resource that exists.
    pub(super) fn present(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| !entry.gone)
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(self.places.get(name)?)
    }

    /// Takes the changes of everything up to `revision`. Says whether anything is different now.
    pub(super) fn publish(&mut self, revision: u64, changes: Vec<Change>) -> bool {
        let before = self.head;
        self.ready = true;
        self.revision = self.revision.max(revision);
        for change in changes {
            match change {
                Change::Put(resource) => self.put(resource),
                Change::Remove(name) => self.remove(&name),
            }
        }
        self.head != before
    }

    /// Takes `resources` for all that there are at `revision`. Says whether anything is different now.
    pub(super) fn replace(&mut self, revision: u64, resources: Vec<Resource>) -> bool {
        let kept: HashSet<Arc<str>> = resources.iter().map(|resource| resource.name.clone()).collect();
        let gone = self.present().filter(|entry| !kept.contains(&entry.name));
        let gone = gone.map(|entry| Change::Remove(entry.name.clone())).collect::<Vec<_>>();
        self.publish(revision, gone.into_iter().chain(resources.into_iter().map(Change::Put)).collect())
    }

    fn put(&mut self, resource: Resource) {
        let Resource { name, version, message, listed, with } = resource;
        let before = self.entry(&name);
        if before.is_some_and(|before| !before.gone && before.version == version) {
            return;
        }
        let since = before.map(|before| before.since);
        let (resource, any) = encode(&name, &version, self.spec.url, message);
        let (place, revision) = (self.head + 1, self.revision);
        let since = since.unwrap_or(place);
        self.place(Entry { name, version, revision, listed, with, gone: false, since, resource, any });
    }

    fn remove(&mut self, name: &str) {
        let Some(before) = self.places.get(name).copied().filter(|_| self.get(name).is_some()) else { return };
        let Some(mut entry) = self.entries.remove(&before) else { return };
        entry.gone = true;
        entry.revision = self.revision;
        if self.spec.removed_after.is_empty() {
            (entry.resource, entry.any) = (Bytes::new(), 0..0);
        }
        let place = self.place(entry);
        self.tombstones.push_back(place);
        self.trim();
    }

    fn place(&mut self, entry: Entry) -> u64 {
        self.head += 1;
        if let Some(before) = self.places.insert(entry.name.clone(), self.head) {
            self.entries.remove(&before);
        }
        self.entries.insert(self.head, entry);
        self.head
    }

    /// Remembers only so many removed resources from now on.
    #[cfg(test)]
    pub(super) fn forget(&mut self, tombstones: usize) {
        self.tombstones_max = tombstones;
        self.trim();
    }

    fn trim(&mut self) {
        while self.tombstones.len() > self.tombstones_max {
            let Some(place) = self.tombstones.pop_front() else { break };
            // It may exist again since.
            if let Some(entry) = self.entries.remove(&place) {
                self.places.remove(&entry.name);
                self.trimmed = place;
            }
        }
    }
}

/// A `Resource`, and where in it its `Any` is.
fn encode(name: &str, version: &str, type_url: &str, message: Bytes) -> (Bytes, Range<usize>) {
    let any = Any { type_url: type_url.into(), value: message };
    let length = any.encoded_len();
    let head = discovery::Resource { version: version.into(), resource: None, name: String::new() };
    // A tag of one byte and the length come before it.
    let start = head.encoded_len() + 1 + prost::length_delimiter_len(length);
    let resource = discovery::Resource { version: version.into(), resource: Some(any), name: name.into() };
    (resource.encode_to_vec().into(), start..start + length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::push::testing::{SPEC, put, remove};

    fn names(log: &Log, after: u64) -> Vec<String> {
        let text = |(place, entry): (u64, &Entry)| {
            format!("{place}{}{}@{}", if entry.gone { "-" } else { "+" }, entry.name, entry.version)
        };
        log.after(after).map(text).collect()
    }

    #[test]
    fn each_resource_is_there_once_at_its_latest_change() {
        let mut log = Log::new(SPEC);
        assert!(!log.ready());
        assert!(log.publish(1, vec![put("a", 1), put("b", 1)]));
        assert!(log.publish(2, vec![put("a", 2)]));
        assert!(!log.publish(3, vec![put("a", 2), remove("x")]), "nothing has changed");
        assert_eq!((log.revision(), log.head()), (3, 3));
        assert!(log.publish(4, vec![remove("b"), put("c", 4)]));
        assert_eq!(names(&log, 0), ["3+a@2", "4-b@1", "5+c@4"]);
        assert_eq!(names(&log, 4), ["5+c@4"]);
        assert!(log.replace(5, vec![]));
        assert_eq!(log.present().count(), 0);
    }

    #[test]
    fn what_was_removed_is_forgotten_in_the_end() {
        let mut log = Log::new(SPEC);
        log.forget(2);
        for n in 1..=4 {
            log.publish(n, vec![put(&format!("r{n}"), n)]);
        }
        for n in 1..=3 {
            log.publish(4 + n, vec![remove(&format!("r{n}"))]);
        }
        assert_eq!((log.trimmed(), names(&log, 0)), (5, vec!["4+r4@4".into(), "6-r2@2".into(), "7-r3@3".into()]));
        // One that is back is not forgotten with its removal.
        log.publish(8, vec![put("r2", 8)]);
        log.publish(9, vec![remove("r4"), put("r5", 9)]);
        assert_eq!(names(&log, 0), ["7-r3@3", "8+r2@8", "9-r4@4", "10+r5@9"]);
    }

    #[test]
    fn it_is_encoded_as_both_protocols_have_it() {
        for message in [Bytes::new(), Bytes::from(vec![7; 300])] {
            let (encoded, any) = encode("name", "12", "t", message.clone());
            let resource = discovery::Resource::decode(encoded.clone()).unwrap();
            assert_eq!((&*resource.name, &*resource.version), ("name", "12"));
            let expected = Any { type_url: "t".into(), value: message };
            assert_eq!(Any::decode(encoded.slice(any)).unwrap(), expected);
            assert_eq!(resource.resource.unwrap(), expected);
        }
    }
}
