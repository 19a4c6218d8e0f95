//! Objects as the configuration that they make together.
//!
//! The store keeps each document whole, as JSON without what the server itself says about it. What is checked is always
//! everything that would be stored afterwards, by the code behind `weft validate`.

use std::collections::BTreeSet;

use serde_json::Value;
use weft_model::{Checked, Document, Options, Problems, documents, load_texts, written::Kind};
use weft_store::types::{Object, ObjectKey};

/// What `metadata` says about an object and its owner does not.
const OURS: [&str; 4] = ["resourceVersion", "generation", "uid", "managedFields"];

/// When it was made.
const CREATED: &str = "creationTimestamp";

/// The kind that is meant: `HTTPRoute`, `httproute` and `httproutes` are the same.
pub fn kind_named(text: &str) -> Option<&'static str> {
    let wanted = text.to_ascii_lowercase();
    Kind::ALL.map(Kind::name).into_iter().find(|name| {
        let name = name.to_ascii_lowercase();
        let plural = name.strip_suffix('y').map_or_else(|| format!("{name}s"), |stem| format!("{stem}ies"));
        wanted == name || wanted == plural
    })
}

/// A document's key in the store.
pub fn key_of(document: &Document) -> ObjectKey {
    ObjectKey::new(document.kind, &document.key.namespace, &document.key.name)
}

/// What is stored of a document, and the revision that it says it was read at.
pub fn to_store(document: Document) -> (Value, Option<String>) {
    let namespace = document.key.namespace.to_string();
    let mut json = document.json;
    let mut read_at = None;
    if let Some(object) = json.as_object_mut() {
        object.remove("status");
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            read_at = metadata.get("resourceVersion").and_then(Value::as_str).map(str::to_owned);
            metadata.retain(|name, _| !OURS.contains(&name.as_str()));
            metadata.insert("namespace".into(), namespace.into());
        }
    }
    (json, read_at)
}

/// When a document was made: as written, or else as it was stored with, or else now.
pub fn created(document: &mut Value, stored: Option<&Value>, now: &str) {
    let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if metadata.get(CREATED).is_some_and(|created| !created.is_null()) {
        return;
    }
    metadata.remove(CREATED);
    let created = match stored {
        Some(stored) => stored["metadata"][CREATED].clone(),
        None => now.into(),
    };
    if !created.is_null() {
        metadata.insert(CREATED.into(), created);
    }
}

/// Is this a kind of the configuration?
pub fn is_configured(kind: &str) -> bool {
    Kind::from_name(kind).is_some()
}

/// A document without what the server says about it, so that it can be applied anywhere. When a route was made stays:
/// the older one wins where two match.
pub fn to_export(mut document: Value) -> Value {
    let route = document["kind"].as_str().is_some_and(|kind| kind.ends_with("Route"));
    if let Some(object) = document.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !OURS.contains(&name.as_str()) && (route || name != CREATED));
    }
    document
}

/// An object as it is shown: the document, its revision and generation.
pub fn to_show(object: &Object) -> Value {
    let mut json: Value = serde_json::from_slice(&object.spec).unwrap_or_default();
    if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), object.modified.to_string().into());
        metadata.insert("generation".into(), object.generation.into());
    }
    json
}

/// Checks what would be stored after `files` are applied to `stored` and `deleted` is gone. Returns the documents of
/// the files, and what the whole comes to.
///
/// # Errors
/// Every mistake, with its place in the files or in what is stored.
pub fn check(
    stored: impl IntoIterator<Item = (ObjectKey, Value)>,
    files: &[(String, String)],
    deleted: &[ObjectKey],
) -> Result<(Vec<Document>, Checked), Problems> {
    let Ok(found) = documents(files) else {
        // What cannot be read might replace or define anything: only what is certain is reported.
        let checked = load_texts(files, Options { require_refs: false })?;
        return Ok((Vec::new(), checked));
    };
    let gone: BTreeSet<ObjectKey> = found.iter().map(key_of).chain(deleted.iter().cloned()).collect();
    let kept = stored.into_iter().filter(|(key, _)| !gone.contains(key));
    let kept = kept.map(|(key, json)| (format!("{key} (stored)"), format!("{json:#}")));
    let texts: Vec<(String, String)> = files.iter().cloned().chain(kept).collect();
    let checked = load_texts(&texts, Options::default())?;
    // What is stored is read again at the next change, as JSON: it has to survive that.
    let stored = found.iter().map(|document| (key_of(document).to_string(), format!("{:#}", document.json)));
    documents(&stored.collect::<Vec<_>>())?;
    Ok((found, checked))
}
