//! Reading objects.

use serde_json::{Value, json};
use weft_store::{
    machine::Machine,
    types::{Change, Event, ObjectKey},
};

use super::{Answered, Context, query::Query, reply::Refusal, reply::json as reply};
use crate::config;

pub(super) async fn get(context: &Context, key: &ObjectKey, query: &Query) -> Answered {
    let found = context.store.read(query.consistency()?, |machine| machine.get(key).cloned()).await?;
    let object = found.ok_or_else(|| Refusal::not_found(format!("there is no {key}")))?;
    Ok(reply(&config::to_show(&object)))
}

pub(super) async fn list(context: &Context, kind: Option<&str>, query: &Query) -> Answered {
    let filter = query.filter(kind)?;
    let look = |machine: &Machine| (machine.revision(), machine.list(&filter));
    let (revision, objects) = context.store.read(query.consistency()?, look).await?;
    let items: Vec<Value> = objects.iter().map(|object| config::to_show(object)).collect();
    let metadata = json!({"resourceVersion": revision.to_string()});
    Ok(reply(&json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})))
}

pub(super) async fn revision(context: &Context, query: &Query) -> Answered {
    let revision = context.store.read(query.consistency()?, Machine::revision).await?;
    Ok(reply(&json!({"revision": revision.0})))
}

/// Newest first.
pub(super) async fn history(context: &Context, key: &ObjectKey, query: &Query) -> Answered {
    let look = |machine: &Machine| (machine.compacted(), machine.history(key));
    let (compacted, history) = context.store.read(query.consistency()?, look).await?;
    let items: Vec<Value> = history
        .iter()
        .map(|(event, change)| {
            let mut item = header(event);
            item["type"] = kind_of(change).into();
            item["object"] = shown(change);
            item
        })
        .collect();
    Ok(reply(&json!({"compacted": compacted.0, "items": items})))
}

/// Which revision, who, when.
pub(super) fn header(event: &Event) -> Value {
    json!({"revision": event.revision.0, "actor": &*event.actor, "at": event.at})
}

/// What sort of change it is, as Kubernetes calls it.
pub(super) fn kind_of(change: &Change) -> &'static str {
    match (&change.before, &change.after) {
        (None, _) => "ADDED",
        (Some(_), Some(_)) => "MODIFIED",
        (Some(_), None) => "DELETED",
    }
}

/// The object after the change, or what it was before it went.
pub(super) fn shown(change: &Change) -> Value {
    change.after.as_ref().or(change.before.as_ref()).map(|object| config::to_show(object)).unwrap_or_default()
}
