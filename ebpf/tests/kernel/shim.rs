//! The kernel's decision against the host's: the same function on the same maps.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as KernelMap, LpmTrie, Map, MapData},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use serde_json::{Value, json};
use weft_ebpf::{cgroup::Cgroup, netns, pins::Pins, programs};
use weft_ebpf_abi::{
    Addr, BlockKey, Decision, Endpoint, Maps, Namespace, Policy, PolicyKey, Request, Settings, Verdict, Vip, VipKey,
    classify,
};

use crate::support::{
    Bed, Child, Closed, Endpoint as Server, now_ns,
    yaml::{access, service, service_with, workload},
};

/// What is in the kernel's maps, read once, and what helpers say of this process.
struct Host {
    settings: Settings,
    vips: HashMap<VipKey, Vip>,
    slots: Vec<u32>,
    endpoints: Vec<Endpoint>,
    workloads: HashMap<u64, u64>,
    policies: HashMap<PolicyKey, Policy>,
    /// The longest prefix first.
    blocks: Vec<(u32, BlockKey, u32)>,
    namespaces: HashMap<u64, Namespace>,
    netns: u64,
    /// From the root down.
    cgroups: Vec<u64>,
    /// Whether the proxy is there.
    alive: bool,
}

fn opened(pins: &Pins, name: &str) -> Map {
    Map::from_map_data(MapData::from_pin(pins.map(name)).unwrap()).unwrap()
}

fn entries<K: Pod + Eq + Hash, V: Pod>(pins: &Pins, name: &str) -> HashMap<K, V> {
    let map: KernelMap<MapData, K, V> = opened(pins, name).try_into().unwrap();
    map.iter().map(Result::unwrap).collect()
}

/// The first places of an array; the test needs no more.
fn places<V: Pod>(pins: &Pins, name: &str) -> Vec<V> {
    let array: Array<MapData, V> = opened(pins, name).try_into().unwrap();
    array.iter().take(1024).map(Result::unwrap).collect()
}

impl Host {
    /// As seen from a cgroup directly below the attach point.
    fn read(pins: &Pins, attach: &Cgroup, cgroup: u64, alive: bool) -> Self {
        let trie: LpmTrie<MapData, BlockKey, u32> = opened(pins, "BLOCKS").try_into().unwrap();
        let entry = |(key, access): (aya::maps::lpm_trie::Key<BlockKey>, u32)| (key.prefix_len(), key.data(), access);
        let mut blocks: Vec<_> = trie.iter().map(|found| entry(found.unwrap())).collect();
        blocks.sort_by_key(|(prefix, ..)| std::cmp::Reverse(*prefix));
        // What is above the attach point does not matter.
        let mut cgroups = vec![0; attach.level as usize];
        cgroups.extend([attach.id, cgroup]);
        Self {
            settings: places(pins, "SETTINGS")[0],
            vips: entries(pins, "VIPS"),
            slots: places(pins, "SLOTS"),
            endpoints: places(pins, "ENDPOINTS"),
            workloads: entries(pins, "WORKLOADS"),
            policies: entries(pins, "POLICY"),
            blocks,
            namespaces: entries(pins, "NAMESPACES"),
            netns: netns::cookie().unwrap(),
            cgroups,
            alive,
        }
    }

    /// What may be decided: endpoints are drawn at random.
    fn decisions(&self, to: VipKey) -> HashSet<(u32, Addr, u32)> {
        let request = Request { dest: to.addr, port: to.port, bound: Addr::NONE };
        let one = |_| {
            let mut decision = Decision::PASS;
            classify(self, &request, &mut decision);
            (decision.verdict as u32, decision.addr, decision.port)
        };
        (0..100).map(one).collect()
    }
}

impl Maps for Host {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn vip(&self, key: &VipKey) -> Option<&Vip> {
        self.vips.get(key)
    }

    fn slot(&self, at: u32) -> Option<u32> {
        self.slots.get(at as usize).copied()
    }

    fn endpoint(&self, at: u32) -> Option<&Endpoint> {
        self.endpoints.get(at as usize)
    }

    fn held_since(&self, _: u32) -> u64 {
        0
    }

    fn workload(&self, cgroup: u64) -> Option<u64> {
        self.workloads.get(&cgroup).copied()
    }

    fn policy(&self, key: &PolicyKey) -> Option<&Policy> {
        self.policies.get(key)
    }

    fn block(&self, key: &BlockKey) -> Option<u32> {
        let bytes = |key: &BlockKey| -> Vec<u8> {
            key.group.into_iter().chain(key.addr.0).flat_map(u32::to_ne_bytes).collect()
        };
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        let wanted = bytes(key);
        let covers = |prefix: u32, of: &BlockKey| {
            let of = bytes(of);
            (0..prefix as usize).all(|at| bit(&of, at) == bit(&wanted, at))
        };
        self.blocks.iter().find(|(prefix, of, _)| covers(*prefix, of)).map(|(.., access)| *access)
    }

    fn namespace(&self, netns: u64) -> Option<&Namespace> {
        self.namespaces.get(&netns)
    }

    fn heartbeat(&self) -> u64 {
        if self.alive { now_ns() - 1_000_000_000 } else { 0 }
    }

    fn cgroup(&self) -> u64 {
        *self.cgroups.last().unwrap()
    }

    fn ancestor(&self, level: u32) -> u64 {
        self.cgroups.get(level as usize).copied().unwrap_or(0)
    }

    fn netns(&self) -> u64 {
        self.netns
    }

    fn listening(&self, _: &Addr, _: u32) -> bool {
        self.alive
    }

    fn now(&self) -> u64 {
        now_ns()
    }

    fn random(&self) -> u32 {
        fastrand::u32(..)
    }
}

/// What the kernel decides for the calling process; the program says how its packet looks.
fn shim(program: &SchedClassifier, to: VipKey) -> (u32, Addr, u32) {
    let mut packet = vec![0; 64];
    let asked = to.addr.0.iter().flat_map(|word| word.to_ne_bytes()).chain(to.port.to_ne_bytes());
    packet.splice(14..34, asked);
    let mut out = vec![0; 64];
    let options = TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ..TestRunOptions::default() };
    let verdict = program.test_run(options).unwrap().return_value;
    let word = |at: usize| u32::from_ne_bytes(out[at..at + 4].try_into().unwrap());
    (verdict, Addr([word(38), word(42), word(46), word(50)]), word(54))
}

fn loaded(pins: &Pins) -> Ebpf {
    let mut ebpf = programs::load(&programs::object().unwrap(), Some(pins)).unwrap();
    let shim: &mut SchedClassifier = ebpf.program_mut("shim").unwrap().try_into().unwrap();
    shim.load().unwrap();
    ebpf
}

fn text() -> String {
    [
        service("direct", &["10.96.0.20", "fd00:96::20"], 80, "Direct"),
        service("closed", &["10.96.0.30", "fd00:96::30"], 80, "Proxy"),
        service_with("open", &["10.96.0.31"], 80, "Proxy", true),
        service("empty", &["10.96.0.40"], 80, "Direct"),
        service("secret", &["10.96.0.50"], 80, "Direct"),
        access("secret", "Allow", "{workloads: [web]}"),
        service("near", &["10.96.0.51"], 80, "Direct"),
        access("near", "Allow", "{ipBlocks: [\"127.0.0.0/8\"]}"),
        service("far", &["10.96.0.52"], 80, "Direct"),
        access("far", "Allow", "{ipBlocks: [\"10.0.0.0/8\"]}"),
        workload("web"),
    ]
    .join("\n---\n")
}

#[test]
fn the_kernel_decides_as_the_host_does() {
    let Some(bed) = Bed::make("the_kernel_decides_as_the_host_does") else { return };
    let servers = ["a", "b", "c"].map(Server::start);
    let closed = Closed::port();
    let services = ["direct", "open", "secret", "near", "far", "direct"];
    let mut live: Vec<Value> = (services.iter().zip(1..).zip(servers.iter().cycle()))
        .map(|((service, id), server)| json!([service, 80, id, server.address.to_string()]))
        .collect();
    live.push(json!(["direct", 80, 99, closed.address.to_string()]));
    let [web, other] = ["web", "other"].map(|name| Cgroup::open(&bed.cgroup.child(name)).unwrap());
    let mut agent = Child::start("agent");
    assert_eq!(agent.ask("start", &json!({ "cgroup": bed.cgroup.path })), json!({}));
    agent.ask("listen", &json!("127.0.0.1:0"));
    agent.ask("update", &json!({ "config": text(), "live": live }));
    agent.ask("attach", &Value::Null);
    agent.ask("mask", &json!({ "id": 99, "masked": true }));
    let (attach, pins) = (bed.cgroup.open(), bed.cgroup.pins());
    let ebpf = loaded(&pins);
    let program: &SchedClassifier = ebpf.program("shim").unwrap().try_into().unwrap();
    let mut seen = HashSet::new();
    for alive in [true, false] {
        if !alive {
            agent.kill();
        }
        for cgroup in [&web, &other] {
            cgroup.enter().unwrap();
            let host = Host::read(&pins, &attach, cgroup.id, alive);
            let mut asked: Vec<VipKey> = host.vips.keys().copied().collect();
            asked.extend(host.vips.keys().map(|key| VipKey { port: key.port + 7, ..*key }));
            asked.extend(host.endpoints[..8].iter().map(|one| VipKey { addr: one.addr, port: one.port }));
            asked.push(VipKey { addr: IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)).into(), port: 80 });
            for to in asked {
                let expected = host.decisions(to);
                for _ in 0..20 {
                    let decided = shim(program, to);
                    assert!(
                        expected.contains(&decided),
                        "alive: {alive}, {to:?}: {decided:?} instead of one of {expected:?}"
                    );
                    seen.insert(decided.0);
                }
            }
        }
    }
    let all = [Verdict::Pass, Verdict::Direct, Verdict::Proxy, Verdict::Deny];
    assert_eq!(seen, all.map(|verdict| verdict as u32).into(), "every verdict was seen");
}
