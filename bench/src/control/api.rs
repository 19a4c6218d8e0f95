//! What operators and agents ask of a member.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::h2::Connection;

/// For the answer to anything.
const WITHIN: Duration = Duration::from_secs(60);

/// Before a request that was not done is repeated.
const PAUSE: Duration = Duration::from_millis(10);

/// A connection to a member, and what makes a repeated request the same one.
pub struct Api {
    connection: Connection,
    id: u128,
    sequence: u64,
}

impl Api {
    /// Connects.
    pub async fn open(member: SocketAddr) -> Result<Self> {
        Ok(Self { connection: Connection::open(member).await?, id: fastrand::u128(..), sequence: 0 })
    }

    /// Applies documents; the revision.
    pub async fn apply(&mut self, yaml: String) -> Result<u64> {
        self.change("/v1/apply", yaml.into()).await
    }

    /// Registers endpoints of a service; the revision.
    pub async fn register(&mut self, service: &str, endpoints: &[SocketAddr]) -> Result<u64> {
        self.change("/v1/register", places(service, endpoints)).await
    }

    /// The opposite.
    pub async fn deregister(&mut self, service: &str, endpoints: &[SocketAddr]) -> Result<u64> {
        self.change("/v1/deregister", places(service, endpoints)).await
    }

    /// What a path shows.
    pub async fn get(&mut self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.ask("GET", path, &[], Bytes::new()).await?)?)
    }

    /// The revision up to which a node has everything in force, if this member serves it.
    pub async fn acknowledged(&mut self, node: &str) -> Result<Option<u64>> {
        let nodes = self.get("/v1/nodes/self").await?;
        let nodes = nodes["nodes"].as_array().context("/v1/nodes/self lists no nodes")?;
        let this = nodes.iter().find(|one| one["node"] == node && one["connected"] == true);
        Ok(this.and_then(|one| one["acknowledged"].as_u64()))
    }

    /// The sum of a metric.
    pub async fn metric(&mut self, name: &str) -> Result<Option<f64>> {
        let text = self.ask("GET", "/metrics", &[], Bytes::new()).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let known = text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        Ok(known.then(|| crate::resilience::sum(&text, name)))
    }

    async fn change(&mut self, path: &str, body: Bytes) -> Result<u64> {
        self.sequence += 1;
        let headers = weft_tests::plane::client::identity(self.id, self.sequence);
        let answer: Value = serde_json::from_slice(&self.ask("POST", path, &headers, body).await?)?;
        answer["revision"].as_u64().with_context(|| format!("{path} names no revision"))
    }

    /// The body of an answer. While there is no leader, the request is repeated.
    async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, String)], body: Bytes) -> Result<Bytes> {
        let end = Instant::now() + WITHIN;
        loop {
            let asked = timeout(WITHIN, self.connection.json(method, path, headers, body.clone())).await;
            let (status, answer) = asked.with_context(|| format!("{method} {path} is not answered"))??;
            match status.as_u16() {
                200 => return Ok(answer),
                503 | 504 if Instant::now() < end => tokio::time::sleep(PAUSE).await,
                _ => bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer)),
            }
        }
    }
}

fn places(service: &str, endpoints: &[SocketAddr]) -> Bytes {
    let place = |endpoint: &SocketAddr| json!({"address": endpoint.ip().to_string(), "port": endpoint.port()});
    let endpoints: Vec<Value> = endpoints.iter().map(place).collect();
    json!({"service": service, "endpoints": endpoints}).to_string().into()
}
