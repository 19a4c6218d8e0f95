//! The decision against a naive model of it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Case {
    /// Weight, masked, held of each endpoint.
    endpoints: Vec<(u32, bool, bool)>,
    direct: bool,
    fail_open: bool,
    /// Whether the proxy is alive, listens, is in the same namespace.
    proxy: (bool, bool, bool),
    /// Nothing, or what everybody and what the workload may.
    policy: Option<(bool, Option<bool>)>,
    enrolled: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let endpoint = (1u32..5, prop::bool::weighted(0.3), prop::bool::weighted(0.2));
    (
        prop::collection::vec(endpoint, 0..8),
        any::<bool>(),
        any::<bool>(),
        (prop::bool::weighted(0.7), prop::bool::weighted(0.8), prop::bool::weighted(0.8)),
        prop::option::of((any::<bool>(), prop::option::of(any::<bool>()))),
        any::<bool>(),
    )
        .prop_map(|(endpoints, direct, fail_open, proxy, policy, enrolled)| Case {
            endpoints,
            direct,
            fail_open,
            proxy,
            policy,
            enrolled,
        })
}

/// The service of a case is 1, at 10.96.0.9:80.
fn world_of(case: &Case) -> World {
    let mut w = world();
    // In the place of somebody else, so that a mistake in arithmetic shows.
    w.slots = vec![2; 11];
    let base = w.slots.len() as u32;
    let first = w.endpoints.len() as u32;
    for (i, &(weight, masked, held)) in (0..).zip(&case.endpoints) {
        w.slots.extend((0..weight).map(|_| first + i));
        w.endpoints.push(Endpoint {
            service: 1,
            addr: addr("10.0.0.1"),
            port: 1000 + i,
            generation: 1,
            masked: masked.into(),
            ..Endpoint::default()
        });
        if held {
            w.held.insert(first + i, NOW - 1);
        }
    }
    let list = w.slots.len() as u32;
    let listed = case.endpoints.len() as u32;
    w.slots.extend(first..first + listed);
    let flags = if case.fail_open { flag::FAIL_OPEN } else { 0 } | if case.policy.is_some() { flag::POLICY } else { 0 };
    let action = if case.direct { Action::Direct } else { Action::Proxy } as u8;
    let vip = Vip { service: 1, action, flags, base, slots: list - base, list, listed, ..Vip::default() };
    w.vips.insert(VipKey { addr: addr("10.96.0.9"), port: 80 }, vip);
    if let Some((everybody, workload)) = case.policy {
        let policy = |ok| Policy { access: if ok { access::ALLOW } else { access::DENY }, ..Policy::default() };
        w.policies.insert(PolicyKey { service: 1, workload: 0 }, policy(everybody));
        if let Some(workload) = workload {
            w.policies.insert(PolicyKey { service: 1, workload: 200 }, policy(workload));
        }
    }
    if case.enrolled {
        w.cgroups.push(20);
    }
    let (alive, listens, same) = case.proxy;
    if !alive {
        w.heartbeat = NOW - HEARTBEAT_NS - 1;
    }
    if !listens {
        w.listening.clear();
    }
    if !same {
        w.netns = 99;
    }
    w
}

/// Verdict, reason, and which endpoints may be picked.
fn expected(case: &Case) -> (Verdict, Reason, Vec<u32>) {
    if let Some((everybody, workload)) = case.policy
        && !(if case.enrolled { workload.unwrap_or(everybody) } else { everybody })
    {
        return (Verdict::Deny, Reason::AccessDenied, vec![]);
    }
    let down = match case.proxy {
        (false, ..) => Some(Reason::ProxyDown),
        (_, _, false) => Some(Reason::OtherNamespace),
        (_, false, _) => Some(Reason::ProxyDown),
        _ => None,
    };
    let reason = match (case.direct, down, case.fail_open) {
        (true, ..) => Reason::Service,
        (_, None, _) => return (Verdict::Proxy, Reason::Service, vec![]),
        (_, Some(down), false) => return (Verdict::Deny, down, vec![]),
        (_, Some(_), true) => Reason::FailOpen,
    };
    let indices = 0..case.endpoints.len() as u32;
    let good = |&i: &u32| !case.endpoints[i as usize].1 && !case.endpoints[i as usize].2;
    let usable: Vec<u32> = indices.clone().filter(good).collect();
    match (usable.is_empty(), indices.is_empty()) {
        (_, true) => (Verdict::Deny, Reason::NoEndpoint, vec![]),
        (true, _) => (Verdict::Direct, reason, indices.collect()),
        _ => (Verdict::Direct, reason, usable),
    }
}

proptest! {
    #[test]
    fn does_what_the_model_says(case in cases()) {
        let w = world_of(&case);
        let (verdict, reason, picks) = expected(&case);
        let mut picked = HashSet::new();
        for _ in 0..100 {
            let decision = w.connect("10.96.0.9", 80);
            prop_assert_eq!((decision.verdict, decision.reason), (verdict, reason));
            prop_assert_eq!(decision.workload, if case.enrolled { 200 } else { 0 });
            if verdict == Verdict::Direct {
                prop_assert!(picks.contains(&(decision.port - 1000)), "{}", decision.port);
                prop_assert_eq!(w.endpoints[decision.endpoint as usize].port, decision.port);
                picked.insert(decision.port - 1000);
            } else {
                prop_assert_eq!(decision.endpoint, Meta::NO_ENDPOINT);
            }
            if matches!(verdict, Verdict::Direct | Verdict::Proxy) {
                let mut again = Decision::PASS;
                classify(&w, &Request { dest: decision.addr, port: decision.port, bound: Addr::NONE }, &mut again);
                prop_assert_eq!(again, Decision::PASS);
            }
        }
    }
}

#[test]
fn weights_are_what_connections_get() {
    for weights in [&[3, 1][..], &[1, 1], &[1, 2, 3, 4], &[50, 1, 49]] {
        let case = Case {
            endpoints: weights.iter().map(|&weight| (weight, false, false)).collect(),
            direct: true,
            fail_open: false,
            proxy: (true, true, true),
            policy: None,
            enrolled: false,
        };
        let w = world_of(&case);
        let mut picks: BTreeMap<u32, f64> = BTreeMap::new();
        for _ in 0..100_000 {
            *picks.entry(w.connect("10.96.0.9", 80).port).or_default() += 1.0 / 100_000.0;
        }
        let sum: u32 = weights.iter().sum();
        for (share, weight) in picks.values().zip(weights) {
            assert!((share - f64::from(*weight) / f64::from(sum)).abs() < 0.01, "{weights:?}: {picks:?}");
        }
    }
}
