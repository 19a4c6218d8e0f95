//! What a proxy needs of its host, with or without programs in the kernel.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

use rustix::process::{Resource, getrlimit};
use weft_ebpf::features::{Finding, Level};

/// Where captured connections are led to, unless `--captured` says otherwise.
pub const CAPTURED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15001);

/// A proxy needs two descriptors for each connection.
const DESCRIPTORS: u64 = 16_384;
/// Connections that wait to be accepted.
const BACKLOG: u64 = 1024;

/// Limits of this host and of this process.
pub fn limits() -> Vec<Finding> {
    let backlog = fs::read_to_string("/proc/sys/net/core/somaxconn").ok().and_then(|text| text.trim().parse().ok());
    vec![descriptors(getrlimit(Resource::Nofile).maximum), somaxconn(backlog)]
}

/// `most`: the hard limit, to which Weft raises the soft one; `None`: there is none.
fn descriptors(most: Option<u64>) -> Finding {
    let finding = |found: String| Finding::ok("open files", "every connection takes one, its endpoint another", found);
    match most {
        None => finding("unlimited".into()),
        Some(most) if most >= DESCRIPTORS => finding(format!("up to {most}")),
        Some(most) => finding(format!("at most {most}")).but(
            Level::Warning,
            "raise the hard limit (systemd: LimitNOFILE=1048576, shell: ulimit -Hn)",
            "everything, for fewer connections at once",
        ),
    }
}

fn somaxconn(most: Option<u64>) -> Finding {
    let finding = |found: String| Finding::ok("backlog", "connections that wait to be accepted", found);
    match most {
        None => finding("net.core.somaxconn cannot be read".into()),
        Some(most) if most >= BACKLOG => finding(format!("up to {most} (net.core.somaxconn)")),
        Some(most) => finding(format!("at most {most} (net.core.somaxconn)")).but(
            Level::Warning,
            "sysctl -w net.core.somaxconn=4096",
            "everything; when many connect at once, some wait for a second",
        ),
    }
}

/// Whether the admin server could listen.
pub fn admin_port(admin: SocketAddr) -> Finding {
    port("admin port", admin, "stop what listens there (ss -ltnp tells), or choose another address with --admin")
}

/// Whether captured connections could be accepted.
pub fn captured_port() -> Finding {
    port("captured port", CAPTURED, "stop what listens there (ss -ltnp tells), or choose another one with --captured")
}

fn port(check: &'static str, address: SocketAddr, remedy: &'static str) -> Finding {
    let finding = |found: String| Finding::ok(check, "the node listens there", found);
    match TcpListener::bind(address) {
        Ok(_) => finding(format!("{address} is free")),
        Err(error) => finding(format!("{address}: {error}")).but(Level::Missing, remedy, "nothing that needs the port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_limits_are_warnings() {
        for (finding, level) in [
            (descriptors(None), Level::Ok),
            (descriptors(Some(1_048_576)), Level::Ok),
            (descriptors(Some(4096)), Level::Warning),
            (somaxconn(Some(4096)), Level::Ok),
            (somaxconn(Some(128)), Level::Warning),
            (somaxconn(None), Level::Ok),
        ] {
            assert_eq!(finding.level, level, "{finding:?}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_missing() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(admin_port(address).level, Level::Missing);
        drop(taken);
        assert_eq!(admin_port(address).level, Level::Ok);
    }
}
