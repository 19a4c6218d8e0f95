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
use crate::table::Table;
use crate::weft;

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
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Subject::Weft, Subject::Floor])]
    only: Vec<Subject>,
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
    /// The data plane.
    Weft,
    /// The smallest proxy on hyper.
    Floor,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Weft => "weft",
            Self::Floor => "floor",
        }
    }
}

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
    for subject in args.only {
        let binary = match subject {
            Subject::Weft => weft::binary(args.weft.clone()).await?,
            Subject::Floor => std::env::current_exe()?,
        };
        let now = per_request(subject, binary, args.keep.as_deref()).await?;
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
    let rustc = rustc_version();
    if baseline.rustc != rustc && !baseline.rustc.is_empty() {
        println!("the baseline was measured with {}, this is {rustc}", baseline.rustc);
    }
    if args.bless {
        baseline.rustc = rustc;
        std::fs::write(&path, serde_json::to_string_pretty(&baseline)? + "\n")?;
        println!("wrote {}", path.display());
        return Ok(Verdict::Pass);
    }
    Ok(if worse { Verdict::Fail } else { Verdict::Pass })
}

async fn per_request(subject: Subject, binary: PathBuf, keep: Option<&std::path::Path>) -> Result<u64> {
    let mut counts = [0; 2];
    for (requests, count) in REQUESTS.into_iter().zip(&mut counts) {
        eprintln!("{}: {requests} requests under callgrind …", subject.name());
        let dir = TempDir::new("callgrind")?;
        *count = count_instructions(subject, &binary, requests, &dir).await?;
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
    args.extend(match subject {
        Subject::Weft => weft::proxy_args(dir, listen, origin.addr())?,
        Subject::Floor => crate::floor::proxy_args(listen, origin.addr()),
    });
    let mut server = Server::start(subject.name(), None, dir, "valgrind", &args)?;
    server.ready(listen, PATIENCE).await?;
    drive(listen, requests).await?;
    server.stop(PATIENCE).await?;
    let text = std::fs::read_to_string(&out).with_context(|| format!("read {}", out.display()))?;
    total(&text).context("callgrind wrote no total")
}

async fn drive(target: SocketAddr, requests: u32) -> Result<()> {
    let work = async {
        let mut probe = Probe::connect(target).await?;
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
    fn parts_are_summed() {
        assert_eq!(total("events: Ir\ntotals: 40\n\ntotals: 2\n"), Some(42));
        assert_eq!(total("events: Ir\n"), None);
    }
}
