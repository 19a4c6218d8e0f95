//! A running `weft proxy` in front of one service, and what its admin port says.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::client;
use crate::child::{Server, TempDir, free_port};
use crate::load::{self, Job, Outcome, Tool};
use crate::weft::{self, Site};

/// The proxy; ended and its files removed when dropped.
pub struct Node {
    listen: SocketAddr,
    admin: SocketAddr,
    server: Server,
    endpoints: Vec<SocketAddr>,
    dir: TempDir,
}

/// An endpoint, as far as `/endpoints` is of use here. Fields that a version does not show are absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointState {
    /// IP and port.
    pub address: String,
    /// Whether it is out of rotation.
    pub ejected: bool,
    /// Until its next probe.
    pub ejection_ms_left: Option<f64>,
}

#[derive(Deserialize)]
struct ServiceState {
    endpoints: Vec<EndpointState>,
}

/// A limit, as far as `/limits` is of use here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LimitState {
    /// Keys that are counted now.
    pub keys: Option<u64>,
}

impl Node {
    /// Starts the proxy with `workers` workers in front of `endpoints`, with the fields of a policy on the service.
    pub async fn start(binary: &Path, endpoints: &[SocketAddr], workers: u32, policy: &str) -> Result<Self> {
        let dir = TempDir::new("resilience")?;
        let (listen, admin) = (free_port()?, free_port()?);
        let site = Site { name: SERVICE, listen, endpoints, filters: "", policy };
        let args = weft::args(&dir, &site.yaml(), workers, admin)?;
        let mut server = Server::start("weft", None, &dir, binary, &args)?;
        server.ready(listen, Duration::from_secs(20)).await?;
        Ok(Self { listen, admin, server, endpoints: endpoints.to_vec(), dir })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.listen
    }

    /// Resident bytes once they have stopped moving.
    pub async fn settled_rss(&self) -> Result<u64> {
        self.server.settled_rss().await
    }

    /// Loads the proxy in a closed loop, or at a rate with the built-in generator.
    pub async fn load(&self, tool: Tool, seconds: u32, rate: Option<u32>) -> Result<Outcome> {
        let tool = if rate.is_some() { Tool::Own } else { tool };
        let job = Job { target: self.listen, connections: 64, seconds, rate, cpu: None, cgroup: None };
        load::run_external(tool, job).await
    }

    /// Writes a configuration with other filters beside the one in use; [`Node::rename`] puts it in place.
    pub fn prepare(&self, filters: &str) -> Result<PathBuf> {
        let site = Site { name: SERVICE, listen: self.listen, endpoints: &self.endpoints, filters, policy: "" };
        self.dir.write("next", site.yaml())
    }

    /// Puts a prepared configuration in place, all at once.
    pub fn rename(&self, prepared: &Path) -> Result<()> {
        Ok(std::fs::rename(prepared, self.dir.path().join(weft::CONFIG))?)
    }

    /// One endpoint of the service, from `/endpoints`.
    pub async fn endpoint(&self, addr: SocketAddr) -> Result<EndpointState> {
        let services: Vec<ServiceState> = serde_json::from_slice(&self.admin("/endpoints").await?)?;
        let mut endpoints = services.into_iter().flat_map(|service| service.endpoints);
        let address = addr.to_string();
        endpoints.find(|endpoint| endpoint.address == address).context("/endpoints does not list the endpoint")
    }

    /// `/limits`; an error where there is no such page.
    pub async fn limits(&self) -> Result<Vec<LimitState>> {
        Ok(serde_json::from_slice(&self.admin("/limits").await?)?)
    }

    /// The sum of a counter, or of one part of a histogram, over all label sets.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.admin("/metrics").await?;
        Ok(sum(&String::from_utf8_lossy(&text), name))
    }

    async fn admin(&self, path: &str) -> Result<bytes::Bytes> {
        let answer = client::get(self.admin, path).await?;
        if !answer.status().is_success() {
            bail!("{path} of the admin port answers {}", answer.status());
        }
        Ok(answer.into_body())
    }
}

/// The name of every object in the proxy's configuration.
const SERVICE: &str = "origin";

/// The sum of the samples of one name in a Prometheus text.
pub fn sum(text: &str, name: &str) -> f64 {
    let samples = text.lines().filter_map(|line| line.strip_prefix(name));
    let values = samples.filter(|rest| rest.starts_with(['{', ' '])).filter_map(|rest| {
        let rest = rest.rfind('}').map_or(rest, |end| &rest[end + 1..]);
        rest.split_ascii_whitespace().next()?.parse::<f64>().ok()
    });
    // An empty sum of floats is −0.
    values.fold(0.0, |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_name_are_summed() {
        let text = "# TYPE a histogram\na_count{x=\"}\",y=\"1\"} 2\na_count{x=\"2\"} 3 1700\na_counter 5\na_count 1\n";
        assert_eq!(sum(text, "a_count"), 6.0);
        assert_eq!(sum(text, "b"), 0.0);
    }

    #[test]
    fn fields_of_later_versions_may_be_absent() {
        let old: EndpointState = serde_json::from_str(r#"{"address": "127.0.0.1:1", "breaker": "closed"}"#).unwrap();
        assert!(!old.ejected && old.ejection_ms_left.is_none());
    }
}
