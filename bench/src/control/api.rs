//! What operators and agents ask of a member.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::h2::Connection;

/// For the answer to anything.
const WITHIN: Duration = Duration::from_secs(60);

/// A connection to a member.
#[derive(Clone)]
pub struct Api(Connection);

impl Api {
    /// Connects.
    pub async fn open(member: SocketAddr) -> Result<Self> {
        Ok(Self(Connection::open(member).await?))
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
        Ok(serde_json::from_slice(&self.ask("GET", path, Bytes::new()).await?)?)
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
        let text = self.ask("GET", "/metrics", Bytes::new()).await?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let known = text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        Ok(known.then(|| crate::resilience::sum(&text, name)))
    }

    async fn change(&mut self, path: &str, body: Bytes) -> Result<u64> {
        let answer: Value = serde_json::from_slice(&self.ask("POST", path, body).await?)?;
        answer["revision"].as_u64().with_context(|| format!("{path} names no revision"))
    }

    async fn ask(&mut self, method: &str, path: &str, body: Bytes) -> Result<Bytes> {
        let asked = timeout(WITHIN, self.0.json(method, path, &[], body)).await;
        asked.with_context(|| format!("{method} {path} is not answered"))?
    }
}

fn places(service: &str, endpoints: &[SocketAddr]) -> Bytes {
    let place = |endpoint: &SocketAddr| json!({"address": endpoint.ip().to_string(), "port": endpoint.port()});
    let endpoints: Vec<Value> = endpoints.iter().map(place).collect();
    json!({"service": service, "endpoints": endpoints}).to_string().into()
}
