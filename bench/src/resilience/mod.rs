//! What the resilience features must show, each as a scenario with a bound: a proxy of its own, origins that misbehave
//! in a known way, load, and a table with PASS or FAIL in each row.

mod backend;
pub mod client;
mod keys;
mod node;
mod post;
mod rate;
mod reload;
mod resetting;
mod storm;
mod success;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::load::Tool;
use crate::report::Report;
use crate::{Verdict, machine, weft};

pub use node::sum;

/// Options of `weft-bench resilience`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these scenarios
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Seconds of load in each part of `success`, `storm` and `rate`, in place of 60, 30 and 20
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: Option<u32>,
    /// Requests of `post`
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    posts: u32,
    /// Changes of `reload`
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Distinct keys of `keys`
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    keys: u32,
    /// What the random points of resets and pauses come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write every figure to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// A weft binary to measure, in place of a freshly built one
    #[arg(long)]
    weft: Option<PathBuf>,
}

/// A scenario by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// One of three endpoints fails: what clients see, and how soon it is used again when it is well
    Success,
    /// A dead service: how many more attempts it gets than there are requests
    Storm,
    /// A rate limit under ten times the load: how much it admits, with one worker and with two
    Rate,
    /// Requests that must not be sent twice, to origins that reset connections at random points
    Post,
    /// How long a changed configuration file takes to show, under load
    Reload,
    /// What a rate limit costs in memory when every request has a key of its own
    Keys,
}

impl Scenario {
    fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Storm => "storm",
            Self::Rate => "rate",
            Self::Post => "post",
            Self::Reload => "reload",
            Self::Keys => "keys",
        }
    }

    /// No scenario takes longer than this on any machine: it fails.
    fn limit(self, bench: &Bench) -> Duration {
        let seconds = |default: u32| bench.seconds.unwrap_or(default);
        Duration::from_secs(u64::from(match self {
            Self::Success => 4 * seconds(60) + 120,
            Self::Storm => 2 * seconds(30) + 60,
            Self::Rate => 2 * seconds(20) + 60,
            // At 500 requests/s, far less than any machine can.
            Self::Post => bench.posts / 500 + 60,
            Self::Reload => bench.changes + 60,
            Self::Keys => bench.keys / 2_000 + 60,
        }))
    }

    async fn run(self, bench: &Bench, report: &mut Report) -> Result<()> {
        match self {
            Self::Success => success::run(bench, report).await,
            Self::Storm => storm::run(bench, report).await,
            Self::Rate => rate::run(bench, report).await,
            Self::Post => post::run(bench, report).await,
            Self::Reload => reload::run(bench, report).await,
            Self::Keys => keys::run(bench, report).await,
        }
    }
}

/// What every scenario needs.
struct Bench {
    /// The proxy's binary.
    weft: PathBuf,
    /// What loads in a closed loop.
    tool: Tool,
    seconds: Option<u32>,
    posts: u32,
    changes: u32,
    keys: u32,
    seed: u64,
}

/// `weft-bench resilience`.
pub async fn run(args: Args) -> Result<Verdict> {
    machine::allow_open_files(4096)?;
    let bench = Bench {
        weft: weft::binary(args.weft).await?,
        tool: Tool::choose(false)?,
        seconds: args.seconds,
        posts: args.posts,
        changes: args.changes,
        keys: args.keys,
        seed: args.seed,
    };
    let chosen: &[Scenario] = if args.only.is_empty() { Scenario::value_variants() } else { &args.only };
    let mut report = Report::new();
    for scenario in chosen {
        eprintln!("{} …", scenario.name());
        report.scenario(scenario.name());
        let limit = scenario.limit(&bench);
        let ended = tokio::time::timeout(limit, scenario.run(&bench, &mut report)).await;
        report.ended(limit, ended);
    }
    report.finish(args.json.as_deref())
}
