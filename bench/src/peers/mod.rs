//! Weft beside other proxies: the same work, one CPU each, in turns (A B C A B C …), so that a machine whose speed
//! drifts drifts for all of them. The figure is CPU time of the proxy per request, which does not mind that others
//! compete for the CPU; rates and latencies do.

mod config;
mod contender;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::child::{Server, TempDir, find_program, free_port};
use crate::load::{self, Outcome, Tool};
use crate::machine::{self, Cores};
use crate::probe::Probe;
use crate::stats::Spread;
use crate::{Verdict, weft};
use contender::{Contender, Kind};

/// How much more than the best proxy the load side should sustain by itself.
const HEADROOM: f64 = 1.5;

/// Options of `weft-bench peers`.
#[derive(clap::Args)]
pub struct Args {
    /// How often every proxy gets its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of load in each turn
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Requests in flight; with --h2 they share an eighth as many connections
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Bytes in the body of an answer
    #[arg(long, default_value_t = 6)]
    body: usize,
    /// HTTP/2 with prior knowledge from the client; upstreams stay HTTP/1.1
    #[arg(long)]
    h2: bool,
    /// Write every turn and the summary to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// A weft binary to measure, in place of a freshly built one
    #[arg(long)]
    weft: Option<PathBuf>,
}

/// One turn of one proxy.
#[derive(Clone, Debug, Serialize)]
struct Turn {
    round: u32,
    outcome: Outcome,
    /// CPU time of the proxy in microseconds per request, in user mode and in the kernel.
    user_us: f64,
    system_us: f64,
    /// CPU time of the proxy by the time of the turn: near 1 when the proxy was the bottleneck and had its CPU alone.
    busy: f64,
    rss_mib: f64,
}

impl Turn {
    fn cpu_us(&self) -> f64 {
        self.user_us + self.system_us
    }
}

/// A proxy with all its turns.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    version: String,
    turns: Vec<Turn>,
}

/// The whole measurement, as `--json` writes it.
#[derive(Serialize)]
struct Run {
    machine: String,
    load: String,
    body: usize,
    connections: u32,
    h2: bool,
    /// Requests per second without a proxy.
    direct: Option<Spread>,
    rows: Vec<Row>,
}

/// `weft-bench peers`.
pub async fn run(args: Args) -> Result<Verdict> {
    let tool = Tool::choose(args.h2)?;
    machine::allow_open_files(4096)?;
    let cores = Cores::choose()?;
    let wanted = |kind: Kind| args.only.is_empty() || args.only.contains(&kind);
    let weft = match wanted(Kind::Weft) {
        true => Some(weft::binary(args.weft.clone()).await?),
        false => None,
    };
    let upstream = Upstream::start(cores.load, args.body, args.h2).await?;
    let mut contenders = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| wanted(*kind)) {
        match Contender::start(kind, weft.as_deref(), cores.proxy, &upstream, args.h2).await {
            Ok(contender) => contenders.push(contender),
            Err(why) => eprintln!("{} is left out: {why:#}", kind.name()),
        }
    }
    if contenders.is_empty() {
        bail!("no proxy to measure");
    }
    let mut rows: Vec<Row> = contenders.iter().map(|c| Row::new(c.kind().name(), c.version())).collect();
    let mut direct = Vec::new();
    for round in 0..=args.rounds {
        // The first round only warms up.
        let seconds = if round == 0 { 1 } else { args.seconds };
        let baseline = load::run_external(tool, job(cores.load, upstream.direct, args.connections, seconds)).await?;
        if baseline.errors() > 0 {
            bail!("the load side fails without any proxy: {baseline:?}");
        }
        if round > 0 {
            eprintln!("round {round} of {}: direct {:.0}/s", args.rounds, baseline.rate());
            direct.push(baseline.rate());
        }
        for (contender, row) in contenders.iter().zip(&mut rows) {
            let turn = turn(round, contender, tool, cores.load, args.connections, seconds).await?;
            if round > 0 {
                eprintln!("  {:<8} {:>6.2} µs {:>7.0}/s", row.name, turn.cpu_us(), turn.outcome.rate());
                row.turns.push(turn);
            }
        }
    }
    let run = Run {
        machine: machine::describe(),
        load: format!("{tool:?}"),
        body: args.body,
        connections: args.connections,
        h2: args.h2,
        direct: Spread::of(direct),
        rows,
    };
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&run)? + "\n")
            .with_context(|| format!("write {}", path.display()))?;
    }
    report::print(&run);
    let failed = run.rows.iter().flat_map(|row| &row.turns).any(|turn| turn.outcome.errors() > 0);
    Ok(if failed { Verdict::Fail } else { Verdict::Pass })
}

impl Row {
    fn new(name: &'static str, version: String) -> Self {
        Self { name, version, turns: Vec::new() }
    }
}

async fn turn(
    round: u32,
    contender: &Contender,
    tool: Tool,
    load_cpu: usize,
    connections: u32,
    seconds: u32,
) -> Result<Turn> {
    let before = contender.server().usage()?;
    let start = Instant::now();
    let outcome = load::run_external(tool, job(load_cpu, contender.addr(), connections, seconds)).await?;
    let elapsed = start.elapsed();
    let after = contender.server().usage().with_context(|| format!("{} after its load", contender.kind().name()))?;
    let per_request =
        |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64() * 1e6 / outcome.requests as f64;
    Ok(Turn {
        round,
        user_us: per_request(before.user, after.user),
        system_us: per_request(before.system, after.system),
        busy: after.cpu().saturating_sub(before.cpu()).as_secs_f64() / elapsed.as_secs_f64(),
        rss_mib: after.rss as f64 / f64::from(1 << 20),
        outcome,
    })
}

fn job(cpu: usize, target: std::net::SocketAddr, connections: u32, seconds: u32) -> load::Job<'static> {
    load::Job { target, connections, seconds, rate: None, cpu: Some(cpu), cgroup: None }
}

/// nginx with a static answer, on the CPU of the load.
struct Upstream {
    /// Where proxies connect.
    addr: std::net::SocketAddr,
    /// Where the load connects when no proxy is between them: the same server, HTTP/2 if the load speaks it.
    direct: std::net::SocketAddr,
    _server: Server,
    _dir: TempDir,
}

impl Upstream {
    async fn start(cpu: usize, body: usize, h2: bool) -> Result<Self> {
        let nginx = find_program("nginx").context("the upstream is nginx: apt-get install nginx")?;
        let dir = TempDir::new("upstream")?;
        let addr = free_port()?;
        let direct = if h2 { free_port()? } else { addr };
        let config = config::upstream(&dir, addr, h2.then_some(direct), body)?;
        let mut server = Server::start("the upstream", Some(cpu), &dir, nginx, &config::nginx_args(&dir, &config))?;
        server.ready(addr, Duration::from_secs(10)).await?;
        let length = Probe::connect(addr).await?.get().await.context("the upstream")?;
        if length != body {
            bail!("the upstream answers {length} bytes, not {body}");
        }
        Ok(Self { addr, direct, _server: server, _dir: dir })
    }
}
