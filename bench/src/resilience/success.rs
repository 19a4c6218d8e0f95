//! One of three endpoints fails. Breaker and retries hide it from clients; when it is well again it is used again.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Bench;
use super::backend::Backend;
use super::node::Node;
use crate::report::{Bound, Report};

/// Breaker and retries. An endpoint that fails is ejected for at most 5 s, so that the wait for it is bounded.
const POLICY: &str = "\
circuitBreaker: {consecutiveFailures: 5, baseEjectionTime: 2s, maxEjectionTime: 5s, maxEjectionPercent: 50}
retry: {attempts: 2, retryOn: [connect-failure, refused-stream, reset-before-request, 5xx]}
retryBudget: {percent: 20, minPerSecond: 10, ttl: 10s}";

/// How long the share of an endpoint is counted over.
const WINDOW: Duration = Duration::from_millis(200);
/// How often.
const STEP: Duration = Duration::from_millis(10);
/// How much of its fair share a healed endpoint must have.
const SHARE: f64 = 0.8;
/// With fewer answers in a window a share says nothing.
const ENOUGH: u64 = 30;
/// How much later than the end of the ejection the share may come.
const SLACK: Duration = Duration::from_secs(1);
/// How long an ejection is waited for, and a share after it was due.
const PATIENCE: Duration = Duration::from_secs(8);

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let seconds = bench.seconds.unwrap_or(60);
    for refusing in [false, true] {
        let what = if refusing { "refused connections" } else { "500" };
        let mut trio = Trio::new(refusing)?;
        let off = Node::start(&bench.weft, &trio.addrs(), 2, "").await?;
        let load = off.load(bench.tool, seconds.min(10), None).await?;
        report.info(format!("{what}, 2xx without policies"), load.success_percent(), "%");
        drop(off);

        let node = Node::start(&bench.weft, &trio.addrs(), 2, POLICY).await?;
        let load = node.load(bench.tool, seconds, None).await?;
        report.info(format!("{what}, requests/s"), load.rate(), "");
        report.check(format!("{what}, 2xx"), load.success_percent(), "%", Bound::AtLeast(99.99));

        let load = node.load(bench.tool, 40, None);
        tokio::select! {
            healed = heal(&node, &mut trio, what, report) => healed?,
            ended = load => drop(ended?),
        }
    }
    Ok(())
}

/// Two good endpoints and a bad one.
struct Trio {
    good: [Backend; 2],
    bad: Backend,
}

impl Trio {
    fn new(refusing: bool) -> Result<Self> {
        let bad = if refusing { Backend::refusing()? } else { Backend::answering(500)? };
        Ok(Self { good: [Backend::answering(200)?, Backend::answering(200)?], bad })
    }

    fn addrs(&self) -> [SocketAddr; 3] {
        [self.good[0].addr(), self.bad.addr(), self.good[1].addr()]
    }

    fn count(&self) -> Count {
        let bad = self.bad.requests();
        Count { bad, all: bad + self.good.iter().map(Backend::requests).sum::<u64>() }
    }
}

/// Requests until some moment.
#[derive(Clone, Copy)]
struct Count {
    bad: u64,
    all: u64,
}

/// Under load: waits until the bad endpoint is ejected, heals it, and waits until it has its share.
async fn heal(node: &Node, trio: &mut Trio, what: &str, report: &mut Report) -> Result<()> {
    let figure = format!("{what}, healed until {:.0} % of its share", SHARE * 100.0);
    let Some(left) = ejection(node, trio.bad.addr()).await? else {
        report.missing(figure, "/endpoints never showed it ejected");
        return Ok(());
    };
    trio.bad.heal(200)?;
    report.info(format!("{what}, ejection left when it heals"), left.as_secs_f64() * 1e3, "ms");
    match share_returns(trio, left + PATIENCE).await {
        Some(took) => {
            let limit = Bound::AtMost((left + SLACK).as_secs_f64() * 1e3);
            report.check(figure, took.as_secs_f64() * 1e3, "ms", limit);
        }
        None => report.missing(figure, "not within 8 s of the ejection's end"),
    }
    Ok(())
}

/// How long the ejection of an endpoint still lasts, as soon as there is one. `None`: there was none.
async fn ejection(node: &Node, addr: SocketAddr) -> Result<Option<Duration>> {
    let patience = Instant::now() + PATIENCE;
    // Some load first: an ejection that ended before the load began says nothing.
    tokio::time::sleep(Duration::from_millis(500)).await;
    while Instant::now() < patience {
        let state = node.endpoint(addr).await?;
        // One that is nearly over may be over before the endpoint is well.
        if let Some(left) = state.ejection_ms_left.filter(|left| state.ejected && *left > 100.0) {
            return Ok(Some(Duration::from_secs_f64(left / 1e3)));
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(None)
}

/// The time until the end of the first window in which the bad endpoint has its share. `None`: not `within` that time.
async fn share_returns(trio: &Trio, within: Duration) -> Option<Duration> {
    let start = Instant::now();
    let mut window: VecDeque<(Instant, Count)> = VecDeque::new();
    while start.elapsed() < within {
        let (now, count) = (Instant::now(), trio.count());
        window.push_back((now, count));
        // In front stays the newest count that is a whole window old.
        while window.get(1).is_some_and(|(at, _)| now - *at >= WINDOW) {
            window.pop_front();
        }
        let full = window.front().filter(|(at, _)| now - *at >= WINDOW);
        if full.is_some_and(|(_, before)| has_share(*before, count)) {
            return Some(now - start);
        }
        tokio::time::sleep(STEP).await;
    }
    None
}

/// Whether the bad one of three endpoints had enough of what came between two counts.
fn has_share(before: Count, after: Count) -> bool {
    let (bad, all) = (after.bad - before.bad, after.all - before.all);
    all >= ENOUGH && bad as f64 >= SHARE * all as f64 / 3.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Probe;

    #[test]
    fn four_fifths_of_a_third_are_enough() {
        let before = Count { bad: 10, all: 100 };
        for (bad, all, enough) in [(80, 300, true), (79, 300, false), (20, 29, false), (8, 30, true)] {
            let after = Count { bad: before.bad + bad, all: before.all + all };
            assert_eq!(has_share(before, after), enough, "{bad} of {all}");
        }
    }

    #[tokio::test(flavor = "local")]
    async fn a_share_is_seen_when_it_comes() {
        let trio = Trio::new(false).unwrap();
        let mut probes = Vec::new();
        for addr in trio.addrs() {
            probes.push((addr, Probe::connect(addr).await.unwrap()));
        }
        let start = Instant::now();
        let late = Duration::from_millis(300);
        tokio::task::spawn_local(async move {
            loop {
                for (index, (addr, probe)) in probes.iter_mut().enumerate() {
                    if index != 1 || start.elapsed() > late {
                        probe.status(*addr, "").await.unwrap();
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        let took = share_returns(&trio, Duration::from_secs(10)).await.unwrap();
        assert!(took > late && took < late + Duration::from_secs(2), "{took:?}");
        assert_eq!(share_returns(&Trio::new(false).unwrap(), Duration::from_millis(50)).await, None);
    }
}
