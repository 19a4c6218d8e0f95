//! Many connections at once to many services: the proxy must know of each where it was to go.

use std::net::SocketAddr;

use anyhow::Result;

use super::client::{Ask, Client};
use super::endpoint::{Endpoint, Manner};
use super::node::{self, Node, WORKLOAD, http_vip};
use super::storm::Parallel;
use super::{Bench, stage::Stage};
use crate::child::free_port;
use crate::report::{Bound, Report};

const SERVICES: u32 = 64;
const CONNECTIONS: u32 = 5_000;
/// Half of the connections each, at the same time.
const CLIENTS: usize = 2;

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::new("handoff")?;
    let ports = (0..SERVICES).map(|_| free_port()).collect::<Result<Vec<SocketAddr>>>()?;
    let _server = Endpoint::start(&stage, None, Manner::Http, &ports).await?;
    let mut config = WORKLOAD.to_owned();
    for (number, port) in (0..).zip(&ports) {
        config += &node::service(&format!("web-{number}"), number, 80, "mode: Auto", "http", &[*port]);
    }
    let _weft = Node::start(&bench.weft, &stage, None, 2, &config).await?;
    let mut clients = [Client::start(&stage.app, None)?, Client::start(&stage.app, None)?];

    let rounds = if bench.short { 1 } else { 5 };
    let targets: Vec<(SocketAddr, u16)> =
        (0..).zip(&ports).map(|(number, port)| (http_vip(number), port.port())).collect();
    let mut all = Parallel::default();
    for _ in 0..rounds {
        let ask = Ask::Parallel { targets: targets.clone(), count: CONNECTIONS / CLIENTS as u32 };
        let [one, other] = &mut clients;
        let (one, other) = tokio::try_join!(one.ask::<Parallel>(&ask), other.ask::<Parallel>(&ask))?;
        for seen in [one, other] {
            all.right += seen.right;
            all.wrong += seen.wrong;
            all.proxied += seen.proxied;
            seen.failed.into_iter().for_each(|(what, count)| *all.failed.entry(what).or_insert(0) += count);
        }
    }
    report.info(format!("{CONNECTIONS} connections at once to {SERVICES} services, rounds"), f64::from(rounds), "");
    report.check("arrived at the right service", all.right as f64, "", Bound::AtLeast(f64::from(CONNECTIONS * rounds)));
    report.check("arrived at a wrong one", all.wrong as f64, "", Bound::AtMost(0.0));
    report.info("through the proxy", all.proxied as f64, "");
    for (what, count) in &all.failed {
        report.info(what.clone(), *count as f64, "");
    }
    Ok(())
}
