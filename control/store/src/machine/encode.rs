//! The state as bytes.
//!
//! Versions of objects are written once, in a table, and referred to by their place in it: the current objects and both
//! sides of every retained change mostly name the same ones. So what was shared in memory is shared again afterwards.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Machine;
use super::history::History;
use crate::codec::{Malformed, Reader, Wire};
use crate::types::{Change, Event, Object, ObjectKey, Revision};

/// The version of this encoding. Reading accepts only what it knows.
pub const FORMAT: u32 = 1;

#[derive(Default)]
struct Table<'a> {
    places: HashMap<(&'a ObjectKey, Revision), u64>,
    objects: Vec<&'a Object>,
}

impl<'a> Table<'a> {
    fn place(&mut self, object: &'a Object) -> u64 {
        *self.places.entry((&object.key, object.modified)).or_insert_with(|| {
            self.objects.push(object);
            self.objects.len() as u64 - 1
        })
    }
}

impl Wire for Machine {
    fn write_to(&self, to: &mut Vec<u8>) {
        let mut table = Table::default();
        let mut body = Vec::new();

        (self.objects.len() as u64).write_to(&mut body);
        for object in self.objects.values() {
            table.place(object).write_to(&mut body);
        }
        (self.history.events.len() as u64).write_to(&mut body);
        for event in &self.history.events {
            event.revision.write_to(&mut body);
            event.index.write_to(&mut body);
            event.actor.write_to(&mut body);
            event.at.write_to(&mut body);
            (event.changes.len() as u64).write_to(&mut body);
            for change in &event.changes {
                change.before.as_ref().map(|object| table.place(object)).write_to(&mut body);
                change.after.as_ref().map(|object| table.place(object)).write_to(&mut body);
            }
        }

        FORMAT.write_to(to);
        self.revision.write_to(to);
        self.history.compacted.write_to(to);
        self.grants.write_to(to);
        self.leases.write_to(to);
        self.dedupe.write_to(to);
        (table.objects.len() as u64).write_to(to);
        for object in table.objects {
            object.write_to(to);
        }
        to.extend_from_slice(&body);
    }

    fn read_from(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        if u32::read_from(from)? != FORMAT {
            return Err(Malformed("snapshot: of another version"));
        }
        let revision = Revision::read_from(from)?;
        let compacted = Revision::read_from(from)?;
        let grants = u64::read_from(from)?;
        let leases = Wire::read_from(from)?;
        let dedupe = Wire::read_from(from)?;
        let table: Vec<_> = Vec::<Object>::read_from(from)?.into_iter().map(Arc::new).collect();
        let find = |place: u64| {
            let place = usize::try_from(place).ok();
            place.and_then(|place| table.get(place)).cloned().ok_or(Malformed("snapshot: no such object"))
        };

        let mut objects = BTreeMap::new();
        for _ in 0..from.count()? {
            let object = find(u64::read_from(from)?)?;
            objects.insert(object.key.clone(), object);
        }
        let mut history = History::starting(compacted);
        let mut last = compacted;
        for _ in 0..from.count()? {
            let mut event = Event {
                revision: Revision::read_from(from)?,
                index: u64::read_from(from)?,
                actor: Wire::read_from(from)?,
                at: u64::read_from(from)?,
                changes: Vec::new(),
            };
            for _ in 0..from.count()? {
                let before = Option::<u64>::read_from(from)?.map(find).transpose()?;
                let after = Option::<u64>::read_from(from)?.map(find).transpose()?;
                event.changes.push(Change { before, after });
            }
            if event.revision != last.next() {
                return Err(Malformed("snapshot: its history has a gap"));
            }
            last = event.revision;
            history.push(event);
        }
        if last != revision {
            return Err(Malformed("snapshot: its history ends early"));
        }
        Ok(Self { revision, objects, leases, grants, history, dedupe })
    }
}
