//! What becomes of a configuration.

use std::sync::Arc;

use fastrand::Rng;
use proptest::prelude::*;
use weft_ebpf_abi::{Reason, Verdict};
use weft_model::config::{AppProtocol, ServiceMode};

use super::*;
use crate::{
    reconcile::Reconciler,
    testing::{
        fake::Fake,
        naive::{PROCESSES, Query, World, ip},
    },
};

const MESH: &str = include_str!("../../../control/model/tests/contract/mesh.yaml");

fn mesh() -> Config {
    weft_model::load_str("mesh.yaml", MESH, weft_model::Options::default()).unwrap().config
}

fn live(service: &str, port: u16, address: &str, id: u64) -> Live {
    Live {
        service: Key::new("default", service),
        port,
        id,
        address: address.parse().unwrap(),
        weight: 1,
        usable: true,
        source: None,
    }
}

fn cgroup(path: &str) -> Option<u64> {
    ["web", "batch"].iter().position(|known| *known == path).map(|i| i as u64 + 10)
}

#[test]
fn the_contract() {
    let desired = desired(&mesh(), &[live("redis", 6379, "127.0.0.1:9006", 1)], cgroup);
    let [cart, redis] = &desired.services[..] else { panic!("{desired:?}") };
    assert_eq!(cart.vips, [ip("10.96.0.10").into(), ip("fd00:96::10").into()]);
    assert_eq!((cart.ports[0].id, cart.id), (id("default/cart:80"), id("default/cart")));
    assert_eq!((cart.ports[0].action, cart.ports[0].flags, cart.ports[0].table), (Action::Proxy, 0, false));
    let port = &redis.ports[0];
    assert_eq!((port.action, port.flags, port.table, port.endpoints.len()), (Action::Direct, flag::POLICY, true, 1));
    let of = |access| Policy { access, ..Policy::default() };
    let access = redis.access.as_ref().unwrap();
    assert_eq!(access.policies, [(id("default/web"), of(access::ALLOW)), (0, of(access::DENY))]);
    assert_eq!(desired.workloads, HashMap::from([(10, id("default/web")), (11, id("default/batch"))]));
    assert_eq!(desired.depth, 1);
    let name = |name| &*desired.names[&id(name)];
    assert_eq!(
        (name("default/redis:6379"), name("default/redis"), name("default/web")),
        ("redis:6379", "redis", "web")
    );
    assert!(desired.groups.is_empty());
}

#[test]
fn actions() {
    let mut config = mesh();
    config.services.truncate(1);
    for (mode, protocol, expected) in [
        (ServiceMode::Auto, AppProtocol::Tcp, Action::Direct),
        (ServiceMode::Auto, AppProtocol::Http, Action::Proxy),
        (ServiceMode::Auto, AppProtocol::Grpc, Action::Proxy),
        (ServiceMode::Auto, AppProtocol::Http2, Action::Proxy),
        (ServiceMode::Proxy, AppProtocol::Tcp, Action::Proxy),
        (ServiceMode::Direct, AppProtocol::Http, Action::Direct),
    ] {
        for fail_open in [true, false] {
            let service = Arc::make_mut(&mut config.services[0]);
            service.mode = mode;
            service.ports[0].protocol = protocol;
            service.fail_open = fail_open;
            let port = &desired(&config, &[], cgroup).services[0].ports[0];
            assert_eq!(port.action, expected);
            assert_eq!(port.flags & flag::FAIL_OPEN != 0, fail_open);
            assert_eq!(port.table, fail_open || expected == Action::Direct);
        }
    }
}

#[test]
fn endpoints_are_ordered_and_each_is_there_once() {
    let mut endpoints = [
        live("cart", 80, "127.0.0.1:9002", 1),
        live("cart", 80, "127.0.0.1:9001", 2),
        live("cart", 80, "127.0.0.1:9002", 3),
        live("cart", 81, "127.0.0.1:9003", 4),
        live("redis", 6379, "[::ffff:127.0.0.1]:9001", 5),
    ];
    endpoints[0].usable = false;
    endpoints[2].source = Some(ip("127.0.0.1"));
    let desired = desired(&mesh(), &endpoints, cgroup);
    let [first, second] = &desired.services[0].ports[0].endpoints[..] else { panic!("{desired:?}") };
    assert_eq!((first.port, second.port), (9001, 9002));
    assert_eq!((&second.live[..], second.weight, second.usable), (&[1, 3][..], 2, true));
    assert_eq!(second.source, ip("127.0.0.1").into());
    assert!(desired.services[1].ports[0].endpoints[0].addr.is_v4());
}

#[test]
fn selectors_deeper_than_programs_look_are_told() {
    let mut config = mesh();
    config.workloads[0].cgroup = "a/b/c/d/e/f/g/h/i".into();
    config.workloads[1].cgroup = "a/b/c".into();
    let desired = desired(&config, &[], |path| Some(path.len() as u64));
    assert_eq!((desired.depth, desired.workloads.len()), (3, 1));
    assert_eq!(desired.too_deep, [Key::new("default", "web")]);
}

/// Blocks of the only group, as `prefix access`.
fn blocks(config: &Config) -> Vec<String> {
    let desired = desired(config, &[], cgroup);
    assert!(desired.groups.len() <= 1);
    let blocks = desired.groups.into_values().flatten();
    let text = |block: Block| {
        let ip = IpAddr::from(std::net::Ipv6Addr::from_bits(block.addr)).to_canonical();
        let access = if block.access == access::ALLOW { "allow" } else { "deny" };
        format!("{ip}/{} {access}", block.prefix - 64 - if ip.is_ipv4() { 96 } else { 0 })
    };
    blocks.map(text).collect()
}

#[test]
fn blocks_say_only_what_changes() {
    use weft_model::config::{AccessAction, AccessPolicy, AccessRule, AccessSource};
    let of = |action, blocks: &[(&str, u8)]| AccessPolicy {
        key: Key::new("default", "p"),
        services: vec![Key::new("default", "cart")],
        action,
        rules: vec![AccessRule {
            from: vec![AccessSource {
                ip_blocks: blocks.iter().map(|&(block, bits)| (ip(block), bits)).collect(),
                ..AccessSource::default()
            }],
        }],
    };
    use AccessAction::{Allow, Deny};
    let mut config = mesh();
    config.access_policies = vec![of(Allow, &[("10.0.0.0", 8), ("10.1.0.0", 16), ("192.168.0.0", 16)])];
    assert_eq!(blocks(&config), ["::/0 deny", "10.0.0.0/8 allow", "192.168.0.0/16 allow"]);
    config.access_policies.push(of(Deny, &[("10.1.0.0", 16)]));
    assert_eq!(blocks(&config), ["::/0 deny", "10.0.0.0/8 allow", "10.1.0.0/16 deny", "192.168.0.0/16 allow"]);
    config.access_policies = vec![of(Deny, &[("10.1.0.0", 16)])];
    assert_eq!(blocks(&config), ["::/0 allow", "10.1.0.0/16 deny"]);
    // All of IPv6 is nothing of IPv4, although that is v4-mapped in the trie.
    config.access_policies = vec![of(Allow, &[("::", 0)])];
    assert_eq!(blocks(&config), ["::/0 allow", "0.0.0.0/0 deny"]);
    config.access_policies = vec![of(Allow, &[("0.0.0.0", 0)])];
    assert_eq!(blocks(&config), ["::/0 deny", "0.0.0.0/0 allow"]);
    // Everybody.
    config.access_policies = vec![of(Allow, &[("0.0.0.0", 0), ("::", 0)])];
    assert_eq!(blocks(&config), [""; 0]);
    // The proxy picks for itself, but a picked endpoint tells from where a connection would come.
    config.access_policies = vec![of(Allow, &[("10.0.0.0", 8)])];
    let desired = desired(&config, &[], cgroup);
    assert!(desired.services[0].ports[0].table);
    let (workload, policy) = desired.services[0].access.as_ref().unwrap().policies[0];
    assert_eq!((workload, policy.access, policy.unknown), (0, access::BY_ADDRESS, access::DENY));
    assert_eq!(policy.group, content(&desired.groups[&policy.group]));
}

#[test]
fn the_source_of_a_picked_endpoint_counts() {
    use weft_model::config::{AccessAction, AccessRule, AccessSource};
    let mut config = mesh();
    config.access_policies[0].action = AccessAction::Allow;
    config.access_policies[0].rules = vec![AccessRule {
        from: vec![AccessSource { ip_blocks: vec![(ip("127.0.0.0"), 8)], ..AccessSource::default() }],
    }];
    let mut endpoint = live("redis", 6379, "127.0.0.1:9006", 1);
    for (source, reason) in [("127.0.0.1", Reason::Service), ("10.0.0.1", Reason::AccessDenied)] {
        endpoint.source = Some(ip(source));
        let mut fake = Fake::default();
        let desired = desired(&config, &[endpoint.clone()], cgroup);
        Reconciler::adopt(&fake).unwrap().apply(&desired, &mut fake).unwrap();
        let client = crate::testing::fake::Client::new(&fake.content, desired.depth);
        assert_eq!(client.connect(ip("10.96.0.20"), 6379, None).reason, reason);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Every workload from every address, through the decision and its look-up of the longest prefix.
    #[test]
    fn policies(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let mut world = World::new(rng);
        all_proxied(&mut world);
        for _ in 0..4 {
            let mut fake = Fake::default();
            let desired = world.desired();
            Reconciler::adopt(&fake).unwrap().apply(&desired, &mut fake).unwrap();
            for service in &world.config.services {
                let Some(&dest) = service.cluster_ips.first() else { continue };
                for process in PROCESSES {
                    for _ in 0..40 {
                        let from = address(rng);
                        let query = Query { process, dest, port: 6379, from: Some(from), alive: true };
                        let decision = query.client(&world, &fake.content, desired.depth).connect(dest, 6379, Some(from));
                        let let_in = world.lets_in(&service.key, process, Some(from));
                        prop_assert_eq!(decision.verdict == Verdict::Proxy, let_in, "{:?} {:?}", query, decision);
                        let workload = world.workload(process).map_or(0, |found| id(&full_name(&found.key)));
                        prop_assert_eq!(decision.workload, workload);
                    }
                }
            }
            world.change(rng, 100);
            all_proxied(&mut world);
        }
    }
}

fn all_proxied(world: &mut World) {
    world.config.services.iter_mut().for_each(|service| Arc::make_mut(service).mode = ServiceMode::Proxy);
}

/// Near the edges of blocks.
fn address(rng: &mut Rng) -> IpAddr {
    if rng.bool() {
        let bytes = [[9, 10, 11][rng.usize(..3)], rng.u8(..3), rng.u8(1..4), rng.u8(2..5)];
        bytes.into()
    } else {
        let words = [[0, 0xfd00, 0xfe00][rng.usize(..3)], rng.u16(..2), 0, rng.u16(..2), 0, 0, 0, 1 + rng.u16(..3)];
        words.into()
    }
}
