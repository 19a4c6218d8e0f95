//! Random worlds, and what should happen in them, said as directly as possible.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fastrand::Rng;
use weft_ebpf_abi::{Decision, Reason, Verdict};
use weft_model::config::*;

use super::fake::{Client, Content, PROXY_NETNS, target};
use crate::maps::{Desired, Live, desired};

/// A configuration and everything around it.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    pub config: Config,
    pub live: Vec<Live>,
    /// cgroups that exist.
    pub cgroups: BTreeMap<String, u64>,
    pub next_id: u64,
}

/// What should happen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expected {
    Pass,
    Deny(Reason),
    Proxy,
    /// To one of these, with this weight.
    Direct(BTreeMap<SocketAddr, u32>),
}

impl Expected {
    pub fn permits(&self, decision: &Decision) -> bool {
        match self {
            Self::Pass => decision.verdict == Verdict::Pass,
            Self::Deny(reason) => decision.verdict == Verdict::Deny && decision.reason == *reason,
            Self::Proxy => decision.verdict == Verdict::Proxy && decision.port == 15001,
            Self::Direct(to) => decision.verdict == Verdict::Direct && to.contains_key(&target(decision)),
        }
    }
}

/// Somebody connects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Query {
    pub process: &'static [&'static str],
    pub dest: IpAddr,
    pub port: u16,
    /// `None`: nobody knows.
    pub from: Option<IpAddr>,
    pub alive: bool,
}

impl Query {
    /// Every process to every port of every address, from everywhere.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for process in PROCESSES {
            for dest in (0..=World::SERVICES).flat_map(vips) {
                for port in PORTS {
                    for from in ADDRESSES {
                        let from = from.parse().ok();
                        all.extend([true, false].map(|alive| Self { process, dest, port, from, alive }));
                    }
                }
            }
        }
        all
    }

    pub fn client<'a>(&self, world: &World, content: &'a Content, depth: u32) -> Client<'a> {
        let netns = if self.from.is_some() { PROXY_NETNS } else { PROXY_NETNS + 1 };
        Client { cgroups: world.process(self.process), netns, alive: self.alive, ..Client::new(content, depth) }
    }

    /// What each slot leads to.
    pub fn outcomes(&self, world: &World, content: &Content, depth: u32) -> Vec<Decision> {
        self.client(world, content, depth).connect_all(self.dest, self.port, self.from)
    }
}

/// The cgroups of workloads; those that a process is in, from the outermost.
pub(crate) const PROCESSES: [&[&str]; 5] = [&[], &["web"], &["web", "web/inner"], &["batch"], &["other"]];
const NAMES: [&str; 3] = ["web", "inner", "batch"];
const SELECTORS: [&str; 3] = ["web", "web/inner", "batch"];
const BLOCKS: [(&str, u8); 9] = [
    ("0.0.0.0", 0),
    ("::", 0),
    ("10.0.0.0", 8),
    ("10.1.0.0", 16),
    ("10.1.2.0", 24),
    ("10.1.2.3", 32),
    ("fd00::", 8),
    ("fd00:1::", 32),
    ("::", 64),
];
/// Addresses from which processes connect, `""` for one that is not known.
pub(crate) const ADDRESSES: [&str; 7] =
    ["", "10.1.2.3", "10.1.2.4", "10.2.0.1", "192.0.2.1", "fd00:1::1", "2001:db8::1"];
pub(crate) const PORTS: [u16; 3] = [80, 81, 6379];

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Addresses of the n-th service.
pub(crate) fn vips(n: usize) -> [IpAddr; 2] {
    [ip(&format!("10.96.0.{}", n + 1)), ip(&format!("fd00:96::{}", n + 1))]
}

fn some<T: Clone>(rng: &mut Rng, of: &[T], percent: u32) -> Vec<T> {
    of.iter().filter(|_| rng.u32(..100) < percent).cloned().collect()
}

impl World {
    pub const SERVICES: usize = 5;

    pub fn new(rng: &mut Rng) -> Self {
        let mut world = Self::default();
        for (i, selector) in ["web", "web/inner", "batch", "other"].iter().enumerate() {
            world.cgroups.insert((*selector).into(), 100 + i as u64);
        }
        world.change(rng, 100);
        world
    }

    /// Each thing changes with this probability.
    pub fn change(&mut self, rng: &mut Rng, percent: u32) {
        for n in 0..Self::SERVICES {
            if rng.u32(..100) < percent {
                self.change_service(rng, n);
            }
        }
        for live in &mut self.live {
            live.usable ^= rng.u32(..400) < percent;
        }
        if rng.u32(..100) < percent {
            self.change_policies(rng);
        }
        if rng.u32(..200) < percent {
            self.config.workloads.clear();
            for i in some(rng, &[0, 1, 2], 80) {
                let account = rng.bool().then(|| if rng.bool() { "one" } else { "two" });
                self.config.workloads.push(Workload {
                    key: Key::new("default", NAMES[i]),
                    cgroup: SELECTORS[i].into(),
                    service_account: account.map(Into::into),
                });
            }
        }
    }

    pub fn key(n: usize) -> Key {
        Key::new(if n == 0 { "payments" } else { "default" }, &format!("s{n}"))
    }

    fn change_service(&mut self, rng: &mut Rng, n: usize) {
        let key = Self::key(n);
        self.config.services.retain(|service| service.key != key);
        if rng.u8(..5) == 0 {
            self.live.retain(|live| live.service != key);
            return;
        }
        let protocols = [AppProtocol::Http, AppProtocol::Grpc, AppProtocol::Tcp, AppProtocol::Tcp];
        let modes = [ServiceMode::Auto, ServiceMode::Direct, ServiceMode::Proxy, ServiceMode::Direct];
        let mut ports = some(rng, &PORTS[..2], 70);
        ports.push(PORTS[2]);
        let service = Service {
            key: key.clone(),
            cluster_ips: some(rng, &vips(n), 70),
            mode: modes[rng.usize(..4)],
            fail_open: rng.bool(),
            ports: ports
                .iter()
                .map(|&port| ServicePort { name: "".into(), port, protocol: protocols[rng.usize(..4)], declared: true })
                .collect(),
            endpoints: vec![],
        };
        self.config.services.push(service.into());
        let mut before: Vec<Live> = self.live.extract_if(.., |live| live.service == key).collect();
        for port in ports {
            for address in
                some(rng, &["127.0.0.1:9001", "127.0.0.2:9001", "127.0.0.1:9002", "[::1]:9001", "[fd00::9]:9"], 50)
            {
                let address: SocketAddr = address.parse().unwrap();
                let kept = before.iter().position(|live| live.address == address && live.port == port);
                // Most endpoints stay what they are.
                if let Some(kept) = kept.filter(|_| rng.u8(..3) > 0) {
                    self.live.push(before.swap_remove(kept));
                    continue;
                }
                self.next_id += 1;
                self.live.push(Live {
                    service: key.clone(),
                    port,
                    id: self.next_id,
                    address,
                    weight: rng.u32(..5),
                    usable: rng.u8(..4) > 0,
                    source: rng.bool().then(|| ip(ADDRESSES[rng.usize(1..ADDRESSES.len())])),
                });
            }
        }
    }

    fn change_policies(&mut self, rng: &mut Rng) {
        let identities = ["one", "two", "three"].map(|account| format!("spiffe://mesh.local/ns/default/sa/{account}"));
        let identities: Vec<Arc<str>> = identities.iter().map(|identity| identity.as_str().into()).collect();
        let names: Vec<Arc<str>> = NAMES.iter().map(|name| (*name).into()).collect();
        let blocks: Vec<(IpAddr, u8)> = BLOCKS.iter().map(|&(text, bits)| (ip(text), bits)).collect();
        let policy = |rng: &mut Rng, n: usize| AccessPolicy {
            key: Key::new("default", &format!("p{n}")),
            services: some(rng, &(0..Self::SERVICES).map(Self::key).collect::<Vec<_>>(), 30),
            action: if rng.bool() { AccessAction::Allow } else { AccessAction::Deny },
            rules: (0..rng.usize(..3))
                .map(|_| AccessRule {
                    from: (0..rng.usize(..3)).map(|_| source(rng, &names, &blocks, &identities)).collect(),
                })
                .collect(),
        };
        fn source(rng: &mut Rng, names: &[Arc<str>], blocks: &[(IpAddr, u8)], identities: &[Arc<str>]) -> AccessSource {
            loop {
                let source = AccessSource {
                    workloads: if rng.bool() { some(rng, names, 40) } else { vec![] },
                    ip_blocks: if rng.bool() { some(rng, blocks, 25) } else { vec![] },
                    identities: if rng.u8(..3) == 0 { some(rng, identities, 40) } else { vec![] },
                };
                if source != AccessSource::default() {
                    return source;
                }
            }
        }
        self.config.access_policies = (0..rng.usize(..4)).map(|n| policy(rng, n)).collect();
    }

    pub fn desired(&self) -> Desired {
        desired(&self.config, &self.live, |path| self.cgroups.get(path).copied())
    }

    /// cgroup ids of one of [`PROCESSES`].
    pub fn process(&self, process: &[&str]) -> Vec<u64> {
        process.iter().map(|path| self.cgroups[*path]).collect()
    }

    pub fn expected(&self, query: &Query) -> Expected {
        let Query { process, dest, port, from, alive } = *query;
        let Some(service) = self.config.services.iter().find(|service| service.cluster_ips.contains(&dest)) else {
            return Expected::Pass;
        };
        let Some(found) = service.ports.iter().find(|found| found.port == port) else {
            return Expected::Deny(Reason::NoPort);
        };
        let anywhere = from.or(self.one_answer(&service.key, process).then(|| ip(ADDRESSES[1])));
        if !self.lets_in(&service.key, process, anywhere) {
            return Expected::Deny(Reason::AccessDenied);
        }
        let direct = match service.mode {
            ServiceMode::Direct => true,
            ServiceMode::Proxy => false,
            ServiceMode::Auto => found.protocol == AppProtocol::Tcp,
        };
        match (direct, alive, service.fail_open) {
            (true, ..) | (_, false, true) => {}
            (_, true, _) => return Expected::Proxy,
            (_, false, false) => return Expected::Deny(Reason::ProxyDown),
        }
        let to = self.picks(&service.key, port, dest.is_ipv4());
        if to.is_empty() { Expected::Deny(Reason::NoEndpoint) } else { Expected::Direct(to) }
    }

    pub fn picks(&self, service: &Key, port: u16, v4: bool) -> BTreeMap<SocketAddr, u32> {
        let all = self.live.iter().filter(|live| live.service == *service && live.port == port && live.weight > 0);
        let all: Vec<&Live> = all.filter(|live| !v4 || live.address.is_ipv4()).collect();
        let usable: Vec<&Live> = all.iter().copied().filter(|live| live.usable).collect();
        let picked = if usable.is_empty() { all } else { usable };
        picked.iter().map(|live| (live.address, live.weight)).collect()
    }

    pub fn workload(&self, process: &[&str]) -> Option<&Workload> {
        process.iter().rev().find_map(|path| self.config.workloads.iter().find(|workload| &*workload.cgroup == *path))
    }

    pub fn lets_in(&self, service: &Key, process: &[&str], from: Option<IpAddr>) -> bool {
        let workload = self.workload(process);
        let matches = |policy: &AccessPolicy, unknown: bool| {
            policy.rules.iter().flat_map(|rule| &rule.from).any(|source| {
                let name = source.workloads.is_empty()
                    || workload.is_some_and(|workload| {
                        workload.key.namespace == policy.key.namespace && source.workloads.contains(&workload.key.name)
                    });
                let identity = workload.and_then(|workload| {
                    let account = workload.service_account.as_ref()?;
                    Some(format!("spiffe://mesh.local/ns/{}/sa/{account}", workload.key.namespace))
                });
                let identity = source.identities.is_empty()
                    || identity.is_some_and(|identity| source.identities.iter().any(|other| **other == *identity));
                let address = source.ip_blocks.is_empty()
                    || match from {
                        Some(from) => source.ip_blocks.iter().any(|block| in_block(from, *block)),
                        None => unknown,
                    };
                name && identity && address
            })
        };
        let policies: Vec<&AccessPolicy> =
            self.config.access_policies.iter().filter(|policy| policy.services.contains(service)).collect();
        let mut allow = policies.iter().filter(|policy| policy.action == AccessAction::Allow).peekable();
        let mut deny = policies.iter().filter(|policy| policy.action == AccessAction::Deny);
        !deny.any(|policy| matches(policy, true))
            && (allow.peek().is_none() || allow.any(|policy| matches(policy, false)))
    }

    /// Whether everybody known by name gets one answer from all addresses; an unknown address does not matter then.
    pub fn one_answer(&self, service: &Key, process: &[&str]) -> bool {
        let mut froms: BTreeSet<IpAddr> = ADDRESSES[1..].iter().map(|text| ip(text)).collect();
        froms.extend(["::1", "11.0.0.1", "10.1.3.1", "fd00:2::1", "0:0:0:1::"].map(ip));
        let answers: BTreeSet<bool> =
            froms.into_iter().map(|from| self.lets_in(service, process, Some(from))).collect();
        answers.len() == 1
    }
}

fn in_block(ip: IpAddr, (block, bits): (IpAddr, u8)) -> bool {
    match (ip, block) {
        (IpAddr::V4(ip), IpAddr::V4(block)) => {
            (ip.to_bits() ^ block.to_bits()).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(block)) => {
            (ip.to_bits() ^ block.to_bits()).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
        }
        _ => false,
    }
}
