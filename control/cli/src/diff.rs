//! `weft diff`: what applying files would change.

mod unified;

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;
use weft_control::config;
use weft_model::documents;
use weft_store::types::ObjectKey;

use crate::{
    apply::{read, send},
    exit::{Done, Exit, Failure, print_line},
    export::yaml,
    plane::{PlaneArgs, WITHIN, block_on, done},
    query::{Look, Tone, each},
    validate,
};

/// Arguments of `weft diff`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories of *.yaml, *.yml and *.json; `-` is stdin. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Also what `weft apply --prune --set` would delete.
    #[arg(long, requires = "set")]
    prune: bool,
    /// With --prune: the name of the set.
    #[arg(long, value_name = "NAME", requires = "prune")]
    set: Option<String>,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Shows what would change; exit code 1 when something would.
pub fn run(args: &Args) -> Done {
    let files = read(&args.files)?;
    let (planned, stored) = block_on(async {
        let mut client = args.plane.client(WITHIN);
        let planned = send(&mut client, &files, args.set.as_deref(), true).await?;
        Ok((planned, done(client.get("/v1/objects").await)?))
    })?;
    let wanted = documents(&files).map_err(|problems| validate::invalid(&problems))?;
    let wanted: BTreeMap<ObjectKey, Value> =
        wanted.into_iter().map(|document| (config::key_of(&document), config::to_store(document).0)).collect();
    let stored: BTreeMap<ObjectKey, &Value> =
        each(&stored["items"]).map(|object| (key(object, &object["metadata"]), object)).collect();
    let look = Look::of_stdout(false);
    let mut differs = false;
    for object in each(&planned["objects"]) {
        let key = key(object, object);
        let old = stored.get(&key).map(|object| (*object).clone());
        let new = (object["action"] != "deleted").then(|| wanted.get(&key).cloned()).flatten();
        if ["unchanged", "absent"].iter().any(|action| object["action"] == *action) {
            continue;
        }
        differs = true;
        print_line(&describe(&key, old, new, look)?);
    }
    if differs { Err(Failure::silent(Exit::Failed)) } else { Ok(()) }
}

fn key(object: &Value, named: &Value) -> ObjectKey {
    let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ObjectKey::new(&part(&object["kind"]), &part(&named["namespace"]), &part(&named["name"]))
}

/// The difference of one object.
fn describe(key: &ObjectKey, old: Option<Value>, new: Option<Value>, look: Look) -> Result<String, Failure> {
    // A time that is not written stays what it is.
    let written = new.as_ref().is_some_and(|new| new["metadata"]["creationTimestamp"].is_string());
    let text = |document: Option<Value>| match document {
        Some(mut document) => {
            let created = document["metadata"]["creationTimestamp"].take();
            document = config::to_export(document);
            if let Some(metadata) = document["metadata"].as_object_mut() {
                metadata.remove("creationTimestamp");
                if written && !created.is_null() {
                    metadata.insert("creationTimestamp".into(), created);
                }
            }
            yaml(&document)
        }
        None => Ok(String::new()),
    };
    let name = |prefix: &str, there: bool| if there { format!("{prefix}/{key}") } else { "/dev/null".to_owned() };
    let mut shown = vec![
        look.paint(Tone::Bold, &format!("--- {}", name("stored", old.is_some()))),
        look.paint(Tone::Bold, &format!("+++ {}", name("applied", new.is_some()))),
    ];
    for line in unified::hunks(&text(old)?, &text(new)?) {
        let tone = match line.as_bytes().first() {
            Some(b'+') => Tone::Good,
            Some(b'-') => Tone::Bad,
            _ => Tone::Plain,
        };
        shown.push(look.paint(tone, &crate::query::clean(&line)));
    }
    Ok(shown.join("\n"))
}
