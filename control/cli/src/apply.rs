//! `weft apply` and `weft delete`: change what a control plane keeps.

use std::{io::Read, path::PathBuf};

use http::Method;
use serde_json::{Value, json};
use weft_control::{Client, config};
use weft_model::{documents, read_texts, with_absolute_paths};
use weft_store::types::ObjectKey;

use crate::{
    exit::{Done, Exit, Failure, print_line},
    plane::{PlaneArgs, WITHIN, actor, block_on, changed, segment},
    query::each,
    validate,
};

/// Arguments of `weft apply`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories of *.yaml, *.yml and *.json; `-` is stdin. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Delete what the set held before and these files do not any more; in the same revision.
    #[arg(long, requires = "set")]
    prune: bool,
    /// With --prune: the name of the set that holds exactly these objects afterwards.
    #[arg(long, value_name = "NAME", requires = "prune")]
    set: Option<String>,
    /// Check, and say what would change, without changing anything.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Arguments of `weft delete`.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Delete the objects of these files or directories; `-` is stdin. May be repeated.
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR", conflicts_with_all = ["kind", "name"])]
    files: Vec<PathBuf>,
    /// The object's kind.
    #[arg(required_unless_present = "files", requires = "name")]
    kind: Option<String>,
    /// The object's name.
    name: Option<String>,
    /// The object's namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Check, and say what would change, without changing anything.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Applies all files in one revision, or nothing.
pub fn run(args: &Args) -> Done {
    let files = read(&args.files)?;
    block_on(async {
        let mut client = args.plane.client(WITHIN);
        let done = send(&mut client, &files, args.set.as_deref(), args.dry_run).await?;
        print_line(&summary(&done));
        Ok(())
    })
}

/// Applies texts; with a set, it holds exactly these afterwards.
pub async fn send(
    client: &mut Client,
    files: &[(String, String)],
    set: Option<&str>,
    dry_run: bool,
) -> Result<Value, Failure> {
    let list: Vec<Value> = files.iter().map(|(name, text)| json!({"name": name, "text": text})).collect();
    let target = match set {
        Some(set) => format!("/v1/sync?set={}&dryRun={dry_run}", segment(set)),
        None => format!("/v1/apply?dryRun={dry_run}"),
    };
    let headers = [("content-type", "application/vnd.weft.files+json"), ("weft-actor", &*actor())];
    let answer = client.change(Method::POST, &target, &headers, json!({"files": list}).to_string()).await;
    changed(client, answer, files, &[]).await
}

/// Deletes in one revision, or nothing.
pub fn delete(args: &DeleteArgs) -> Done {
    let keys = match (&args.kind, &args.name) {
        (Some(kind), Some(name)) => {
            // What is no kind, the server explains.
            let kind = config::kind_named(kind).unwrap_or(kind);
            vec![ObjectKey::new(kind, &args.namespace, name)]
        }
        _ => {
            let found = documents(&read(&args.files)?).map_err(|problems| validate::invalid(&problems))?;
            found.iter().map(config::key_of).collect()
        }
    };
    block_on(async {
        let mut client = args.plane.client(WITHIN);
        let list = keys.iter().map(|key| json!({"kind": &*key.kind, "namespace": &*key.namespace, "name": &*key.name}));
        let body = json!({"keys": list.collect::<Vec<_>>()}).to_string();
        let target = if args.dry_run { "/v1/delete?dryRun=true" } else { "/v1/delete" };
        let answer = client.change(Method::POST, target, &[("weft-actor", &*actor())], body).await;
        let done = changed(&client, answer, &[], &keys).await?;
        print_line(&summary(&done));
        // Of files, what is gone already is no mistake.
        if args.kind.is_some() && done["changed"] == 0 {
            return Err(Failure::silent(Exit::Failed));
        }
        Ok(())
    })
}

/// A line for each object, and the revision.
pub fn summary(done: &Value) -> String {
    let mut lines = String::new();
    let dry = if done["dryRun"] == true { " (dry run)" } else { "" };
    for object in each(&done["objects"]) {
        let part = |name: &str| object[name].as_str().unwrap_or_default();
        let namespace = Some(part("namespace")).filter(|namespace| *namespace != "default");
        let namespace = namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        lines.push_str(&format!("{}/{namespace}{} {}{dry}\n", part("kind"), part("name"), part("action")));
    }
    format!("{lines}revision {}", done["revision"])
}

/// The texts of files and directories, each with its name. Where they go, paths in them are relative to nothing.
pub fn read(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Failure> {
    let (stdin, paths): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| path.as_os_str() == "-");
    let mut texts = Vec::new();
    if !stdin.is_empty() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(anyhow::Error::from)?;
        texts.push(("stdin".to_owned(), text));
    }
    if !paths.is_empty() {
        texts.extend(read_texts(&paths).map_err(|problems| validate::invalid(&problems))?);
    }
    let here = std::env::current_dir().map_err(anyhow::Error::from)?;
    Ok(with_absolute_paths(&texts, &here))
}
