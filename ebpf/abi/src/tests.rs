//! Tables: every verdict and its reason.

extern crate std;

mod model;

use core::{cell::RefCell, net::IpAddr};
use std::{
    collections::{HashMap, HashSet},
    vec,
    vec::Vec,
};

use crate::*;

const NOW: u64 = 1 << 40;
const OWN: u64 = 7;
const NETNS: u64 = 1;
const LEVEL: u32 = 2;

/// Everything that a decision can ask for.
struct World {
    settings: Option<Settings>,
    vips: HashMap<VipKey, Vip>,
    slots: Vec<u32>,
    endpoints: Vec<Endpoint>,
    held: HashMap<u32, u64>,
    workloads: HashMap<u64, u64>,
    policies: HashMap<PolicyKey, Policy>,
    /// Group, address, bits of it that count, access.
    blocks: Vec<(u64, IpAddr, u32, u32)>,
    namespaces: HashMap<u64, Namespace>,
    heartbeat: u64,
    /// From the root down to that of the process.
    cgroups: Vec<u64>,
    netns: u64,
    listening: HashSet<(Addr, u32)>,
    random: RefCell<fastrand::Rng>,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addr(text: &str) -> Addr {
    ip(text).into()
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl Maps for World {
    fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
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
    fn held_since(&self, at: u32) -> u64 {
        self.held.get(&at).copied().unwrap_or_default()
    }
    fn workload(&self, cgroup: u64) -> Option<u64> {
        self.workloads.get(&cgroup).copied()
    }
    fn policy(&self, key: &PolicyKey) -> Option<&Policy> {
        self.policies.get(key)
    }
    fn block(&self, key: &BlockKey) -> Option<u32> {
        let group = u64::from(key.group[0]) | u64::from(key.group[1]) << 32;
        let asked = bits(key.addr.into());
        let matching = self.blocks.iter().filter(|&&(of, block, length, _)| {
            of == group && (asked ^ bits(block)).checked_shr(128 - length).unwrap_or(0) == 0
        });
        matching.max_by_key(|(_, _, length, _)| *length).map(|(.., access)| *access)
    }
    fn namespace(&self, netns: u64) -> Option<&Namespace> {
        self.namespaces.get(&netns)
    }
    fn heartbeat(&self) -> u64 {
        self.heartbeat
    }
    fn cgroup(&self) -> u64 {
        *self.cgroups.last().unwrap()
    }
    fn ancestor(&self, level: u32) -> u64 {
        self.cgroups.get(level as usize).copied().unwrap_or_default()
    }
    fn netns(&self) -> u64 {
        self.netns
    }
    fn listening(&self, addr: &Addr, port: u32) -> bool {
        self.listening.contains(&(*addr, port))
    }
    fn now(&self) -> u64 {
        NOW
    }
    fn random(&self) -> u32 {
        self.random.borrow_mut().u32(..)
    }
}

/// `direct` 10.96.0.1:80 with endpoints 0 and 1, `proxied` 10.96.0.2 and fd00::2, port 80, with endpoint 2.
fn world() -> World {
    let mut world = World {
        settings: Some(Settings {
            proxy_cgroup: OWN,
            proxy_netns: NETNS,
            capture4: addr("127.0.0.1"),
            capture6: addr("::1"),
            capture_port: 15001,
            level: LEVEL,
            depth: 3,
            follow: 0,
        }),
        vips: HashMap::new(),
        slots: vec![0, 1, 2],
        endpoints: Vec::new(),
        held: HashMap::new(),
        workloads: HashMap::from([(20, 200), (21, 210)]),
        policies: HashMap::new(),
        blocks: Vec::new(),
        namespaces: HashMap::new(),
        heartbeat: NOW,
        cgroups: vec![1, 2, 3],
        netns: NETNS,
        listening: HashSet::from([(addr("127.0.0.1"), 15001), (addr("::1"), 15001)]),
        random: RefCell::new(fastrand::Rng::with_seed(1)),
    };
    for (service, address, port) in [(1, "127.0.0.1", 9001), (1, "127.0.0.2", 9002), (2, "127.0.0.3", 9003)] {
        world.endpoints.push(Endpoint {
            service,
            addr: addr(address),
            source: addr("127.0.0.1"),
            port,
            generation: service as u32 * 10,
            ..Endpoint::default()
        });
    }
    let table = |base, slots| Vip { base, slots, list: base, listed: slots, ..Vip::default() };
    for (service, action, address, table) in [
        (1, Action::Direct, "10.96.0.1", table(0, 2)),
        (2, Action::Proxy, "10.96.0.2", table(2, 1)),
        (2, Action::Proxy, "fd00::2", table(2, 1)),
    ] {
        world.vips.insert(VipKey { addr: addr(address), port: 80 }, Vip { service, action: action as u8, ..table });
        world.vips.insert(VipKey { addr: addr(address), port: 0 }, Vip { service: service + 100, ..Vip::default() });
    }
    world
}

impl World {
    fn connect_from(&self, dest: &str, port: u32, bound: Addr) -> Decision {
        let mut decision = Decision::PASS;
        classify(self, &Request { dest: addr(dest), port, bound }, &mut decision);
        decision
    }

    fn connect(&self, dest: &str, port: u32) -> Decision {
        self.connect_from(dest, port, Addr::NONE)
    }

    fn why(&self, dest: &str) -> (Verdict, Reason) {
        let decision = self.connect(dest, 80);
        (decision.verdict, decision.reason)
    }

    fn entry(&mut self, dest: &str) -> &mut Vip {
        self.vips.get_mut(&VipKey { addr: addr(dest), port: 80 }).unwrap()
    }

    fn protect(&mut self, workload: u64, access: u32, unknown: u32) {
        self.entry("10.96.0.1").flags |= flag::POLICY;
        self.policies.insert(PolicyKey { service: 1, workload }, Policy { access, unknown, group: 5 });
    }
}

const DIRECT: &str = "10.96.0.1";
const PROXIED: &str = "10.96.0.2";

#[test]
fn every_verdict() {
    let mut w = world();
    assert_eq!(w.why("192.0.2.1"), (Verdict::Pass, Reason::NotAService));
    let direct = w.connect(DIRECT, 80);
    assert_eq!((direct.verdict, direct.reason, direct.service), (Verdict::Direct, Reason::Service, 1));
    assert_eq!((direct.addr, direct.generation), (w.endpoints[direct.endpoint as usize].addr, 10));
    let proxied = w.connect(PROXIED, 80);
    assert_eq!((proxied.verdict, proxied.reason, proxied.service), (Verdict::Proxy, Reason::Service, 2));
    assert_eq!((proxied.addr, proxied.port, proxied.endpoint), (addr("127.0.0.1"), 15001, Meta::NO_ENDPOINT));
    assert_eq!(w.connect("fd00::2", 80).addr, addr("::1"));
    let refused = w.connect(DIRECT, 81);
    assert_eq!((refused.verdict, refused.reason, refused.service), (Verdict::Deny, Reason::NoPort, 101));
    w.entry(DIRECT).slots = 0;
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::NoEndpoint));
    w.cgroups.push(OWN);
    assert_eq!(w.why(DIRECT), (Verdict::Pass, Reason::OwnConnection));
    w.cgroups.push(8);
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::NoEndpoint), "only the proxy's own cgroup, none below");
    w.settings = None;
    assert_eq!(w.why(DIRECT), (Verdict::Pass, Reason::NotAService));
}

#[test]
fn deciding_twice_changes_nothing() {
    let w = world();
    for dest in [DIRECT, PROXIED, "fd00::2"] {
        let decision = w.connect(dest, 80);
        let mut again = Decision::PASS;
        classify(&w, &Request { dest: decision.addr, port: decision.port, bound: Addr::NONE }, &mut again);
        assert_eq!(again, Decision::PASS);
    }
}

#[test]
fn v4_mapped_is_ipv4() {
    let w = world();
    assert_eq!(addr("::ffff:10.96.0.1"), addr(DIRECT));
    assert_eq!(w.connect("::ffff:10.96.0.1", 80).verdict, Verdict::Direct);
    assert_eq!(w.connect("::ffff:10.96.0.2", 80).addr, addr("127.0.0.1"));
    assert_eq!(ip("::ffff:10.96.0.1").to_canonical(), IpAddr::from(addr(DIRECT)));
    for (text, v4, unspecified, loopback) in [
        ("0.0.0.0", true, true, false),
        ("::", false, true, false),
        ("::ffff:0.0.0.0", true, true, false),
        ("127.8.9.1", true, false, true),
        ("::1", false, false, true),
        ("::7f00:1", false, false, false),
        ("10.0.0.1", true, false, false),
        ("fd00::1", false, false, false),
    ] {
        let addr = addr(text);
        let found = (addr.is_v4(), addr.is_unspecified(), addr.is_loopback());
        assert_eq!(found, (v4, unspecified, loopback), "{text}");
        assert_eq!(IpAddr::from(addr), ip(text).to_canonical());
    }
}

#[test]
fn a_proxy_that_is_down() {
    type Change = fn(&mut World);
    let stale: Change = |w| w.heartbeat = NOW - HEARTBEAT_NS - 1;
    let never: Change = |w| w.heartbeat = 0;
    let gone: Change = |w| w.listening.clear();
    let nowhere: Change = |w| w.settings.as_mut().unwrap().capture4 = Addr::NONE;
    let elsewhere: Change = |w| w.netns = NETNS + 1;
    for (change, reason) in [
        (stale, Reason::ProxyDown),
        (never, Reason::ProxyDown),
        (gone, Reason::ProxyDown),
        (nowhere, Reason::ProxyDown),
        (elsewhere, Reason::OtherNamespace),
    ] {
        let mut w = world();
        change(&mut w);
        assert_eq!(w.why(PROXIED), (Verdict::Deny, reason));
        assert_eq!(w.why(DIRECT), (Verdict::Direct, Reason::Service), "needs no proxy");
        w.entry(PROXIED).flags |= flag::FAIL_OPEN;
        let decision = w.connect(PROXIED, 80);
        assert_eq!((decision.verdict, decision.reason), (Verdict::Direct, Reason::FailOpen));
        assert_eq!((decision.addr, decision.port, decision.endpoint), (addr("127.0.0.3"), 9003, 2));
        w.entry(PROXIED).slots = 0;
        assert_eq!(w.why(PROXIED), (Verdict::Deny, Reason::NoEndpoint));
    }
    let mut w = world();
    w.heartbeat = NOW - HEARTBEAT_NS;
    assert_eq!(w.why(PROXIED), (Verdict::Proxy, Reason::Service));
    // In a namespace where the proxy listens too, as long as it does.
    w.netns += 1;
    w.namespaces.insert(w.netns, Namespace { captured: 1, ..Namespace::default() });
    assert_eq!(w.why(PROXIED), (Verdict::Proxy, Reason::Service));
    let listening = std::mem::take(&mut w.listening);
    assert_eq!(w.why(PROXIED), (Verdict::Deny, Reason::ProxyDown));
    w.listening = listening;
    w.netns -= 1;
    // An address that all namespaces reach is not looked up in theirs.
    w.netns += 1;
    w.settings.as_mut().unwrap().capture4 = addr("192.0.2.15");
    assert_eq!(w.why(PROXIED), (Verdict::Proxy, Reason::Service));
}

#[test]
fn the_closest_workload_counts() {
    let mut w = world();
    for (cgroups, depth, workload) in [
        (vec![1, 2, 3], 3, 0),
        (vec![1, 2, 3, 20], 3, 200),
        (vec![1, 2, 3, 20, 21], 3, 210),
        (vec![1, 2, 3, 21, 20], 3, 200),
        (vec![1, 2, 3, 20, 99], 3, 200),
        (vec![1, 2, 3, 20, 99, 21, 98], 3, 210),
        (vec![1, 2, 3, 20, 99, 97, 21], 3, 200),
        (vec![1, 2, 3, 20, 21], 1, 200),
        (vec![1, 2, 3, 20], 0, 0),
        // The attach point and what is above it are nobody's.
        (vec![1, 20, 21], 3, 0),
        (vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 21], 100, 210),
        (vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 21], 100, 0),
    ] {
        w.cgroups = cgroups;
        w.settings.as_mut().unwrap().depth = depth;
        assert_eq!(w.connect(DIRECT, 80).workload, workload, "{:?}", w.cgroups);
    }
}

#[test]
fn policies() {
    let mut w = world();
    w.entry(DIRECT).flags |= flag::POLICY;
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::AccessDenied), "closed while there is none");
    w.protect(0, access::DENY, 0);
    w.protect(200, access::ALLOW, 0);
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::AccessDenied));
    w.cgroups.push(20);
    assert_eq!(w.why(DIRECT).0, Verdict::Direct);
    w.cgroups.push(21);
    assert_eq!(w.why(DIRECT).1, Reason::AccessDenied, "a workload without an entry is everybody");
    assert_eq!(w.why(PROXIED).0, Verdict::Proxy, "not protected");
}

#[test]
fn policies_by_address() {
    let mut w = world();
    w.protect(0, access::BY_ADDRESS, access::DENY);
    w.blocks = vec![
        (5, ip("::"), 0, access::DENY),
        (5, ip("10.0.0.0"), 96 + 8, access::ALLOW),
        (5, ip("10.1.0.0"), 96 + 16, access::DENY),
        (5, ip("fd00::"), 8, access::ALLOW),
        (6, ip("::"), 0, access::ALLOW),
    ];
    for (from, let_in) in
        [("10.2.0.1", true), ("10.1.0.1", false), ("192.0.2.1", false), ("fd00::1", true), ("2001:db8::1", false)]
    {
        let expected = if let_in { Verdict::Direct } else { Verdict::Deny };
        assert_eq!(w.connect_from(DIRECT, 80, addr(from)).verdict, expected, "bound to {from}");
        w.endpoints.iter_mut().for_each(|endpoint| endpoint.source = addr(from));
        assert_eq!(w.why(DIRECT).0, expected, "in the proxy's namespace, to an endpoint");
        w.netns = NETNS + 1;
        assert_eq!(w.why(DIRECT).0, Verdict::Deny, "unknown");
        w.namespaces.insert(NETNS + 1, Namespace { source4: addr(from), ..Namespace::default() });
        assert_eq!(w.why(DIRECT).0, expected, "in a namespace that was asked");
        w.namespaces.insert(NETNS + 1, Namespace { source6: addr(from), ..Namespace::default() });
        assert_eq!(w.why(DIRECT).0, Verdict::Deny, "that of the other family does not count");
        w.namespaces.clear();
        w.netns = NETNS;
    }
    w.endpoints.iter_mut().for_each(|endpoint| endpoint.source = Addr::NONE);
    w.protect(0, access::BY_ADDRESS, access::ALLOW);
    assert_eq!(w.why(DIRECT).0, Verdict::Direct, "unknown, and that is fine");
    w.blocks.clear();
    assert_eq!(
        w.connect_from(DIRECT, 80, addr("10.2.0.1")).verdict,
        Verdict::Deny,
        "a group without entries is closed"
    );
    // Before the errno of an endpoint that is missing comes that of the policy.
    w.protect(0, access::DENY, 0);
    w.entry(DIRECT).slots = 0;
    assert_eq!(w.why(DIRECT).1, Reason::AccessDenied);
}

#[test]
fn endpoints_out_of_use_are_passed_over() {
    let mut w = world();
    let ports = |w: &World| (0..200).map(|_| w.connect(DIRECT, 80).port).collect::<HashSet<_>>();
    assert_eq!(ports(&w), HashSet::from([9001, 9002]));
    w.endpoints[0].masked = 1;
    assert_eq!(ports(&w), HashSet::from([9002]), "masked");
    w.endpoints[1].masked = 1;
    assert_eq!(ports(&w), HashSet::from([9001, 9002]), "all masked: the first one drawn");
    w.endpoints[0].masked = 0;
    w.endpoints[1].masked = 0;
    w.held.insert(0, NOW - HOLD_NS + 1);
    assert_eq!(ports(&w), HashSet::from([9002]), "held");
    w.held.insert(0, NOW - HOLD_NS);
    assert_eq!(ports(&w), HashSet::from([9001, 9002]), "no longer");
    w.endpoints[0].service = 0;
    assert_eq!(ports(&w), HashSet::from([9002]), "the place is somebody else's");
}

#[test]
fn the_first_one_drawn_keeps_the_weights() {
    let mut w = world();
    w.slots = vec![0, 0, 0, 1, 0, 1];
    *w.entry(DIRECT) = Vip { base: 0, slots: 4, list: 4, listed: 2, ..*w.entry(DIRECT) };
    w.endpoints[0].masked = 1;
    w.endpoints[1].masked = 1;
    let first = (0..100_000).filter(|_| w.connect(DIRECT, 80).endpoint == 0).count();
    assert!((74_000..76_000).contains(&first), "{first}");
}

#[test]
fn one_of_many_is_found() {
    let mut w = world();
    let count = MAX_SCAN;
    w.slots = (0..count).collect();
    w.endpoints = vec![Endpoint { service: 1, masked: 1, ..Endpoint::default() }; count as usize];
    w.endpoints[17].masked = 0;
    *w.entry(DIRECT) = Vip { base: 0, slots: count, list: 0, listed: count, ..*w.entry(DIRECT) };
    assert!((0..500).all(|_| w.connect(DIRECT, 80).endpoint == 17));
}

#[test]
fn damaged_tables_do_no_harm() {
    let mut w = world();
    // Beyond the end of SLOTS, and of all numbers.
    *w.entry(DIRECT) = Vip { base: u32::MAX - 1, slots: 100, list: u32::MAX, listed: 100, ..*w.entry(DIRECT) };
    w.slots.clear();
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::NoEndpoint));
    *w.entry(DIRECT) = Vip { base: 0, slots: 1, list: 0, listed: 0, ..*w.entry(DIRECT) };
    w.slots = vec![4_000_000];
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::NoEndpoint));
    w.entry(DIRECT).action = 77;
    assert_eq!(w.why(DIRECT), (Verdict::Deny, Reason::NoEndpoint));
}

#[test]
fn ids_and_counters() {
    assert_eq!(id(""), 0xcbf2_9ce4_8422_2325);
    assert_eq!(id("a"), 0xaf63_dc4c_8601_ec8c);
    assert_ne!(id("default/cart:80"), id("default/cart"));
    let mut counters = HashSet::new();
    for verdict in [Verdict::Pass, Verdict::Direct, Verdict::Proxy, Verdict::Deny] {
        for reason in [Reason::NotAService, Reason::FailOpen, Reason::NoEndpoint] {
            assert!(counters.insert(counter(verdict, reason)));
        }
    }
    assert!(counters.iter().all(|&counter| counter < VERDICT_COUNTERS));
}
