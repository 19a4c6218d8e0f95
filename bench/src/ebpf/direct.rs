//! DIRECT against a connection straight to the endpoint: the same round trips, and nobody in between.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::client::{Ask, Client, Latency};
use super::endpoint::{Endpoint, Manner};
use super::node::{self, Node, WORKLOAD};
use super::{Bench, ratios, stage::Stage};
use crate::child::{Server, TempDir, find_program, free_port};
use crate::report::{Bound, Report};

const PORT: u16 = 6379;
/// No more rounds after this time.
const ENOUGH: Duration = Duration::from_secs(150);
/// How much CPU time of the proxy is taken for its usual idling, beyond what it used while nothing happened.
const IDLE_SLACK: f64 = 2.0;

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let stage = Stage::new("direct")?;
    let endpoint = free_port()?;
    let _server = serve(bench, &stage, endpoint).await?;
    let config = WORKLOAD.to_owned() + &node::service("redis", 0, PORT, "mode: Auto", "tcp", &[endpoint]);
    let weft = Node::start(&bench.weft, &stage, None, 1, &config).await?;

    // Many short rounds: what else the machine does then falls on all of them alike.
    let (rounds, requests) = if bench.short { (10, 3_000) } else { (120, 5_000) };
    let vip: SocketAddr = (node::vip(0), PORT).into();
    let mut clients = [
        (Client::start(&stage.app, Some(bench.cores.load))?, vip),
        (Client::start(&stage.out, Some(bench.cores.load))?, endpoint),
        (Client::start(&stage.app, Some(bench.cores.load))?, endpoint),
    ];
    let idle = weft.ran()?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = (weft.ran()? - idle).as_secs_f64() / 3.0;

    let mut rows: Vec<[Latency; 3]> = Vec::new();
    let (mut led_away, mut held) = (0, 0);
    let (before, start) = (weft.ran()?, Instant::now());
    for round in 0..rounds {
        if start.elapsed() > ENOUGH {
            eprintln!("  the machine is busy: {round} rounds in place of {rounds}");
            break;
        }
        let mut row: [Option<Latency>; 3] = [None; 3];
        for turn in 0..3 {
            let which = (turn + round) % 3;
            let (client, target) = &mut clients[which];
            let latency: Latency = client.ask(&Ask::Latency { target: *target, requests }).await?;
            row[which] = Some(latency);
            let peer = node::peer_of(latency.local_port, &[endpoint])?;
            led_away += u32::from(peer != Some(endpoint));
            held = held.max(weft.established()?);
        }
        if let [Some(direct), Some(outside), Some(inside)] = row {
            rows.push([direct, outside, inside]);
        }
    }
    let busy = (weft.ran()? - before).as_secs_f64() / start.elapsed().as_secs_f64();

    for (percentile, of) in [("p50", (|l| l.p50_ns) as fn(&Latency) -> f64), ("p99", |l| l.p99_ns)] {
        for (what, base) in [("straight, outside", 1), ("straight, inside", 2)] {
            let ratio = ratios(rows.iter().map(|row| (of(&row[0]), of(&row[base])))).context("no round")?;
            let figure = format!("DIRECT ÷ {what}, {percentile}");
            report.spread(figure, ratio, "×", Some(Bound::AtMost(1.03)));
        }
        let ratio = ratios(rows.iter().map(|row| (of(&row[2]), of(&row[1])))).context("no round")?;
        report.spread(format!("straight, inside ÷ outside, {percentile}"), ratio, "×", None);
    }
    // Other work on the machine only ever makes a round slower.
    let quiet = |which: usize| {
        let mut all: Vec<f64> = rows.iter().map(|row| row[which].p99_ns).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 4).copied().context("no round")
    };
    let (direct, outside, inside) = (quiet(0)?, quiet(1)?, quiet(2)?);
    report.info("DIRECT ÷ straight, outside, p99 of the quietest quarter", direct / outside, "×");
    report.info("DIRECT ÷ straight, inside, p99 of the quietest quarter", direct / inside, "×");
    report.check("connections whose peer is not the endpoint", f64::from(led_away), "", Bound::AtMost(0.0));
    report.check("connections of weft, most at once", held as f64, "", Bound::AtMost(0.0));
    report.info("weft idle, CPU in a second", idle * 1e3, "ms");
    report.check("weft meanwhile, CPU in a second", busy * 1e3, "ms", Bound::AtMost(idle * 1e3 + IDLE_SLACK));
    Ok(())
}

/// Either keeps the endpoint.
enum Serving {
    Redis { _server: Server, _dir: TempDir },
    Own { _endpoint: Endpoint },
}

/// redis-server, or an endpoint that answers one command like it.
async fn serve(bench: &Bench, stage: &Stage, listen: SocketAddr) -> Result<Serving> {
    let cpu = Some(bench.cores.proxy);
    let Some(redis) = find_program("redis-server") else {
        eprintln!("  redis-server is missing (apt-get install redis-server): the built-in endpoint answers PING");
        return Ok(Serving::Own { _endpoint: Endpoint::start(stage, cpu, Manner::Pong, &[listen]).await? });
    };
    let dir = TempDir::new("redis")?;
    let mut args = crate::child::into_cgroup(&stage.out);
    args.push(redis.into());
    let (port, path) = (listen.port().to_string(), dir.path().to_owned());
    args.extend(
        ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"].map(OsString::from),
    );
    args.push(path.into());
    let program = args.remove(0);
    let mut server = Server::start("redis-server", cpu, &dir, program, &args)?;
    server.ready(listen, Duration::from_secs(10)).await?;
    Ok(Serving::Redis { _server: server, _dir: dir })
}
