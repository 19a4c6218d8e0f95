//! Clients that make new connections all the time, or many at once, and see where each arrives.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{errno, socket};
use super::endpoint::described;

/// For a connect, and for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Failures that are noted one by one.
const NOTED: usize = 10_000;

/// Connections, each with one request, one after the other in each thread.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    pub target: SocketAddr,
    pub threads: u32,
    /// Between two connections of a thread.
    pub pause_us: u64,
    pub millis: u64,
}

/// What came of a [`Plan`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// By second: how often each [`Outcome`] was seen.
    pub seconds: Vec<BTreeMap<String, u64>>,
    /// connect() calls that failed: when they began and ended, in microseconds since the start.
    pub failed: Vec<(u64, u64)>,
}

impl Seen {
    /// How often outcomes were seen that begin like this.
    pub fn count(&self, start: &str) -> u64 {
        let all = self.seconds.iter().flatten();
        all.filter(|(outcome, _)| outcome.starts_with(start)).map(|(_, count)| count).sum()
    }

    fn add(&mut self, second: usize, outcome: String, count: u64) {
        if self.seconds.len() <= second {
            self.seconds.resize_with(second + 1, BTreeMap::new);
        }
        *self.seconds[second].entry(outcome).or_insert(0) += count;
    }
}

/// How a connection can end.
enum Outcome {
    /// Not even begun.
    Connect(io::Error),
    /// Connected, but without an answer.
    Answer(String),
    /// Answered by the endpoint on this port.
    Arrived { port: u16, direct: bool },
}

impl Outcome {
    fn name(&self) -> String {
        match self {
            Self::Connect(error) => format!("connect {}", errno(error)),
            Self::Answer(what) => format!("answer {what}"),
            Self::Arrived { port, direct: true } => format!("direct {port}"),
            Self::Arrived { port, direct: false } => format!("proxy {port}"),
        }
    }
}

/// Carries a [`Plan`] out.
pub fn run(plan: &Plan) -> Result<Seen> {
    let start = Instant::now();
    let end = start + Duration::from_millis(plan.millis);
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..plan.threads).map(|_| scope.spawn(|| one_after_the_other(plan, start, end))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked")))
            .collect::<Result<Vec<_>>>()
    })?;
    let mut all = Seen::default();
    for seen in seen {
        for (second, outcomes) in seen.seconds.into_iter().enumerate() {
            outcomes.into_iter().for_each(|(outcome, count)| all.add(second, outcome, count));
        }
        all.failed.extend(seen.failed);
    }
    all.failed.sort_unstable();
    Ok(all)
}

fn one_after_the_other(plan: &Plan, start: Instant, end: Instant) -> Seen {
    let mut seen = Seen::default();
    while Instant::now() < end {
        let began = start.elapsed();
        let outcome = ask(plan.target).unwrap_or_else(|outcome| outcome);
        if matches!(outcome, Outcome::Connect(_)) && seen.failed.len() < NOTED {
            seen.failed.push((began.as_micros() as u64, start.elapsed().as_micros() as u64));
        }
        seen.add(began.as_secs() as usize, outcome.name(), 1);
        if plan.pause_us > 0 {
            std::thread::sleep(Duration::from_micros(plan.pause_us));
        }
    }
    seen
}

/// One connection with one request.
fn ask(target: SocketAddr) -> Result<Outcome, Outcome> {
    let socket = socket().map_err(Outcome::Connect)?;
    socket.connect_timeout(&target.into(), PATIENCE).map_err(Outcome::Connect)?;
    let local = socket.local_addr().ok().and_then(|local| local.as_socket()).map_or(0, |local| local.port());
    let mut stream = TcpStream::from(socket);
    let mut exchange = || {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request(target).as_bytes())?;
        let mut answer = Vec::new();
        let mut buffer = [0; 2048];
        while body(&answer).is_none() {
            let read = stream.read(&mut buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&buffer[..read]);
        }
        Ok(answer)
    };
    let answer: Vec<u8> = exchange().map_err(|error: io::Error| Outcome::Answer(errno(&error)))?;
    arrived(&answer, local)
}

fn arrived(answer: &[u8], local: u16) -> Result<Outcome, Outcome> {
    let refused = || {
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        Outcome::Answer(String::from_utf8_lossy(line).into_owned())
    };
    let (port, peer) = body(answer).and_then(described).ok_or_else(refused)?;
    Ok(Outcome::Arrived { port, direct: peer == local })
}

fn request(target: SocketAddr) -> String {
    format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

/// The body of a complete answer. Those of endpoints end with the line; a refusal by the proxy is known by its length.
fn body(answer: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    (body.len() >= length.unwrap_or(0)).then_some(body)
}

/// What came of many connections at once.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Parallel {
    /// Arrived where they should.
    pub right: u64,
    /// Arrived elsewhere.
    pub wrong: u64,
    /// Through the proxy.
    pub proxied: u64,
    /// Without an answer.
    pub failed: BTreeMap<String, u64>,
}

/// Begins `count` connections before the first of them sends anything, in turn to each of `targets`.
pub async fn parallel(targets: &[(SocketAddr, u16)], count: u32) -> Result<Parallel> {
    let mut connecting = tokio::task::JoinSet::new();
    for &(target, port) in targets.iter().cycle().take(count as usize) {
        connecting.spawn_local(async move {
            let done = tokio::time::timeout(PATIENCE, connect(target)).await;
            (done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())), target, port)
        });
    }
    let mut result = Parallel::default();
    let mut failed = |what: String| *result.failed.entry(what).or_insert(0) += 1;
    let mut asking = tokio::task::JoinSet::new();
    for (connected, target, port) in connecting.join_all().await {
        match connected {
            Ok(stream) => _ = asking.spawn_local(async move { (exchange(stream, target).await, port) }),
            Err(error) => failed(Outcome::Connect(error).name()),
        }
    }
    for (outcome, expected) in asking.join_all().await {
        match outcome.unwrap_or_else(|outcome| outcome) {
            Outcome::Arrived { port, direct } => {
                *(if port == expected { &mut result.right } else { &mut result.wrong }) += 1;
                result.proxied += u64::from(!direct);
            }
            outcome => *result.failed.entry(outcome.name()).or_insert(0) += 1,
        }
    }
    Ok(result)
}

async fn connect(target: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let socket = socket()?;
    socket.set_nonblocking(true)?;
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(target).await
}

async fn exchange(mut stream: tokio::net::TcpStream, target: SocketAddr) -> Result<Outcome, Outcome> {
    let local = stream.local_addr().map_or(0, |local| local.port());
    let exchange = async {
        stream.write_all(request(target).as_bytes()).await?;
        let mut answer = Vec::new();
        while body(&answer).is_none() {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(answer)
    };
    let done = tokio::time::timeout(PATIENCE * 4, exchange).await;
    let done: io::Result<Vec<u8>> = done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    arrived(&done.map_err(|error| Outcome::Answer(errno(&error)))?, local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_connection_arrived() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n80 4000\n";
        assert_eq!(arrived(answer, 4000).unwrap_or_else(|outcome| outcome).name(), "direct 80");
        assert_eq!(arrived(answer, 4001).unwrap_or_else(|outcome| outcome).name(), "proxy 80");
        let refusal = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n";
        let refused = arrived(refusal, 4000).unwrap_or_else(|outcome| outcome);
        assert_eq!(refused.name(), "answer HTTP/1.1 503 Service Unavailable");
        assert_eq!(body(&answer[..answer.len() - 1]), None);
    }
}
