//! One change after the other, and when it arrives: an endpoint is registered at one member, and requests go through a
//! node of another member.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::Request;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use weft_tests::plane::Plane;

use super::api::Api;
use super::fleet::Fleet;
use super::node::Node;
use crate::origin::{Origin, answer};
use crate::report::{Bound, Report};
use crate::resilience::client::Client;
use crate::stats::percentile;

/// The service whose endpoints change.
pub const SERVICE: &str = "web";
/// Between two requests that look for the new endpoint: more of them would take the processor from what is measured.
const LOOK: Duration = Duration::from_micros(300);
/// For one change.
const WITHIN: Duration = Duration::from_secs(60);
/// With two endpoints in turns, so many requests miss a third only if it is not there.
const MISSES: u32 = 6;

const NEW: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnew\n";

/// A node in front of two endpoints that stay, and a third that comes and goes.
pub struct Stage {
    /// Where the node listens.
    pub listen: SocketAddr,
    /// The endpoint that comes and goes.
    pub new: SocketAddr,
    /// Where it is registered: neither the leader nor the node's member.
    pub at: Api,
    /// The node's member.
    pub member: SocketAddr,
    /// What is in the way of requests.
    pub revision: u64,
    standing: [Origin; 2],
    accept: JoinHandle<()>,
}

impl Stage {
    /// Applies the configuration, and more documents. The node has to be started by the caller.
    pub async fn set(plane: &Plane, listen: SocketAddr, more: &str) -> Result<Self> {
        let leader = plane.leader().await;
        let followers: Vec<usize> = (0..plane.members.len()).filter(|index| *index != leader).collect();
        let (at, member) = match followers[..] {
            [at, member, ..] => (plane.members[at].address, plane.members[member].address),
            _ => bail!("there are not three members"),
        };
        let standing = [Origin::start().await?, Origin::start().await?];
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let new = listener.local_addr()?;
        let accept = tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::task::spawn_local(answer(stream, || NEW));
            }
        });
        let mut at = Api::open(at).await?;
        let endpoints = standing.each_ref().map(Origin::addr);
        let site = crate::weft::Site { name: SERVICE, listen, endpoints: &endpoints, filters: "", policy: POLICY };
        let revision = at.apply(format!("{}{more}", site.yaml())).await?;
        Ok(Self { listen, new, at, member, revision, standing, accept })
    }

    /// Registers and deregisters the endpoint so many times.
    pub async fn changes(&mut self, count: u32, fleet: Option<&Fleet>) -> Result<Changes> {
        let mut client = Client::connect(self.listen).await?;
        let mut changes = Changes::default();
        for _ in 0..count {
            let start = Instant::now();
            let revision = self.at.register(SERVICE, &[self.new]).await?;
            let answered = start.elapsed();
            if let Some(fleet) = fleet {
                fleet.expect(revision);
            }
            let routed = async {
                while !is_new(&mut client).await? {
                    tokio::time::sleep(LOOK).await;
                }
                Ok::<_, anyhow::Error>(start.elapsed())
            };
            let all = async {
                match fleet {
                    Some(fleet) => fleet.reached().await.map(|()| Some(start.elapsed())),
                    None => Ok(None),
                }
            };
            let both = tokio::time::timeout(WITHIN, async { tokio::try_join!(routed, all) }).await;
            let (routed, all) = both.context("no request was routed to the new endpoint")??;
            changes.answered.push(answered.as_secs_f64() * 1e3);
            changes.routed.push(routed.as_secs_f64() * 1e3);
            changes.all.extend(all.map(|all| all.as_secs_f64() * 1e3));
            self.revision = self.at.deregister(SERVICE, &[self.new]).await?;
            self.gone(&mut client).await?;
        }
        Ok(changes)
    }

    /// Registers it once; how long until a request goes there.
    pub async fn once(&mut self) -> Result<Duration> {
        let changes = self.changes(1, None).await?;
        Ok(Duration::from_secs_f64(changes.routed.first().copied().unwrap_or_default() / 1e3))
    }

    async fn gone(&self, client: &mut Client) -> Result<()> {
        let end = Instant::now() + WITHIN;
        let mut misses = 0;
        while misses < MISSES {
            misses = if is_new(client).await? { 0 } else { misses + 1 };
            if Instant::now() > end {
                bail!("requests still go to the endpoint that was deregistered");
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until the node answers.
    pub async fn served(&self, node: &mut Node) -> Result<()> {
        node.listens(self.listen).await?;
        let end = Instant::now() + WITHIN;
        while Instant::now() < end {
            let mut client = Client::connect(self.listen).await?;
            if client.send(Request::get("/"), Bytes::new()).await?.status().is_success() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("the node does not serve {:?}", self.standing.each_ref().map(Origin::addr))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// In turns, so that three requests meet every endpoint.
const POLICY: &str = "loadBalancer: {type: RoundRobin}";

async fn is_new(client: &mut Client) -> Result<bool> {
    let answer = client.send(Request::get("/"), Bytes::new()).await?;
    if !answer.status().is_success() {
        bail!("a request was answered {}", answer.status());
    }
    Ok(answer.body() == "new\n")
}

/// In milliseconds, from when the registration was sent.
#[derive(Default)]
pub struct Changes {
    /// Until it was answered.
    answered: Vec<f64>,
    /// Until a request was answered by the new endpoint.
    routed: Vec<f64>,
    /// Until all light nodes had it.
    all: Vec<f64>,
}

impl Changes {
    /// Tells of them; bounds in milliseconds on what is routed.
    pub fn tell(mut self, what: &str, p50: Option<f64>, p99: f64, report: &mut Report) {
        for values in [&mut self.answered, &mut self.routed, &mut self.all] {
            values.sort_by(f64::total_cmp);
        }
        report.info(format!("{what}: changes"), self.routed.len() as f64, "");
        let mut tell = |name: &str, values: &[f64], share: f64, bound: Option<f64>| {
            let Some(value) = percentile(values, share) else { return };
            let figure = format!("{what}: {name}, p{:.0}", share * 100.0);
            match bound {
                Some(bound) => report.check(figure, value, "ms", Bound::AtMost(bound)),
                None => report.info(figure, value, "ms"),
            }
        };
        tell("the registration is answered", &self.answered, 0.5, None);
        tell("first request routed to it", &self.routed, 0.5, p50);
        tell("first request routed to it", &self.routed, 0.99, Some(p99));
        tell("first request routed to it", &self.routed, 1.0, None);
        tell("all light nodes have it", &self.all, 0.5, None);
        tell("all light nodes have it", &self.all, 0.99, Some(p99));
    }
}
