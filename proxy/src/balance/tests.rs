//! All algorithms through [`Balancer::pick`].
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;

use proptest::prelude::*;
use weft_model::policy::HashKey;

use super::{Rng, *};
use crate::endpoint::{Health, Ticket};

const KINDS: [BalancerKind; 6] = [
    BalancerKind::PeakEwma,
    BalancerKind::LeastRequest,
    BalancerKind::RoundRobin,
    BalancerKind::Random,
    BalancerKind::RingHash,
    BalancerKind::Maglev,
];

fn policy(kind: BalancerKind) -> LoadBalancer {
    LoadBalancer {
        kind,
        hash: HashKey::SourceIp,
        slow_start: Duration::ZERO,
        zone_aware: true,
        panic_threshold_percent: 50.0,
    }
}

/// Some endpoints, and what is needed to pick from them.
struct World {
    set: Arc<EndpointSet>,
    now: Instant,
    rng: Rng,
}

impl World {
    fn new(weights: &[u32]) -> Self {
        Self::zoned(&weights.iter().map(|&weight| (weight, None)).collect::<Vec<_>>(), None)
    }

    fn zoned(endpoints: &[(u32, Option<&str>)], zone: Option<&str>) -> Self {
        let now = Instant::now();
        let circuit = Arc::new(Circuit::new("test".into(), Arc::default(), now));
        let endpoint = |(n, (weight, zone)): (usize, &(u32, Option<&str>))| {
            let address = SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 80));
            (Arc::new(Endpoint::new(address, None, zone.map(Into::into), *weight, circuit.clone(), now)), *weight)
        };
        let endpoints = endpoints.iter().enumerate().map(endpoint).collect();
        let set = EndpointSet::new(endpoints, circuit.clone(), zone.map(Into::into));
        Self { set: Arc::new(set), now, rng: Rng::with_seed(7) }
    }

    fn balancer(&self, kind: BalancerKind) -> Balancer {
        Balancer::new(&policy(kind), self.set.clone(), None)
    }

    fn down(&self, which: &[usize]) {
        for &n in which {
            self.set.endpoints[n].set_health(Health::Unhealthy, self.now);
        }
    }

    fn ids(&self, which: &[usize]) -> Vec<u64> {
        which.iter().map(|&n| self.set.endpoints[n].id).collect()
    }

    /// The place in the set of the endpoint picked for a random key.
    fn pick(&mut self, balancer: &Balancer, tried: &[u64]) -> Option<usize> {
        let hash = self.rng.u64(..);
        let id = balancer.pick(hash, tried, self.now, &mut self.rng)?.id;
        self.set.endpoints.iter().position(|endpoint| endpoint.id == id)
    }

    /// The share of each endpoint in `picks` picks.
    fn shares(&mut self, balancer: &Balancer, tried: &[u64], picks: u32) -> Vec<f64> {
        let mut counts = vec![0_u32; self.set.endpoints.len()];
        for _ in 0..picks {
            counts[self.pick(balancer, tried).unwrap()] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(picks)).collect()
    }
}

#[track_caller]
fn assert_shares(what: impl std::fmt::Debug, got: &[f64], expect: &[f64], tolerance: f64) {
    let off = got.iter().zip(expect).any(|(got, expect)| (got - expect).abs() > tolerance);
    assert!(!off && got.len() == expect.len(), "{what:?}: {got:?} instead of {expect:?}");
}

#[test]
fn picks_by_state() {
    struct Case {
        what: &'static str,
        weights: &'static [u32],
        down: &'static [usize],
        tried: &'static [usize],
        panic_threshold: f64,
        may_pick: &'static [usize],
    }
    #[rustfmt::skip]
    let table = [
        Case { what: "nobody", weights: &[], down: &[], tried: &[], panic_threshold: 50.0, may_pick: &[] },
        Case { what: "one", weights: &[1], down: &[], tried: &[], panic_threshold: 50.0, may_pick: &[0] },
        Case { what: "one, tried", weights: &[1], down: &[], tried: &[0], panic_threshold: 50.0, may_pick: &[0] },
        Case { what: "one, down: panic", weights: &[1], down: &[0], tried: &[], panic_threshold: 50.0, may_pick: &[0] },
        Case { what: "one, down, no panic", weights: &[1], down: &[0], tried: &[], panic_threshold: 0.0, may_pick: &[] },
        Case { what: "only weight 0", weights: &[0, 0], down: &[], tried: &[], panic_threshold: 50.0, may_pick: &[] },
        Case { what: "weight 0", weights: &[0, 1, 1], down: &[], tried: &[], panic_threshold: 50.0, may_pick: &[1, 2] },
        Case { what: "one down", weights: &[1, 1, 1], down: &[1], tried: &[], panic_threshold: 50.0, may_pick: &[0, 2] },
        Case { what: "half down is no panic", weights: &[1, 1, 1, 1], down: &[0, 1], tried: &[], panic_threshold: 50.0, may_pick: &[2, 3] },
        Case { what: "more is", weights: &[1, 1, 1, 1], down: &[0, 1, 2], tried: &[], panic_threshold: 50.0, may_pick: &[0, 1, 2, 3] },
        Case { what: "panic does not revive weight 0", weights: &[1, 1, 1, 0], down: &[0, 1, 3], tried: &[], panic_threshold: 50.0, may_pick: &[0, 1, 2] },
        Case { what: "all down, no panic", weights: &[1, 2, 3], down: &[0, 1, 2], tried: &[], panic_threshold: 0.0, may_pick: &[] },
        Case { what: "one left", weights: &[1, 2, 3], down: &[1, 2], tried: &[], panic_threshold: 0.0, may_pick: &[0] },
        Case { what: "tried", weights: &[1, 1, 1], down: &[], tried: &[0], panic_threshold: 50.0, may_pick: &[1, 2] },
        Case { what: "all but one tried", weights: &[1, 9, 90], down: &[], tried: &[1, 2], panic_threshold: 50.0, may_pick: &[0] },
        Case { what: "all tried", weights: &[1, 1], down: &[], tried: &[0, 1], panic_threshold: 50.0, may_pick: &[0, 1] },
        Case { what: "tried before down", weights: &[1, 1, 1, 1], down: &[0, 1], tried: &[2, 3], panic_threshold: 50.0, may_pick: &[2, 3] },
    ];
    for case in &table {
        for kind in KINDS {
            let mut world = World::new(case.weights);
            world.down(case.down);
            let policy = LoadBalancer { panic_threshold_percent: case.panic_threshold, ..policy(kind) };
            let balancer = Balancer::new(&policy, world.set.clone(), None);
            let tried = world.ids(case.tried);
            let mut seen: Vec<usize> = (0..500).filter_map(|_| world.pick(&balancer, &tried)).collect();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, case.may_pick, "{}, {kind:?}", case.what);
        }
    }
}

#[test]
fn shares_follow_weights() {
    for weights in [&[1, 1, 1][..], &[1, 2, 3], &[1, 9], &[50, 100], &[1, 1, 1, 97], &[0, 5, 5]] {
        for kind in KINDS {
            let mut world = World::new(weights);
            let balancer = world.balancer(kind);
            let got = world.shares(&balancer, &[], 40_000);
            let total: u32 = weights.iter().sum();
            let expect: Vec<f64> = weights.iter().map(|&w| f64::from(w) / f64::from(total)).collect();
            assert_shares(kind, &got, &expect, 0.01);
        }
    }
}

/// `clients` send one request after the other; every endpoint takes 5 ms with some spread, `slow` ten times as long.
/// The share of each endpoint.
fn closed_loop(world: &mut World, balancer: &Balancer, clients: usize, requests: u32, slow: Option<usize>) -> Vec<f64> {
    let mut busy: std::collections::BinaryHeap<std::cmp::Reverse<(Instant, Instant, u64)>> = Default::default();
    let mut tickets = std::collections::HashMap::new();
    let mut counts = vec![0_u32; world.set.endpoints.len()];
    for serial in 0..u64::from(requests) {
        if busy.len() == clients {
            let std::cmp::Reverse((end, start, done)) = busy.pop().unwrap();
            world.now = end;
            let ticket: Ticket = tickets.remove(&done).unwrap();
            ticket.endpoint().latency.observe(end - start, end);
        }
        let picked = balancer.pick(0, &[], world.now, &mut world.rng).unwrap().clone();
        let place = world.set.endpoints.iter().position(|endpoint| endpoint.id == picked.id).unwrap();
        counts[place] += 1;
        let nanos = 4_500_000 + world.rng.u64(..1_000_000);
        let took = Duration::from_nanos(if slow == Some(place) { nanos * 10 } else { nanos });
        tickets.insert(serial, Ticket::new(picked, None));
        busy.push(std::cmp::Reverse((world.now + took, world.now, serial)));
        world.now += Duration::from_nanos(1000);
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(requests)).collect()
}

#[test]
fn shares_follow_weights_under_load() {
    for kind in [BalancerKind::PeakEwma, BalancerKind::LeastRequest] {
        for weights in [&[1, 1, 1][..], &[1, 2, 3], &[1, 9], &[50, 100], &[1, 1, 1, 1, 1, 1, 1, 1, 1, 10]] {
            for clients in [1, 2, 4, 8, 32, 128] {
                let mut world = World::new(weights);
                let balancer = world.balancer(kind);
                let got = closed_loop(&mut world, &balancer, clients, 20_000, None);
                let total: u32 = weights.iter().sum();
                let expect: Vec<f64> = weights.iter().map(|&w| f64::from(w) / f64::from(total)).collect();
                assert_shares((kind, clients), &got, &expect, 0.02);
            }
        }
    }
}

#[test]
fn shares_follow_weights_when_there_is_little_to_do() {
    // Two requests a second, one after the other: what is picked less often has always decayed further.
    let mut world = World::new(&[1, 9]);
    let balancer = world.balancer(BalancerKind::PeakEwma);
    let mut light = 0_u32;
    for _ in 0..20_000 {
        let picked = world.pick(&balancer, &[]).unwrap();
        light += u32::from(picked == 0);
        world.now += Duration::from_millis(500);
        world.set.endpoints[picked].latency.observe(Duration::from_millis(5), world.now);
    }
    assert_shares("light", &[f64::from(light) / 20_000.0], &[0.1], 0.01);
}

#[test]
fn a_slow_endpoint_gets_little() {
    #[rustfmt::skip]
    let table: [(BalancerKind, &[u32], f64); 4] = [
        (BalancerKind::PeakEwma, &[1, 1, 1], 0.02),
        (BalancerKind::PeakEwma, &[2, 1, 1], 0.05),
        // Knows the slow one only by what is in flight.
        (BalancerKind::LeastRequest, &[1, 1, 1], 0.1),
        (BalancerKind::LeastRequest, &[2, 1, 1], 0.2),
    ];
    for (kind, weights, most) in table {
        let mut world = World::new(weights);
        let balancer = world.balancer(kind);
        let shares = closed_loop(&mut world, &balancer, 16, 20_000, Some(0));
        assert!(shares[0] < most, "{kind:?}, weights {weights:?}: {shares:?}");
    }
}

#[test]
fn a_slow_endpoint_is_tried_again() {
    let mut world = World::new(&[1, 1]);
    let balancer = world.balancer(BalancerKind::PeakEwma);
    world.set.endpoints[0].latency.observe(Duration::from_millis(500), world.now);
    let mut first = None;
    for second in 0..120 {
        world.set.endpoints[1].latency.observe(Duration::from_millis(5), world.now);
        if world.shares(&balancer, &[], 100)[0] > 0.0 {
            first = Some(second);
            break;
        }
        world.now += Duration::from_secs(1);
    }
    // 500 ms decay to 5 ms in 10 s × ln 100 = 46 s.
    assert!(first.is_some_and(|second| (40..50).contains(&second)), "{first:?}");
}

#[test]
fn a_new_endpoint_does_not_wait() {
    let mut world = World::new(&[1, 1, 1]);
    let balancer = world.balancer(BalancerKind::PeakEwma);
    for endpoint in &world.set.endpoints[1..] {
        endpoint.latency.observe(Duration::from_millis(1), world.now);
    }
    let shares = world.shares(&balancer, &[], 9000);
    assert_shares("new", &shares, &[1.0 / 3.0; 3], 0.02);
}

#[test]
fn a_dead_endpoint_leaves_its_share_to_all_others() {
    for kind in KINDS {
        let mut world = World::new(&[1, 1, 1, 1, 1]);
        let balancer = world.balancer(kind);
        world.down(&[2]);
        let tolerance = if kind == BalancerKind::RingHash { 0.02 } else { 0.01 };
        let shares = world.shares(&balancer, &[], 40_000);
        assert_shares(kind, &shares, &[0.25, 0.25, 0.0, 0.25, 0.25], tolerance);
    }
}

#[test]
fn only_the_keys_of_a_dead_endpoint_move() {
    for kind in [BalancerKind::RingHash, BalancerKind::Maglev] {
        let mut world = World::new(&[1, 1, 1, 1]);
        let balancer = world.balancer(kind);
        let owners = |world: &mut World| -> Vec<u64> {
            (0..20_000).map(|key| balancer.pick(key, &[], world.now, &mut world.rng).unwrap().id).collect()
        };
        let before = owners(&mut world);
        world.down(&[1]);
        let dead = world.set.endpoints[1].id;
        for (was, is) in before.iter().zip(owners(&mut world)) {
            assert!(if *was == dead { is != dead } else { is == *was }, "{kind:?}");
        }
        world.set.endpoints[1].set_health(Health::Healthy, world.now);
        assert_eq!(before, owners(&mut world), "{kind:?}");
    }
}

#[test]
fn slow_start_grows_linearly_from_a_tenth() {
    for kind in [BalancerKind::PeakEwma, BalancerKind::LeastRequest, BalancerKind::RoundRobin, BalancerKind::Random] {
        // The second endpoint recovers at `world.now`; the first and third have been there for long.
        for (age, factor) in [(0, 0.1), (1, 0.1), (5, 0.5), (8, 0.8), (10, 1.0), (60, 1.0)] {
            let mut world = World::new(&[1, 1, 1]);
            world.now += Duration::from_secs(3600);
            world.down(&[1]);
            world.set.endpoints[1].set_health(Health::Healthy, world.now);
            world.now += Duration::from_secs(age);
            let policy = LoadBalancer { slow_start: Duration::from_secs(10), ..policy(kind) };
            let balancer = Balancer::new(&policy, world.set.clone(), None);
            let shares = world.shares(&balancer, &[], 40_000);
            let old = 1.0 / (2.0 + factor);
            assert_shares((kind, age), &shares, &[old, old * factor, old], 0.015);
        }
    }
}

/// The shares of `weights` when only `percent` of the first one's counts.
fn lowered(weights: &[u32], percent: u32) -> Vec<f64> {
    let effective =
        |(n, weight): (usize, &u32)| f64::from(*weight) * if n == 0 { f64::from(percent) / 100.0 } else { 1.0 };
    let effective: Vec<f64> = weights.iter().enumerate().map(effective).collect();
    let total: f64 = effective.iter().sum();
    effective.into_iter().map(|weight| weight / total).collect()
}

#[test]
fn a_lowered_weight_lowers_the_share() {
    for kind in [BalancerKind::PeakEwma, BalancerKind::LeastRequest, BalancerKind::RoundRobin, BalancerKind::Random] {
        for weights in [&[1, 1][..], &[1, 1, 1], &[3, 1, 2], &[1, 9], &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]] {
            for percent in [10, 25, 50, 100] {
                let mut world = World::new(weights);
                world.set.endpoints[0].set_weight_percent(percent);
                let balancer = world.balancer(kind);
                let got = world.shares(&balancer, &[], 40_000);
                assert_shares((kind, weights, percent), &got, &lowered(weights, percent), 0.015);
            }
        }
    }
}

#[test]
fn a_lowered_weight_lowers_the_share_under_load() {
    for kind in [BalancerKind::PeakEwma, BalancerKind::LeastRequest] {
        for weights in [&[1, 1][..], &[1, 1, 1], &[3, 1, 2], &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1]] {
            for clients in [1, 2, 4, 8, 32, 128] {
                let mut world = World::new(weights);
                world.set.endpoints[0].set_weight_percent(25);
                let balancer = world.balancer(kind);
                let got = closed_loop(&mut world, &balancer, clients, 20_000, None);
                assert_shares((kind, weights, clients), &got, &lowered(weights, 25), 0.03);
            }
        }
    }
}

#[test]
fn weights_that_are_all_lowered_alike_change_nothing() {
    for kind in KINDS {
        let mut world = World::new(&[1, 2, 1]);
        world.set.endpoints.iter().for_each(|endpoint| endpoint.set_weight_percent(10));
        let balancer = world.balancer(kind);
        assert_shares(kind, &world.shares(&balancer, &[], 40_000), &[0.25, 0.5, 0.25], 0.02);
    }
}

#[test]
fn keys_stay_with_an_endpoint_of_lowered_weight() {
    for kind in [BalancerKind::RingHash, BalancerKind::Maglev] {
        let mut world = World::new(&[1, 1, 1]);
        let balancer = world.balancer(kind);
        let owners = |world: &mut World| -> Vec<u64> {
            (0..1000).map(|key| balancer.pick(key, &[], world.now, &mut world.rng).unwrap().id).collect()
        };
        let before = owners(&mut world);
        world.set.endpoints[0].set_weight_percent(10);
        assert_eq!(before, owners(&mut world), "{kind:?}");
    }
}

#[test]
fn when_all_start_slowly_nobody_does() {
    let mut world = World::new(&[1, 2]);
    let policy = LoadBalancer { slow_start: Duration::from_secs(10), ..policy(BalancerKind::Random) };
    let balancer = Balancer::new(&policy, world.set.clone(), None);
    let shares = world.shares(&balancer, &[], 40_000);
    assert_shares("all new", &shares, &[1.0 / 3.0, 2.0 / 3.0], 0.02);
}

#[test]
fn zones_keep_what_they_can_take() {
    let (here, there) = (Some("a"), Some("b"));
    for kind in [BalancerKind::PeakEwma, BalancerKind::LeastRequest, BalancerKind::RoundRobin, BalancerKind::Random] {
        // How many of 10 local endpoints are down, and the share that stays local.
        for (down, expect) in [(0, 1.0), (2, 1.0), (5, 0.7), (8, 0.28), (10, 0.0)] {
            let endpoints: Vec<_> = (0..40).map(|n| (1, if n < 10 { here } else { there })).collect();
            let mut world = World::zoned(&endpoints, here);
            let balancer = world.balancer(kind);
            world.shares(&balancer, &[], 10);
            world.down(&(0..down).collect::<Vec<_>>());
            let local: f64 = world.shares(&balancer, &[], 20_000)[..10].iter().sum();
            assert!((local - expect).abs() < 0.015, "{kind:?}, {down} down: {local}");
        }
    }
}

#[test]
fn zones_do_not_matter_when() {
    let (a, b, both) = (Some("a"), Some("b"), [0.5, 0.5]);
    #[rustfmt::skip]
    let table = [
        ("they do", a, [a, b], true, &[][..], &[][..], [1.0, 0.0]),
        ("the policy says so", a, [a, b], false, &[], &[], both),
        ("the node has none", None, [a, b], true, &[], &[], both),
        ("nobody is local", Some("c"), [a, b], true, &[], &[], both),
        ("everybody is local", a, [a, a], true, &[], &[], both),
        ("an endpoint's is unknown: remote", a, [a, None], true, &[], &[], [1.0, 0.0]),
        ("the local one is down", a, [a, b], true, &[0], &[], [0.0, 1.0]),
        ("the local one was tried", a, [a, b], true, &[], &[0], [0.0, 1.0]),
        ("both were tried", a, [a, b], true, &[], &[0, 1], [1.0, 0.0]),
        ("panic", a, [a, b], true, &[0, 1], &[], both),
    ];
    for (what, zone, zones, zone_aware, down, tried, expect) in table {
        let mut world = World::zoned(&zones.map(|zone| (1, zone)), zone);
        let policy = LoadBalancer { zone_aware, ..policy(BalancerKind::Random) };
        let balancer = Balancer::new(&policy, world.set.clone(), None);
        world.down(down);
        let tried = world.ids(tried);
        let shares = world.shares(&balancer, &tried, 5000);
        assert_shares(what, &shares, &expect, 0.03);
    }
}

#[test]
fn a_removed_endpoint_no_longer_counts_as_unusable() {
    let world = World::new(&[1, 1]);
    world.down(&[0]);
    assert_eq!(world.set.circuit.unusable(), 1);
    world.set.endpoints[0].mark_removed(world.now);
    assert_eq!(world.set.circuit.unusable(), 0);
    world.down(&[0]);
    assert_eq!(world.set.circuit.unusable(), 0);
}

#[test]
fn endpoints_without_a_weight_count_neither_for_nor_against_panic() {
    for (weights, down, panic) in [
        // They are healthy, and no help.
        (&[1, 1, 0, 0][..], &[0, 1][..], true),
        (&[1, 1, 1, 0, 0], &[0, 1], true),
        (&[1, 1, 0, 0], &[0], false),
        // They are down, and no loss.
        (&[1, 1, 0, 0, 0], &[2, 3, 4], false),
        (&[1, 1, 0, 0, 0], &[1, 2, 3, 4], false),
        (&[0, 0], &[0, 1], false),
    ] {
        let mut world = World::new(weights);
        let balancer = world.balancer(BalancerKind::Random);
        world.down(down);
        assert_eq!(balancer.panicking(), panic, "{weights:?} without {down:?}");
        let weighted = weights.iter().any(|&weight| weight > 0);
        assert_eq!(world.pick(&balancer, &[]).is_some(), weighted, "{weights:?} without {down:?}");
    }
}

#[test]
fn an_endpoint_counts_from_when_it_has_a_weight() {
    let world = World::new(&[1, 0]);
    world.down(&[0, 1]);
    let unusable = |weight| {
        world.set.endpoints[1].set_weight(weight, world.now);
        world.set.circuit.unusable()
    };
    assert_eq!([0, 1, 1, 0].map(unusable), [1, 2, 2, 1]);
    world.set.endpoints[1].mark_removed(world.now);
    assert_eq!([1, 0].map(unusable), [1, 1]);
}

#[test]
fn tables_are_kept_while_addresses_and_weights_are() {
    let world = World::new(&[1, 2]);
    let ring = |balancer: &Balancer| match &balancer.algorithm {
        Algorithm::RingHash(ring) => Arc::as_ptr(ring),
        other => panic!("{other:?}"),
    };
    let first = world.balancer(BalancerKind::RingHash);
    let second = Balancer::new(&policy(BalancerKind::RingHash), world.set.clone(), Some(&first));
    assert_eq!(ring(&first), ring(&second));
    let changed = world.set.endpoints().iter().cloned().zip([3, 2]).collect();
    let changed = Arc::new(EndpointSet::new(changed, world.set.circuit.clone(), None));
    let third = Balancer::new(&policy(BalancerKind::RingHash), changed, Some(&second));
    assert_ne!(ring(&second), ring(&third));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn never_picks_what_it_must_not(
        endpoints in prop::collection::vec((0_u32..5, any::<bool>(), any::<bool>(), 0_u8..3, 0_u32..4), 0..12),
        kind in prop::sample::select(&KINDS[..]),
        threshold in prop::sample::select(&[0.0, 50.0, 100.0][..]),
        slow_start in prop::sample::select(&[0_u64, 10][..]),
        seed in any::<u64>(),
    ) {
        let zones = [None, Some("a"), Some("b")];
        let spec: Vec<_> = endpoints.iter().map(|e| (e.0, zones[usize::from(e.3)])).collect();
        let mut world = World::zoned(&spec, Some("a"));
        world.rng = Rng::with_seed(seed);
        let policy = LoadBalancer {
            panic_threshold_percent: threshold,
            slow_start: Duration::from_secs(slow_start),
            ..policy(kind)
        };
        let balancer = Balancer::new(&policy, world.set.clone(), None);
        let mut tried = Vec::new();
        for (endpoint, (_, down, was_tried, _, load)) in world.set.endpoints.iter().zip(&endpoints) {
            if *down {
                endpoint.set_health(Health::Unhealthy, world.now);
            }
            if *was_tried {
                tried.push(endpoint.id);
            }
            (0..*load).for_each(|_| { endpoint.in_flight.enter(); });
        }
        let weighted = endpoints.iter().filter(|e| e.0 > 0).count();
        let usable = endpoints.iter().filter(|e| e.0 > 0 && !e.1).count();
        let panic = usable as f64 * 100.0 < threshold * weighted as f64;
        prop_assert_eq!(balancer.panicking(), panic);
        let allowed = |e: &(u32, bool, bool, u8, u32)| e.0 > 0 && (panic || !e.1);
        let fresh = endpoints.iter().any(|e| allowed(e) && !e.2);
        for _ in 0..50 {
            match world.pick(&balancer, &tried) {
                Some(n) => {
                    prop_assert!(allowed(&endpoints[n]), "picked {}", n);
                    prop_assert!(!fresh || !endpoints[n].2, "picked {} again", n);
                }
                None => prop_assert!(!endpoints.iter().any(allowed), "picked none"),
            }
        }
    }

    #[test]
    fn shares_follow_any_weights(
        weights in prop::collection::vec(0_u32..100, 1..8),
        kind in prop::sample::select(&KINDS[..]),
        seed in any::<u64>(),
    ) {
        let total: u32 = weights.iter().sum();
        prop_assume!(total > 0);
        let mut world = World::new(&weights);
        world.rng = Rng::with_seed(seed);
        let balancer = world.balancer(kind);
        let got = world.shares(&balancer, &[], 20_000);
        for (got, weight) in got.iter().zip(&weights) {
            let expect = f64::from(*weight) / f64::from(total);
            prop_assert!((got - expect).abs() < 0.02, "{:?} by {:?}: {} instead of {}", kind, weights, got, expect);
            prop_assert!(*weight > 0 || *got == 0.0);
        }
    }
}

/// Not a test: `cargo test --release -p weft-proxy pick_cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints measurements"]
#[allow(clippy::print_stdout)]
fn pick_cost() {
    for kind in KINDS {
        for (what, count, weight) in
            [("3 equal", 3, false), ("10,000 equal", 10_000, false), ("10,000 weighted", 10_000, true)]
        {
            let mut world = World::new(&(0..count).map(|n| if weight { 1 + n % 10 } else { 1 }).collect::<Vec<_>>());
            for endpoint in &world.set.endpoints {
                endpoint.latency.observe(Duration::from_millis(5), world.now);
            }
            world.now += Duration::from_secs(1);
            let start = Instant::now();
            let balancer = world.balancer(kind);
            let built = start.elapsed();
            let start = Instant::now();
            let picks = 2_000_000_u32;
            for key in 0..u64::from(picks) {
                std::hint::black_box(balancer.pick(key, &[], world.now, &mut world.rng));
            }
            println!("{kind:?}, {what}: {:?} per pick, built in {built:?}", start.elapsed() / picks);
        }
    }
}
