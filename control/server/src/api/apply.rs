//! Changing objects: everything that would be stored afterwards is checked, and then written in one revision, if
//! nobody changed the configuration in between.
//!
//! That nobody did is what the guard says: an object of the control plane's own, which every change of the
//! configuration writes and requires to be as it was read.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_model::{Checked, Problems, documents};
use weft_store::{
    Consistency,
    machine::Machine,
    types::{Object, ObjectKey, Op, Outcome, Put, Rejection, Require, Revision, That, Write},
};

use super::{
    Answered, Asked, Context,
    query::{self, Query},
    reply::{Refusal, json as reply},
    write::{Asking, TRIES},
};
use crate::config;

/// The type of a body that holds several files: `{"files": [{"name": "…", "text": "…"}]}`.
const FILES: &str = "application/vnd.weft.files+json";

/// What a request asks for.
#[derive(Debug, Default)]
struct Wanted {
    files: Vec<(String, String)>,
    deleted: Vec<ObjectKey>,
    require: Vec<Require>,
}

/// What it comes to.
#[derive(Debug)]
struct Plan {
    require: Vec<Require>,
    writes: Vec<Write>,
    objects: Vec<Value>,
    warnings: Vec<Value>,
}

pub(super) async fn apply(context: &Context, query: &Query, asked: &Asked) -> Answered {
    let wanted = Wanted { files: files(query, asked)?, ..Wanted::default() };
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

pub(super) async fn put(context: &Context, key: &ObjectKey, query: &Query, asked: &Asked) -> Answered {
    let files = files(query, asked)?;
    let found = documents(&files).map_err(|problems| Refusal::invalid(&problems))?;
    if !matches!(&*found, [one] if config::key_of(one) == *key) {
        return Err(Refusal::bad(format!("the body is one document, and that is {key}")));
    }
    let wanted = Wanted { files, require: conditions(key, asked)?, ..Wanted::default() };
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

pub(super) async fn delete_one(context: &Context, key: &ObjectKey, query: &Query, asked: &Asked) -> Answered {
    let wanted = Wanted { deleted: vec![key.clone()], require: conditions(key, asked)?, ..Wanted::default() };
    let done = change(context, query, asked, wanted).await?;
    match done["changed"].as_u64() {
        Some(0) => Err(Refusal::not_found(format!("there is no {key}"))),
        _ => Ok(reply(&done)),
    }
}

/// The body is `{"keys": [{"kind": "…", "namespace": "…", "name": "…"}]}`.
pub(super) async fn delete(context: &Context, query: &Query, asked: &Asked) -> Answered {
    let body: Value = serde_json::from_slice(&asked.body).map_err(|error| Refusal::bad(error.to_string()))?;
    let keys = body["keys"].as_array().ok_or_else(|| Refusal::bad("the body has no keys"))?;
    let part = |key: &Value, name: &str| key[name].as_str().unwrap_or_default().to_owned();
    let deleted = keys.iter().map(|key| query::key(&part(key, "kind"), &part(key, "namespace"), &part(key, "name")));
    let wanted = Wanted { deleted: deleted.collect::<Result<_, _>>()?, ..Wanted::default() };
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

async fn change(context: &Context, query: &Query, asked: &Asked, wanted: Wanted) -> Result<Value, Refusal> {
    let (dry_run, wanted) = (query.flag("dryRun")?, Arc::new(wanted));
    let asking = Asking::of(asked)?;
    let guard = ObjectKey::new("Configuration", "weft", "guard");
    let kinds = Query::default().filter(None)?;
    let _one_at_a_time = context.changing.lock().await;
    for attempt in 0..TRIES {
        let look =
            |machine: &Machine| (machine.revision(), machine.get(&guard).map(|g| g.modified), machine.list(&kinds));
        let (revision, guarded, stored) = context.store.read(Consistency::Linearizable, look).await?;
        let planning = wanted.clone();
        let planned = tokio::task::spawn_blocking(move || plan(&stored, &planning)).await;
        let mut plan = planned.map_err(|error| Refusal::defect(error.to_string()))??;
        let done = |revision: Revision, changed: u64, plan: &Plan| {
            let (objects, warnings) = (&plan.objects, &plan.warnings);
            json!({"revision": revision.0, "changed": changed, "objects": objects, "warnings": warnings, "dryRun": dry_run})
        };
        let count = u64::try_from(plan.writes.len()).unwrap_or(u64::MAX);
        if dry_run || (count == 0 && plan.require.is_empty() && !asking.is_identified()) {
            return Ok(done(revision, count, &plan));
        }
        if count > 0 {
            let that = guarded.map_or(That::Absent, That::At);
            plan.require.push(Require { key: guard.clone(), that });
            plan.writes.push(Write::Put(Put::spec(guard.clone(), revision.to_string())));
        }
        let op = Op::Write { require: std::mem::take(&mut plan.require), writes: std::mem::take(&mut plan.writes) };
        match asking.write(context, attempt, op).await? {
            // The guard is not the caller's.
            Outcome::Done { revision, changed } => return Ok(done(revision, changed.saturating_sub(1), &plan)),
            Outcome::Rejected(Rejection::Conflict { key, .. }) if key == guard => {}
            Outcome::Rejected(rejection) => return Err(rejection.into()),
            Outcome::Blank | Outcome::Granted { .. } => return Err(Refusal::defect("not the outcome of a write")),
        }
    }
    Err(Refusal::contended())
}

/// What has to be written so that `wanted` holds.
fn plan(stored: &[Arc<Object>], wanted: &Wanted) -> Result<Plan, Refusal> {
    let known = |object: &Arc<Object>| (object.key.clone(), serde_json::from_slice(&object.spec).unwrap_or_default());
    let checked = config::check(stored.iter().map(known), &wanted.files, &wanted.deleted);
    let (documents, Checked { warnings, .. }) = checked.map_err(|problems: Problems| Refusal::invalid(&problems))?;
    let find = |key: &ObjectKey| stored.iter().find(|object| object.key == *key);
    let mut plan = Plan { require: wanted.require.clone(), writes: Vec::new(), objects: Vec::new(), warnings: vec![] };
    // Warnings about what was stored before are old news.
    let new = warnings.iter().filter(|warning| wanted.files.iter().any(|(name, _)| *name == warning.file));
    plan.warnings = new.filter_map(|warning| serde_json::to_value(warning).ok()).collect();
    for document in documents {
        let key = config::key_of(&document);
        let (json, read_at) = config::to_store(document);
        if let Some(read_at) = read_at
            && !plan.require.iter().any(|require| require.key == key)
        {
            plan.require.push(Require { key: key.clone(), that: That::At(revision(&read_at)?) });
        }
        let spec = json.to_string();
        let action = match find(&key) {
            Some(object) if *object.spec == *spec.as_bytes() => "unchanged",
            Some(_) => "configured",
            None => "created",
        };
        plan.objects.push(named(&key, action));
        if action != "unchanged" {
            plan.writes.push(Write::Put(Put::spec(key, spec)));
        }
    }
    for key in &wanted.deleted {
        let exists = find(key).is_some();
        plan.objects.push(named(key, if exists { "deleted" } else { "absent" }));
        if exists {
            plan.writes.push(Write::Delete(key.clone()));
        }
    }
    Ok(plan)
}

fn named(key: &ObjectKey, action: &str) -> Value {
    json!({"kind": &*key.kind, "namespace": &*key.namespace, "name": &*key.name, "action": action})
}

/// The files of a body.
fn files(query: &Query, asked: &Asked) -> Result<Vec<(String, String)>, Refusal> {
    let text = std::str::from_utf8(&asked.body).map_err(|_| Refusal::bad("the body is not UTF-8"))?;
    let content_type = asked.headers.get(http::header::CONTENT_TYPE);
    if content_type.is_none_or(|content_type| content_type != FILES) {
        return Ok(vec![(query.text("name").unwrap_or("body").to_owned(), text.to_owned())]);
    }
    let body: Value = serde_json::from_str(text).map_err(|error| Refusal::bad(error.to_string()))?;
    let file = |file: &Value| Some((file["name"].as_str()?.to_owned(), file["text"].as_str()?.to_owned()));
    let files = body["files"].as_array().and_then(|files| files.iter().map(file).collect());
    files.ok_or_else(|| Refusal::bad("the body holds files, each with a name and a text"))
}

/// What `If-Match` and `If-None-Match` require.
fn conditions(key: &ObjectKey, asked: &Asked) -> Result<Vec<Require>, Refusal> {
    let text = |name| asked.headers.get(name).and_then(|value| value.to_str().ok());
    let that = match (text(http::header::IF_MATCH), text(http::header::IF_NONE_MATCH)) {
        (None, None) => return Ok(Vec::new()),
        (Some("*"), None) => That::Exists,
        (Some(at), None) => That::At(revision(at)?),
        (None, Some("*")) => That::Absent,
        _ => return Err(Refusal::bad("If-Match is a revision or *, If-None-Match is *, and not both")),
    };
    Ok(vec![Require { key: key.clone(), that }])
}

fn revision(text: &str) -> Result<Revision, Refusal> {
    let parsed = text.trim_matches('"').parse().map(Revision);
    parsed.map_err(|_| Refusal::bad(format!("{text:?} is not a revision: it is a number")))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_guard_is_no_kind_of_the_configuration() {
        assert_eq!(weft_model::written::Kind::from_name("Configuration"), None);
    }
}
