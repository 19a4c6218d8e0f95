//! What an idle keep-alive connection costs in memory.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Verdict;
use crate::child::{Server, TempDir, free_port};
use crate::machine;
use crate::origin::Origin;
use crate::probe::Probe;
use crate::weft;

/// Requests before the first reading, so that pools, caches and the allocator's arenas are not charged to connections.
const WARM_UP: usize = 1_000;

/// Options of `weft-bench idle`.
#[derive(clap::Args)]
pub struct Args {
    /// Connections to hold
    #[arg(short, long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// What a connection may cost in KiB
    #[arg(long, default_value_t = 32.0)]
    limit_kib: f64,
    /// A weft binary to measure, in place of a freshly built one
    #[arg(long)]
    weft: Option<PathBuf>,
    /// Measure the floor proxy, which is hyper alone, in place of Weft
    #[arg(long, conflicts_with = "weft")]
    floor: bool,
}

/// `weft-bench idle`.
pub async fn run(args: Args) -> Result<Verdict> {
    // The proxy holds as many sockets as this process does.
    machine::allow_open_files(u64::from(args.connections) + 200)?;
    let dir = TempDir::new("idle")?;
    let origin = Origin::start().await?;
    let listen = free_port()?;
    let mut server = if args.floor {
        let exe = std::env::current_exe()?;
        Server::start("floor", None, &dir, exe, &crate::floor::proxy_args(listen, origin.addr()))?
    } else {
        let binary = weft::binary(args.weft).await?;
        Server::start("weft", None, &dir, binary, &weft::proxy_args(&dir, listen, origin.addr())?)?
    };
    server.ready(listen, Duration::from_secs(20)).await?;

    let mut warm_up = Probe::connect(listen).await?;
    for _ in 0..WARM_UP {
        warm_up.get().await.context("while warming up")?;
    }
    let before = server.settled_rss().await?;
    let mut probes = Vec::new();
    for number in 0..args.connections {
        let mut probe = Probe::connect(listen).await.with_context(|| format!("connection {number}"))?;
        probe.get().await.with_context(|| format!("the first request of connection {number}"))?;
        probe.rest();
        probes.push(probe);
    }
    let after = server.settled_rss().await?;
    for (number, probe) in probes.iter_mut().enumerate() {
        probe.get().await.with_context(|| format!("connection {number} was not held"))?;
        probe.rest();
    }
    let again = server.settled_rss().await?;

    let each = |rss: u64| rss.saturating_sub(before) as f64 / 1024.0 / f64::from(args.connections);
    let mib = |rss: u64| rss as f64 / f64::from(1 << 20);
    println!("{} idle keep-alive connections, one request each, all alive afterwards", args.connections);
    println!("RSS {:.1} MiB → {:.1} MiB: {:.2} KiB per connection", mib(before), mib(after), each(after));
    println!("after one more request on each: {:.1} MiB, {:.2} KiB per connection", mib(again), each(again));
    if each(after) > args.limit_kib {
        println!("FAIL: more than {} KiB per connection", args.limit_kib);
        return Ok(Verdict::Fail);
    }
    Ok(Verdict::Pass)
}
