//! What has to be written so that what is wanted holds. Nothing is read or written here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_model::{Checked, Problems};
use weft_store::types::{Object, ObjectKey, Put, Require, Revision, That, Write};

use super::{OWN, SET};
use crate::{api::reply::Refusal, config};

/// Objects at some revision.
pub(super) type Past = BTreeMap<ObjectKey, Arc<Object>>;

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Goal {
    /// What these files say is stored.
    Files(Vec<(String, String)>),
    /// As [`Self::Files`], and the set holds nothing else.
    Set(String, Vec<(String, String)>),
    /// There are none of these.
    Gone(Vec<ObjectKey>),
    /// All is as it was at this revision.
    Revision(Revision),
}

/// A goal, and what must hold before.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) goal: Goal,
    pub(super) require: Vec<Require>,
}

impl Wanted {
    pub(super) fn of(goal: Goal) -> Self {
        Self { goal, require: Vec::new() }
    }
}

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The configuration.
    pub(super) objects: Vec<Arc<Object>>,
    /// Which set holds what of it.
    pub(super) sets: Vec<Arc<Object>>,
    /// Both, at the revision to go back to.
    pub(super) past: Option<Past>,
}

/// What it comes to.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) require: Vec<Require>,
    pub(super) writes: Vec<Write>,
    /// Writes of what nobody sees.
    pub(super) own: Vec<Write>,
    pub(super) objects: Vec<Value>,
    pub(super) warnings: Vec<Value>,
}

/// What a set holds, as it is stored: kind, namespace and name of each.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Set {
    keys: BTreeSet<(String, String, String)>,
}

impl Set {
    fn of(object: &Object) -> Self {
        serde_json::from_slice(&object.spec).unwrap_or_default()
    }

    fn holding<'k>(keys: impl IntoIterator<Item = &'k ObjectKey>) -> Self {
        let part = |part: &str| part.to_owned();
        let keys = keys.into_iter().map(|key| (part(&key.kind), part(&key.namespace), part(&key.name)));
        Self { keys: keys.collect() }
    }

    fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.keys.iter().map(|(kind, namespace, name)| ObjectKey::new(kind, namespace, name))
    }
}

/// What has to be written so that `wanted` holds; what is new was made at `now`.
pub(super) fn plan(known: &Known, wanted: &Wanted, now: &str) -> Result<Plan, Refusal> {
    let mut plan = Plan { require: wanted.require.clone(), ..Plan::default() };
    let mut set = None;
    let (files, deleted) = match &wanted.goal {
        Goal::Files(files) => (files.clone(), Vec::new()),
        Goal::Gone(keys) => (Vec::new(), keys.clone()),
        Goal::Set(name, files) => {
            let key = ObjectKey::new(SET, OWN, name);
            let documents = weft_model::documents(files).unwrap_or_default();
            let held: Vec<ObjectKey> = documents.iter().map(config::key_of).collect();
            let deleted = dropped(known, &key, &held);
            set = Some((key, Set::holding(&held)));
            (files.clone(), deleted)
        }
        Goal::Revision(to) => back(known, *to, &mut plan.own),
    };
    let documents =
        |object: &Arc<Object>| (object.key.clone(), serde_json::from_slice(&object.spec).unwrap_or_default());
    let checked = config::check(known.objects.iter().map(documents), &files, &deleted);
    let (documents, Checked { warnings, .. }) = checked.map_err(|problems: Problems| Refusal::invalid(&problems))?;
    let there: BTreeMap<&ObjectKey, &Arc<Object>> = known.objects.iter().map(|object| (&object.key, object)).collect();
    // Warnings about what was stored before are old news.
    let new = warnings.iter().filter(|warning| files.iter().any(|(name, _)| *name == warning.file));
    plan.warnings = new.filter_map(|warning| serde_json::to_value(warning).ok()).collect();
    for document in documents {
        let key = config::key_of(&document);
        let (mut json, read_at) = config::to_store(document);
        if let Some(read_at) = read_at
            && !plan.require.iter().any(|require| require.key == key)
        {
            plan.require.push(Require { key: key.clone(), that: That::At(revision(&read_at)?) });
        }
        let stored = there.get(&key).map(|object| serde_json::from_slice::<Value>(&object.spec).unwrap_or_default());
        config::created(&mut json, stored.as_ref(), now);
        let action = match &stored {
            Some(stored) if *stored == json => "unchanged",
            Some(_) => "configured",
            None => "created",
        };
        plan.objects.push(named(&key, action));
        if action != "unchanged" {
            plan.writes.push(Write::Put(Put::spec(key, json.to_string())));
        }
    }
    for key in &deleted {
        let exists = there.contains_key(key);
        plan.objects.push(named(key, if exists { "deleted" } else { "absent" }));
        if exists {
            plan.writes.push(Write::Delete(key.clone()));
        }
    }
    if let Some((key, set)) = set {
        let stored = known.sets.iter().find(|stored| stored.key == key);
        if stored.is_none_or(|stored| Set::of(stored) != set) {
            plan.own.push(Write::Put(Put::spec(key, serde_json::to_string(&set).unwrap_or_default())));
        }
    }
    Ok(plan)
}

/// What a set held, is there, and is held by no set any more.
fn dropped(known: &Known, set: &ObjectKey, held: &[ObjectKey]) -> Vec<ObjectKey> {
    let mut before = BTreeSet::new();
    let mut stays: BTreeSet<ObjectKey> = held.iter().cloned().collect();
    for stored in &known.sets {
        let keys = Set::of(stored);
        if stored.key == *set { before.extend(keys.keys()) } else { stays.extend(keys.keys()) }
    }
    let there: BTreeSet<&ObjectKey> = known.objects.iter().map(|object| &object.key).collect();
    before.into_iter().filter(|key| !stays.contains(key) && there.contains(key)).collect()
}

/// What has to be applied and deleted so that the configuration is what it was, and what becomes of the sets.
fn back(known: &Known, to: Revision, own: &mut Vec<Write>) -> (Vec<(String, String)>, Vec<ObjectKey>) {
    let none = Past::default();
    let past = known.past.as_ref().unwrap_or(&none);
    let now: BTreeMap<&ObjectKey, &Bytes> =
        known.objects.iter().chain(&known.sets).map(|object| (&object.key, &object.spec)).collect();
    let mut files = Vec::new();
    for object in past.values().filter(|object| now.get(&object.key) != Some(&&object.spec)) {
        if &*object.key.kind == SET {
            own.push(Write::Put(Put::spec(object.key.clone(), object.spec.clone())));
        } else {
            let text = String::from_utf8_lossy(&object.spec).into_owned();
            files.push((format!("{} (revision {to})", object.key), text));
        }
    }
    let mut deleted = Vec::new();
    for key in now.into_keys().filter(|key| !past.contains_key(key)) {
        if &*key.kind == SET {
            own.push(Write::Delete(key.clone()));
        } else {
            deleted.push(key.clone());
        }
    }
    (files, deleted)
}

fn named(key: &ObjectKey, action: &str) -> Value {
    json!({"kind": &*key.kind, "namespace": &*key.namespace, "name": &*key.name, "action": action})
}

/// A revision as text.
pub(super) fn revision(text: &str) -> Result<Revision, Refusal> {
    let parsed = text.trim_matches('"').parse().map(Revision);
    parsed.map_err(|_| Refusal::bad(format!("{text:?} is not a revision: it is a number")))
}
