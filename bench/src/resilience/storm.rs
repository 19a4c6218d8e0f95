//! A service that is dead: with retries on, the budget decides how many more attempts it gets than there are requests.

use anyhow::Result;

use super::Bench;
use super::backend::Backend;
use super::node::Node;
use crate::report::{Bound, Report};

/// Client requests per second.
const RATE: u32 = 500;
/// Retries per second that the budget always allows, its default.
const MIN_PER_SECOND: f64 = 10.0;
/// The budget's window, its default.
const TTL_SECONDS: f64 = 10.0;

/// Retries on, with the default budget said aloud; no breaker, so that nothing but the budget holds.
const POLICY: &str = "\
retry: {attempts: 3, retryOn: [connect-failure, refused-stream, reset-before-request, 5xx], backoff: {base: 25ms, max: 250ms}}
retryBudget: {percent: 20, minPerSecond: 10, ttl: 10s}";

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for refusing in [false, true] {
        let backend = if refusing { Backend::refusing()? } else { Backend::answering(503)? };
        let what = if refusing { "refused connections" } else { "503" };
        let node = Node::start(&bench.weft, &[backend.addr()], 2, POLICY).await?;
        let load = node.load(bench.tool, bench.seconds.unwrap_or(30), Some(RATE)).await?;
        // Nobody but Weft knows how often it tried to connect.
        let attempts = match refusing {
            true => node.metric("http_client_request_duration_seconds_count").await?,
            false => backend.requests() as f64,
        };
        let requests = load.sent() as f64;
        let allowed = 1.2 * requests + MIN_PER_SECOND * load.seconds.max(TTL_SECONDS);
        report.info(format!("{what}, requests"), requests, "");
        report.check(format!("{what}, attempts"), attempts, "", Bound::Between(1.05 * requests, allowed));
        report.info(format!("{what}, attempts ÷ requests"), attempts / requests.max(1.0), "×");
    }
    Ok(())
}
