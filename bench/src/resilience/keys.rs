//! A limit by header where every request brings a key of its own: what the proxy's memory grows by.

use std::cell::Cell;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::Bench;
use super::backend::Backend;
use super::node::Node;
use crate::probe::Probe;
use crate::report::{Bound, Report};

/// One request an hour: within a run nothing may be forgotten because its budget is full again.
const POLICY: &str = "rateLimit: [{requests: 1, per: 1h, burst: 1, key: {header: x-user}}]";
const CONNECTIONS: usize = 64;
/// Requests before the first reading, each with a key too, so that connections and pools are not charged to the keys.
const WARM_UP: u32 = 2_000;
/// How many of the last and of the first keys come again.
const AGAIN: u32 = 1_000;
/// What the memory may grow by, in MiB.
const LIMIT: f64 = 64.0;

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let backend = Backend::answering(200)?;
    let node = Node::start(&bench.weft, &[backend.addr()], 2, POLICY).await?;
    let mut probes = Vec::new();
    for _ in 0..CONNECTIONS {
        probes.push(Probe::connect(node.addr()).await?);
    }
    // Keys from the far end of the numbers, which do not come again.
    ask(&mut probes, node.addr(), u32::MAX - WARM_UP, WARM_UP).await?;
    let before = node.settled_rss().await?;
    let started = std::time::Instant::now();
    let refused = ask(&mut probes, node.addr(), 0, bench.keys).await?;
    report.info("distinct keys", f64::from(bench.keys), "");
    report.info("requests/s", f64::from(bench.keys) / started.elapsed().as_secs_f64(), "");
    report.check("first request of a key refused", f64::from(refused), "", Bound::AtMost(0.0));
    let grown = node.settled_rss().await?.saturating_sub(before) as f64;
    report.check("memory grew by", grown / f64::from(1 << 20), "MiB", Bound::AtMost(LIMIT));
    report.info("for each key", grown / f64::from(bench.keys), "bytes");
    match node.limits().await {
        Ok(limits) if limits.is_empty() => eprintln!("  no count of keys: /limits is empty"),
        Ok(limits) => report.info("keys counted now", limits.iter().filter_map(|l| l.keys).sum::<u64>() as f64, ""),
        Err(error) => eprintln!("  no count of keys: {error:#}"),
    }
    // A limit that keeps nothing grows by nothing.
    let last = ask(&mut probes, node.addr(), bench.keys - AGAIN, AGAIN).await?;
    report.check("the last keys refused when they come again", percent(last), "%", Bound::AtLeast(100.0));
    let first = ask(&mut probes, node.addr(), 0, AGAIN).await?;
    report.info("the first keys refused when they come again", percent(first), "%");
    Ok(())
}

fn percent(refused: u32) -> f64 {
    f64::from(refused) * 100.0 / f64::from(AGAIN)
}

/// One request for each of `count` keys from `first` on, spread over the connections. How many got 429.
async fn ask(probes: &mut Vec<Probe>, target: SocketAddr, first: u32, count: u32) -> Result<u32> {
    let next = std::rc::Rc::new(Cell::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for mut probe in probes.drain(..) {
        let next = next.clone();
        tasks.spawn_local(async move {
            let mut refused = 0;
            while next.get() < count {
                let number = first + next.replace(next.get() + 1);
                match probe.status(target, &format!("x-user: {}\r\n", key(number))).await? {
                    200 => {}
                    429 => refused += 1,
                    other => anyhow::bail!("request {number} got {other}"),
                }
            }
            Ok((probe, refused))
        });
    }
    let mut refused = 0;
    while let Some(ended) = tasks.join_next().await {
        let (probe, some) = ended.context("a connection's task")??;
        probes.push(probe);
        refused += some;
    }
    Ok(refused)
}

/// As long as a UUID without its dashes, and not in order.
fn key(number: u32) -> String {
    format!("{:032x}", u128::from(number).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ() {
        let keys: std::collections::HashSet<String> = (0..10_000).chain([u32::MAX]).map(key).collect();
        assert_eq!(keys.len(), 10_001);
        assert!(keys.iter().all(|key| key.len() == 32));
    }

    #[tokio::test(flavor = "local")]
    async fn every_key_is_asked_once() {
        let backend = Backend::answering(200).unwrap();
        let mut probes =
            vec![Probe::connect(backend.addr()).await.unwrap(), Probe::connect(backend.addr()).await.unwrap()];
        assert_eq!(ask(&mut probes, backend.addr(), 5, 7).await.unwrap(), 0);
        assert_eq!((backend.requests(), probes.len()), (7, 2));
    }
}
