//! How a node is started: what comes from the command line rather than from the configuration.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// Port of captured connections, unless somebody says otherwise.
const CAPTURED_PORT: u16 = 15001;

/// Options of a node.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this node, in telemetry and `/ready`.
    pub node: String,
    /// Zone of this node, for zone-aware balancing.
    pub zone: Option<String>,
    /// Worker threads.
    pub workers: usize,
    /// Whether each worker is bound to a core.
    pub pin_workers: bool,
    /// Where the admin server listens; `None` is nowhere.
    pub admin: Option<SocketAddr>,
    /// Longest wait for requests in flight after SIGTERM.
    pub drain_timeout: Duration,
    /// What a client may do.
    pub limits: Limits,
    /// Resident memory in bytes near which load is shed; `None` is no limit. See [`default_max_memory`].
    pub max_memory: Option<u64>,
    /// How late a worker's loop may run before load is shed; `None` is no limit.
    pub latency_budget: Option<Duration>,
    /// Peers whose `x-forwarded-*` headers are believed and extended, as prefixes; others' are replaced.
    pub trusted: Vec<(IpAddr, u8)>,
    /// Where the kernel leads captured connections; listened on only if there is a kernel program.
    pub captured: Vec<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            zone: None,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            pin_workers: true,
            admin: Some(SocketAddr::from(([127, 0, 0, 1], 15000))),
            drain_timeout: Duration::from_secs(30),
            limits: Limits::default(),
            max_memory: None,
            latency_budget: None,
            trusted: Vec::new(),
            captured: vec![
                SocketAddr::from((Ipv4Addr::LOCALHOST, CAPTURED_PORT)),
                SocketAddr::from((Ipv6Addr::LOCALHOST, CAPTURED_PORT)),
            ],
        }
    }
}

impl Options {
    /// Whether `peer` is a proxy whose forwarding headers count.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|(prefix, bits)| contains(prefix.to_canonical(), *bits, peer))
    }
}

/// Whether the first `bits` bits of `address` are those of `prefix`.
pub(crate) fn contains(prefix: IpAddr, bits: u8, address: IpAddr) -> bool {
    match (prefix, address) {
        (IpAddr::V4(prefix), IpAddr::V4(address)) => {
            let shift = 32u32.saturating_sub(u32::from(bits));
            u32::from(prefix).checked_shr(shift) == u32::from(address).checked_shr(shift)
        }
        (IpAddr::V6(prefix), IpAddr::V6(address)) => {
            let shift = 128u32.saturating_sub(u32::from(bits));
            u128::from(prefix).checked_shr(shift) == u128::from(address).checked_shr(shift)
        }
        _ => false,
    }
}

/// Nine tenths of the memory that this process's cgroup (v2) may use; `None` when it has no limit.
pub fn default_max_memory() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = memory_limit(&own, |path| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(path)).ok())?;
    Some(limit / 10 * 9)
}

/// The least `memory.max` of the cgroup named in `/proc/self/cgroup` and those around it. `read` gets paths relative to
/// the file system of cgroups.
fn memory_limit(own: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = |path: &Path| read(&path.join("memory.max"))?.trim().parse::<u64>().ok();
    Path::new(path).ancestors().filter_map(limit).min()
}

/// Limits towards clients.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Request line and header section together, in bytes.
    pub head_bytes: usize,
    /// Header fields.
    pub headers: usize,
    /// Request target, in bytes.
    pub uri_bytes: usize,
    /// Request body, in bytes; `u64::MAX` is unlimited.
    pub body_bytes: u64,
    /// Open client connections per worker; more wait in the kernel's queue.
    pub connections: usize,
    /// From the first byte of a head (or from accept) to its last.
    pub head_timeout: Duration,
    /// TLS handshake.
    pub handshake_timeout: Duration,
    /// A connection on which nothing moves.
    pub idle_timeout: Duration,
    /// Concurrent streams of one HTTP/2 connection.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 60 * 1024,
            headers: 100,
            uri_bytes: 16 * 1024,
            body_bytes: u64::MAX,
            connections: 65_536,
            head_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            streams: 100,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_peers_within_a_trusted_prefix_are_trusted() {
        let trusted =
            vec![("10.0.0.0".parse().unwrap(), 8), ("fd00::".parse().unwrap(), 16), ("1.2.3.4".parse().unwrap(), 32)];
        let options = Options { trusted, ..Options::default() };
        for (peer, expected) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("fd00:1::1", true),
            ("fd01::1", false),
            ("1.2.3.4", true),
            ("1.2.3.5", false),
            ("::ffff:10.1.2.3", true),
        ] {
            assert_eq!(options.trusts(peer.parse().unwrap()), expected, "{peer}");
        }
    }

    #[test]
    fn the_tightest_cgroup_limits_memory() {
        let files = |path: &Path| match path.to_str().unwrap() {
            "a/b/memory.max" => Some("max\n".to_owned()),
            "a/memory.max" => Some("1000\n".to_owned()),
            "memory.max" => Some("2000\n".to_owned()),
            "c/memory.max" => Some("500\n".to_owned()),
            _ => None,
        };
        for (own, limit) in [
            ("0::/a/b\n", Some(1_000)),
            ("1:cpu:/c\n0::/a\n", Some(1_000)),
            ("0::/c", Some(500)),
            ("0::/", Some(2_000)),
            ("4:memory:/a\n", None),
            ("", None),
        ] {
            assert_eq!(memory_limit(own, files), limit, "{own:?}");
        }
        assert_eq!(memory_limit("0::/a", |_| Some("max".into())), None);
    }

    #[test]
    fn a_prefix_of_no_bits_is_everybody() {
        assert!(contains("0.0.0.0".parse().unwrap(), 0, "9.9.9.9".parse().unwrap()));
        assert!(contains("::".parse().unwrap(), 0, "2001:db8::1".parse().unwrap()));
    }
}
