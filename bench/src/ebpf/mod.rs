//! What the kernel programs cost, and what they keep to. Each measurement has cgroups of its own below the cgroup2 mount,
//! attaches programs to nothing else, and takes everything away again.

pub mod client;
mod connect;
mod direct;
pub mod endpoint;
mod handoff;
mod killed;
mod node;
mod profile;
mod proxied;
mod restart;
mod scale;
mod shim;
mod stage;
mod storm;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::load::Tool;
use crate::machine::Cores;
use crate::report::Report;
use crate::stats::Spread;
use crate::table::Table;
use crate::{Verdict, machine, weft};

/// Options of `weft-bench ebpf`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these measurements
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Fewer and shorter rounds: shows that everything works, not how fast
    #[arg(long)]
    short: bool,
    /// Write every figure to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// A weft binary to measure, in place of a freshly built one
    #[arg(long)]
    weft: Option<PathBuf>,
}

/// A measurement by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// DIRECT against a connection straight to the endpoint: round trips, and who is on the path
    Direct,
    /// What a verdict adds to connect(), with 10 services and with 64,000
    Connect,
    /// wrk to a virtual address beside wrk to a Gateway
    Proxy,
    /// The proxy restarted under load, with SIGTERM and with SIGKILL
    Restart,
    /// An endpoint killed under a storm of connections
    Kill,
    /// Whether the proxy knows where thousands of connections were to go
    Handoff,
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Connect => "connect",
            Self::Proxy => "proxy",
            Self::Restart => "restart",
            Self::Kill => "kill",
            Self::Handoff => "handoff",
        }
    }

    /// No measurement takes longer than this on any machine: it fails.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Direct | Self::Connect => 400,
            Self::Proxy | Self::Restart | Self::Kill | Self::Handoff => 200,
        })
    }

    async fn run(self, bench: &Bench, report: &mut Report) -> Result<()> {
        match self {
            Self::Direct => direct::run(bench, report).await,
            Self::Connect => connect::run(bench, report).await,
            Self::Proxy => proxied::run(bench, report).await,
            Self::Restart => restart::run(bench, report).await,
            Self::Kill => killed::run(bench, report).await,
            Self::Handoff => handoff::run(bench, report).await,
        }
    }
}

/// What every measurement needs.
struct Bench {
    weft: PathBuf,
    tool: Tool,
    cores: Cores,
    short: bool,
}

/// `weft-bench ebpf`.
pub async fn run(args: Args) -> Result<Verdict> {
    machine::allow_open_files(12_000)?;
    let tool = Tool::choose(false)?;
    let bench = Bench { weft: weft::binary(args.weft).await?, tool, cores: Cores::choose()?, short: args.short };
    let chosen: &[Scenario] = if args.only.is_empty() { Scenario::value_variants() } else { &args.only };
    let mut report = Report::new();
    for scenario in chosen {
        eprintln!("{} …", scenario.name());
        report.scenario(scenario.name());
        let limit = scenario.limit();
        let ended = tokio::time::timeout(limit, scenario.run(&bench, &mut report)).await;
        report.ended(limit, ended);
    }
    println!();
    report.finish(args.json.as_deref())
}

/// Of pairs that were measured in the same round.
fn ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Spread> {
    Spread::of(pairs.into_iter().map(|(a, b)| a / b))
}

/// A row for each second, a column for each outcome.
fn by_second(seen: &storm::Seen) -> Table {
    let outcomes: BTreeSet<&String> = seen.seconds.iter().flat_map(|second| second.keys()).collect();
    let mut table = Table::new(std::iter::once("second").chain(outcomes.iter().map(|outcome| outcome.as_str())));
    for (second, counts) in seen.seconds.iter().enumerate() {
        let cells = outcomes.iter().map(|outcome| counts.get(*outcome).copied().unwrap_or(0).to_string());
        table.row(std::iter::once(second.to_string()).chain(cells));
    }
    table
}
