//! `weft proxy`: the data plane alone, from files or from a control plane.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use weft_model::{duration, written::ByteSize};
use weft_proxy::options::{Limits, Options, default_max_memory};

use crate::{
    exit::{Done, Exit, Failure},
    kernel::KernelArgs,
    node,
    source::Origin,
};

/// Arguments of `weft proxy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    from: From,
    /// Where what was accepted last from the control plane is kept: the node starts with it while no member answers
    /// [default: $XDG_STATE_HOME/weft/NODE or ~/.local/state/weft/NODE; for root /var/lib/weft/NODE].
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Where the configuration comes from.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct From {
    /// Files or directories; watched, and taken over as a whole when they change and are valid.
    #[arg(long = "config", value_name = "FILE|DIR", num_args = 1..)]
    config: Vec<PathBuf>,
    /// Members of a control plane; may be repeated: when one does not answer, the next is asked.
    #[arg(long = "control", value_name = "HOST:PORT", num_args = 1.., value_parser = member)]
    control: Vec<String>,
}

/// How a node runs.
#[derive(Debug, clap::Args)]
pub struct NodeArgs {
    /// Name of this node in telemetry [default: the host's name].
    #[arg(long)]
    node: Option<String>,
    /// Zone of this node; endpoints in the same zone are preferred.
    #[arg(long)]
    zone: Option<String>,
    /// Worker threads, each bound to a core [default: cores].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Leave it to the kernel on which core a worker runs.
    #[arg(long)]
    no_pin: bool,
    /// Where the admin server listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Longest wait for requests in flight after SIGTERM.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = time)]
    drain_timeout: Duration,
    /// Believe and extend x-forwarded-* of peers in this prefix; those of others are replaced. May be repeated.
    #[arg(long = "trust-forwarded", value_name = "CIDR", value_parser = prefix)]
    trusted: Vec<(IpAddr, u8)>,
    /// Largest request head in bytes; more gets 431.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().head_bytes)]
    max_header_bytes: usize,
    /// Most header fields of a request; more get 431.
    #[arg(long, value_name = "N", default_value_t = Limits::default().headers)]
    max_headers: usize,
    /// Longest request target in bytes; more gets 414.
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().uri_bytes)]
    max_uri_bytes: usize,
    /// Largest request body in bytes; more gets 413 [default: unlimited].
    #[arg(long, value_name = "BYTES")]
    max_body_bytes: Option<u64>,
    /// Most client connections per worker; more wait in the kernel's queue.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// From the first byte of a request's head to its last; more gets 408.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = time)]
    header_timeout: Duration,
    /// After this time without a byte a client's connection is closed.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = time)]
    idle_timeout: Duration,
    /// Memory near which requests are refused, the least urgent first: 2GiB, 512MiB, a number of bytes, or off
    /// [default: 90 % of the cgroup's memory.max, if it has one].
    #[arg(long, value_name = "BYTES", value_parser = memory)]
    max_memory: Option<Memory>,
    /// How late a worker may run before requests are refused, the least urgent first [default: off].
    #[arg(long, value_name = "DURATION", value_parser = budget)]
    latency_budget: Option<Duration>,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// Value of `--max-memory`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Memory {
    Off,
    Bytes(u64),
}

impl NodeArgs {
    /// What is said of the kernel side.
    pub const fn kernel(&self) -> &KernelArgs {
        &self.kernel
    }

    /// The options they mean.
    pub fn options(self) -> Options {
        let default = Options::default();
        Options {
            node: self.node.unwrap_or(default.node),
            zone: self.zone,
            workers: self.workers.map_or(default.workers, usize::from),
            pin_workers: !self.no_pin,
            admin: Some(self.admin),
            drain_timeout: self.drain_timeout,
            limits: Limits {
                head_bytes: self.max_header_bytes,
                headers: self.max_headers,
                uri_bytes: self.max_uri_bytes,
                body_bytes: self.max_body_bytes.unwrap_or(u64::MAX),
                connections: self.max_connections,
                head_timeout: self.header_timeout,
                idle_timeout: self.idle_timeout,
                ..default.limits
            },
            max_memory: match self.max_memory {
                Some(Memory::Bytes(bytes)) => Some(bytes),
                Some(Memory::Off) => None,
                None => default_max_memory(),
            },
            latency_budget: self.latency_budget,
            trusted: self.trusted,
            captured: if self.kernel.captured.is_empty() { default.captured } else { self.kernel.captured },
        }
    }
}

/// Runs the proxy.
pub fn run(args: Args) -> Done {
    let Args { from: From { config, control }, cache, node } = args;
    let kernel = node.kernel().wanted()?;
    let options = node.options();
    if control.is_empty() {
        return node::run(options, kernel, Origin::Files(config), |_| {});
    }
    let cache = match cache.or_else(|| state_dir(&options.node)) {
        Some(cache) => cache,
        None => {
            return Err(Failure::new(Exit::Usage, "there is no home directory to keep the cache in: add --cache DIR"));
        }
    };
    node::run(options, kernel, Origin::Control { members: control, cache }, |_| {})
}

/// Where state of this name is kept, unless somebody says otherwise.
pub fn state_dir(name: &str) -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = || rustix::process::geteuid().is_root().then(|| PathBuf::from("/var/lib"));
    let state = path("XDG_STATE_HOME").or_else(root).or_else(|| Some(path("HOME")?.join(".local/state")))?;
    Some(state.join("weft").join(file_name(name)))
}

/// A name that is no path.
fn file_name(node: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = node.chars().map(plain).collect();
    if name.starts_with('.') || name.is_empty() { format!("_{name}") } else { name }
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
}

/// `HOST:PORT`
pub(crate) fn member(text: &str) -> Result<String, String> {
    let expected = "expected HOST:PORT, like 10.0.0.1:15010 or control.example:15010";
    let authority: http::uri::Authority = text.parse().map_err(|_| expected)?;
    let plain =
        authority.port_u16().is_some_and(|port| port > 0) && !authority.host().is_empty() && !text.contains('@');
    if plain { Ok(text.to_owned()) } else { Err(expected.into()) }
}

fn budget(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("every worker runs later than 0s; leave it out to switch it off".into()),
        budget => Ok(budget),
    }
}

fn memory(text: &str) -> Result<Memory, String> {
    if text == "off" {
        return Ok(Memory::Off);
    }
    match ByteSize::Text(text.into()).bytes() {
        Some(bytes) if bytes > 0 => Ok(Memory::Bytes(bytes)),
        _ => Err("expected a size such as 2GiB, 512MiB or 1073741824, or off".into()),
    }
}

fn prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: IpAddr = address.parse().map_err(|_| "expected an address with a prefix length, like 10.0.0.0/8")?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let bits = if bits.is_empty() { Ok(longest) } else { bits.parse() };
    match bits {
        Ok(bits) if bits <= longest => Ok((address, bits)),
        _ => Err(format!("the prefix length of {address} is from 0 to {longest}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_has_a_host_and_a_port() {
        for (text, good) in [
            ("127.0.0.1:15010", true),
            ("[::1]:15010", true),
            ("control.example:15010", true),
            ("127.0.0.1", false),
            ("127.0.0.1:0", false),
            (":15010", false),
            ("a@b:1", false),
            ("http://127.0.0.1:15010", false),
            ("", false),
        ] {
            assert_eq!(member(text).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn the_cache_of_a_node_has_a_name_of_its_own() {
        for (node, expected) in [("node-1.example", "node-1.example"), ("a/../b", "a_.._b"), ("..", "_.."), ("", "_")] {
            assert_eq!(file_name(node), expected);
        }
    }

    #[test]
    fn memory_is_a_size_or_off() {
        for (text, expected) in [
            ("2GiB", Some(Memory::Bytes(2 << 30))),
            ("512MiB", Some(Memory::Bytes(512 << 20))),
            ("1000", Some(Memory::Bytes(1_000))),
            ("off", Some(Memory::Off)),
            ("0", None),
            ("2 GiB", None),
            ("much", None),
            ("", None),
        ] {
            assert_eq!(memory(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_budget_is_some_time() {
        assert_eq!(budget("20ms"), Ok(Duration::from_millis(20)));
        assert!(budget("0s").is_err() && budget("20").is_err());
    }
}
