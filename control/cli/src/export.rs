//! `weft export`: the whole configuration as documents.

use std::{fs::File, io::Write, os::unix::fs::OpenOptionsExt, path::PathBuf};

use serde_json::Value;
use weft_control::config;

use crate::{
    exit::{Done, Failure, print_line},
    plane::{PlaneArgs, WITHIN, block_on, done},
    query::each,
};

/// Arguments of `weft export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Into this file instead of stdout.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Prints or writes every document.
pub fn run(args: &Args) -> Done {
    let found = block_on(async { done(args.plane.client(WITHIN).get("/v1/objects").await) })?;
    let documents = each(&found["items"]).map(|object| yaml(&config::to_export(object.clone())));
    let text = documents.collect::<Result<Vec<_>, _>>()?.join("---\n");
    match &args.output {
        None => print_line(text.trim_end()),
        Some(path) => {
            // It may hold keys.
            let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
            let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
            written.map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))?
        }
    }
    Ok(())
}

/// A document as YAML, with what names it first.
pub fn yaml(document: &Value) -> Result<String, Failure> {
    let mut text = String::new();
    let first = ["apiVersion", "kind", "metadata"];
    let rest =
        document.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).filter(|name| !first.contains(name));
    for name in first.into_iter().chain(rest).filter(|name| document.get(name).is_some()) {
        let part = serde_json::json!({name: document[name]});
        text.push_str(serde_saphyr::to_string(&part).map_err(anyhow::Error::from)?.trim_end());
        text.push('\n');
    }
    Ok(text)
}
