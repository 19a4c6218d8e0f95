//! `weft get`, `weft history`, `weft wait`: read what a control plane keeps.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    exit::{Done, Exit, Failure, print_line},
    plane::{PlaneArgs, WITHIN, block_on, done, filter, segment},
    proxy,
    query::{Cell, Look, Output, Table, Tone, about, each, show, text},
};

/// Which objects.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The kind, such as Service, services or httproute.
    kind: String,
    /// The name; all of them without it.
    name: Option<String>,
    /// The namespace [default: all for a list, `default` with a name].
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of endpoints: only those of this Service.
    #[arg(long, conflicts_with = "name")]
    service: Option<String>,
    /// How it looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Whatever the member has, without asking the others whether it is the latest.
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// One object.
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// The kind.
    kind: String,
    /// The name.
    name: String,
    /// The namespace.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How it looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Arguments of `weft wait`.
#[derive(Debug, clap::Args)]
pub struct WaitArgs {
    /// Until the member that is asked has this revision.
    #[arg(long)]
    revision: u64,
    /// Longest wait; exit code 5 after it.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = proxy::time)]
    timeout: Duration,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Shows one object, or a list.
pub fn run(args: &Args) -> Done {
    let query = if args.stale { "consistency=serializable" } else { "consistency=linearizable" };
    let kind = segment(&args.kind);
    let target = match &args.name {
        Some(name) => {
            let namespace = segment(args.namespace.as_deref().unwrap_or("default"));
            format!("/v1/objects/{kind}/{namespace}/{}?{query}", segment(name))
        }
        None => {
            let filter = filter(&[("namespace", &args.namespace), ("service", &args.service)]);
            format!("/v1/objects/{kind}?{query}{filter}")
        }
    };
    let found = block_on(async { done(args.plane.client(WITHIN).get(&target).await) })?;
    let look = Look::of_stdout(args.output == Output::Wide);
    print_line(&show(&found, args.output, false, |found| table(found, &args.kind, look))?);
    Ok(())
}

fn table(found: &Value, kind: &str, look: Look) -> String {
    let one = std::slice::from_ref(found);
    let objects = found["items"].as_array().map_or(one, Vec::as_slice);
    if ["endpoint", "endpoints"].contains(&&*kind.to_ascii_lowercase()) {
        return registered(objects, look);
    }
    let now = Timestamp::now();
    let mut table = Table::new(["NAMESPACE", "NAME", "GENERATION", "REVISION", "AGE", "ACCEPTED", "PROGRAMMED"]);
    for object in objects {
        let metadata = &object["metadata"];
        let [namespace, name, generation, revision] =
            ["namespace", "name", "generation", "resourceVersion"].map(|name| Cell::from(text(&metadata[name])));
        let age = ago(&metadata["creationTimestamp"], now);
        let [accepted, programmed] = ["Accepted", "Programmed"].map(|kind| condition(&object["status"], kind));
        table.row([namespace, name, generation, revision, age.into(), accepted, programmed]);
    }
    table.render(look)
}

/// How long ago a time of RFC 3339 was: `3m`.
fn ago(time: &Value, now: Timestamp) -> String {
    let Some(time) = time.as_str().and_then(|time| time.parse::<Timestamp>().ok()) else { return "-".into() };
    let seconds = now.duration_since(time).as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What a condition says: of a route, of all its parents together.
fn condition(status: &Value, kind: &str) -> Cell {
    let parents = each(&status["parents"]).flat_map(|parent| each(&parent["conditions"]));
    let all = each(&status["conditions"]).chain(parents).filter(|condition| condition["type"] == kind);
    // The worst of them.
    let rank = |condition: &&Value| match condition["status"].as_str() {
        Some("False") => 0,
        Some("True") => 2,
        _ => 1,
    };
    let Some(worst) = all.min_by_key(rank) else { return "-".into() };
    match worst["status"].as_str() {
        Some("True") => Cell::toned(Tone::Good, "True"),
        status => {
            let tone = if status == Some("False") { Tone::Bad } else { Tone::Plain };
            Cell::toned(tone, format!("{} ({})", text(&worst["status"]), text(&worst["reason"])))
        }
    }
}

/// Registered endpoints.
fn registered(objects: &[Value], look: Look) -> String {
    let mut table = Table::new(["SERVICE", "ADDRESS", "WEIGHT", "ZONE", "STATE", "AGENT", "TTL LEFT", "REVISION"]);
    for object in objects {
        let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
        let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name, service) =
            (part(&metadata["namespace"]), part(&metadata["name"]), part(&spec["service"]));
        let address = name.strip_prefix(&format!("{service}/")).unwrap_or(&name).to_owned();
        let state = if spec["draining"] == true { (Tone::Warn, "draining") } else { (Tone::Good, "ready") };
        table.row([
            Cell::from(if namespace == "default" { service } else { format!("{namespace}/{service}") }),
            address.into(),
            text(&spec["weight"]).into(),
            text(&spec["zone"]).into(),
            Cell::toned(state.0, state.1),
            text(&status["agent"]).into(),
            about(&status["expiresInMs"]).into(),
            text(&metadata["resourceVersion"]).into(),
        ]);
    }
    table.render(look)
}

/// Shows who changed an object when, newest first.
pub fn history(args: &HistoryArgs) -> Done {
    let (kind, namespace, name) = (segment(&args.kind), segment(&args.namespace), segment(&args.name));
    let target = format!("/v1/history/{kind}/{namespace}/{name}");
    let found = block_on(async { done(args.plane.client(WITHIN).get(&target).await) })?;
    let look = Look::of_stdout(args.output == Output::Wide);
    let table = |found: &Value| {
        let mut table = Table::new(["REVISION", "CHANGE", "ACTOR", "WHEN", "TIME", "GENERATION"]);
        let now = Timestamp::now();
        for item in each(&found["items"]) {
            let generation = &item["object"]["metadata"]["generation"];
            let [revision, change, actor, time, generation] =
                [&item["revision"], &item["type"], &item["actor"], &item["time"], generation].map(text);
            let when = format!("{} ago", ago(&item["time"], now));
            table.row([revision, change, actor, when, time, generation].map(Cell::from));
        }
        table.render(look)
    };
    print_line(&show(&found, args.output, false, table)?);
    Ok(())
}

/// Waits for a revision.
pub fn wait(args: &WaitArgs) -> Done {
    let client = args.plane.client(args.timeout);
    let target = format!("/v1/revision?revision={}", args.revision);
    block_on(async {
        let waited = tokio::time::timeout(args.timeout, client.get(&target)).await;
        let late = || Failure::new(Exit::TimedOut, format!("revision {} did not come in time", args.revision));
        let reached = done(waited.map_err(|_| late())?)?;
        print_line(&format!("revision {}", reached["revision"]));
        Ok(())
    })
}
