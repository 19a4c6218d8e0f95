//! A `weft proxy` that follows a control plane.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::api::Api;
use crate::child::{Server, TempDir, free_port};

/// What it is called.
pub const NAME: &str = "bench";
/// For its start, and for whatever it waits for.
const WITHIN: Duration = Duration::from_secs(120);

/// The node; ended when dropped.
pub struct Node {
    weft: PathBuf,
    members: Vec<SocketAddr>,
    server: Option<Server>,
    dir: TempDir,
}

impl Node {
    /// Starts it, with an empty cache.
    pub fn start(weft: &Path, members: &[SocketAddr]) -> Result<Self> {
        let dir = TempDir::new("node")?;
        let mut node = Self { weft: weft.into(), members: members.to_vec(), server: None, dir };
        node.restart()?;
        Ok(node)
    }

    /// Starts it, with the cache that it has; it must have been stopped.
    pub fn restart(&mut self) -> Result<()> {
        let cache = self.dir.path().join("cache").display().to_string();
        let admin = free_port()?.to_string();
        let mut args: Vec<OsString> = ["proxy", "--cache", &cache, "--admin", &admin].map(OsString::from).into();
        args.extend(["--workers", "1", "--no-pin", "--node", NAME, "--drain-timeout", "1s"].map(OsString::from));
        args.extend(self.members.iter().flat_map(|member| ["--control".into(), member.to_string().into()]));
        self.server = Some(Server::start("weft proxy", None, &self.dir, &self.weft, &args)?);
        Ok(())
    }

    /// Asks it to leave.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.stop(Duration::from_secs(20)).await?;
        }
        Ok(())
    }

    /// Waits until it listens there.
    pub async fn listens(&mut self, address: SocketAddr) -> Result<()> {
        match &mut self.server {
            Some(server) => server.ready(address, WITHIN).await,
            None => bail!("the node is stopped"),
        }
    }

    /// Resident bytes once they have stopped moving.
    pub async fn settled_rss(&self) -> Result<u64> {
        match &self.server {
            Some(server) => server.settled_rss().await,
            None => bail!("the node is stopped"),
        }
    }

    /// Waits until one of the members says that the node has everything up to `revision` in force.
    pub async fn has(&self, revision: u64, members: &mut [Api]) -> Result<()> {
        let end = Instant::now() + WITHIN;
        loop {
            for member in &mut *members {
                if member.acknowledged(NAME).await?.is_some_and(|acknowledged| acknowledged >= revision) {
                    return Ok(());
                }
            }
            if Instant::now() > end {
                bail!("the node has not acknowledged revision {revision} within {WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}
