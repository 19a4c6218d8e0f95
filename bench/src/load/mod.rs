//! Load on one URL: Weft's own generator, and the well-known ones behind the same result.

mod external;
mod generator;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use http::Uri;
use serde::{Deserialize, Serialize};

pub use external::{Job, Tool, run as run_external};

use crate::Verdict;

/// Options of `weft-bench load`.
#[derive(clap::Args)]
pub struct Args {
    /// http://HOST:PORT/PATH
    url: Uri,
    /// Connections, each with one request in flight
    #[arg(short, long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long to load
    #[arg(short, long, default_value_t = 10.0)]
    seconds: f64,
    /// Requests per second over all connections; latency then counts from when a request was due, not from when the
    /// slow answer before it let it go. Without a rate every connection sends as fast as it gets answers
    #[arg(short, long)]
    rate: Option<f64>,
    /// Print one line of JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// What came out of one run of load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Answers that arrived.
    pub requests: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Median latency in microseconds, where the generator tells it.
    pub p50_us: Option<f64>,
    /// 99th percentile of the latency in microseconds.
    pub p99_us: Option<f64>,
    /// Answers whose status was not 2xx.
    pub non_2xx: u64,
    /// Failed connects, reads and writes, and time-outs.
    pub socket_errors: u64,
    /// The failed connects among them; only wrk tells.
    #[serde(default)]
    pub connect_errors: u64,
    /// Requests that were still on their way at the end; only the built-in generator tells.
    #[serde(default)]
    pub unanswered: u64,
    /// Answers by status; only the built-in generator tells.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub statuses: BTreeMap<u16, u64>,
}

impl Outcome {
    /// Everything that went wrong.
    pub fn errors(&self) -> u64 {
        self.non_2xx + self.socket_errors
    }

    /// Requests that were sent.
    pub fn sent(&self) -> u64 {
        self.requests + self.socket_errors + self.unanswered
    }

    /// The share of 2xx in everything that ended, in percent.
    pub fn success_percent(&self) -> f64 {
        let ended = self.requests + self.socket_errors;
        self.requests.saturating_sub(self.non_2xx) as f64 * 100.0 / ended.max(1) as f64
    }

    /// Answers per second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// `weft-bench load`.
pub async fn run(args: Args) -> Result<Verdict> {
    crate::machine::allow_open_files(u64::from(args.connections) + 64)?;
    let duration = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
    let plan = generator::Plan::new(&args.url, args.connections, duration, args.rate).await?;
    let report = generator::run(plan).await?;
    let outcome = report.outcome();
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        report.print(args.rate);
    }
    Ok(if outcome.errors() == 0 { Verdict::Pass } else { Verdict::Fail })
}
