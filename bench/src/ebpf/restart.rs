//! The proxy goes and comes back, three times, while clients connect: with `failOpen` no connect() may fail.

use std::time::Duration;

use anyhow::Result;

use super::client::{Ask, Client};
use super::endpoint::{Endpoint, Manner};
use super::node::{self, Node, WORKLOAD, http_vip};
use super::storm::{Plan, Seen};
use super::{Bench, by_second, stage::Stage};
use crate::child::free_port;
use crate::load::{self, Job};
use crate::report::{Bound, Report};

const RESTARTS: u32 = 3;

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for kill in [false, true] {
        restarts(bench, kill, report).await?;
    }
    Ok(())
}

async fn restarts(bench: &Bench, kill: bool, report: &mut Report) -> Result<()> {
    let stage = Stage::new("restart")?;
    let endpoint = free_port()?;
    let _server = Endpoint::start(&stage, None, Manner::Http, &[endpoint]).await?;
    let config =
        WORKLOAD.to_owned() + &node::service("web", 0, 80, "mode: Auto\n  failOpen: true", "http", &[endpoint]);
    let mut weft = Node::start(&bench.weft, &stage, None, 1, &config).await?;
    let mut client = Client::start(&stage.app, None)?;

    let between = Duration::from_secs(if bench.short { 1 } else { 4 });
    // A drain takes two seconds.
    let seconds = (RESTARTS + 1) * between.as_secs() as u32 + RESTARTS * 3;
    let job = Job { target: http_vip(0), connections: 16, seconds, rate: None, cpu: None, cgroup: Some(&stage.app) };
    let plan = Plan { target: http_vip(0), threads: 2, pause_us: 500, millis: u64::from(seconds) * 1000 };
    let ask = Ask::Storm(plan);
    let storm = client.ask::<Seen>(&ask);
    let restarts = async {
        for _ in 0..RESTARTS {
            tokio::time::sleep(between).await;
            weft.stop(kill).await?;
            // Time enough to see what happens without it.
            tokio::time::sleep(Duration::from_millis(500)).await;
            weft.start_again().await?;
        }
        anyhow::Ok(())
    };
    let (outcome, seen, ()) = tokio::try_join!(load::run_external(bench.tool, job), storm, restarts)?;

    let how = if kill { "SIGKILL" } else { "SIGTERM" };
    println!("\nWeft restarted {RESTARTS} times with {how}: new connections by second, as their client saw them");
    println!("{}", by_second(&seen));
    report.info(format!("{how}, requests of wrk"), outcome.requests as f64, "");
    report.check(format!("{how}, failed connects of wrk"), outcome.connect_errors as f64, "", Bound::AtMost(0.0));
    let broken = outcome.socket_errors - outcome.connect_errors;
    report.info(format!("{how}, broken exchanges of wrk"), broken as f64, "");
    report.info(format!("{how}, answers that are not 2xx"), outcome.non_2xx as f64, "");
    let all: u64 = seen.count("");
    report.info(format!("{how}, new connections"), all as f64, "");
    let failed = seen.count("connect");
    report.check(format!("{how}, failed connects"), failed as f64, "", Bound::AtMost(0.0));
    report.info(format!("{how}, connected, without an answer"), seen.count("answer") as f64, "");
    report.info(format!("{how}, through the proxy"), seen.count("proxy") as f64, "");
    let direct = seen.count("direct");
    report.check(format!("{how}, straight to the endpoint"), direct as f64, "", Bound::AtLeast(1.0));
    Ok(())
}
