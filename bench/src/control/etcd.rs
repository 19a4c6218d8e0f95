//! Durable writes of Weft and of etcd, three members each, on the same disk, in turns.
//!
//! Both are asked by the same HTTP/2 client over as many connections, at the leader, for the same thing: a value of 256
//! bytes for one of a thousand keys. etcd by gRPC (`KV/Put`), as its own clients do; Weft by `POST /v1/register`, as the
//! agents of endpoints do: the value is the record that is stored. (`PUT /v1/objects` checks the whole configuration
//! that would result, which etcd has no counterpart for.) Weft's write reads first, linearizably, and is conditional on
//! what it found; etcd's is a blind put.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::task::JoinSet;
use weft_tests::plane::Plane;

use super::h2::Connection;
use crate::child::{Server, TempDir, find_program, free_port};
use crate::report::Report;
use crate::stats::{Spread, percentile};
use crate::table::Table;

/// Options of `control etcd`.
#[derive(clap::Args)]
pub struct Args {
    /// Rounds of each, in turns
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long each turn takes
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Writes in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64])]
    concurrency: Vec<u32>,
}

const VALUE: usize = 256;
const KEYS: u32 = 1000;
/// More writes in flight than this share connections.
const CONNECTIONS: u32 = 8;
/// Of each turn, before anything counts.
const WARM: Duration = Duration::from_millis(500);

/// Measures.
pub async fn run(weft: &Path, args: &Args, report: &mut Report) -> Result<()> {
    report.scenario("etcd");
    let Some(program) = find_program("etcd") else {
        report.missing("everything", "SKIPPED: etcd is missing: apt-get install etcd-server etcd-client");
        return Ok(());
    };
    let etcd = Etcd::start(&program).await?;
    let plane = Plane::start_with(weft, 3, true).await;
    let leader = plane.members[plane.leader().await].address;
    let subjects = [Subject::Weft(leader), Subject::Etcd(etcd.leader().await?)];
    let mut table = Table::new([
        "durable writes, 3 members",
        "Weft /s",
        "etcd /s",
        "÷",
        "Weft p50",
        "etcd p50",
        "Weft p99",
        "etcd p99",
        "÷",
    ]);
    for concurrency in &args.concurrency {
        let mut rounds: [Vec<Turn>; 2] = Default::default();
        for _ in 0..args.rounds {
            for (subject, turns) in subjects.iter().zip(&mut rounds) {
                turns.push(subject.turn(*concurrency, Duration::from_secs(args.seconds)).await?);
            }
        }
        let [weft, etcd] = rounds;
        let cells = tell(*concurrency, &weft, &etcd, report);
        table.row(cells);
    }
    println!("{table}");
    Ok(())
}

fn tell(concurrency: u32, weft: &[Turn], etcd: &[Turn], report: &mut Report) -> Vec<String> {
    let median =
        |turns: &[Turn], part: fn(&Turn) -> f64| Spread::of(turns.iter().map(part)).map_or(f64::NAN, |s| s.median);
    let ratio = |part: fn(&Turn) -> f64| Spread::of(weft.iter().zip(etcd).map(|(weft, etcd)| part(weft) / part(etcd)));
    let (rates, lates) = (ratio(|turn| turn.rate), ratio(|turn| turn.p99_ms));
    for (name, turns) in [("Weft", weft), ("etcd", etcd)] {
        for (what, unit, part) in [
            ("writes/s", "", (|turn| turn.rate) as fn(&Turn) -> f64),
            ("p50", "ms", |turn| turn.p50_ms),
            ("p99", "ms", |turn| turn.p99_ms),
        ] {
            if let Some(spread) = Spread::of(turns.iter().map(part)) {
                report.spread(format!("{concurrency} in flight: {name}, {what}"), spread, unit, None);
            }
        }
    }
    for (what, spread) in [("writes/s", rates), ("p99", lates)] {
        if let Some(spread) = spread {
            report.spread(format!("{concurrency} in flight: Weft ÷ etcd, {what}"), spread, "×", None);
        }
    }
    let text =
        |value: f64, unit: &str| if unit.is_empty() { format!("{value:.0}") } else { format!("{value:.2} {unit}") };
    let share = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.median);
    let winner = |share: f64, more: bool| if (share > 1.0) == more { "Weft" } else { "etcd" };
    vec![
        format!("{concurrency} in flight"),
        text(median(weft, |turn| turn.rate), ""),
        text(median(etcd, |turn| turn.rate), ""),
        format!("{:.2} {}", share(rates), winner(share(rates), true)),
        text(median(weft, |turn| turn.p50_ms), "ms"),
        text(median(etcd, |turn| turn.p50_ms), "ms"),
        text(median(weft, |turn| turn.p99_ms), "ms"),
        text(median(etcd, |turn| turn.p99_ms), "ms"),
        format!("{:.2} {}", share(lates), winner(share(lates), false)),
    ]
}

/// One turn of one of them.
#[derive(Clone, Copy)]
struct Turn {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Clone, Copy)]
enum Subject {
    Weft(SocketAddr),
    Etcd(SocketAddr),
}

impl Subject {
    async fn turn(self, concurrency: u32, length: Duration) -> Result<Turn> {
        let (Self::Weft(to) | Self::Etcd(to)) = self;
        let mut connections = Vec::new();
        for _ in 0..concurrency.min(CONNECTIONS) {
            connections.push(Connection::open(to).await?);
        }
        let (begin, end) = (Instant::now() + WARM, Instant::now() + WARM + length);
        let (latencies, next) = (Rc::<RefCell<Vec<f64>>>::default(), Rc::<Cell<u32>>::default());
        let mut writers = JoinSet::new();
        for id in 0..concurrency {
            let mut connection = connections[(id % CONNECTIONS) as usize].clone();
            let (latencies, next) = (latencies.clone(), next.clone());
            writers.spawn_local(async move {
                while Instant::now() < end {
                    let number = next.replace(next.get() + 1);
                    let start = Instant::now();
                    self.write(&mut connection, number).await?;
                    if start >= begin && Instant::now() < end {
                        latencies.borrow_mut().push(start.elapsed().as_secs_f64() * 1e3);
                    }
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = writers.join_next().await {
            ended??;
        }
        let mut latencies = latencies.take();
        latencies.sort_by(f64::total_cmp);
        let of = |share| percentile(&latencies, share).context("nothing was written");
        Ok(Turn { rate: latencies.len() as f64 / length.as_secs_f64(), p50_ms: of(0.5)?, p99_ms: of(0.99)? })
    }

    async fn write(self, connection: &mut Connection, number: u32) -> Result<()> {
        let key = number % KEYS;
        let address = format!("10.1.{}.{}", key / 250, 1 + key % 250);
        let value = value(&address, number);
        match self {
            Self::Weft(_) => {
                let endpoint = value.replacen(r#""service":"bench","#, "", 1);
                let body = format!(r#"{{"service":"bench","endpoints":[{endpoint}]}}"#);
                let (status, body) = connection.json("POST", "/v1/register", &[], body.into()).await?;
                if status != http::StatusCode::OK {
                    bail!("{status} {}", String::from_utf8_lossy(&body));
                }
            }
            Self::Etcd(_) => {
                let key = format!("Endpoint/default/bench/{address}:8080");
                connection.grpc("/etcdserverpb.KV/Put", &put(key.as_bytes(), value.as_bytes())).await?;
            }
        }
        Ok(())
    }
}

/// The record of an endpoint as Weft stores it, of [`VALUE`] bytes.
fn value(address: &str, number: u32) -> String {
    let weight = 1 + number % 900_000;
    let record = |zone: &str| {
        format!(r#"{{"service":"bench","address":"{address}","port":8080,"weight":{weight},"zone":"{zone}"}}"#)
    };
    let rest = VALUE.saturating_sub(record("").len());
    record(&"z".repeat(rest))
}

/// `etcdserverpb.PutRequest`
fn put(key: &[u8], value: &[u8]) -> Bytes {
    let mut message = Vec::with_capacity(key.len() + value.len() + 8);
    for (tag, part) in [(0x0a, key), (0x12, value)] {
        message.push(tag);
        let mut length = part.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(part);
    }
    message.into()
}

/// Three members of etcd with its defaults.
struct Etcd {
    clients: Vec<SocketAddr>,
    _members: Vec<Server>,
    _dirs: Vec<TempDir>,
}

impl Etcd {
    async fn start(program: &Path) -> Result<Self> {
        let ports = |_| Ok::<_, anyhow::Error>((free_port()?, free_port()?));
        let ports: Vec<(SocketAddr, SocketAddr)> = (0..3).map(ports).collect::<Result<_>>()?;
        let cluster: Vec<String> =
            ports.iter().enumerate().map(|(index, (_, peer))| format!("e{index}=http://{peer}")).collect();
        let (mut members, mut dirs) = (Vec::new(), Vec::new());
        for (index, (client, peer)) in ports.iter().enumerate() {
            let dir = TempDir::new("etcd")?;
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let data = dir.path().join("data").display().to_string();
            let args = [
                ("--name", format!("e{index}")),
                ("--data-dir", data),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--listen-peer-urls", peer.clone()),
                ("--initial-advertise-peer-urls", peer),
                ("--initial-cluster", cluster.join(",")),
                ("--initial-cluster-state", "new".into()),
                ("--log-level", "error".into()),
            ];
            let args: Vec<String> = args.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
            members.push(Server::start("etcd", None, &dir, program, &args)?);
            dirs.push(dir);
        }
        for (member, (client, _)) in members.iter_mut().zip(&ports) {
            member.ready(*client, Duration::from_secs(30)).await?;
        }
        Ok(Self { clients: ports.into_iter().map(|(client, _)| client).collect(), _members: members, _dirs: dirs })
    }

    /// Where its leader listens.
    async fn leader(&self) -> Result<SocketAddr> {
        let etcdctl = find_program("etcdctl").context("etcdctl is missing: apt-get install etcd-client")?;
        for client in &self.clients {
            let mut status = tokio::process::Command::new(&etcdctl);
            status.env("ETCDCTL_API", "3").args([
                "--endpoints",
                &client.to_string(),
                "endpoint",
                "status",
                "-w",
                "json",
            ]);
            let status: serde_json::Value = serde_json::from_slice(&status.output().await?.stdout)?;
            let status = &status[0]["Status"];
            if status["leader"].is_u64() && status["leader"] == status["header"]["member_id"] {
                return Ok(*client);
            }
        }
        bail!("etcd has no leader")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_records_of_one_size() {
        for number in [0, 9, 123_456, 4_000_000] {
            let value = value("10.1.3.250", number);
            assert_eq!(value.len(), VALUE);
            assert!(serde_json::from_str::<serde_json::Value>(&value).unwrap()["weight"].as_u64() > Some(0));
        }
    }

    #[test]
    fn a_put_is_written_as_protobuf_has_it() {
        assert_eq!(&put(b"k", b"v")[..], b"\x0a\x01k\x12\x01v");
        assert_eq!(&put(b"k", &[7; 300])[..6], b"\x0a\x01k\x12\xac\x02");
    }
}
