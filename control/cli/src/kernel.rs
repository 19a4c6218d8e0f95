//! Whether and where connections are captured: flags of a node.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::ValueEnum;
use weft_ebpf::agent;

use crate::exit::{Exit, Failure};

/// Flags of the kernel side.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct KernelArgs {
    /// Whether connections to services' addresses are captured in the kernel. `auto` goes on without, with a warning,
    /// when a privilege or a feature is missing; `require` does not start then.
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::Auto)]
    pub ebpf: Mode,
    /// The cgroup2 directory whose processes are captured. Nothing is captured without it.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// End connections that go straight to an endpoint, this long after the endpoint was removed [default: never].
    #[arg(long, value_name = "DURATION", value_parser = super::proxy::time)]
    pub end_stale: Option<Duration>,
    /// Where captured connections arrive; once for IPv4 and once for IPv6, with the same port
    /// [default: 127.0.0.1:15001 and [::1]:15001].
    #[arg(long, value_name = "ADDR")]
    pub captured: Vec<SocketAddr>,
}

/// `--ebpf`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// If it can be had.
    #[default]
    Auto,
    /// No.
    Off,
    /// Or do not start.
    Require,
}

/// What the flags come to.
#[derive(Debug)]
pub struct Wanted {
    /// Without it the node does not start.
    pub required: bool,
    /// How the agent is started.
    pub agent: agent::Options,
}

impl KernelArgs {
    /// What they come to; `None`: nothing is captured.
    ///
    /// # Errors
    /// When they contradict each other.
    pub fn wanted(&self) -> Result<Option<Wanted>, Failure> {
        let usage = |text: &str| Failure::new(Exit::Usage, text);
        let (mut v4, mut v6) = (0, 0);
        for address in &self.captured {
            *(if address.is_ipv4() { &mut v4 } else { &mut v6 }) += 1;
        }
        let ports_differ = self.captured.windows(2).any(|pair| pair[0].port() != pair[1].port());
        if v4 > 1 || v6 > 1 || ports_differ {
            return Err(usage("--captured may be given once for IPv4 and once for IPv6, with the same port"));
        }
        // Programs keep the port while the node restarts, and lead connections to the address: a wildcard is none.
        if self.captured.iter().any(|address| address.port() == 0 || address.ip().is_unspecified()) {
            return Err(usage("--captured: an address of this host and a fixed port, such as 127.0.0.1:15001"));
        }
        let cgroup = match (self.ebpf, &self.cgroup) {
            (Mode::Off, _) => return Ok(None),
            (Mode::Auto, None) => {
                tracing::info!("no --cgroup: nothing is captured, Gateway listeners serve");
                return Ok(None);
            }
            (Mode::Require, None) => {
                return Err(usage("--ebpf require needs --cgroup PATH: the cgroup whose processes are captured"));
            }
            (Mode::Auto | Mode::Require, Some(cgroup)) => cgroup.clone(),
        };
        let agent = agent::Options { cgroup, end_stale: self.end_stale };
        Ok(Some(Wanted { required: self.ebpf == Mode::Require, agent }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let args = |ebpf, cgroup: Option<&str>, captured: &[&str]| KernelArgs {
            ebpf,
            cgroup: cgroup.map(Into::into),
            end_stale: None,
            captured: captured.iter().map(|text| text.parse().unwrap()).collect(),
        };
        assert!(args(Mode::Auto, None, &[]).wanted().unwrap().is_none());
        assert!(args(Mode::Off, Some("/x"), &[]).wanted().unwrap().is_none());
        assert!(!args(Mode::Auto, Some("/x"), &[]).wanted().unwrap().unwrap().required);
        assert!(args(Mode::Require, Some("/x"), &["127.0.0.1:1", "[::1]:1"]).wanted().unwrap().unwrap().required);
        for (mode, cgroup, captured) in [
            (Mode::Require, None, &[][..]),
            (Mode::Auto, Some("/x"), &["127.0.0.1:1", "[::1]:2"]),
            (Mode::Auto, Some("/x"), &["127.0.0.1:1", "127.0.0.2:1"]),
            (Mode::Auto, Some("/x"), &["127.0.0.1:0"]),
            (Mode::Auto, Some("/x"), &["0.0.0.0:15001"]),
        ] {
            assert!(args(mode, cgroup, captured).wanted().is_err(), "{captured:?}");
        }
    }
}
