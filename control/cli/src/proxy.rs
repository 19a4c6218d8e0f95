//! `weft proxy`: the data plane alone, from files.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use weft_model::duration;
use weft_proxy::options::{Limits, Options};

use crate::{exit::Done, node};

/// Arguments of `weft proxy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files or directories; watched, and taken over as a whole when they change and are valid.
    #[arg(long = "config", value_name = "FILE|DIR", required = true, num_args = 1..)]
    config: Vec<PathBuf>,
    #[command(flatten)]
    node: NodeArgs,
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
}

impl NodeArgs {
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
            trusted: self.trusted,
        }
    }
}

/// Runs the proxy.
pub fn run(args: Args) -> Done {
    node::run(args.node.options(), args.config, || {})
}

fn time(text: &str) -> Result<Duration, String> {
    duration::parse(text).map_err(|error| error.to_string())
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
