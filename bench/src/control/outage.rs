//! The whole control plane is gone, and traffic goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;
use weft_tests::plane::Plane;

use super::api::Api;
use super::change::Stage;
use super::node::Node;
use crate::child::free_port;
use crate::load::{self, Job, Tool};
use crate::report::{Bound, Report};

/// Options of `control outage`.
#[derive(clap::Args)]
pub struct Args {
    /// How long no member runs
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
}

/// Of load before and after.
const AROUND: Duration = Duration::from_secs(15);
/// For members to end.
const END: Duration = Duration::from_secs(30);

/// Measures.
pub async fn run(weft: &Path, args: &Args, report: &mut Report) -> Result<()> {
    report.scenario("outage");
    let mut plane = Plane::start_with(weft, 3, true).await;
    let mut stage = Stage::set(&plane, free_port()?, "").await?;
    let mut node = Node::start(weft, &plane.addresses())?;
    stage.served(&mut node).await?;
    report.info("a change before it", stage.once().await?.as_secs_f64() * 1e3, "ms");

    let away = Duration::from_secs_f64(args.minutes * 60.0);
    let seconds = u32::try_from((away + AROUND * 2).as_secs())?;
    let job = Job { target: stage.listen, connections: 16, seconds, rate: Some(500), cpu: None, cgroup: None };
    let loading = tokio::task::spawn_local(load::run_external(Tool::Own, job));
    tokio::time::sleep(AROUND / 3).await;
    for member in &plane.members {
        member.signal(Signal::TERM);
    }
    for member in &mut plane.members {
        member.wait_exit(END).await;
    }
    eprintln!("  no member runs for {away:?} …");
    tokio::time::sleep(away).await;
    let back = Instant::now();
    for index in 0..plane.members.len() {
        plane.restart(index, &[]);
    }
    let mut changed = None;
    while changed.is_none() && back.elapsed() < Duration::from_secs(60) {
        let follower = plane.members.iter().find(|member| member.address != stage.member).context("a member")?;
        if let Ok(api) = Api::open(follower.address).await {
            stage.at = api;
            changed = stage.once().await.ok().map(|_| back.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match changed {
        Some(after) => {
            report.check("members return, until a change has arrived", after.as_secs_f64(), "s", Bound::AtMost(5.0));
        }
        None => report.missing("members return, until a change has arrived", "not within a minute"),
    }
    let outcome = loading.await??;
    report.info("requests", outcome.requests as f64, "");
    report.check("failed requests", outcome.errors() as f64, "", Bound::AtMost(0.0));
    report.check("requests without an answer", outcome.unanswered as f64, "", Bound::AtMost(0.0));
    Ok(())
}
