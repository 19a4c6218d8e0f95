//! Reading objects.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_store::{
    machine::Machine,
    types::{Change, Event, Object, ObjectKey},
};

use super::{Answered, Context, query::Query, reply::Refusal, reply::json as reply};
use crate::{
    config,
    registry::{self, ENDPOINT},
};

pub(super) async fn get(context: &Context, key: &ObjectKey, query: &Query) -> Answered {
    let found = context.store.read(query.consistency()?, |machine| machine.get(key).cloned()).await?;
    let object = found.ok_or_else(|| Refusal::not_found(format!("there is no {key}")))?;
    Ok(reply(&show(context, &[object]).remove(0)))
}

pub(super) async fn list(context: &Context, kind: Option<&str>, query: &Query) -> Answered {
    let filter = query.filter(kind)?;
    let look = |machine: &Machine| (machine.revision(), machine.list(&filter));
    let (revision, objects) = context.store.read(query.consistency()?, look).await?;
    let items = show(context, &objects);
    let metadata = json!({"resourceVersion": revision.to_string()});
    Ok(reply(&json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})))
}

/// Objects as they are now.
fn show(context: &Context, objects: &[Arc<Object>]) -> Vec<Value> {
    let left = context.store.lease_left(objects.iter().filter_map(|object| object.lease.as_ref()));
    let shown = objects.iter().map(|object| match &*object.key.kind {
        ENDPOINT => registry::to_show(object, object.lease.as_ref().and_then(|lease| left.get(lease)).copied()),
        _ => config::to_show(object),
    });
    shown.collect()
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
    let Some(object) = change.after.as_ref().or(change.before.as_ref()) else { return Value::Null };
    if &*object.key.kind == ENDPOINT { registry::to_show(object, None) } else { config::to_show(object) }
}
