//! `weft raft`: the members of a control plane.

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use crate::{
    exit::{Done, print_line},
    plane::{PlaneArgs, WITHIN, block_on, done, segment},
    query::{Cell, Look, Output, Table, Tone, each, show, text},
};

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Raft {
    /// Each member: role, term, what it has committed and applied, size, how many entries it lacks.
    Status(StatusArgs),
    /// Add a member that was started with `weft control --standby`: first without a vote, and with one once it has caught
    /// up.
    Add(AddArgs),
    /// Remove a member. It has to be stopped, too; it comes back with `weft control --join`.
    Remove(NamedArgs),
    /// Make a member the leader.
    Transfer(NamedArgs),
}

/// Arguments of `weft raft status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// How it looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Arguments of `weft raft add`.
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// Where the new member listens.
    #[arg(value_name = "HOST:PORT")]
    address: String,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Arguments of the others.
#[derive(Debug, clap::Args)]
pub struct NamedArgs {
    /// The member's name.
    name: String,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Does it.
pub fn run(raft: &Raft) -> Done {
    match raft {
        Raft::Status(args) => status(args),
        Raft::Add(args) => add(args),
        Raft::Remove(args) => change(args, "remove"),
        Raft::Transfer(args) => change(args, "transfer"),
    }
}

fn status(args: &StatusArgs) -> Done {
    let found = block_on(async { done(args.plane.client(WITHIN).get("/v1/raft").await) })?;
    let look = Look::of_stdout(args.output == Output::Wide);
    print_line(&show(&found, args.output, false, |found| table(found, look))?);
    Ok(())
}

fn table(found: &Value, look: Look) -> String {
    let mut table = Table::new(["MEMBER", "ROLE", "VOTE", "TERM", "COMMIT", "APPLIED", "LAG", "DB SIZE", "ADDRESS"]);
    for member in each(&found["members"]) {
        let tone = match member["role"].as_str() {
            Some("leader") => Tone::Good,
            Some("unreachable" | "stopped") => Tone::Bad,
            Some("candidate") => Tone::Warn,
            _ => Tone::Plain,
        };
        let size = member["dbBytes"].as_u64().map_or_else(|| "-".into(), |bytes| format!("{} KiB", bytes >> 10));
        let vote = if member["voter"] == true { "yes" } else { "no" };
        let number = |name: &str| Cell::from(text(&member[name]));
        table.row([
            number("name"),
            Cell::toned(tone, text(&member["role"])),
            vote.into(),
            number("term"),
            number("commit"),
            number("applied"),
            number("lag"),
            size.into(),
            number("address"),
        ]);
    }
    table.render(look)
}

fn change(args: &NamedArgs, what: &str) -> Done {
    let target = format!("/v1/raft/{what}/{}", segment(&args.name));
    block_on(async { done(args.plane.client(WITHIN * 2).change(Method::POST, &target, &[], "").await) })?;
    let done = if what == "remove" { "is removed" } else { "leads" };
    print_line(&format!("{} {done}", args.name));
    Ok(())
}

fn add(args: &AddArgs) -> Done {
    let body = json!({"address": args.address}).to_string();
    let added = block_on(async {
        let mut client = args.plane.client(WITHIN * 2).patience(WITHIN * 2);
        done(client.change(Method::POST, "/v1/raft/add", &[], body).await)
    })?;
    print_line(&format!("{} is a member with a vote, at {}", text(&added["name"]), text(&added["address"])));
    Ok(())
}
