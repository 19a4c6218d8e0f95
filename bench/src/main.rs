//! Measurements of Weft, each one command; `bench/README.md` says what the figures mean.
//!
//! * `peers`: CPU per request of Weft beside nginx, HAProxy and Envoy, interleaved in one run.
//! * `instructions`: user instructions per request, stable enough to be a regression gate.
//! * `idle`: memory of an idle keep-alive connection.
//! * `resilience`: what the resilience features must show, with bounds.
//! * `ebpf`: what the kernel programs cost and keep to, with bounds.
//! * `control`: what the control plane must show, with bounds, and beside etcd.
//! * `load`: a small load generator, closed loop or at a fixed rate.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tables go to stdout, progress to stderr")]

mod child;
mod control;
mod ebpf;
mod floor;
mod idle;
mod instructions;
mod load;
mod machine;
mod origin;
mod peers;
mod probe;
mod report;
mod resilience;
mod stats;
mod table;
mod weft;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Measurements of the Weft data plane.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compare the CPU cost of a request with nginx, HAProxy and Envoy, interleaved in one run
    Peers(peers::Args),
    /// Count user instructions per request with callgrind and compare them with bench/baseline.json
    Instructions(instructions::Args),
    /// Hold idle keep-alive connections and print what each costs in memory
    Idle(idle::Args),
    /// Let origins misbehave and check what clients and origins see of it against bounds
    Resilience(resilience::Args),
    /// What the kernel programs cost, and what they keep to: DIRECT, PROXY, restarts, dead endpoints, original destinations
    Ebpf(ebpf::Args),
    /// What the control plane must show: leaders killed under load, writes beside etcd's
    Control(control::Args),
    /// Load one URL, closed loop or at a fixed rate, and print the latency distribution
    Load(load::Args),
    /// The smallest proxy that can be written on hyper: the floor that Weft is compared with
    FloorProxy(floor::Args),
    /// A process in a cgroup that does what `ebpf` asks it to
    #[command(hide = true)]
    EbpfClient,
    /// An endpoint of `ebpf`
    #[command(hide = true)]
    EbpfEndpoint(ebpf::endpoint::Args),
}

/// Whether what was measured is within its bound. Errors are a third outcome, of their own.
enum Verdict {
    Pass,
    Fail,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(Verdict::Pass) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the verb until it ends or a signal arrives. Either way its future is dropped, and with it every child process
/// and temporary directory: their guards clean up.
fn run(cli: Cli) -> Result<Verdict> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .context("start the runtime")?;
    runtime.block_on(async {
        tokio::select! {
            verdict = dispatch(cli.verb) => verdict,
            stopped = stop_signal() => { stopped?; bail!("interrupted") }
        }
    })
}

async fn dispatch(verb: Verb) -> Result<Verdict> {
    match verb {
        Verb::Peers(args) => peers::run(args).await,
        Verb::Instructions(args) => instructions::run(args).await,
        Verb::Idle(args) => idle::run(args).await,
        Verb::Resilience(args) => resilience::run(args).await,
        Verb::Load(args) => load::run(args).await,
        Verb::FloorProxy(args) => floor::run(args).await,
        Verb::Ebpf(args) => ebpf::run(args).await,
        Verb::Control(args) => control::run(args).await,
        Verb::EbpfClient => ebpf::client::run().await,
        Verb::EbpfEndpoint(args) => ebpf::endpoint::run(args).await,
    }
}

async fn stop_signal() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
