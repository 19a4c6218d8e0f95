//! The real decision on reconciled maps, against the naive model.

mod full;
mod scale;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use fastrand::Rng;
use proptest::prelude::*;
use weft_ebpf_abi::{Addr, Reason, Verdict};

use super::*;
use crate::testing::{
    fake::{Content, Fake, target},
    naive::{Expected, Query, World, ip, vips},
};

fn apply(reconciler: &mut Reconciler, world: &World, fake: &mut Fake) -> Report {
    let report = reconciler.apply(&world.desired(), fake).unwrap();
    assert_eq!(report.unfit, []);
    report
}

/// Exactly what the model says, in exactly the shares that the weights ask for.
fn check(world: &World, content: &Content) {
    let depth = world.desired().depth;
    for query in Query::all() {
        let expected = world.expected(&query);
        let outcomes = query.outcomes(world, content, depth);
        for outcome in &outcomes {
            assert!(expected.permits(outcome), "{query:?}: {outcome:?} is not {expected:?}");
        }
        let Expected::Direct(to) = expected else { continue };
        let mut shares: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        outcomes.iter().for_each(|outcome| *shares.entry(target(outcome)).or_default() += 1);
        let sum: u32 = to.values().sum();
        for (address, weight) in to {
            assert_eq!(shares[&address] * sum, weight * outcomes.len() as u32, "{query:?}");
        }
    }
}

/// There is nothing but what the model asks for.
fn check_entries(world: &World, content: &Content) {
    let desired = world.desired();
    let policies: usize = desired
        .services
        .iter()
        .filter(|service| !service.vips.is_empty())
        .map(|service| service.ports.len() * service.access.as_ref().map_or(0, |access| access.policies.len()))
        .sum();
    assert_eq!(content.policies.len(), policies);
    let groups: HashSet<u64> =
        content.policies.values().map(|policy| policy.group).filter(|&group| group != 0).collect();
    assert_eq!(content.blocks.len(), groups.iter().map(|group| desired.groups[group].len()).sum::<usize>());
    let entries = desired.services.iter().map(|service| service.vips.len() * (service.ports.len() + 1));
    assert_eq!(content.vips.len(), entries.sum::<usize>());
    assert_eq!(content.workloads, desired.workloads);
    let wanted: BTreeSet<(u64, SocketAddr, bool)> = desired
        .services
        .iter()
        .flat_map(|service| &service.ports)
        .flat_map(|port| port.endpoints.iter().map(|endpoint| (port.id, endpoint)))
        .map(|(id, endpoint)| (id, SocketAddr::new(endpoint.addr.into(), endpoint.port as u16), !endpoint.usable))
        .collect();
    let owned = content.endpoints.values().filter(|endpoint| endpoint.service != 0);
    let owned: Vec<_> = owned
        .map(|endpoint| {
            let address = SocketAddr::new(endpoint.addr.into(), endpoint.port as u16);
            (endpoint.service, address, endpoint.masked != 0)
        })
        .collect();
    assert_eq!(owned.len(), wanted.len());
    assert_eq!(owned.into_iter().collect::<BTreeSet<_>>(), wanted);
}

/// While maps are written a connection finds the old state or the new one. Policies come first: where both change it may
/// find the old service with its new policies.
fn check_between(old: &World, new: &World, before: &Content, fake: &mut Fake, rng: &mut Rng) {
    let mut content = before.clone();
    let depth = old.desired().depth.max(new.desired().depth);
    let queries = Query::all();
    let mut states = vec![old.clone(), new.clone(), old.clone()];
    states[2].config.access_policies = new.config.access_policies.clone();
    if old.config.workloads != new.config.workloads {
        // Who a process is and what it may is in two maps.
        for state in [old, new] {
            let mut open = state.clone();
            open.config.access_policies.clear();
            states.push(open);
        }
    }
    for op in std::mem::take(&mut fake.log) {
        content.perform(op);
        for _ in 0..40 {
            let query = queries[rng.usize(..queries.len())];
            let expected: Vec<Expected> = states.iter().map(|state| state.expected(&query)).collect();
            for outcome in query.outcomes(new, &content, depth) {
                let denied = states.len() > 3 && outcome.reason == Reason::AccessDenied;
                assert!(
                    denied || expected.iter().any(|expected| expected.permits(&outcome)),
                    "{op:?}\n{query:?}\n{outcome:?} is none of {expected:?}"
                );
            }
        }
    }
    assert_eq!(content, fake.content);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn does_what_the_model_says(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let mut fake = Fake::default();
        let mut world = World::new(rng);
        let mut reconciler = Reconciler::adopt(&fake).unwrap();
        apply(&mut reconciler, &world, &mut fake);
        check(&world, &fake.content);
        for _ in 0..4 {
            if rng.bool() {
                reconciler = Reconciler::adopt(&fake).unwrap();
            }
            world.change(rng, 40);
            apply(&mut reconciler, &world, &mut fake);
            check(&world, &fake.content);
            reconciler.reclaim(&mut fake).unwrap();
            assert!(!reconciler.waiting());
            check(&world, &fake.content);
            check_entries(&world, &fake.content);
            // Nothing is written for what is in force.
            fake.writes();
            apply(&mut reconciler, &world, &mut fake);
            assert_eq!(fake.writes(), 0);
            reconciler = Reconciler::adopt(&fake).unwrap();
            apply(&mut reconciler, &world, &mut fake);
            assert_eq!(fake.writes(), 0);
        }
    }

    #[test]
    fn switches_without_a_gap(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let mut fake = Fake::default();
        let mut world = World::new(rng);
        let mut reconciler = Reconciler::adopt(&fake).unwrap();
        let mut old = World { cgroups: world.cgroups.clone(), ..World::default() };
        for _ in 0..3 {
            let before = fake.content.clone();
            apply(&mut reconciler, &world, &mut fake);
            check_between(&old, &world, &before, &mut fake, rng);
            old = world.clone();
            world.change(rng, 40);
        }
    }

    #[test]
    fn survives_being_killed(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let mut fake = Fake::default();
        let mut world = World::new(rng);
        let mut reconciler = Reconciler::adopt(&fake).unwrap();
        apply(&mut reconciler, &world, &mut fake);
        for _ in 0..4 {
            let old = world.clone();
            let before = fake.content.clone();
            fake.writes();
            world.change(rng, 40);
            fake.fuel = Some(rng.usize(..60));
            let done = reconciler.apply(&world.desired(), &mut fake);
            fake.fuel = None;
            check_between(&old, &world, &before, &mut fake, rng);
            if done.is_err() && rng.u8(..4) > 0 {
                // Sometimes the process lives on, and tries again.
                reconciler = Reconciler::adopt(&fake).unwrap();
            }
            world.change(rng, 10);
            apply(&mut reconciler, &world, &mut fake);
            check(&world, &fake.content);
            reconciler.reclaim(&mut fake).unwrap();
            check_entries(&world, &fake.content);
        }
    }

    #[test]
    fn no_space_is_lost(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let mut fake = Fake::default();
        let mut world = World::new(rng);
        // Room for what is in force and its successor.
        let mut reconciler = Reconciler::adopt_sized(&fake, 160, 1600).unwrap();
        for step in 0..60 {
            if rng.u8(..4) == 0 {
                reconciler = Reconciler::adopt_sized(&fake, 160, 1600).unwrap();
            }
            apply(&mut reconciler, &world, &mut fake);
            if step % 20 == 0 {
                check(&world, &fake.content);
            }
            world.change(rng, 40);
        }
    }

    #[test]
    fn endpoints_are_found_both_ways(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let mut fake = Fake::default();
        let mut world = World::new(rng);
        let mut reconciler = Reconciler::adopt(&fake).unwrap();
        let mut known: HashMap<(u64, SocketAddr), (u32, u32)> = HashMap::new();
        let mut ever: HashSet<(u32, u32)> = HashSet::new();
        for _ in 0..6 {
            let report = apply(&mut reconciler, &world, &mut fake);
            let mut now = HashMap::new();
            for live in &world.live {
                let service = weft_ebpf_abi::id(&format!("{}/{}:{}", live.service.namespace, live.service.name, live.port));
                let found = reconciler.place_of(live.id).unwrap();
                assert_eq!(reconciler.live_of(found.0, found.1), Some(live.id));
                assert_eq!(reconciler.address_of(found.0, found.1), Some(live.address));
                let entry = fake.content.endpoints[&found.0];
                assert_eq!((entry.service, entry.addr), (service, Addr::from(live.address.ip())));
                match known.remove(&(service, live.address)) {
                    Some(before) => assert_eq!(before, found, "an endpoint keeps its place"),
                    None => assert!(ever.insert(found), "places and generations are never given twice"),
                }
                now.insert((service, live.address), found);
            }
            let gone: HashSet<_> = report.removed.iter().map(|gone| (gone.service, gone.address, gone.place, gone.generation)).collect();
            let expected = known.into_iter().map(|((service, address), (place, generation))| (service, address, place, generation));
            assert_eq!(gone, expected.collect::<HashSet<_>>());
            for gone in report.removed {
                assert_eq!(reconciler.live_of(gone.place, gone.generation), None);
                assert_eq!(reconciler.address_of(gone.place, gone.generation), Some(gone.address));
            }
            known = now;
            world.change(rng, 50);
            if rng.bool() {
                // After a restart the proxy numbers its endpoints anew.
                reconciler = Reconciler::adopt(&fake).unwrap();
                world.live.iter_mut().for_each(|live| live.id += 1000);
            }
        }
    }
}

/// One service of tcp with these endpoints.
fn redis(endpoints: &[(&str, u32)]) -> World {
    use weft_model::config::*;
    let key = Key::new("default", "redis");
    let service = Service {
        key: key.clone(),
        cluster_ips: vec![vips(0)[0]],
        mode: ServiceMode::Auto,
        fail_open: false,
        ports: vec![ServicePort { name: "redis".into(), port: 6379, protocol: AppProtocol::Tcp, declared: true }],
        endpoints: vec![],
    };
    let live = endpoints.iter().zip(1..).map(|(&(address, weight), id)| crate::maps::Live {
        service: key.clone(),
        port: 6379,
        id,
        address: address.parse().unwrap(),
        weight,
        usable: true,
        source: None,
    });
    World {
        config: Config { services: vec![service.into()], ..Config::default() },
        live: live.collect(),
        ..World::default()
    }
}

fn connect(content: &Content) -> weft_ebpf_abi::Decision {
    crate::testing::fake::Client::new(content, 0).connect(vips(0)[0], 6379, None)
}

#[test]
fn weights_are_what_connections_get() {
    for weights in [vec![3, 1], vec![1, 1, 1], vec![1, 2, 3, 4], vec![997, 1009, 13, 500], vec![u32::MAX, u32::MAX / 3]]
    {
        let endpoints: Vec<String> = (0..weights.len()).map(|i| format!("127.0.0.1:{}", 9001 + i)).collect();
        let endpoints: Vec<_> = endpoints.iter().map(String::as_str).zip(weights.iter().copied()).collect();
        let mut fake = Fake::default();
        apply(&mut Reconciler::adopt(&fake).unwrap(), &redis(&endpoints), &mut fake);
        let client = crate::testing::fake::Client::new(&fake.content, 0);
        let mut picks: HashMap<SocketAddr, f64> = HashMap::new();
        for _ in 0..100_000 {
            *picks.entry(target(&client.connect(vips(0)[0], 6379, None))).or_default() += 1.0 / 100_000.0;
        }
        let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        for (address, weight) in endpoints {
            let share = picks[&address.parse().unwrap()];
            assert!((share - f64::from(weight) / sum).abs() < 0.01, "{weights:?}: {share}");
        }
    }
}

#[test]
fn three_to_one_takes_six_slots() {
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    apply(&mut reconciler, &redis(&[("127.0.0.1:9006", 3), ("127.0.0.1:9007", 1)]), &mut fake);
    assert_eq!(fake.content.slots.values().collect::<Vec<_>>(), [&0, &0, &0, &1, &0, &1]);
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    apply(&mut reconciler, &redis(&[("127.0.0.1:9006", 5), ("127.0.0.1:9007", 5)]), &mut fake);
    assert_eq!(fake.content.slots.values().collect::<Vec<_>>(), [&0, &1], "equal weights: the table is the list");
}

#[test]
fn a_mask_is_one_write_and_holds_at_once() {
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    let mut world = redis(&[("127.0.0.1:9006", 3), ("127.0.0.1:9007", 1)]);
    apply(&mut reconciler, &world, &mut fake);
    fake.writes();
    assert!(reconciler.mask(1, true, &mut fake).unwrap());
    assert!(reconciler.mask(1, true, &mut fake).unwrap(), "again");
    assert!(!reconciler.mask(77, true, &mut fake).unwrap());
    assert_eq!(fake.writes(), 1);
    for _ in 0..100 {
        assert_eq!(connect(&fake.content).port, 9007);
    }
    world.live[0].usable = false;
    apply(&mut reconciler, &world, &mut fake);
    let vip = fake.content.vips[&VipKey { addr: vips(0)[0].into(), port: 6379 }];
    assert_eq!((vip.slots, vip.listed), (1, 1));
    // Both: all of them, a service is not made unreachable by a suspicion.
    world.live[1].usable = false;
    apply(&mut reconciler, &world, &mut fake);
    check_redis_shares(&fake.content);
    fake.writes();
    reconciler.mask(1, false, &mut fake).unwrap();
    assert_eq!((connect(&fake.content).port, fake.writes()), (9006, 1));
}

fn check_redis_shares(content: &Content) {
    let outcomes = crate::testing::fake::Client::new(content, 0).connect_all(vips(0)[0], 6379, None);
    assert_eq!(outcomes.iter().map(|outcome| outcome.port).collect::<Vec<_>>(), [9006, 9006, 9006, 9007]);
}

#[test]
fn a_place_gets_a_new_owner_only_with_a_new_generation() {
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt_sized(&fake, 2, 100).unwrap();
    let two = redis(&[("127.0.0.1:9006", 1), ("127.0.0.1:9007", 1)]);
    apply(&mut reconciler, &two, &mut fake);
    fake.content.hold.insert(1, 5);
    fake.content.stats.insert(1, 5);
    let report = apply(&mut reconciler, &redis(&[("127.0.0.1:9006", 1)]), &mut fake);
    assert_eq!(report.removed.iter().map(|gone| (gone.place, gone.generation)).collect::<Vec<_>>(), [(1, 1)]);
    assert_eq!((fake.content.endpoints[&1].service, fake.content.endpoints[&1].port), (0, 9007), "late readers");
    assert_eq!(fake.content.stats[&1], 5, "may still be read");
    apply(&mut reconciler, &two, &mut fake);
    assert_eq!((fake.content.endpoints[&1].generation, fake.content.endpoints[&0].generation), (2, 1));
    assert!(fake.content.hold.is_empty() && fake.content.stats.is_empty());
}

#[test]
fn a_service_comes_and_goes_without_refusing_its_ports() {
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    let keys = |fake: &mut Fake| {
        let vips = fake.log.drain(..).filter_map(|op| match op {
            crate::testing::fake::Op::Vip(key, _) => Some(key.port),
            _ => None,
        });
        vips.collect::<Vec<_>>()
    };
    apply(&mut reconciler, &redis(&[("127.0.0.1:9006", 1)]), &mut fake);
    assert_eq!(keys(&mut fake), [6379, 0]);
    assert_eq!(connect(&fake.content).verdict, Verdict::Direct);
    apply(&mut reconciler, &World::default(), &mut fake);
    assert_eq!(keys(&mut fake), [0, 6379]);
    assert_eq!(ip("10.96.0.1"), vips(0)[0]);
}

#[test]
fn what_others_left_in_slots_is_left_alone() {
    let mut fake = Fake::default();
    // Entries that contradict each other, and reach beyond the end.
    for (port, base, slots) in [(1, 0, 10), (2, 5, 10), (3, 90, 20), (4, u32::MAX, 2)] {
        let vip = Vip { service: 9, base, slots, list: base, listed: slots, ..Vip::default() };
        fake.content.vips.insert(VipKey { addr: vips(0)[0].into(), port }, vip);
    }
    let mut reconciler = Reconciler::adopt_sized(&fake, 10, 100).unwrap();
    let world = redis(&[("127.0.0.1:9006", 3), ("127.0.0.1:9007", 1)]);
    apply(&mut reconciler, &world, &mut fake);
    check_redis_shares(&fake.content);
    assert_eq!(fake.content.vips.len(), 2);
}
