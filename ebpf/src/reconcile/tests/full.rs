//! Maps that are full.

use super::*;

/// `n` services of tcp with one endpoint each.
fn services(range: std::ops::Range<usize>) -> World {
    let mut world = World::default();
    for n in range {
        let mut one = redis(&[("127.0.0.1:9006", 3), ("127.0.0.1:9007", 1)]);
        let key = World::key(n);
        let service = Arc::make_mut(&mut one.config.services[0]);
        service.key = key.clone();
        service.cluster_ips = vips(n).to_vec();
        for live in &mut one.live {
            live.service = key.clone();
            live.id += n as u64 * 10;
        }
        world.config.services.append(&mut one.config.services);
        world.live.append(&mut one.live);
    }
    world
}

fn protect(world: &mut World, blocks: usize) {
    use weft_model::config::*;
    let source = AccessSource {
        ip_blocks: (0..blocks).map(|i| (ip(&format!("10.{i}.0.0")), 16)).collect(),
        ..AccessSource::default()
    };
    world.config.access_policies.push(AccessPolicy {
        key: Key::new("default", "p"),
        services: world.config.services.iter().map(|service| service.key.clone()).collect(),
        action: AccessAction::Allow,
        rules: vec![AccessRule { from: vec![source] }],
    });
}

fn reached(content: &Content, n: usize) -> Verdict {
    crate::testing::fake::Client::new(content, 0).connect(vips(n)[0], 6379, Some(ip("10.0.0.1"))).verdict
}

#[test]
fn the_others_are_put_in_force() {
    let cases = [
        (Map::Endpoints, 6, 1000, usize::MAX),
        (Map::Slots, 1000, 18, usize::MAX),
        // Two addresses, each with its port and all others.
        (Map::Vips, 1000, 1000, 13),
    ];
    for (map, endpoints, slots, size) in cases {
        let mut fake = Fake::default();
        fake.sizes.insert(map, size);
        let mut reconciler = Reconciler::adopt_sized(&fake, endpoints, slots).unwrap();
        let report = reconciler.apply(&services(0..5).desired(), &mut fake).unwrap();
        assert_eq!(report.unfit, [Unfit { map, names: vec!["s3".into(), "s4".into()] }]);
        let reached: Vec<Verdict> = (0..5).map(|n| reached(&fake.content, n)).collect();
        use Verdict::{Direct, Pass};
        assert_eq!(reached, [Direct, Direct, Direct, Pass, Pass], "{map}");
        assert_eq!(fake.content.vips.len(), 12, "{map}: nothing half done");
        assert_eq!(fake.content.endpoints.values().filter(|endpoint| endpoint.service != 0).count(), 6, "{map}");
        assert_eq!(reconciler.place_of(31), None);
        // With fewer services there is room, now or in the next round.
        let mut rounds = 0;
        while !reconciler.apply(&services(2..5).desired(), &mut fake).unwrap().unfit.is_empty() {
            rounds += 1;
            assert!(rounds < 2, "{map}");
        }
        check(&World { cgroups: World::new(&mut Rng::with_seed(1)).cgroups, ..services(2..5) }, &fake.content);
    }
}

#[test]
fn what_was_in_force_stays() {
    let mut fake = Fake::default();
    let mut reconciler = Reconciler::adopt_sized(&fake, 1000, 20).unwrap();
    apply(&mut reconciler, &services(0..3), &mut fake);
    let before = fake.content.vips.clone();
    // Other tables, and another port: three times six slots are taken, two are free.
    let mut changed = services(0..3);
    changed.live.iter_mut().filter(|live| live.weight == 1).for_each(|live| live.weight = 2);
    changed.config.services.iter_mut().for_each(|service| Arc::make_mut(service).ports[0].port = 7000);
    changed.live.iter_mut().for_each(|live| live.port = 7000);
    let report = reconciler.apply(&changed.desired(), &mut fake).unwrap();
    assert_eq!(report.unfit.len(), 1);
    assert!(report.removed.is_empty());
    assert_eq!(fake.content.vips, before);
    assert_eq!(reached(&fake.content, 0), Verdict::Direct);
    let text = report.unfit[0].to_string();
    assert!(
        text.starts_with("SLOTS has room for 1048576 entries: 3 services did not fit (payments/s0, s1, s2)"),
        "{text}"
    );
}

#[test]
fn policies_that_do_not_fit_leave_no_trace() {
    for (map, size, unfit) in [(Map::Policy, 2, 1), (Map::Blocks, 8, 3)] {
        let mut fake = Fake::default();
        fake.sizes.insert(map, size);
        let mut reconciler = Reconciler::adopt(&fake).unwrap();
        let mut world = services(0..3);
        apply(&mut reconciler, &world, &mut fake);
        let before = fake.content.vips.clone();
        // 8 prefixes that are let in, and the entry for all others.
        protect(&mut world, 8);
        let report = reconciler.apply(&world.desired(), &mut fake).unwrap();
        assert_eq!(report.unfit.iter().map(|unfit| (unfit.map, unfit.names.len())).collect::<Vec<_>>(), [(map, unfit)]);
        assert_eq!(
            fake.content.vips.iter().filter(|(key, vip)| before[key] == **vip).count(),
            before.len() - 2 * (3 - unfit)
        );
        assert_eq!(fake.content.policies.len(), 3 - unfit);
        reconciler.reclaim(&mut fake).unwrap();
        assert_eq!(fake.content.blocks.is_empty(), map == Map::Blocks);
        world.config.access_policies.clear();
        protect(&mut world, 2);
        world.config.access_policies[0].services.truncate(2);
        apply(&mut reconciler, &world, &mut fake);
        reconciler.reclaim(&mut fake).unwrap();
        check_entries(&world, &fake.content);
    }
}

#[test]
fn workloads_that_do_not_fit_are_named() {
    let mut fake = Fake::default();
    fake.sizes.insert(Map::Workloads, 1);
    let mut reconciler = Reconciler::adopt(&fake).unwrap();
    let mut desired = Desired { workloads: HashMap::from([(1, 10), (2, 10)]), ..Desired::default() };
    desired.names.insert(10, "web".into());
    let report = reconciler.apply(&desired, &mut fake).unwrap();
    assert_eq!(report.unfit, [Unfit { map: Map::Workloads, names: vec!["web".into()] }]);
    assert_eq!(
        report.unfit[0].to_string(),
        "WORKLOADS has room for 16384 entries: 1 workload did not fit (web); their processes count as everybody else; \
         remove Workloads that this node does not run"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_fits_is_exact(seed: u64) {
        let rng = &mut Rng::with_seed(seed);
        let sizes = HashMap::from([
            (Map::Vips, rng.usize(8..30)),
            (Map::Policy, rng.usize(2..12)),
            (Map::Blocks, rng.usize(2..12)),
        ]);
        let mut fake = Fake { sizes, ..Fake::default() };
        let (endpoints, slots) = (rng.u32(8..60), rng.u32(20..200));
        let mut world = World::new(rng);
        let mut reconciler = Reconciler::adopt_sized(&fake, endpoints, slots).unwrap();
        let queries = Query::all();
        for _ in 0..5 {
            let desired = world.desired();
            let report = reconciler.apply(&desired, &mut fake).unwrap();
            let unfit: HashSet<&str> = report.unfit.iter().flat_map(|unfit| &unfit.names).map(|name| &**name).collect();
            for _ in 0..300 {
                let query = &queries[rng.usize(..queries.len())];
                let owner = world.config.services.iter().find(|service| service.cluster_ips.contains(&query.dest));
                // Who had the address before may have kept it.
                if owner.is_none_or(|owner| unfit.contains(&*owner.key.to_string())) {
                    continue;
                }
                let expected = world.expected(query);
                for outcome in query.outcomes(&world, &fake.content, desired.depth) {
                    prop_assert!(expected.permits(&outcome), "{query:?}: {outcome:?} is not {expected:?}");
                }
            }
            world.change(rng, 40);
            if rng.u8(..3) == 0 {
                reconciler = Reconciler::adopt_sized(&fake, endpoints, slots).unwrap();
            }
        }
        fake.sizes.clear();
        let mut reconciler = Reconciler::adopt(&fake).unwrap();
        apply(&mut reconciler, &world, &mut fake);
        reconciler.reclaim(&mut fake).unwrap();
        check(&world, &fake.content);
        check_entries(&world, &fake.content);
    }
}
