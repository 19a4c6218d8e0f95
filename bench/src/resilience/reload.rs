//! From the rename of the configuration file to the first answer that shows the new rule, under load.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;

use super::Bench;
use super::backend::Backend;
use super::client::Client;
use super::node::Node;
use crate::load::Outcome;
use crate::report::{Bound, Report};

/// What 99 of 100 changes must keep to, in milliseconds.
const LIMIT: f64 = 147.0;
/// After this time a change is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// The load is made in pieces of this length, because nobody knows how long the changes take.
const PIECE_SECONDS: u32 = 2;

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let backend = Backend::answering(200)?;
    let node = Node::start(&bench.weft, &[backend.addr()], 2, "").await?;
    let done = Cell::new(false);
    let load = async {
        let mut all = Outcome::default();
        while !done.get() {
            let piece = node.load(bench.tool, PIECE_SECONDS, None).await?;
            all.requests += piece.requests;
            all.seconds += piece.seconds;
            all.non_2xx += piece.non_2xx;
            all.socket_errors += piece.socket_errors;
        }
        anyhow::Ok(all)
    };
    let changes = async {
        let times = changes(&node, bench).await;
        done.set(true);
        times
    };
    let (mut times, load) = tokio::try_join!(changes, load)?;
    times.sort_by(f64::total_cmp);
    report.info("changes", f64::from(bench.changes), "");
    report.info("requests/s meanwhile", load.rate(), "");
    report.check("errors meanwhile", load.errors() as f64, "", Bound::AtMost(0.0));
    report.info("rename until the new rule shows, p50", percentile(&times, 0.5), "ms");
    report.check("rename until the new rule shows, p99", percentile(&times, 0.99), "ms", Bound::AtMost(LIMIT));
    report.info("rename until the new rule shows, max", percentile(&times, 1.0), "ms");
    Ok(())
}

/// The time of each change in milliseconds.
async fn changes(node: &Node, bench: &Bench) -> Result<Vec<f64>> {
    let mut rng = fastrand::Rng::with_seed(bench.seed);
    let mut client = Client::connect(node.addr()).await?;
    // Until the load runs.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut times = Vec::new();
    for change in 1..=bench.changes {
        let version = change.to_string();
        let set = format!("set: [{{name: x-version, value: \"{version}\"}}]");
        let prepared =
            node.prepare(&format!("[{{type: ResponseHeaderModifier, responseHeaderModifier: {{{set}}}}}]"))?;
        let renamed = Instant::now();
        node.rename(&prepared)?;
        loop {
            let answer = client.send(Request::get("/"), Bytes::new()).await.context("while waiting for a change")?;
            if answer.headers().get("x-version").is_some_and(|value| value == version.as_str()) {
                break;
            }
            if renamed.elapsed() > PATIENCE {
                bail!("change {change} did not show within {} s", PATIENCE.as_secs());
            }
        }
        times.push(renamed.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(Duration::from_millis(rng.u64(20..220))).await;
    }
    Ok(times)
}

/// The smallest of the sorted values that so large a share of them does not exceed.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let values: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|share| percentile(&values, share)), [25.0, 50.0, 50.0]);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
    }
}
