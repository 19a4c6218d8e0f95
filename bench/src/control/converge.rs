//! An endpoint is registered at one member; a node that follows another sends it its first request.

use std::path::Path;

use anyhow::Result;
use weft_tests::plane::Plane;

use super::change::Stage;
use super::fleet::Fleet;
use super::node::Node;
use crate::child::free_port;
use crate::machine;
use crate::report::Report;

/// Options of `control converge`.
#[derive(clap::Args)]
pub struct Args {
    /// How often an endpoint is registered
    #[arg(long, default_value_t = 1000)]
    changes: u32,
    /// Nodes besides the one that carries requests, in the second half
    #[arg(long, default_value_t = 1000)]
    streams: usize,
}

/// Measures.
pub async fn run(weft: &Path, args: &Args, report: &mut Report) -> Result<()> {
    report.scenario("converge");
    machine::allow_open_files(args.streams as u64 + 500)?;
    let plane = Plane::start_with(weft, 3, true).await;
    let mut stage = Stage::set(&plane, free_port()?, "").await?;
    let mut node = Node::start(weft, &[stage.member])?;
    stage.served(&mut node).await?;
    let alone = stage.changes(args.changes, None).await?;
    alone.tell("one node", Some(20.0), 100.0, report);
    let fleet = Fleet::connect(&plane.addresses(), args.streams, stage.revision).await?;
    let among = stage.changes(args.changes, Some(&fleet)).await?;
    among.tell(&format!("{} more streams", args.streams), None, 417.0, report);
    Ok(())
}
