//! A rate limit under ten times the load. What it admits must not depend on how many workers share the budget.

use anyhow::Result;

use super::Bench;
use super::backend::Backend;
use super::node::Node;
use crate::report::{Bound, Report};

/// Requests per second that are offered.
const OFFERED: u32 = 1_000;
/// Requests per second that the limit admits.
const LIMIT: f64 = 100.0;
/// Requests that it admits at once.
const BURST: f64 = 10.0;
/// How far off it may be.
const TOLERANCE: f64 = 0.02;

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let policy = format!("rateLimit: [{{requests: {LIMIT}, per: 1s, burst: {BURST}}}]");
    for workers in [1, 2] {
        let backend = Backend::answering(200)?;
        let node = Node::start(&bench.weft, &[backend.addr()], workers, &policy).await?;
        let load = node.load(bench.tool, bench.seconds.unwrap_or(20), Some(OFFERED)).await?;
        let with = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
        let expected = LIMIT * load.seconds + BURST;
        let admitted = load.requests - load.non_2xx;
        let refused = load.statuses.get(&429).copied().unwrap_or(0);
        let bound = Bound::Between(expected * (1.0 - TOLERANCE), expected * (1.0 + TOLERANCE));
        report.info(format!("{with}, offered per second"), load.rate(), "");
        report.check(format!("{with}, admitted"), admitted as f64, "", bound);
        report.info(format!("{with}, admitted ÷ what it should be"), admitted as f64 / expected, "×");
        report.check(
            format!("{with}, neither admitted nor 429"),
            (load.errors() - refused) as f64,
            "",
            Bound::AtMost(0.0),
        );
    }
    Ok(())
}
