//! One of three endpoints is killed under a storm of DIRECT connections: the first one that it refuses must be the last.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;

use super::client::{Ask, Client};
use super::endpoint::{Endpoint, Manner};
use super::node::{self, Node, WORKLOAD};
use super::storm::{Plan, Seen};
use super::{Bench, by_second, stage::Stage};
use crate::child::free_port;
use crate::report::{Bound, Report};

/// Connections that are made at the same time.
const THREADS: u32 = 4;

const BREAKER: &str = "apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: db}
spec:
  targetRefs: [{group: weft.dev, kind: Service, name: db}]
  circuitBreaker: {consecutiveFailures: 5, baseEjectionTime: 5s, maxEjectionTime: 10s, maxEjectionPercent: 50}
---
";

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    for breaker in [false, true] {
        kill(bench, breaker, report).await?;
    }
    Ok(())
}

async fn kill(bench: &Bench, breaker: bool, report: &mut Report) -> Result<()> {
    let stage = Stage::new("kill")?;
    let ports: [SocketAddr; 3] = [free_port()?, free_port()?, free_port()?];
    let mut servers = Vec::new();
    for port in &ports {
        servers.push(Endpoint::start(&stage, None, Manner::Http, &[*port]).await?);
    }
    let policy = if breaker { BREAKER } else { "" };
    let config = WORKLOAD.to_owned() + &node::service("db", 0, 5432, "mode: Auto", "tcp", &ports) + policy;
    let _weft = Node::start(&bench.weft, &stage, None, 1, &config).await?;
    let mut client = Client::start(&stage.app, None)?;

    // Longer than an endpoint that refused is passed over without anybody looking.
    let (before, dead, after) = if bench.short { (2, 5, 3) } else { (4, 25, 11) };
    let target = (node::vip(0), 5432).into();
    let ask = Ask::Storm(Plan { target, threads: THREADS, pause_us: 200, millis: (before + dead + after) * 1000 });
    let storm = client.ask::<Seen>(&ask);
    let fate = async {
        tokio::time::sleep(Duration::from_secs(before)).await;
        servers[1].kill()?;
        tokio::time::sleep(Duration::from_secs(dead)).await;
        servers[1] = Endpoint::start(&stage, None, Manner::Http, &[ports[1]]).await?;
        anyhow::Ok(())
    };
    let (seen, ()) = tokio::try_join!(storm, fate)?;

    let how = if breaker { "breaker" } else { "no breaker" };
    let again = before + dead;
    println!("\nThe endpoint on port {} killed after {before} s, started after {again} s, {how}", ports[1].port());
    println!("{}", by_second(&seen));
    report.info(format!("{how}, new connections"), seen.count("") as f64, "");
    let refused = seen.count("connect");
    report.check(format!("{how}, failed connects"), refused as f64, "", Bound::AtMost(f64::from(THREADS)));
    let first = seen.failed.iter().map(|(_, end)| *end).min().unwrap_or(u64::MAX);
    let late = seen.failed.iter().filter(|(began, _)| *began > first).count();
    report.check(format!("{how}, begun after the first had failed"), late as f64, "", Bound::AtMost(0.0));
    report.info(format!("{how}, connected, without an answer"), seen.count("answer") as f64, "");
    let name = format!("direct {}", ports[1].port());
    let back = seen.seconds.iter().enumerate().skip(again as usize).find(|(_, second)| second.contains_key(&name));
    match back {
        Some((second, _)) => {
            report.info(format!("{how}, used again after its start"), second as f64 - again as f64, "s")
        }
        None => report.missing(format!("{how}, used again after its start"), "not in time"),
    }
    Ok(())
}
