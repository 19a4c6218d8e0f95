//! What a verdict costs: in the kernel by itself, and as part of connect() and close(). With ten services and with many.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};

use super::client::{Ask, Client, Connects, Range};
use super::endpoint::{Endpoint, Manner};
use super::profile::{Counting, Runs};
use super::scale::{Filled, Size};
use super::{Bench, ratios, stage::Stage};
use crate::child::free_port;
use crate::report::{Bound, Report};
use crate::stats::Spread;

/// Nobody's address; 8,192 of them are asked for.
const NOBODY: Range = Range { base: Ipv4Addr::new(198, 18, 0, 0), spread: 8191, port: 80 };
/// Not decided about: what the timed program costs by itself.
const NOTHING: Range = Range { base: Ipv4Addr::UNSPECIFIED, spread: 0, port: 80 };
const VERDICTS: [&str; 4] = ["PASS", "DIRECT", "PROXY", "DENY"];
/// Where decisions about random services begin among those that are timed; before them the same one again and again,
/// for each verdict, and the program without a decision.
const ITSELF: usize = 4;
const RANDOM: usize = 5;

/// What is timed in one size.
struct Subject {
    size: Size,
    /// In the enrolled cgroup.
    client: Client,
    stage: Stage,
    shim: [Vec<f64>; 8],
    connects: [Vec<f64>; 4],
}

impl Subject {
    fn new(bench: &Bench, stage: Stage, size: Size) -> Result<Self> {
        let client = Client::start(&stage.app, Some(bench.cores.load))?;
        Ok(Self { size, client, stage, shim: Default::default(), connects: Default::default() })
    }

    /// The decision, for each verdict.
    async fn decide(&mut self, repeat: u32) -> Result<()> {
        let size = self.size;
        let random = [NOBODY, size.direct(), size.proxied()];
        let same = random.map(|range| Range { spread: 0, ..range });
        let asked = same.into_iter().chain([size.denied(), NOTHING]).chain(random);
        for (which, (range, verdict)) in asked.zip([0, 1, 2, 3, 0, 0, 1, 2]).enumerate() {
            let ask = Ask::Shim { mesh: self.stage.mesh.clone(), range, repeat };
            let (nanos, got): (f64, usize) = self.client.ask(&ask).await?;
            if got != verdict {
                bail!("verdict {got} in place of {}", VERDICTS[verdict]);
            }
            self.shim[which].push(nanos);
        }
        Ok(())
    }

    /// A round of connects for one verdict; `straight` is where PASS goes.
    async fn connect(&mut self, verdict: usize, straight: Range, count: u32) -> Result<()> {
        let range = [straight, self.size.direct(), self.size.proxied(), self.size.denied()][verdict];
        let connects: Connects = self.client.ask(&Ask::Connects { range, count }).await?;
        expect(&connects, (verdict == 3).then_some("ECONNREFUSED"), count)?;
        self.connects[verdict].push(connects.p50_ns);
        Ok(())
    }

    fn fill(&self, endpoint: SocketAddr, captured: SocketAddr) -> Result<Filled> {
        Filled::start(&self.stage, self.size, endpoint, captured)
    }
}

fn expect(connects: &Connects, error: Option<&str>, count: u32) -> Result<()> {
    let met = match error {
        Some(error) => connects.errors.get(error) == Some(&u64::from(count)),
        None => connects.errors.is_empty(),
    };
    if !met {
        bail!("connects ended with {:?} in place of {error:?}", connects.errors);
    }
    Ok(())
}

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut small = Subject::new(bench, Stage::new("few")?, Size::SMALL)?;
    let mut large = Subject::new(bench, Stage::new("many")?, Size::LARGE)?;
    let (endpoint, captured) = (free_port()?, free_port()?);
    let _server = Endpoint::start(&small.stage, Some(bench.cores.proxy), Manner::Drain, &[endpoint, captured]).await?;
    let mut outside = Client::start(&small.stage.out, Some(bench.cores.load))?;

    let few = small.fill(endpoint, captured)?;
    let many = large.fill(endpoint, captured)?;
    let measured = measure(bench, &mut small, &mut large, &mut outside, endpoint).await;
    let runs = profile(bench, &mut small, endpoint).await;
    let weights = [few.first, many.first, many.same, many.one].map(|took| took.as_secs_f64() * 1e3);
    let memory = [few.memory, many.memory].map(|bytes| bytes as f64 / f64::from(1 << 20));
    // The last to come is the first to go.
    many.stop();
    few.stop();
    tell(report, &small, &large, &measured?)?;
    for (verdict, (hook, life, runs)) in VERDICTS.iter().zip(runs?) {
        report.info(format!("{verdict}, of that the connect hook"), hook, "ns");
        report.info(format!("{verdict}, of that sock_ops, {runs:.1} runs"), life, "ns");
    }

    let (services, endpoints) = (Size::LARGE.services(), Size::LARGE.direct);
    report.info("10 services, first filling of the maps", weights[0], "ms");
    report.info(format!("{services} services and {endpoints} endpoints, first filling"), weights[1], "ms");
    report.info("the same configuration again", weights[2], "ms");
    report.info("one endpoint more, one less", weights[3], "ms");
    report.info("memory of all maps, 10 services", memory[0], "MiB");
    report.info(format!("memory of all maps, {services} services"), memory[1], "MiB");
    Ok(())
}

/// Rounds in which everything has its turn. Returns the connects without programs.
async fn measure(
    bench: &Bench,
    small: &mut Subject,
    large: &mut Subject,
    outside: &mut Client,
    endpoint: SocketAddr,
) -> Result<Vec<f64>> {
    let (rounds, repeat, count) = if bench.short { (5, 50_000, 300) } else { (30, 200_000, 2_000) };
    let straight = Range { base: Ipv4Addr::LOCALHOST, spread: 0, port: endpoint.port() };
    let mut without = Vec::new();
    // The first round only warms up.
    for round in 0..=rounds {
        for turn in 0..2 {
            if (turn + round) % 2 == 0 { small.decide(repeat).await? } else { large.decide(repeat).await? }
        }
        for turn in 0..6 {
            match (turn + round) % 6 {
                4 => {
                    let connects: Connects = outside.ask(&Ask::Connects { range: straight, count }).await?;
                    expect(&connects, None, count)?;
                    without.push(connects.p50_ns);
                }
                5 => large.connect(1, straight, count).await?,
                verdict => small.connect(verdict, straight, count).await?,
            }
        }
        if round == 0 {
            for subject in [&mut *small, &mut *large] {
                subject.shim.iter_mut().chain(&mut subject.connects).for_each(Vec::clear);
            }
            without.clear();
        }
    }
    Ok(without)
}

/// For each verdict, of one connection: nanoseconds within connect(), in sock_ops, and how often that ran.
async fn profile(bench: &Bench, small: &mut Subject, endpoint: SocketAddr) -> Result<Vec<(f64, f64, f64)>> {
    let count = if bench.short { 1_000 } else { 20_000 };
    let straight = Range { base: Ipv4Addr::LOCALHOST, spread: 0, port: endpoint.port() };
    let _counting = Counting::start()?;
    let mut runs = Vec::new();
    for verdict in 0..VERDICTS.len() {
        let before = Runs::read()?;
        small.connect(verdict, straight, count).await?;
        let after = Runs::read()?;
        let each = |of: fn(&Runs) -> u64| (of(&after) - of(&before)) as f64 / f64::from(count);
        runs.push((each(|runs| runs.hook_ns), each(|runs| runs.life_ns), each(|runs| runs.life_runs)));
        small.connects[verdict].pop();
    }
    Ok(runs)
}

fn tell(report: &mut Report, small: &Subject, large: &Subject, without: &[f64]) -> Result<()> {
    let spread = |values: &[f64]| Spread::of(values.iter().copied()).context("no round");
    let over = |a: &[f64], b: &[f64]| ratios(a.iter().copied().zip(b.iter().copied())).context("no round");
    report.spread("the timed program without a decision", spread(&small.shim[ITSELF])?, "ns", None);
    for (verdict, name) in VERDICTS.iter().enumerate() {
        report.spread(format!("{name}, decision in the kernel"), spread(&net(&small.shim, verdict))?, "ns", None);
    }
    report.spread("connect and close without programs", spread(without)?, "ns", None);
    for (verdict, name) in VERDICTS.iter().enumerate() {
        let added: Vec<f64> =
            small.connects[verdict].iter().zip(without).map(|(with, without)| with - without).collect();
        report.spread(format!("{name}, connect and close: added"), spread(&added)?, "ns", None);
        report.spread(format!("{name}, connect and close: ratio"), over(&small.connects[verdict], without)?, "×", None);
    }
    for (verdict, name) in VERDICTS.iter().enumerate() {
        let ratio = over(&net(&large.shim, verdict), &net(&small.shim, verdict))?;
        let figure = format!("{name}, decision, the same service: 64,000 services ÷ 10");
        report.spread(figure, ratio, "×", Some(Bound::AtMost(1.1)));
    }
    for (verdict, name) in VERDICTS.iter().take(3).enumerate() {
        let which = RANDOM + verdict;
        let ratio = over(&net(&large.shim, which), &net(&small.shim, which))?;
        report.spread(format!("{name}, decision, random services: 64,000 services ÷ 10"), ratio, "×", None);
        report.spread(
            format!("{name}, decision, random of 64,000 services"),
            spread(&net(&large.shim, which))?,
            "ns",
            None,
        );
    }
    let ratio = over(&large.connects[1], &small.connects[1])?;
    report.spread(
        "DIRECT, connect and close, random services: 64,000 services ÷ 10",
        ratio,
        "×",
        Some(Bound::AtMost(1.1)),
    );
    Ok(())
}

/// Without what the timed program costs by itself.
fn net(shim: &[Vec<f64>; 8], which: usize) -> Vec<f64> {
    shim[which].iter().zip(&shim[ITSELF]).map(|(nanos, itself)| (nanos - itself).max(1.0)).collect()
}
