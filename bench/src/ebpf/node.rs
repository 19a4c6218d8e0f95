//! A running `weft proxy` with its programs attached to the stage.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stage::Stage;
use crate::child::{Server, TempDir, free_port};
use crate::machine::Usage;
use crate::weft;

/// How long it may take to start.
const START: Duration = Duration::from_secs(20);
/// Services' addresses are here.
const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 0);

/// The address of the service with this number.
pub fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(NETWORK.to_bits() + number)
}

/// The address of an HTTP service with this number.
pub fn http_vip(number: u32) -> SocketAddr {
    (vip(number), 80).into()
}

/// The proxy; ended and its files removed when dropped.
pub struct Node {
    binary: PathBuf,
    args: Vec<OsString>,
    cpu: Option<usize>,
    admin: SocketAddr,
    server: Server,
    dir: TempDir,
}

impl Node {
    /// Starts it with this configuration, and waits until the programs are attached.
    pub async fn start(binary: &Path, stage: &Stage, cpu: Option<usize>, workers: u32, config: &str) -> Result<Self> {
        let dir = TempDir::new("mesh")?;
        let admin = free_port()?;
        let mut args = weft::args(&dir, config, workers, admin)?;
        let captured = free_port()?.to_string();
        args.extend(["--ebpf", "require", "--captured", &captured, "--cgroup"].map(OsString::from));
        args.push(stage.mesh.clone().into());
        let server = Server::start("weft", cpu, &dir, binary, &args)?;
        let mut node = Self { binary: binary.to_owned(), args, cpu, admin, server, dir };
        node.ready().await?;
        let links = stage.pins()?.link("sock_ops");
        let deadline = Instant::now() + START;
        while !links.exists() {
            if Instant::now() > deadline {
                bail!("the programs are not attached after {START:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Until every answer of the first look at the endpoints is there.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(node)
    }

    async fn ready(&mut self) -> Result<()> {
        self.server.ready(self.admin, START).await
    }

    /// Ends it as an upgrade does, or as a crash does.
    pub async fn stop(&mut self, kill: bool) -> Result<()> {
        if kill { self.server.kill() } else { self.server.stop(Duration::from_secs(20)).await }.map(drop)
    }

    /// Starts it again, once it is gone. Returns when it shows itself.
    pub async fn start_again(&mut self) -> Result<()> {
        self.server = Server::start("weft", self.cpu, &self.dir, &self.binary, &self.args)?;
        self.ready().await
    }

    /// CPU time and memory.
    pub fn usage(&self) -> Result<Usage> {
        self.server.usage()
    }

    /// CPU time of all its threads, as the scheduler counts it: finer than the ticks of [`Self::usage`].
    pub fn ran(&self) -> Result<Duration> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.server.pid()))?.flatten() {
            // A thread may leave between the listing and the read.
            let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else { continue };
            nanos += text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// How many established TCP connections it has.
    pub fn established(&self) -> Result<usize> {
        let mut inodes = Vec::new();
        for fd in std::fs::read_dir(format!("/proc/{}/fd", self.server.pid()))?.flatten() {
            let Ok(target) = std::fs::read_link(fd.path()) else { continue };
            let inode = target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inodes.extend::<Option<u64>>(inode);
        }
        Ok(sockets()?.iter().filter(|socket| socket.established && inodes.contains(&socket.inode)).count())
    }
}

/// A line of /proc/net/tcp.
struct Line {
    local: SocketAddr,
    remote: SocketAddr,
    established: bool,
    inode: u64,
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        Some(Self {
            local: address(fields.get(1)?)?,
            remote: address(fields.get(2)?)?,
            established: *fields.get(3)? == "01",
            inode: fields.get(9)?.parse().ok()?,
        })
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    // As the kernel has it in memory.
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some((IpAddr::from(ip), u16::from_str_radix(port, 16).ok()?).into())
}

fn sockets() -> Result<Vec<Line>> {
    let text = std::fs::read_to_string("/proc/net/tcp").context("/proc/net/tcp")?;
    Ok(text.lines().skip(1).filter_map(Line::parse).collect())
}

/// Whom the kernel has as the peer of the established connection with this local port that does not listen on it.
pub fn peer_of(local_port: u16, servers: &[SocketAddr]) -> Result<Option<SocketAddr>> {
    let mut all = sockets()?.into_iter();
    let found = all.find(|line| line.established && line.local.port() == local_port && !servers.contains(&line.local));
    Ok(found.map(|line| line.remote))
}

/// A Service as YAML, with its document's end.
pub fn service(name: &str, number: u32, port: u16, fields: &str, protocol: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: String =
        endpoints.iter().map(|end| format!("\n  - {{address: {}, port: {}}}", end.ip(), end.port())).collect();
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIPs: [{ip}]
  {fields}
  ports: [{{name: main, port: {port}, appProtocol: {protocol}}}]
  endpoints:{endpoints}
---
",
        ip = vip(number)
    )
}

/// The workload of clients in the stage's `app`.
pub const WORKLOAD: &str = "apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: app}
spec:
  selector: {cgroup: app}
  serviceAccount: app
---
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_socket_list_is_read() {
        let line =
            "   3: 0100007F:1F90 0200007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 00";
        let line = Line::parse(line).unwrap();
        assert_eq!((line.local, line.remote), (([127, 0, 0, 1], 8080).into(), ([127, 0, 0, 2], 40_000).into()));
        assert!(line.established && line.inode == 4711);
        assert!(Line::parse("sl local_address rem_address").is_none());
    }
}
