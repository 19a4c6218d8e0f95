//! What the control plane must show: members as processes, clients of their API, nodes that follow them.

mod api;
mod change;
mod converge;
mod etcd;
mod failover;
mod fleet;
mod h2;
mod node;
mod outage;
mod scale;

use std::path::PathBuf;

use anyhow::Result;

use crate::report::Report;
use crate::{Verdict, weft};

/// Options of `weft-bench control`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    measure: Measure,
    /// Write every figure to this file
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// A weft binary to measure, in place of a freshly built one
    #[arg(long, global = true)]
    weft: Option<PathBuf>,
}

#[derive(clap::Subcommand)]
enum Measure {
    /// Kill the leader of three members again and again under load: how long writes pause, and what anybody sees of it
    Failover(failover::Args),
    /// Durable writes beside Debian's etcd, three members each on the same disk, in turns
    Etcd(etcd::Args),
    /// Register an endpoint at one member, until a node of another routes to it; alone, and among a thousand streams
    Converge(converge::Args),
    /// A hundred thousand endpoints: loading, pushing, memory, and what is sent to a node that was away
    Scale(scale::Args),
    /// Stop every member for minutes under traffic
    Outage(outage::Args),
}

/// `weft-bench control`.
pub async fn run(args: Args) -> Result<Verdict> {
    let weft = weft::binary(args.weft).await?;
    let mut report = Report::new();
    match args.measure {
        Measure::Failover(args) => failover::run(&weft, &args, &mut report).await?,
        Measure::Etcd(args) => etcd::run(&weft, &args, &mut report).await?,
        Measure::Converge(args) => converge::run(&weft, &args, &mut report).await?,
        Measure::Scale(args) => scale::run(&weft, &args, &mut report).await?,
        Measure::Outage(args) => outage::run(&weft, &args, &mut report).await?,
    }
    println!();
    report.finish(args.json.as_deref())
}
