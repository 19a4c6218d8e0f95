//! A hundred thousand endpoints.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use weft_tests::plane::Plane;

use super::api::Api;
use super::change::Stage;
use super::node::Node;
use crate::child::free_port;
use crate::report::{Bound, Report};

/// Options of `control scale`.
#[derive(clap::Args)]
pub struct Args {
    /// Services
    #[arg(long, default_value_t = 1000)]
    services: u32,
    /// Endpoints of each
    #[arg(long, default_value_t = 100)]
    endpoints: u32,
    /// Changes of one endpoint, once all are there
    #[arg(long, default_value_t = 100)]
    changes: u32,
}

/// Registrations in flight.
const AGENTS: u32 = 8;
/// Changes while a node is away.
const MISSED: u32 = 10;
/// What the network calls the members as those that push.
const PUSH: &str = "push";
const MIB: f64 = (1 << 20) as f64;

/// Measures.
pub async fn run(weft: &Path, args: &Args, report: &mut Report) -> Result<()> {
    report.scenario("scale");
    let mut plane = Plane::start_with(weft, 3, true).await;
    let empty = plane.members[0].rss_kib();
    let documents: String = (0..args.services).map(service).collect();
    let start = Instant::now();
    let mut stage = Stage::set(&plane, free_port()?, &documents).await?;
    report.info(format!("{} services applied", args.services), start.elapsed().as_secs_f64(), "s");
    let total = args.services * args.endpoints;
    let start = Instant::now();
    stage.revision = register(&plane, args).await?.max(stage.revision);
    report.info(format!("{total} endpoints registered"), start.elapsed().as_secs_f64(), "s");
    plane.reached(stage.revision).await;
    for member in &plane.members {
        let grown = member.rss_kib().saturating_sub(empty);
        report.info(format!("memory of member {}", member.name), member.rss_kib() as f64 / 1024.0, "MiB");
        report.info(
            format!("memory of member {}, for each endpoint", member.name),
            grown as f64 / f64::from(total),
            "KiB",
        );
    }

    let mut apis = Vec::new();
    for member in &plane.members {
        apis.push(Api::open(member.address).await?);
    }
    let mut order: Vec<SocketAddr> = plane.addresses();
    order.sort_by_key(|address| *address != stage.member);
    for address in &mut order {
        *address = plane.network.proxy(PUSH, *address).await;
    }
    let before = sent(&mut apis, &plane).await?;
    let start = Instant::now();
    let mut node = Node::start(weft, &order)?;
    node.has(stage.revision, &mut apis).await?;
    report.info("a node starts, until it has acknowledged everything", start.elapsed().as_secs_f64(), "s");
    tell_sent("a node starts", before, sent(&mut apis, &plane).await?, None, report);
    report.info("memory of the node", node.settled_rss().await? as f64 / MIB, "MiB");
    stage.served(&mut node).await?;

    let changes = stage.changes(args.changes, None).await?;
    changes.tell("one endpoint of them all", None, 100.0, report);

    // A node that was away.
    node.stop().await?;
    miss(&mut stage).await?;
    let before = sent(&mut apis, &plane).await?;
    let start = Instant::now();
    node.restart()?;
    node.has(stage.revision, &mut apis).await?;
    report.info("a node restarts, until it has acknowledged everything", start.elapsed().as_secs_f64(), "s");
    tell_sent("a node restarts", before, sent(&mut apis, &plane).await?, Some((MISSED * 2, 64.0)), report);
    stage.served(&mut node).await?;

    // A member that dies: its node goes to another.
    let index = serving(&mut apis).await?.context("no member serves the node")?;
    apis.remove(index);
    let before = sent(&mut apis, &plane).await?;
    let start = Instant::now();
    plane.members[index].kill();
    let mut others = Vec::new();
    for (other, member) in plane.members.iter().enumerate() {
        if other != index {
            others.push(member.address);
        }
    }
    stage.at = Api::open(others[0]).await?;
    stage.revision = stage.at.register(super::change::SERVICE, &[stage.new]).await?;
    node.has(stage.revision, &mut apis).await?;
    report.check(
        "its member dies, until another has its acknowledgement",
        start.elapsed().as_secs_f64(),
        "s",
        Bound::AtMost(10.0),
    );
    tell_sent("its member dies", before, sent(&mut apis, &plane).await?, Some((MISSED * 2, 64.0)), report);
    Ok(())
}

/// A service that only has registered endpoints.
fn service(number: u32) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: service-{number}}}\nspec:\n  \
         ports: [{{name: http, port: 80, appProtocol: http}}]\n"
    )
}

/// Everything, a service at a time; the last revision.
async fn register(plane: &Plane, args: &Args) -> Result<u64> {
    let mut agents = JoinSet::new();
    for agent in 0..AGENTS {
        let member = plane.members[agent as usize % plane.members.len()].address;
        let (services, count) = (args.services, args.endpoints);
        agents.spawn(async move {
            let (mut api, mut last) = (Api::open(member).await?, 0);
            for number in (agent..services).step_by(AGENTS as usize) {
                let endpoint = |at| SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number * count + at + 1), 8080));
                let endpoints: Vec<SocketAddr> = (0..count).map(endpoint).collect();
                last = api.register(&format!("service-{number}"), &endpoints).await?;
            }
            anyhow::Ok(last)
        });
    }
    let mut last = 0;
    while let Some(ended) = agents.join_next().await {
        last = ended??.max(last);
    }
    Ok(last)
}

/// Changes that the node does not see.
async fn miss(stage: &mut Stage) -> Result<()> {
    let away = |at| SocketAddr::from((Ipv4Addr::new(127, 0, 9, 1 + at as u8), 9));
    for at in 0..MISSED {
        stage.revision = stage.at.register("service-0", &[away(at)]).await?;
    }
    Ok(())
}

/// The member that serves the node.
async fn serving(members: &mut [Api]) -> Result<Option<usize>> {
    for (index, member) in members.iter_mut().enumerate() {
        if member.acknowledged(super::node::NAME).await?.is_some() {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// What went between the node and all members.
#[derive(Clone, Copy)]
struct Sent {
    /// As the members count them, if they do.
    resources: Option<f64>,
    /// To and from the members.
    bytes: (u64, u64),
}

async fn sent(members: &mut [Api], plane: &Plane) -> Result<Sent> {
    let mut resources = Some(0.0);
    for member in members {
        let more = member.metric("weft_push_resources_total").await?;
        resources = resources.zip(more).map(|(sum, more)| sum + more);
    }
    Ok(Sent { resources, bytes: plane.network.carried(PUSH) })
}

/// `most` resources, if it is bounded, and kilobytes from the members.
fn tell_sent(what: &str, before: Sent, after: Sent, most: Option<(u32, f64)>, report: &mut Report) {
    let mut tell = |name: &str, value: f64, unit, most: Option<f64>| match most {
        Some(most) => report.check(format!("{what}: {name}"), value, unit, Bound::AtMost(most)),
        None => report.info(format!("{what}: {name}"), value, unit),
    };
    if let Some((before, after)) = before.resources.zip(after.resources) {
        tell("resources from members", after - before, "", most.map(|(most, _)| f64::from(most)));
    }
    let kib = |before: u64, after: u64| (after - before) as f64 / 1024.0;
    tell("from members", kib(before.bytes.1, after.bytes.1), "KiB", most.map(|(_, most)| most));
    tell("to members", kib(before.bytes.0, after.bytes.0), "KiB", None);
}
