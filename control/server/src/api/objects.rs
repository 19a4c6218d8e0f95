//! Reading objects.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use weft_store::{
    machine::{Filter, Machine},
    types::{Change, Event, Object, ObjectKey},
};

use weft_wire::resource::OBJECT;

use super::{Answered, Context, apply::timestamp, nodes, query::Query, reply::Refusal, reply::json as reply};
use crate::{
    config,
    push::{fleet::Fleet, own::name},
    registry::{self, ENDPOINT},
    status,
};

/// For what other members say about nodes: without it, an object is shown as what this member's nodes make of it.
const NODES: Duration = Duration::from_millis(500);

pub(super) async fn get(context: &Context, key: &ObjectKey, query: &Query) -> Answered {
    let look = |machine: &Machine| {
        let found: Vec<_> = machine.get(key).cloned().into_iter().collect();
        (routes(machine, &found), found)
    };
    let (routes, found) = context.store.read(query.consistency()?, look).await?;
    match show(context, &found, &routes).await.pop() {
        Some(shown) => Ok(reply(&shown)),
        None => Err(Refusal::not_found(format!("there is no {key}"))),
    }
}

pub(super) async fn list(context: &Context, kind: Option<&str>, query: &Query) -> Answered {
    let filter = query.filter(kind)?;
    let look = |machine: &Machine| {
        let found = machine.list(&filter);
        (machine.revision(), routes(machine, &found), found)
    };
    let (revision, routes, objects) = context.store.read(query.consistency()?, look).await?;
    let items = show(context, &objects, &routes).await;
    let metadata = json!({"resourceVersion": revision.to_string()});
    Ok(reply(&json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items})))
}

/// The stored routes, if any of the objects is a Gateway.
fn routes(machine: &Machine, objects: &[Arc<Object>]) -> Vec<Arc<Object>> {
    if !objects.iter().any(|object| &*object.key.kind == "Gateway") {
        return Vec::new();
    }
    let kinds = ["HTTPRoute", "GRPCRoute", "TCPRoute"].map(Into::into).to_vec();
    machine.list(&Filter { kinds, ..Filter::default() })
}

/// Objects as they are now, with their status.
async fn show(context: &Context, objects: &[Arc<Object>], routes: &[Arc<Object>]) -> Vec<Value> {
    let left = context.store.lease_left(objects.iter().filter_map(|object| object.lease.as_ref()));
    // Endpoints have no conditions.
    let fleet = match objects.iter().all(|object| &*object.key.kind == ENDPOINT) {
        true => Fleet::default(),
        false => nodes::fleet(context, NODES).await,
    };
    let routes: Vec<Value> =
        routes.iter().map(|route| serde_json::from_slice(&route.spec).unwrap_or_default()).collect();
    let shown = objects.iter().map(|object| match &*object.key.kind {
        ENDPOINT => registry::to_show(object, object.lease.as_ref().and_then(|lease| left.get(lease)).copied()),
        // Core kinds have no status.
        "Secret" | "ConfigMap" => config::to_show(object),
        _ => {
            let mut shown = config::to_show(object);
            let programmed = fleet.programmed(OBJECT, &name(&object.key), object.modified.0);
            shown["status"] = status::of(&shown, object.generation, &programmed, &routes);
            shown
        }
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
    json!({"revision": event.revision.0, "actor": &*event.actor, "at": event.at, "time": timestamp(event.at)})
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
