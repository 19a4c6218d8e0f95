//! `weft`: a table of contents. Each verb is a file.

mod apply;
mod backup;
mod breakers;
mod check;
mod completions;
mod control;
mod demo;
mod diff;
mod drain;
mod ebpf;
mod embedded;
mod endpoints;
mod exit;
mod explain;
mod export;
mod follow;
mod get;
mod kernel;
mod limits;
mod logging;
mod mesh;
mod node;
mod plane;
mod proxy;
mod query;
mod raft;
mod register;
mod rollback;
mod routes;
mod schema;
mod source;
mod status;
mod up;
mod validate;

use clap::{Parser, Subcommand};

use exit::Exit;

/// Small requests allocate and free all the time: see bench/README.md for what this is worth.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A service mesh without sidecars: an HTTP proxy per node, for the connections that need one.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// How log lines look on stderr; `RUST_LOG` says which appear.
    #[arg(long, global = true, value_enum, default_value_t = logging::Format::Text)]
    log_format: logging::Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Three sample services, the proxy in front of them, gentle traffic. Needs no arguments and no privileges.
    Demo(demo::Args),
    /// A client of the demo.
    #[command(hide = true)]
    DemoClient(demo::ClientArgs),
    /// The proxy alone, from files that are watched.
    Proxy(Box<proxy::Args>),
    /// A whole node in one process, from files that are applied and watched.
    Up(Box<up::Args>),
    /// What this host offers, what it lacks, and what works nevertheless; without --pre also how the node is. Ends with 0
    /// when Weft can run here, and with 1 when something that it needs is missing.
    Check(check::Args),
    /// A member of the control plane: what is applied to it is on the disks of a majority.
    Control(control::Args),
    /// Apply files to a control plane: all in one revision, or nothing.
    Apply(apply::Args),
    /// What applying files would change, as a diff of YAML. Ends with 0 when nothing would, and with 1 when something
    /// would.
    Diff(diff::Args),
    /// Delete objects from a control plane: all in one revision, or nothing.
    Delete(apply::DeleteArgs),
    /// Objects of a control plane.
    Get(get::Args),
    /// Who changed an object when, newest first.
    History(get::HistoryArgs),
    /// Make the configuration what it was at an earlier revision, in one new revision. Registered endpoints stay.
    Rollback(rollback::Args),
    /// The whole configuration as YAML documents, to keep or to apply elsewhere.
    Export(export::Args),
    /// Copy everything that a control plane keeps into a file.
    Backup(backup::Args),
    /// Make the data directory of a new control plane from a backup.
    Restore(backup::RestoreArgs),
    /// Changes as they are made.
    Watch(follow::Args),
    /// Register endpoints with a Service: until they are deregistered, for a time, or for as long as this runs.
    Register(register::Args),
    /// Deregister endpoints, perhaps after they drained.
    Deregister(register::DeregisterArgs),
    /// Wait until a member of the control plane has reached a revision.
    Wait(get::WaitArgs),
    /// The nodes of a control plane: what each has in force, how far it is behind, what it does not take and why. Ends
    /// with 0 when all that are connected have everything, and with 1 otherwise.
    Status(status::Args),
    /// The members of the control plane.
    #[command(subcommand)]
    Raft(raft::Raft),
    /// Check files without running: every mistake with its line, and what to do about it.
    Validate(validate::Args),
    /// Print the JSON Schema of all documents, for editors.
    Schema,
    /// What would happen to a request, and why: listener, rule, filters, endpoints, limits. Sends nothing. Ends with 0
    /// when a rule serves the request and with 1 when none does.
    Explain(explain::Args),
    /// Rules of a running node: what they match, where they send.
    Routes(query::ListArgs),
    /// Endpoints of a running node: health, circuit breaker, load, latency.
    Endpoints(query::ListArgs),
    /// Circuit breakers of a running node, and the evidence on which they opened.
    Breakers(query::ListArgs),
    /// Rate limits of a running node: what is left, and what was refused.
    Limits(query::ListArgs),
    /// The kernel programs of a transparent mesh: what they are attached to, what they decide, how to remove them.
    #[command(subcommand)]
    Ebpf(ebpf::Verb),
    /// Tell a running node to finish what it is doing and to stop.
    Drain(query::AdminArgs),
    /// Print a completion script for a shell.
    Completions(completions::Args),
    /// Print the manual page.
    Man,
}

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    logging::start(cli.log_format);
    let done = match cli.verb {
        Verb::Demo(args) => demo::run(args),
        Verb::DemoClient(args) => demo::client(&args),
        Verb::Proxy(args) => proxy::run(*args),
        Verb::Up(args) => up::run(*args),
        Verb::Check(args) => check::run(&args),
        Verb::Control(args) => control::run(args),
        Verb::Apply(args) => apply::run(&args),
        Verb::Delete(args) => apply::delete(&args),
        Verb::Get(args) => get::run(&args),
        Verb::History(args) => get::history(&args),
        Verb::Diff(args) => diff::run(&args),
        Verb::Rollback(args) => rollback::run(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Backup(args) => backup::run(&args),
        Verb::Restore(args) => backup::restore(args),
        Verb::Watch(args) => follow::run(&args),
        Verb::Register(args) => register::run(&args),
        Verb::Deregister(args) => register::deregister(&args),
        Verb::Wait(args) => get::wait(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Raft(raft) => raft::run(&raft),
        Verb::Validate(args) => validate::run(&args),
        Verb::Schema => schema::run(),
        Verb::Explain(args) => explain::run(&args),
        Verb::Routes(args) => query::list(&args, "/routes", routes::table),
        Verb::Endpoints(args) => query::list(&args, "/endpoints", endpoints::table),
        Verb::Breakers(args) => query::list(&args, "/endpoints", breakers::table),
        Verb::Limits(args) => query::list(&args, "/limits", limits::table),
        Verb::Ebpf(verb) => ebpf::run(&verb),
        Verb::Drain(args) => drain::run(&args),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man => completions::man(),
    };
    match done {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => failure.report(),
    }
}
