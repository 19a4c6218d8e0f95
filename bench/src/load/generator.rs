//! The load generator: one task per connection on one thread, latencies in an HDR histogram.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderValue, Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Outcome;

/// A timer wakes up to this late by itself; a request sent that late is not charged to the server.
const TIMER_SLACK: Duration = Duration::from_millis(2);
/// An answer that takes longer counts as a socket error, and its connection is opened anew.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a failed connection is tried again.
const RECONNECT: Duration = Duration::from_millis(50);

/// What to send where.
pub struct Plan {
    target: SocketAddr,
    path: Uri,
    host: HeaderValue,
    connections: u32,
    duration: Duration,
    /// Seconds between two requests of one connection, at a fixed rate.
    interval: Option<Duration>,
}

impl Plan {
    /// Resolves the URL's host.
    pub async fn new(url: &Uri, connections: u32, duration: Duration, rate: Option<f64>) -> Result<Self> {
        let authority = url.authority().context("the URL needs a host: http://HOST:PORT/PATH")?;
        if url.scheme_str() != Some("http") {
            bail!("only http:// URLs can be loaded");
        }
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16().unwrap_or(80);
        let target = tokio::net::lookup_host((host, port)).await.with_context(|| format!("resolve {host}"))?.next();
        let path = url.path_and_query().map_or("/", |path| path.as_str()).parse().context("the URL's path")?;
        let interval = match rate {
            Some(rate) if rate > 0.0 => Some(Duration::try_from_secs_f64(f64::from(connections) / rate)?),
            Some(rate) => bail!("a rate of {rate} requests per second cannot be kept"),
            None => None,
        };
        Ok(Self {
            target: target.with_context(|| format!("{host} has no address"))?,
            path,
            host: HeaderValue::from_str(authority.as_str())?,
            connections,
            duration,
            interval,
        })
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>> {
        let request = Request::get(self.path.clone()).header(HOST, &self.host);
        Ok(request.body(Empty::new())?)
    }
}

/// Counts of all connections together. A request that is still on its way at the end is not counted.
pub struct Report {
    latency: Histogram<u64>,
    started: u64,
    statuses: BTreeMap<u16, u64>,
    socket_errors: u64,
    bytes: u64,
    elapsed: Duration,
}

impl Report {
    /// The few figures that every generator gives.
    pub fn outcome(&self) -> Outcome {
        let percentile = |at| (!self.latency.is_empty()).then(|| self.latency.value_at_quantile(at) as f64 / 1e3);
        Outcome {
            requests: self.latency.len(),
            seconds: self.elapsed.as_secs_f64(),
            p50_us: percentile(0.5),
            p99_us: percentile(0.99),
            non_2xx: self.statuses.iter().filter(|(status, _)| !(200..300).contains(*status)).map(|(_, n)| n).sum(),
            socket_errors: self.socket_errors,
            connect_errors: 0,
            unanswered: self.started - self.latency.len() - self.socket_errors,
            statuses: self.statuses.clone(),
        }
    }

    /// The distribution, for people.
    pub fn print(&self, rate: Option<f64>) {
        let outcome = self.outcome();
        let how = rate.map_or("closed loop".to_owned(), |rate| format!("at {rate} requests/s, from when each was due"));
        println!("{} requests in {:.2} s: {:.0} requests/s", outcome.requests, outcome.seconds, outcome.rate());
        println!("{:.2} MiB/s of bodies", self.bytes as f64 / outcome.seconds / f64::from(1 << 20));
        println!("latency ({how}):");
        for (name, at) in [("50%", 0.5), ("90%", 0.9), ("99%", 0.99), ("99.9%", 0.999), ("max", 1.0)] {
            println!("  {name:>6} {:>10.3} ms", self.latency.value_at_quantile(at) as f64 / 1e6);
        }
        println!("errors: {} not 2xx, {} on sockets", outcome.non_2xx, outcome.socket_errors);
    }
}

/// Loads until the plan's time is over.
pub async fn run(plan: Plan) -> Result<Report> {
    let plan = Rc::new(plan);
    let report = Rc::new(RefCell::new(Report {
        latency: Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3)?,
        started: 0,
        statuses: BTreeMap::new(),
        socket_errors: 0,
        bytes: 0,
        elapsed: Duration::ZERO,
    }));
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..plan.connections {
        let connection = Connection { index, start, plan: plan.clone(), report: report.clone() };
        tasks.spawn_local(connection.drive());
    }
    let _ = tokio::time::timeout_at(start + plan.duration, tasks.join_next()).await;
    let elapsed = start.elapsed();
    tasks.abort_all();
    while let Some(ended) = tasks.join_next().await {
        if let Ok(ended) = ended {
            ended?;
        }
    }
    let mut report = Rc::into_inner(report).context("a connection outlived the run")?.into_inner();
    report.elapsed = elapsed;
    Ok(report)
}

/// One connection of the plan, opened again after every failure.
struct Connection {
    index: u32,
    start: Instant,
    plan: Rc<Plan>,
    report: Rc<RefCell<Report>>,
}

impl Connection {
    async fn drive(self) -> Result<()> {
        let plan = &self.plan;
        // Connections start evenly spread over one interval, not all at once.
        let mut due =
            plan.interval.map(|every| self.start + every.mul_f64(f64::from(self.index) / f64::from(plan.connections)));
        let mut sender = None;
        loop {
            let mut from = Instant::now();
            if let Some(at) = due {
                if at > from {
                    tokio::time::sleep_until(at).await;
                    let now = Instant::now();
                    from = if now - at <= TIMER_SLACK { now } else { at };
                } else {
                    from = at;
                }
            }
            due = due.zip(plan.interval).map(|(at, every)| at + every);
            self.report.borrow_mut().started += 1;
            match tokio::time::timeout(TIMEOUT, self.exchange(&mut sender)).await {
                Ok(Ok((status, bytes))) => {
                    let mut report = self.report.borrow_mut();
                    report.latency.saturating_record(u64::try_from(from.elapsed().as_nanos())?);
                    *report.statuses.entry(status.as_u16()).or_default() += 1;
                    report.bytes += bytes;
                }
                Ok(Err(_)) | Err(_) => {
                    sender = None;
                    self.report.borrow_mut().socket_errors += 1;
                    tokio::time::sleep(RECONNECT).await;
                }
            }
        }
    }

    /// One request and its whole answer: its status, and how long its body was.
    async fn exchange(&self, sender: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<(StatusCode, u64)> {
        // The server may close after any answer; a new connection then is no error.
        if let Some(open) = sender.as_mut()
            && open.ready().await.is_err()
        {
            *sender = None;
        }
        let open = match sender {
            Some(open) => open,
            None => sender.insert(connect(self.plan.target).await?),
        };
        let response = open.send_request(self.plan.request()?).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut bytes = 0;
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        Ok((status, bytes))
    }
}

async fn connect(target: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Origin;

    async fn load(url: &str, rate: Option<f64>, duration: Duration) -> Report {
        let plan = Plan::new(&url.parse().unwrap(), 4, duration, rate).await.unwrap();
        run(plan).await.unwrap()
    }

    #[tokio::test(flavor = "local")]
    async fn a_fixed_rate_is_not_exceeded() {
        let origin = Origin::start().await.unwrap();
        let report = load(&format!("http://{}/x", origin.addr()), Some(100.0), Duration::from_millis(300)).await;
        let outcome = report.outcome();
        assert_eq!(outcome.errors(), 0);
        assert!((1..=31).contains(&outcome.requests), "{outcome:?}");
    }

    #[tokio::test(flavor = "local")]
    async fn a_refused_connection_is_a_socket_error() {
        let addr = crate::child::free_port().unwrap();
        let report = load(&format!("http://{addr}/"), None, Duration::from_millis(120)).await;
        assert_eq!(report.outcome().requests, 0);
        assert!(report.outcome().socket_errors >= 4);
        assert_eq!(report.outcome().p50_us, None);
    }

    #[tokio::test]
    async fn only_plain_http_urls_with_a_host_are_taken() {
        for url in ["/path", "https://localhost/"] {
            assert!(Plan::new(&url.parse().unwrap(), 1, Duration::ZERO, None).await.is_err(), "{url}");
        }
    }
}
