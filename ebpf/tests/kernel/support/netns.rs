//! Network namespaces of tests.

use std::process::{Command, Output};

/// A network namespace; it goes with its interfaces. Whoever runs in it should have been ended before.
pub struct Netns {
    pub name: String,
}

impl Netns {
    /// With loopback up. `None`, said loudly, when there is no `ip`, or it may not.
    pub fn make(test: &str, name: &str) -> Option<Self> {
        let name = format!("weft-{}-{name}", std::process::id());
        match Command::new("ip").args(["netns", "add", &name]).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                super::skip(test, &String::from_utf8_lossy(&output.stderr));
                return None;
            }
            Err(error) => {
                super::skip(test, &format!("ip: {error}"));
                return None;
            }
        }
        let netns = Self { name };
        netns.run("ip link set lo up");
        Some(netns)
    }

    /// Runs a command in it, which must succeed.
    pub fn run(&self, command: &str) -> String {
        let output = self.try_run(command).unwrap();
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn try_run(&self, command: &str) -> std::io::Result<Output> {
        self.enter().args(["sh", "-c", command]).output()
    }

    /// From now on arriving packets of this kind are lost. `false`, said loudly, when there is no `nft`.
    pub fn lose(&self, test: &str, what: &str) -> bool {
        let table = "nft add table inet weft && nft add chain inet weft c '{ type filter hook input priority 0; }'";
        if !self.try_run("nft --version").is_ok_and(|output| output.status.success()) {
            super::skip(test, "there is no nft");
            return false;
        }
        self.run(&format!("{table} && nft add rule inet weft c '{what} drop'"));
        true
    }

    /// Nothing is lost any more.
    pub fn heal(&self) {
        self.run("nft delete table inet weft");
    }

    /// The start of a command in it. Not `ip netns exec`, which hides the cgroups.
    pub fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name));
        command
    }

    /// A cable to another one, its ends named `device`, with these addresses (`10.0.0.1/24`).
    pub fn cable(&self, to: &Self, device: &str, own: &str, other: &str) {
        self.run(&format!("ip link add {device} type veth peer name {device} netns {}", to.name));
        for (netns, address) in [(self, own), (to, other)] {
            netns.run(&format!("ip address add {address} dev {device} && ip link set {device} up"));
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}
