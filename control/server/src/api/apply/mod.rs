//! Changing objects: everything that would be stored afterwards is checked, and then written in one revision, if
//! nobody changed the configuration in between.
//!
//! That nobody did is what the guard says: an object of the control plane's own, which every change of the
//! configuration writes and requires to be as it was read.

mod plan;

use std::sync::Arc;

use serde_json::{Value, json};
use weft_model::documents;
use weft_store::{
    Consistency,
    machine::{Filter, Machine},
    types::{ObjectKey, Op, Outcome, Put, Rejection, Require, Revision, That, Write},
};

use super::{
    Answered, Asked, Context,
    query::{self, Query},
    reply::{Refusal, json as reply},
    write::{Asking, TRIES},
};
use crate::config;
use plan::{Goal, Known, Plan, Wanted, plan};

/// The type of a body that holds several files: `{"files": [{"name": "…", "text": "…"}]}`.
const FILES: &str = "application/vnd.weft.files+json";
/// What a set of objects holds: the control plane's own, one for each name.
pub(super) const SET: &str = "ConfigurationSet";
/// The namespace of the control plane's own objects.
pub(super) const OWN: &str = "weft";

pub(super) async fn apply(context: &Context, query: &Query, asked: &Asked) -> Answered {
    let wanted = Wanted::of(Goal::Files(files(query, asked)?));
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

/// The set holds exactly what the body holds: what it held before and does not any more is deleted, unless another set
/// holds it, too.
pub(super) async fn sync(context: &Context, query: &Query, asked: &Asked) -> Answered {
    let set = query.text("set").filter(|set| !set.is_empty() && !set.contains(char::is_control));
    let set = set.ok_or_else(|| Refusal::bad("set names the set of objects that is to hold these"))?.to_owned();
    let wanted = Wanted::of(Goal::Set(set, files(query, asked)?));
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

/// The configuration becomes what it was right after a revision. Registered endpoints stay as they are.
pub(super) async fn rollback(context: &Context, query: &Query, asked: &Asked) -> Answered {
    let to = query.revision("to")?.ok_or_else(|| Refusal::bad("to names the revision to go back to"))?;
    change(context, query, asked, Wanted::of(Goal::Revision(to))).await.map(|done| reply(&done))
}

pub(super) async fn put(context: &Context, key: &ObjectKey, query: &Query, asked: &Asked) -> Answered {
    let files = files(query, asked)?;
    let found = documents(&files).map_err(|problems| Refusal::invalid(&problems))?;
    if !matches!(&*found, [one] if config::key_of(one) == *key) {
        return Err(Refusal::bad(format!("the body is one document, and that is {key}")));
    }
    let wanted = Wanted { require: conditions(key, asked)?, ..Wanted::of(Goal::Files(files)) };
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

pub(super) async fn delete_one(context: &Context, key: &ObjectKey, query: &Query, asked: &Asked) -> Answered {
    let wanted = Wanted { require: conditions(key, asked)?, ..Wanted::of(Goal::Gone(vec![key.clone()])) };
    let done = change(context, query, asked, wanted).await?;
    match done["changed"].as_u64() {
        Some(0) => Err(Refusal::not_found(format!("there is no {key}"))),
        _ => Ok(reply(&done)),
    }
}

/// The body is `{"keys": [{"kind": "…", "namespace": "…", "name": "…"}]}`.
pub(super) async fn delete(context: &Context, query: &Query, asked: &Asked) -> Answered {
    let body: Value = asked.json()?;
    let keys = body["keys"].as_array().ok_or_else(|| Refusal::bad("the body has no keys"))?;
    let part = |key: &Value, name: &str| key[name].as_str().unwrap_or_default().to_owned();
    let deleted = keys.iter().map(|key| query::key(&part(key, "kind"), &part(key, "namespace"), &part(key, "name")));
    let wanted = Wanted::of(Goal::Gone(deleted.collect::<Result<_, _>>()?));
    change(context, query, asked, wanted).await.map(|done| reply(&done))
}

async fn change(context: &Context, query: &Query, asked: &Asked, wanted: Wanted) -> Result<Value, Refusal> {
    let (dry_run, wanted) = (query.flag("dryRun")?, Arc::new(wanted));
    let asking = Asking::of(asked)?;
    let guard = ObjectKey::new("Configuration", OWN, "guard");
    let (kinds, sets) = (Query::default().filter(None)?, Filter::kind(SET));
    let now = timestamp((context.clock)());
    let _one_at_a_time = context.changing.lock().await;
    for attempt in 0..TRIES {
        let look = |machine: &Machine| {
            let past = match &wanted.goal {
                Goal::Revision(to) => Some(past(machine, *to)?),
                _ => None,
            };
            let known = Known { objects: machine.list(&kinds), sets: machine.list(&sets), past };
            Ok::<_, Refusal>((machine.revision(), machine.get(&guard).map(|guard| guard.modified), known))
        };
        let (revision, guarded, known) = context.store.read(Consistency::Linearizable, look).await??;
        let (planning, now) = (wanted.clone(), now.clone());
        let planned = tokio::task::spawn_blocking(move || plan(&known, &planning, &now)).await;
        let mut plan = planned.map_err(|error| Refusal::defect(error.to_string()))??;
        let done = |revision: Revision, changed: u64, plan: &Plan| {
            let (objects, warnings) = (&plan.objects, &plan.warnings);
            json!({"revision": revision.0, "changed": changed, "objects": objects, "warnings": warnings, "dryRun": dry_run})
        };
        let count = u64::try_from(plan.writes.len()).unwrap_or(u64::MAX);
        let writes = count > 0 || !plan.own.is_empty();
        if dry_run || (!writes && plan.require.is_empty() && !asking.is_identified()) {
            return Ok(done(revision, count, &plan));
        }
        // What is not the caller's is not counted: the guard, of a retry as well.
        let mut own = 1;
        if writes {
            let that = guarded.map_or(That::Absent, That::At);
            plan.require.push(Require { key: guard.clone(), that });
            plan.writes.push(Write::Put(Put::spec(guard.clone(), revision.to_string())));
            own += u64::try_from(plan.own.len()).unwrap_or(u64::MAX);
            plan.writes.append(&mut plan.own);
        }
        let op = Op::Write { require: std::mem::take(&mut plan.require), writes: std::mem::take(&mut plan.writes) };
        match asking.write(context, attempt, op).await? {
            Outcome::Done { revision, changed } => return Ok(done(revision, changed.saturating_sub(own), &plan)),
            Outcome::Rejected(Rejection::Conflict { key, .. }) if key == guard => {}
            Outcome::Rejected(rejection) => return Err(rejection.into()),
            Outcome::Blank | Outcome::Granted { .. } => return Err(Refusal::defect("not the outcome of a write")),
        }
    }
    Err(Refusal::contended())
}

/// The configuration, with its sets, right after a revision.
fn past(machine: &Machine, to: Revision) -> Result<plan::Past, Refusal> {
    if to > machine.revision() {
        return Err(Refusal::bad(format!("revision {to} has not been yet: this is revision {}", machine.revision())));
    }
    let objects = machine.at(to).map_err(|compacted| {
        let hint = format!("the earliest revision that can be had is {}", compacted.at);
        Refusal::from(compacted).hint(hint)
    })?;
    Ok(objects.into_iter().filter(|(key, _)| config::is_configured(&key.kind) || &*key.kind == SET).collect())
}

/// RFC 3339, to the second.
pub(super) fn timestamp(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
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
        (Some(at), None) => That::At(plan::revision(at)?),
        (None, Some("*")) => That::Absent,
        _ => return Err(Refusal::bad("If-Match is a revision or *, If-None-Match is *, and not both")),
    };
    Ok(vec![Require { key: key.clone(), that }])
}

#[cfg(test)]
mod tests {
    use weft_model::written::Kind;

    #[test]
    fn the_control_planes_own_are_no_kinds_of_the_configuration() {
        assert_eq!([Kind::from_name("Configuration"), Kind::from_name(super::SET)], [None, None]);
    }

    #[test]
    fn times_are_those_of_rfc_3339() {
        assert_eq!(super::timestamp(1_700_000_000_999), "2023-11-14T22:13:20Z");
    }
}
