//! User instructions per request, counted by callgrind at two request counts: the difference leaves start-up out.
//!
//! Instructions hardly move on a noisy machine, so they are the regression gate. They say nothing about the kernel's
//! share of a request nor about cache misses; `peers` does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::Verdict;
use crate::child::{Server, TempDir, find_program, free_port};
use crate::machine;
use crate::origin::Origin;
use crate::probe::Probe;
use crate::stats::Spread;
use crate::table::Table;
use crate::weft::{self, Site};

/// Requests of the short and the long run.
const REQUESTS: [u32; 2] = [1_000, 5_000];
/// How much worse than the baseline a figure may be.
const TOLERANCE: f64 = 0.02;
/// A program under callgrind runs about fifty times slower.
const PATIENCE: Duration = Duration::from_secs(180);

/// Options of `weft-bench instructions`.
#[derive(clap::Args)]
pub struct Args {
    /// A weft binary to measure, in place of a freshly built one
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Subject::ALL)]
    only: Vec<Subject>,
    /// How often to measure each; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// Write what is measured to bench/baseline.json
    #[arg(long)]
    bless: bool,
    /// Keep the callgrind files of the long run here, for callgrind_annotate
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// The data plane, without a policy.
    Weft,
    /// The same with the header that the next two get too: what they are compared with.
    WeftNone,
    /// Every policy is on, for another service than the one that is measured.
    WeftOther,
    /// Every policy is on for the service that is measured, and none ever refuses, retries or waits.
    WeftAll,
    /// The smallest proxy on hyper.
    Floor,
}

impl Subject {
    const ALL: [Self; 5] = [Self::Weft, Self::WeftNone, Self::WeftOther, Self::WeftAll, Self::Floor];

    fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::WeftNone => "weft-none",
            Self::WeftOther => "weft-other",
            Self::WeftAll => "weft-all",
            Self::Floor => "floor",
        }
    }

    /// What its requests carry besides `Host`. A limit is keyed by the header, which costs something by itself.
    fn headers(self) -> &'static str {
        match self {
            Self::Weft | Self::Floor => "",
            Self::WeftNone | Self::WeftOther | Self::WeftAll => "x-user: alice\r\n",
        }
    }

    /// How many times the instructions of `weft-none` it may take.
    fn ratio_bound(self) -> Option<f64> {
        match self {
            Self::WeftOther => Some(1.01),
            Self::WeftAll => Some(1.15),
            Self::Weft | Self::WeftNone | Self::Floor => None,
        }
    }

    /// The arguments of the proxy, with its configuration written.
    fn proxy_args(self, dir: &TempDir, listen: SocketAddr, upstream: SocketAddr) -> Result<Vec<OsString>> {
        let endpoints = &[upstream];
        let site = Site { name: "hello", listen, endpoints, filters: "", policy: "" };
        let config = match self {
            Self::Floor => return Ok(crate::floor::proxy_args(listen, upstream)),
            Self::Weft | Self::WeftNone => site.yaml(),
            Self::WeftAll => Site { policy: EVERY_POLICY, ..site }.yaml(),
            // With a listener of its own: routes of the one that is measured are as many as without it.
            Self::WeftOther => {
                let other = Site { name: "other", listen: free_port()?, policy: EVERY_POLICY, ..site };
                site.yaml() + &other.yaml()
            }
        };
        weft::args(dir, &config, 1, free_port()?)
    }
}

/// Every policy that a request can meet, each set so that it looks at the request and lets it pass. Health checks are
/// off: they are no part of a request.
const EVERY_POLICY: &str = "\
loadBalancer: {type: PeakEWMA}
connectionPool: {maxConnections: 1000, maxPendingRequests: 1000, maxRequests: 1000, maxRequestsPerConnection: 1000000}
circuitBreaker:
  consecutiveFailures: 5
  failureRate: {percent: 50, minimumRequests: 20, window: 10s}
  slowCalls: {threshold: 10s, percent: 50, minimumRequests: 20}
retry: {attempts: 2, retryOn: [connect-failure, refused-stream, reset-before-request, reset, 5xx], perTryTimeout: 10s}
retryBudget: {percent: 20, minPerSecond: 10, ttl: 10s}
hedge: {after: 1s}
rateLimit:
- {requests: 100000000, per: 1s, burst: 100000000, key: global}
- {requests: 100000000, per: 1s, burst: 100000000, key: {header: x-user}}
concurrency: {adaptive: {algorithm: Gradient, min: 100, max: 1000}}
timeouts: {connect: 10s, request: 15s, idle: 5m}
fault: {delay: {fixed: 1s, percent: 0}, abort: {status: 503, percent: 0}}";

/// `bench/baseline.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Baseline {
    /// User instructions per small keep-alive request, by subject.
    instructions_per_request: BTreeMap<String, u64>,
    /// What compiled them: another compiler explains another figure.
    rustc: String,
}

/// `weft-bench instructions`.
pub async fn run(args: Args) -> Result<Verdict> {
    if find_program("valgrind").is_none() {
        bail!("valgrind is missing: apt-get install valgrind");
    }
    let path = machine::workspace()?.join("bench/baseline.json");
    let mut baseline: Baseline = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Baseline::default(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut table = Table::new(["proxy", "instructions/request", "baseline", "change", "verdict"]);
    let mut measured = BTreeMap::new();
    let mut worse = false;
    let mut binary = None;
    let mut subjects = args.only;
    if subjects.iter().any(|subject| subject.ratio_bound().is_some()) && !subjects.contains(&Subject::WeftNone) {
        subjects.insert(0, Subject::WeftNone);
    }
    for subject in subjects {
        let program = match subject {
            Subject::Floor => std::env::current_exe()?,
            _ => match &binary {
                Some(built) => PathBuf::clone(built),
                None => binary.insert(weft::binary(args.weft.clone()).await?).clone(),
            },
        };
        let mut runs = Vec::new();
        for _ in 0..args.runs {
            runs.push(per_request(subject, &program, args.keep.as_deref()).await? as f64);
        }
        let now = Spread::of(runs).context("--runs")?.median as u64;
        measured.insert(subject.name(), now);
        let before = baseline.instructions_per_request.insert(subject.name().to_owned(), now);
        let change = before.map(|before| now as f64 / before as f64 - 1.0);
        let verdict = match change {
            Some(change) if change > TOLERANCE => "WORSE",
            Some(change) if change < -TOLERANCE => "better: --bless it",
            Some(_) => "same",
            None => "new: --bless it",
        };
        worse |= verdict == "WORSE";
        table.row([
            subject.name().to_owned(),
            now.to_string(),
            before.map_or("–".into(), |before| before.to_string()),
            change.map_or("–".into(), |change| format!("{:+.2} %", change * 100.0)),
            verdict.to_owned(),
        ]);
    }
    print!("{table}");
    if let (Some(weft), Some(floor)) = (measured.get("weft"), measured.get("floor")) {
        println!("weft adds {} instructions to the floor", weft.saturating_sub(*floor));
    }
    let over = print_ratios(&measured);
    let rustc = rustc_version();
    if baseline.rustc != rustc && !baseline.rustc.is_empty() {
        println!("the baseline was measured with {}, this is {rustc}", baseline.rustc);
    }
    if args.bless {
        baseline.rustc = rustc;
        std::fs::write(&path, serde_json::to_string_pretty(&baseline)? + "\n")?;
        println!("wrote {}", path.display());
        return Ok(if over { Verdict::Fail } else { Verdict::Pass });
    }
    Ok(if worse || over { Verdict::Fail } else { Verdict::Pass })
}

/// What policies cost, as a multiple of Weft without any, and whether one is above its bound.
fn print_ratios(measured: &BTreeMap<&str, u64>) -> bool {
    let Some(none) = measured.get(Subject::WeftNone.name()) else { return false };
    let mut table = Table::new(["policies", "÷ weft-none", "bound", "verdict"]);
    let mut over = false;
    let mut rows = 0;
    for subject in Subject::ALL {
        let (Some(bound), Some(count)) = (subject.ratio_bound(), measured.get(subject.name())) else { continue };
        let ratio = *count as f64 / *none as f64;
        let verdict = if ratio > bound { "FAIL" } else { "PASS" };
        over |= ratio > bound;
        rows += 1;
        table.row([subject.name().to_owned(), format!("{ratio:.4}"), format!("≤ {bound:.2}"), verdict.to_owned()]);
    }
    if rows > 0 {
        print!("\n{table}");
    }
    over
}

async fn per_request(subject: Subject, binary: &std::path::Path, keep: Option<&std::path::Path>) -> Result<u64> {
    let mut counts = [0; 2];
    for (requests, count) in REQUESTS.into_iter().zip(&mut counts) {
        eprintln!("{}: {requests} requests under callgrind …", subject.name());
        let dir = TempDir::new("callgrind")?;
        *count = count_instructions(subject, binary, requests, &dir).await?;
        if let Some(keep) = keep.filter(|_| requests == REQUESTS[1]) {
            std::fs::create_dir_all(keep)?;
            std::fs::copy(dir.path().join("callgrind.out"), keep.join(format!("callgrind.out.{}", subject.name())))?;
        }
    }
    let difference = counts[1].checked_sub(counts[0]).context("the long run took fewer instructions than the short")?;
    Ok(difference / u64::from(REQUESTS[1] - REQUESTS[0]))
}

/// All user instructions of a proxy that answers so many requests on one connection and then leaves on SIGTERM.
async fn count_instructions(subject: Subject, binary: &std::path::Path, requests: u32, dir: &TempDir) -> Result<u64> {
    let origin = Origin::start().await?;
    let listen = free_port()?;
    let out = dir.path().join("callgrind.out");
    let mut args: Vec<OsString> = vec!["--tool=callgrind".into(), "--trace-children=no".into()];
    args.extend([format!("--callgrind-out-file={}", out.display()).into(), binary.into()]);
    args.extend(subject.proxy_args(dir, listen, origin.addr())?);
    let mut server = Server::start(subject.name(), None, dir, "valgrind", &args)?;
    server.ready(listen, PATIENCE).await?;
    drive(listen, subject.headers(), requests).await?;
    server.stop(PATIENCE).await?;
    let text = std::fs::read_to_string(&out).with_context(|| format!("read {}", out.display()))?;
    total(&text).context("callgrind wrote no total")
}

async fn drive(target: SocketAddr, headers: &str, requests: u32) -> Result<()> {
    let work = async {
        let mut probe = Probe::with_headers(target, headers).await?;
        for number in 0..requests {
            probe.get().await.with_context(|| format!("request {number}"))?;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, work).await.context("the requests took too long")?
}

/// The sum over all parts of a callgrind file.
fn total(text: &str) -> Option<u64> {
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals: "));
    totals.map(|count| count.trim().parse::<u64>().ok()).sum::<Option<u64>>().filter(|total| *total > 0)
}

fn rustc_version() -> String {
    let output = std::process::Command::new("rustc").arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_its_bound_fails() {
        let with_all = |count| print_ratios(&BTreeMap::from([("weft-none", 1_000), ("weft-all", count)]));
        assert!(!with_all(1_150));
        assert!(with_all(1_151));
        assert!(!print_ratios(&BTreeMap::from([("weft-all", 9_999)])), "nothing to compare with");
    }

    #[test]
    fn parts_are_summed() {
        assert_eq!(total("events: Ir\ntotals: 40\n\ntotals: 2\n"), Some(42));
        assert_eq!(total("events: Ir\n"), None);
    }
}
