//! wrk to a virtual address that the proxy takes, beside wrk to a listener of the same proxy.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::endpoint::{Endpoint, Manner};
use super::node::{self, Node, WORKLOAD, http_vip};
use super::{Bench, ratios, stage::Stage};
use crate::child::free_port;
use crate::load::{self, Job};
use crate::report::{Bound, Report};
use crate::stats::Spread;
use crate::weft::Site;

/// Answers per second, and the proxy's CPU time for each in µs.
struct Turn {
    rate: f64,
    cpu: f64,
}

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::new("proxy")?;
    let (endpoint, listen) = (free_port()?, free_port()?);
    let _server = Endpoint::start(&stage, Some(bench.cores.load), Manner::Http, &[endpoint]).await?;
    let site = Site { name: "gateway", listen, endpoints: &[endpoint], filters: "", policy: "" };
    let config = site.yaml() + WORKLOAD + &node::service("web", 0, 80, "mode: Auto", "http", &[endpoint]);
    let weft = Node::start(&bench.weft, &stage, Some(bench.cores.proxy), 1, &config).await?;

    let (rounds, seconds) = if bench.short { (1, 5) } else { (3, 10) };
    let (mut captured, mut explicit) = (Vec::new(), Vec::new());
    let (mut errors, mut requests) = (0, 0);
    for round in 0..=rounds {
        for turn in 0..2 {
            let virtually = (turn + round) % 2 == 0;
            let (target, cgroup): (_, &Path) = if virtually { (http_vip(0), &stage.app) } else { (listen, &stage.out) };
            // A round that only warms up.
            let seconds = if round == 0 { 1 } else { seconds };
            let cpu = Some(bench.cores.load);
            let job = Job { target, connections: 64, seconds, rate: None, cpu, cgroup: Some(cgroup) };
            let before = weft.usage()?.cpu();
            let outcome = load::run_external(bench.tool, job).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let used = weft.usage()?.cpu() - before;
            if virtually {
                errors += outcome.errors();
                requests += outcome.requests;
            }
            if round > 0 {
                let turn =
                    Turn { rate: outcome.rate(), cpu: used.as_secs_f64() * 1e6 / outcome.requests.max(1) as f64 };
                if virtually { &mut captured } else { &mut explicit }.push(turn);
            }
        }
    }
    let pairs = || captured.iter().zip(&explicit);
    let (rate, cpu) = (ratios(pairs().map(|(a, b)| (a.rate, b.rate))), ratios(pairs().map(|(a, b)| (a.cpu, b.cpu))));
    let median = |of: fn(&Turn) -> f64, turns: &[Turn]| Spread::of(turns.iter().map(of)).context("no round");
    report.info("requests to the virtual address", requests as f64, "");
    report.check("errors of them", errors as f64, "", Bound::AtMost(0.0));
    report.spread("requests/s, virtual address", median(|turn| turn.rate, &captured)?, "", None);
    report.spread("requests/s, Gateway", median(|turn| turn.rate, &explicit)?, "", None);
    report.spread("requests/s, virtual address ÷ Gateway", rate.context("no round")?, "×", None);
    report.spread("CPU of weft for a request, virtual address", median(|turn| turn.cpu, &captured)?, "µs", None);
    report.spread("CPU of weft for a request, virtual address ÷ Gateway", cpu.context("no round")?, "×", None);
    Ok(())
}
