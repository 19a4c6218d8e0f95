//! What can be asked of the state.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::{Compacted, Machine};
use crate::types::{Change, Event, Lease, LeaseId, Object, ObjectKey, Revision};

/// Which objects: all that match everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of these kinds; of every kind when empty.
    pub kinds: Vec<Arc<str>>,
    /// In this namespace.
    pub namespace: Option<Arc<str>>,
    /// With a name that begins like this.
    pub prefix: Option<Arc<str>>,
}

impl Filter {
    /// Every object of a kind.
    pub fn kind(kind: &str) -> Self {
        Self { kinds: vec![kind.into()], ..Self::default() }
    }

    /// Those in `namespace`.
    pub fn within(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Those whose name begins with `prefix`.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Does it include this object?
    pub fn matches(&self, key: &ObjectKey) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&key.kind))
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            && self.prefix.as_ref().is_none_or(|prefix| key.name.starts_with(&**prefix))
    }
}

impl Machine {
    /// The current revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The last revision that the history has forgotten.
    pub fn compacted(&self) -> Revision {
        self.history.compacted
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Is there no object at all?
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects that match, in the order of their keys.
    pub fn list(&self, filter: &Filter) -> Vec<Arc<Object>> {
        let mut kinds = filter.kinds.clone();
        kinds.sort();
        kinds.dedup();
        if kinds.is_empty() {
            return self.objects.values().filter(|object| filter.matches(&object.key)).cloned().collect();
        }
        let mut found = Vec::new();
        for kind in kinds {
            let name = filter.namespace.as_ref().and(filter.prefix.clone());
            let from = ObjectKey {
                kind: kind.clone(),
                namespace: filter.namespace.clone().unwrap_or_default(),
                name: name.unwrap_or_default(),
            };
            let range = self.objects.range((Bound::Included(from), Bound::Unbounded));
            let near = range.take_while(|(key, _)| {
                key.kind == kind && filter.namespace.as_ref().is_none_or(|namespace| *namespace == key.namespace)
            });
            found.extend(near.filter(|(key, _)| filter.matches(key)).map(|(_, object)| object.clone()));
        }
        found
    }

    /// A lease.
    pub fn lease(&self, id: &LeaseId) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// Every lease.
    pub fn leases(&self) -> &BTreeMap<LeaseId, Lease> {
        &self.leases
    }

    /// The events after `revision`, one per revision and without a gap; nothing yet when it is in the future.
    pub fn events_after(&self, revision: Revision) -> Result<impl Iterator<Item = &Arc<Event>> + Clone, Compacted> {
        self.history.after(revision)
    }

    /// Would an [`Op::Trim`](crate::types::Op::Trim) with these change anything?
    pub fn would_trim(&self, history: u64, clients: u64) -> bool {
        self.history.events.front().is_some_and(|event| event.at < history) || self.dedupe.would_trim(clients)
    }

    /// What is known of an object's past, newest first.
    pub fn history(&self, key: &ObjectKey) -> Vec<(Arc<Event>, Change)> {
        let changed = |event: &Arc<Event>| {
            let change = event.changes.iter().find(|change| change.key() == Some(key))?;
            Some((event.clone(), change.clone()))
        };
        self.history.events.iter().rev().filter_map(changed).collect()
    }

    /// Every object as it was right after `revision`; as it is now, when that is in the future.
    pub fn at(&self, revision: Revision) -> Result<BTreeMap<ObjectKey, Arc<Object>>, Compacted> {
        let later = self.history.after(revision)?;
        let mut objects = self.objects.clone();
        for event in later.collect::<Vec<_>>().into_iter().rev() {
            for change in &event.changes {
                match (&change.before, change.key()) {
                    (Some(before), _) => objects.insert(before.key.clone(), before.clone()),
                    (None, Some(key)) => objects.remove(key),
                    (None, None) => None,
                };
            }
        }
        Ok(objects)
    }
}
