//! A client in a cgroup: a process of its own that does what it is asked to, one line of JSON for each question and answer.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::{shim, storm};
use crate::child;

/// Requests of a new connection that are not counted.
const WARM_UP: u32 = 200;

/// What a client is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Answers as [`Latency`]: requests one after the other on a new connection, which stays open.
    Latency { target: SocketAddr, requests: u32 },
    /// Answers as [`Connects`].
    Connects { range: Range, count: u32 },
    /// Answers with nanoseconds.
    Shim { mesh: PathBuf, range: Range, repeat: u32 },
    /// Answers as [`storm::Seen`].
    Storm(storm::Plan),
    /// Answers as [`storm::Parallel`]: each target with the port at which the connection should arrive.
    Parallel { targets: Vec<(SocketAddr, u16)>, count: u32 },
}

/// Addresses: one, and those with some more bits set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first.
    pub base: Ipv4Addr,
    /// These bits are drawn at random.
    pub spread: u32,
    /// One port for all.
    pub port: u16,
}

/// Round trips of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50_ns: f64,
    pub p99_ns: f64,
    /// Of the connection, which is still open.
    pub local_port: u16,
}

/// connect() and close(), each at once after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connects {
    pub p50_ns: f64,
    pub mean_ns: f64,
    /// How many connects failed, by what the kernel said.
    pub errors: BTreeMap<String, u64>,
}

/// The client, from the outside.
pub struct Client {
    process: tokio::process::Child,
    answers: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Client {
    /// Starts it in a cgroup.
    pub fn start(cgroup: &Path, cpu: Option<usize>) -> Result<Self> {
        let mut args = child::into_cgroup(cgroup);
        if let Some(cpu) = cpu {
            args.extend(["taskset".into(), "-c".into(), cpu.to_string().into()]);
        }
        let mut command = tokio::process::Command::new(&args[0]);
        command.args(&args[1..]).arg(std::env::current_exe()?).arg("ebpf-client");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().context("start setpriv (package util-linux)")?;
        let answers = process.stdout.take().context("the client's output")?;
        Ok(Self { process, answers: BufReader::new(answers).lines() })
    }

    /// Asks, and waits for the answer.
    pub async fn ask<T: DeserializeOwned>(&mut self, ask: &Ask) -> Result<T> {
        let line = serde_json::to_string(ask)? + "\n";
        self.process.stdin.as_mut().context("the client's input")?.write_all(line.as_bytes()).await?;
        let answer = self.answers.next_line().await?.context("the client has ended: its error stands above")?;
        serde_json::from_str(&answer).with_context(|| format!("the client's answer: {answer}"))
    }
}

/// `weft-bench ebpf-client`. Blocks: there is nothing else to do.
pub async fn run() -> Result<crate::Verdict> {
    crate::machine::allow_open_files(4096)?;
    let mut shim = None;
    let mut last = None;
    for line in io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Ask::Latency { target, requests } => {
                let (latency, stream) = latency(target, requests)?;
                last = Some(stream);
                serde_json::to_string(&latency)
            }
            Ask::Connects { range, count } => serde_json::to_string(&connects(range, count)?),
            Ask::Shim { mesh, range, repeat } => {
                let shim = match &mut shim {
                    Some(shim) => shim,
                    none => none.insert(shim::Shim::load(&mesh)?),
                };
                serde_json::to_string(&shim.run(range, repeat)?)
            }
            Ask::Storm(plan) => serde_json::to_string(&storm::run(&plan)?),
            Ask::Parallel { targets, count } => serde_json::to_string(&storm::parallel(&targets, count).await?),
        };
        println!("{}", answer?);
    }
    drop(last);
    Ok(crate::Verdict::Pass)
}

fn latency(target: SocketAddr, requests: u32) -> Result<(Latency, TcpStream)> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    let mut took = Vec::with_capacity(requests as usize);
    let mut answer = [0; 7];
    for number in 0..requests + WARM_UP {
        let start = Instant::now();
        stream.write_all(b"PING\r\n")?;
        stream.read_exact(&mut answer)?;
        if number >= WARM_UP {
            took.push(start.elapsed().as_nanos() as u64);
        }
    }
    if answer != *b"+PONG\r\n" {
        bail!("{target} answers {}", String::from_utf8_lossy(&answer));
    }
    took.sort_unstable();
    let (p50_ns, p99_ns) = (percentile(&took, 50), percentile(&took, 99));
    Ok((Latency { p50_ns, p99_ns, local_port: stream.local_addr()?.port() }, stream))
}

fn connects(range: Range, count: u32) -> Result<Connects> {
    let mut took = Vec::with_capacity(count as usize);
    let mut errors = BTreeMap::new();
    for _ in 0..count {
        let address = Ipv4Addr::from_bits(range.base.to_bits() | (fastrand::u32(..) & range.spread));
        let target = SocketAddr::from((address, range.port)).into();
        let socket = socket()?;
        let start = Instant::now();
        let done = socket.connect(&target);
        drop(socket);
        took.push(start.elapsed().as_nanos() as u64);
        if let Err(error) = done {
            *errors.entry(errno(&error)).or_insert(0) += 1;
        }
    }
    took.sort_unstable();
    let mean_ns = took.iter().sum::<u64>() as f64 / f64::from(count.max(1));
    Ok(Connects { p50_ns: percentile(&took, 50), mean_ns, errors })
}

/// A socket that ends its connection with a reset, and so leaves nothing in TIME_WAIT.
pub fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Of sorted values.
fn percentile(sorted: &[u64], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).or(sorted.last()).copied().unwrap_or(0) as f64
}

/// What errno(3) calls it.
pub fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(99) => "EADDRNOTAVAIL".into(),
        Some(101) => "ENETUNREACH".into(),
        Some(104) => "ECONNRESET".into(),
        Some(110) => "ETIMEDOUT".into(),
        Some(111) => "ECONNREFUSED".into(),
        Some(113) => "EHOSTUNREACH".into(),
        Some(number) => format!("errno {number}"),
        None => format!("{:?}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_few_values() {
        assert_eq!(percentile(&[], 50), 0.0);
        assert_eq!(percentile(&[1, 2, 3], 50), 2.0);
        assert_eq!(percentile(&[1, 2, 3], 99), 3.0);
    }

    #[test]
    fn a_question_survives_its_line() {
        let range = Range { base: Ipv4Addr::LOCALHOST, spread: 7, port: 80 };
        let line = serde_json::to_string(&Ask::Connects { range, count: 3 }).unwrap();
        let Ask::Connects { range: read, count: 3 } = serde_json::from_str(&line).unwrap() else { panic!("{line}") };
        assert_eq!(read, range);
    }
}
