//! Configurations of any size for an agent in this process, and what its maps weigh.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weft_ebpf::agent::{Agent, Listeners, Options};
use weft_ebpf::maps::Live;
use weft_model::Config;
use weft_model::config::{
    AccessAction, AccessPolicy, AccessRule, AccessSource, AppProtocol, Key, Service, ServiceMode, ServicePort, Workload,
};

use super::client::Range;
use super::profile::field;
use super::stage::Stage;

const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 0);
const PORT: u16 = 80;

/// How many of each.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Services with one endpoint each, DIRECT; a power of two of them is asked for.
    pub direct: u32,
    /// Services without endpoints, PROXY.
    pub proxied: u32,
}

impl Size {
    /// 10 services.
    pub const SMALL: Self = Self { direct: 8, proxied: 1 };
    /// 64,000 services, 16,000 endpoints.
    pub const LARGE: Self = Self { direct: 16_000, proxied: 47_999 };

    /// All services, with the one that denies.
    pub fn services(self) -> u32 {
        self.direct + self.proxied + 1
    }

    /// Services that answer DIRECT, many if there are.
    pub fn direct(self) -> Range {
        Range { base: NETWORK, spread: mask(self.direct), port: PORT }
    }

    /// Services that answer PROXY.
    pub fn proxied(self) -> Range {
        // Bits that are set at random must not be set in the first one.
        let first = self.direct.next_power_of_two();
        let spread = mask((self.direct + self.proxied).saturating_sub(first)).min(first - 1);
        Range { base: number(first.min(self.direct + self.proxied - 1)), spread, port: PORT }
    }

    /// The service that nobody may connect to.
    pub fn denied(self) -> Range {
        Range { base: number(self.services() - 1), spread: 0, port: PORT }
    }

    fn config(self, endpoint: SocketAddr) -> (Config, Vec<Live>) {
        let mut config = Config::default();
        let mut live = Vec::new();
        for index in 0..self.services() {
            let key = Key::new("default", &format!("service-{index}"));
            let direct = index < self.direct;
            let protocol = if direct { AppProtocol::Tcp } else { AppProtocol::Http };
            if direct {
                live.push(Live {
                    service: key.clone(),
                    port: PORT,
                    id: u64::from(index),
                    address: endpoint,
                    weight: 1,
                    usable: true,
                    source: None,
                });
            }
            config.services.push(Arc::new(Service {
                key,
                cluster_ips: vec![number(index).into()],
                mode: ServiceMode::Auto,
                fail_open: false,
                ports: vec![ServicePort { name: "main".into(), port: PORT, protocol, declared: true }],
                endpoints: Vec::new(),
            }));
        }
        let denied = config.services.last().map(|service| service.key.clone());
        config.access_policies.push(AccessPolicy {
            key: Key::new("default", "nobody"),
            services: denied.into_iter().collect(),
            action: AccessAction::Allow,
            rules: vec![AccessRule {
                from: vec![AccessSource { workloads: vec!["nobody".into()], ..AccessSource::default() }],
            }],
        });
        config.workloads.push(Workload {
            key: Key::new("default", "app"),
            cgroup: "app".into(),
            service_account: None,
        });
        (config, live)
    }
}

fn number(index: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(NETWORK.to_bits() + index)
}

/// All bits below the highest one of `count`.
fn mask(count: u32) -> u32 {
    count.checked_ilog2().map_or(0, |bits| (1 << bits) - 1)
}

/// An agent in this process with its maps filled.
pub struct Filled {
    agent: Agent,
    /// How long the maps took to fill.
    pub first: Duration,
    /// The same configuration once more.
    pub same: Duration,
    /// With one endpoint elsewhere.
    pub one: Duration,
    /// Bytes of all its maps, as the kernel counts them.
    pub memory: u64,
}

impl Filled {
    /// Attaches the programs. DIRECT goes to `endpoint`, PROXY to `captured`.
    pub fn start(stage: &Stage, size: Size, endpoint: SocketAddr, captured: SocketAddr) -> Result<Self> {
        let before = maps()?;
        let agent = Agent::start(&Options { cgroup: stage.mesh.clone(), end_stale: None })?;
        agent.captured(&[captured])?;
        let (config, mut live) = size.config(endpoint);
        let config = Arc::new(config);
        let update = |live: &Vec<Live>| -> Result<Duration> {
            let live = live.clone();
            let start = Instant::now();
            agent.update(config.clone(), live)?;
            Ok(start.elapsed())
        };
        let first = update(&live)?;
        let same = update(&live)?;
        let last = live.last_mut().context("no endpoint")?;
        last.weight = 2;
        last.address.set_ip(Ipv4Addr::new(127, 0, 0, 2).into());
        let one = update(&live)?;
        live.iter_mut().for_each(|live| live.address = endpoint);
        update(&live)?;
        let known: HashSet<u64> = before.iter().map(|(id, _)| *id).collect();
        let memory = maps()?.iter().filter(|(id, _)| !known.contains(id)).map(|(_, bytes)| bytes).sum();
        agent.attach(Arc::new(Nowhere))?;
        Ok(Self { agent, first, same, one, memory })
    }

    /// Ends the agent; the last one that was started has to be the first to end.
    pub fn stop(self) {
        self.agent.stop();
    }
}

/// Maps that this process has open: number and bytes.
fn maps() -> Result<HashSet<(u64, u64)>> {
    let mut found = HashSet::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo")?.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        if let (Some(id), Some(bytes)) = (field(&text, "map_id"), field(&text, "memlock")) {
            found.insert((id, bytes));
        }
    }
    Ok(found)
}

/// Nothing is proxied here.
struct Nowhere;

impl Listeners for Nowhere {
    fn listen(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    fn leave(&self, _: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_their_services() {
        for size in [Size::SMALL, Size::LARGE] {
            let index = |range: Range| range.base.to_bits() - NETWORK.to_bits();
            let (direct, proxied) = (size.direct(), size.proxied());
            assert!(index(direct) + direct.spread < size.direct);
            assert_eq!(index(direct) & direct.spread, 0);
            assert!(index(proxied) >= size.direct, "{proxied:?}");
            assert!(index(proxied) + proxied.spread < size.direct + size.proxied, "{proxied:?}");
            assert_eq!(index(proxied) & proxied.spread, 0, "{proxied:?}");
            assert_eq!(index(size.denied()), size.services() - 1);
        }
        assert_eq!(Size::LARGE.direct().spread, 8191);
        assert_eq!(Size::SMALL.services(), 10);
        assert_eq!(Size::LARGE.services(), 64_000);
    }
}
