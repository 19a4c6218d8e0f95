//! The maps as collections: written by the reconciler, read by the real `classify`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
};

use weft_ebpf_abi::{
    Addr, BlockKey, Decision, Endpoint, HEARTBEAT_NS, Maps, Namespace, Policy, PolicyKey, Request, Settings, Vip,
    VipKey, classify,
};

use crate::{
    maps::Block,
    reconcile::{Map, Store, StoreError},
};

/// One write.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Op {
    Vip(VipKey, Option<Vip>),
    Slot(u32, u32),
    Endpoint(u32, Endpoint),
    Hold(u32),
    Stats(u32),
    Workload(u64, Option<u64>),
    Policy(PolicyKey, Option<Policy>),
    Block((u64, u32, u128), Option<u32>),
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Content {
    pub vips: HashMap<VipKey, Vip>,
    pub slots: BTreeMap<u32, u32>,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub hold: HashMap<u32, u64>,
    pub stats: HashMap<u32, u64>,
    pub workloads: HashMap<u64, u64>,
    pub policies: HashMap<PolicyKey, Policy>,
    /// By group, length of the prefix and address.
    pub blocks: HashMap<(u64, u32, u128), u32>,
}

impl Content {
    pub fn perform(&mut self, op: Op) {
        fn put<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => _ = map.insert(key, value),
                None => assert!(map.remove(&key).is_some(), "removed what was not there"),
            }
        }
        match op {
            Op::Vip(key, value) => put(&mut self.vips, key, value),
            Op::Slot(at, value) => _ = self.slots.insert(at, value),
            Op::Endpoint(at, value) => _ = self.endpoints.insert(at, value),
            Op::Hold(at) => _ = self.hold.remove(&at),
            Op::Stats(at) => _ = self.stats.remove(&at),
            Op::Workload(key, value) => put(&mut self.workloads, key, value),
            Op::Policy(key, value) => put(&mut self.policies, key, value),
            Op::Block(key, value) => put(&mut self.blocks, key, value),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Fake {
    pub content: Content,
    /// Every write since it was last taken.
    pub log: Vec<Op>,
    /// Writes until the process dies.
    pub fuel: Option<usize>,
    /// Sizes of maps that are smaller than they really are.
    pub sizes: HashMap<Map, usize>,
}

impl Fake {
    fn write(&mut self, map: Map, op: Op) -> Result<(), StoreError> {
        let content = &self.content;
        let (new, entries) = match op {
            Op::Vip(key, Some(_)) => (!content.vips.contains_key(&key), content.vips.len()),
            Op::Workload(key, Some(_)) => (!content.workloads.contains_key(&key), content.workloads.len()),
            Op::Policy(key, Some(_)) => (!content.policies.contains_key(&key), content.policies.len()),
            Op::Block(key, Some(_)) => (!content.blocks.contains_key(&key), content.blocks.len()),
            _ => (false, 0),
        };
        if new && entries >= self.sizes.get(&map).copied().unwrap_or(map.size() as usize) {
            return Err(StoreError::Full(map));
        }
        if let Some(fuel) = &mut self.fuel {
            if *fuel == 0 {
                return Err(StoreError::Io { map, source: io::Error::other("killed") });
            }
            *fuel -= 1;
        }
        self.log.push(op);
        self.content.perform(op);
        Ok(())
    }

    /// Number of writes since this was last called.
    pub fn writes(&mut self) -> usize {
        std::mem::take(&mut self.log).len()
    }
}

fn block_key(prefix: u32, key: &BlockKey) -> (u64, u32, u128) {
    let group = u64::from(key.group[0]) | u64::from(key.group[1]) << 32;
    let addr = Block::from_key(prefix, key, 0).addr;
    (group, prefix, addr & u128::MAX.checked_shl(BlockKey::BITS - prefix).unwrap_or(0))
}

impl Store for Fake {
    fn vips(&self) -> Result<Vec<(VipKey, Vip)>, StoreError> {
        Ok(self.content.vips.iter().map(|(key, vip)| (*key, *vip)).collect())
    }
    fn set_vip(&mut self, key: &VipKey, vip: &Vip) -> Result<(), StoreError> {
        self.write(Map::Vips, Op::Vip(*key, Some(*vip)))
    }
    fn remove_vip(&mut self, key: &VipKey) -> Result<(), StoreError> {
        self.write(Map::Vips, Op::Vip(*key, None))
    }
    fn slots(&self, at: u32, count: u32) -> Result<Vec<u32>, StoreError> {
        Ok((at..at + count).map(|at| self.content.slots.get(&at).copied().unwrap_or_default()).collect())
    }
    fn set_slots(&mut self, at: u32, places: &[u32]) -> Result<(), StoreError> {
        (at..).zip(places).try_for_each(|(at, place)| self.write(Map::Slots, Op::Slot(at, *place)))
    }
    fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, StoreError> {
        Ok(self.content.endpoints.iter().map(|(at, endpoint)| (*at, *endpoint)).collect())
    }
    fn set_endpoint(&mut self, at: u32, endpoint: &Endpoint) -> Result<(), StoreError> {
        self.write(Map::Endpoints, Op::Endpoint(at, *endpoint))
    }
    fn clear_hold(&mut self, at: u32) -> Result<(), StoreError> {
        self.write(Map::Endpoints, Op::Hold(at))
    }
    fn zero_stats(&mut self, at: u32) -> Result<(), StoreError> {
        self.write(Map::Endpoints, Op::Stats(at))
    }
    fn workloads(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        Ok(self.content.workloads.iter().map(|(cgroup, workload)| (*cgroup, *workload)).collect())
    }
    fn set_workload(&mut self, cgroup: u64, workload: u64) -> Result<(), StoreError> {
        self.write(Map::Workloads, Op::Workload(cgroup, Some(workload)))
    }
    fn remove_workload(&mut self, cgroup: u64) -> Result<(), StoreError> {
        self.write(Map::Workloads, Op::Workload(cgroup, None))
    }
    fn policies(&self) -> Result<Vec<(PolicyKey, Policy)>, StoreError> {
        Ok(self.content.policies.iter().map(|(key, policy)| (*key, *policy)).collect())
    }
    fn set_policy(&mut self, key: &PolicyKey, policy: &Policy) -> Result<(), StoreError> {
        self.write(Map::Policy, Op::Policy(*key, Some(*policy)))
    }
    fn remove_policy(&mut self, key: &PolicyKey) -> Result<(), StoreError> {
        self.write(Map::Policy, Op::Policy(*key, None))
    }
    fn blocks(&self) -> Result<Vec<(u32, BlockKey, u32)>, StoreError> {
        let entries = self.content.blocks.iter();
        let entries = entries
            .map(|(&(group, prefix, addr), &access)| (prefix, Block { prefix, addr, access }.key(group), access));
        Ok(entries.collect())
    }
    fn set_block(&mut self, prefix: u32, key: &BlockKey, access: u32) -> Result<(), StoreError> {
        self.write(Map::Blocks, Op::Block(block_key(prefix, key), Some(access)))
    }
    fn remove_block(&mut self, prefix: u32, key: &BlockKey) -> Result<(), StoreError> {
        self.write(Map::Blocks, Op::Block(block_key(prefix, key), None))
    }
}

/// Where random numbers come from.
pub(crate) enum Random {
    Fixed(u32),
    Seeded(RefCell<fastrand::Rng>),
}

/// A process that connects.
pub(crate) struct Client<'a> {
    pub content: &'a Content,
    pub settings: Settings,
    /// From below the attach point down to its own.
    pub cgroups: Vec<u64>,
    pub netns: u64,
    /// Whether the proxy is.
    pub alive: bool,
    pub random: Random,
}

const NOW: u64 = 1 << 40;

/// The namespace of the proxy.
pub(crate) const PROXY_NETNS: u64 = 1;

impl<'a> Client<'a> {
    pub fn new(content: &'a Content, depth: u32) -> Self {
        let ip = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let settings = Settings {
            proxy_cgroup: u64::MAX,
            proxy_netns: PROXY_NETNS,
            capture4: ip("192.0.2.15"),
            capture6: ip("2001:db8::15"),
            capture_port: 15001,
            level: 2,
            depth,
            follow: 0,
        };
        let random = Random::Seeded(RefCell::new(fastrand::Rng::with_seed(7)));
        Self { content, settings, cgroups: vec![], netns: PROXY_NETNS, alive: true, random }
    }

    pub fn connect(&self, dest: IpAddr, port: u16, bound: Option<IpAddr>) -> Decision {
        let mut decision = Decision::PASS;
        let bound = bound.map_or(Addr::NONE, Addr::from);
        classify(self, &Request { dest: dest.into(), port: port.into(), bound }, &mut decision);
        decision
    }

    /// What each slot of the address's table leads to.
    pub fn connect_all(&mut self, dest: IpAddr, port: u16, bound: Option<IpAddr>) -> Vec<Decision> {
        let slots = self.content.vips.get(&VipKey { addr: dest.into(), port: port.into() }).map_or(0, |vip| vip.slots);
        let decide = |slot: u32| {
            self.random = Random::Fixed((u64::from(slot) << 32).div_ceil(u64::from(slots.max(1))) as u32);
            self.connect(dest, port, bound)
        };
        (0..slots.max(1)).map(decide).collect()
    }
}

/// Where a decision leads to.
pub(crate) fn target(decision: &Decision) -> SocketAddr {
    SocketAddr::new(decision.addr.into(), decision.port as u16)
}

impl Maps for Client<'_> {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }
    fn vip(&self, key: &VipKey) -> Option<&Vip> {
        self.content.vips.get(key)
    }
    fn slot(&self, at: u32) -> Option<u32> {
        Some(self.content.slots.get(&at).copied().unwrap_or_default())
    }
    fn endpoint(&self, at: u32) -> Option<&Endpoint> {
        self.content.endpoints.get(&at)
    }
    fn held_since(&self, at: u32) -> u64 {
        self.content.hold.get(&at).copied().unwrap_or_default()
    }
    fn workload(&self, cgroup: u64) -> Option<u64> {
        self.content.workloads.get(&cgroup).copied()
    }
    fn policy(&self, key: &PolicyKey) -> Option<&Policy> {
        self.content.policies.get(key)
    }
    fn block(&self, key: &BlockKey) -> Option<u32> {
        let prefixes = (BlockKey::GROUP_BITS..=BlockKey::BITS).rev();
        prefixes.map(|prefix| block_key(prefix, key)).find_map(|key| self.content.blocks.get(&key).copied())
    }
    fn namespace(&self, _: u64) -> Option<&Namespace> {
        None
    }
    fn heartbeat(&self) -> u64 {
        if self.alive { NOW } else { NOW - HEARTBEAT_NS - 1 }
    }
    fn cgroup(&self) -> u64 {
        self.cgroups.last().copied().unwrap_or(2)
    }
    fn ancestor(&self, level: u32) -> u64 {
        let below = level.checked_sub(self.settings.level + 1);
        below.and_then(|below| self.cgroups.get(below as usize)).copied().unwrap_or_default()
    }
    fn netns(&self) -> u64 {
        self.netns
    }
    fn listening(&self, _: &Addr, _: u32) -> bool {
        true
    }
    fn now(&self) -> u64 {
        NOW
    }
    fn random(&self) -> u32 {
        match &self.random {
            Random::Fixed(number) => *number,
            Random::Seeded(rng) => rng.borrow_mut().u32(..),
        }
    }
}
