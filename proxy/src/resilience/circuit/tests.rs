//! Guards and their circuit together.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{collections::HashMap, net::SocketAddr, sync::atomic::AtomicBool};

use fastrand::Rng;
use proptest::prelude::*;
use weft_model::policy::{CircuitBreaker, FailureRate};

use super::*;
use crate::{
    endpoint::Health,
    resilience::{
        breaker::{Cause, PROBE_LAPSE},
        guard::Probe,
        outcome::{Failure, Outcome},
    },
};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn policy() -> CircuitBreaker {
    CircuitBreaker {
        consecutive_failures: 2,
        failure_rate: FailureRate { percent: 100.0, minimum_requests: 1000, window: 10 * S },
        slow_calls: None,
        base_ejection_time: 5 * S,
        max_ejection_time: 30 * S,
        max_ejection_percent: 50.0,
        half_open_requests: 1,
        kernel_signals: true,
    }
}

struct World {
    circuit: Arc<Circuit>,
    endpoints: Vec<Arc<Endpoint>>,
    policy: Option<CircuitBreaker>,
    now: Instant,
    rng: Rng,
}

impl World {
    fn new(count: usize, policy: CircuitBreaker) -> Self {
        let now = Instant::now();
        let circuit = Arc::new(Circuit::new("cart".into(), Arc::default(), now));
        let endpoint = |n: usize| {
            let address = SocketAddr::from(([10, 0, 0, n as u8], 80));
            Arc::new(Endpoint::new(address, None, None, 1, circuit.clone(), now))
        };
        let endpoints = (0..count).map(endpoint).collect();
        let mut world = Self { circuit, endpoints, policy: None, now, rng: Rng::with_seed(1) };
        world.configure(Some(policy));
        world
    }

    fn configure(&mut self, policy: Option<CircuitBreaker>) {
        let shared = policy.clone().map(Arc::new);
        self.endpoints.iter().for_each(|endpoint| endpoint.guard().configure(shared.as_ref(), self.now));
        let percent = policy.as_ref().map_or(0.0, |policy| policy.max_ejection_percent);
        self.circuit.configure(percent, &self.endpoints, self.now);
        self.policy = policy;
    }

    fn record(&mut self, n: usize, failure: Option<Failure>, probe: Option<Probe>) -> Option<Arc<Event>> {
        self.endpoints[n].record(Outcome { failure, took: MS }, probe, self.now, &mut self.rng)
    }

    fn open(&mut self, n: usize) -> Arc<Event> {
        self.record(n, Some(Failure::ConnectFailed), None);
        self.record(n, Some(Failure::ConnectFailed), None).unwrap()
    }

    fn open_again(&mut self, n: usize) -> Arc<Event> {
        let probe = self.probe(n).unwrap();
        self.record(n, Some(Failure::Reset), Some(probe)).unwrap()
    }

    fn probe(&self, n: usize) -> Option<Probe> {
        self.endpoints[n].probe(self.now)
    }

    fn close(&mut self, n: usize) -> Arc<Event> {
        let probe = self.probe(n).unwrap();
        self.record(n, None, Some(probe)).unwrap()
    }

    fn due(&self) -> Vec<u64> {
        self.circuit.due(true, self.now).to_vec()
    }

    /// Everything that is counted, counted again.
    fn assert_counts(&self) {
        let guards = || self.endpoints.iter().map(|endpoint| endpoint.guard()).filter(|guard| !guard.is_removed());
        let guarded = || guards().filter(|guard| guard.enabled());
        let count = |counted: &dyn Fn(&super::super::guard::Guard) -> bool| {
            guarded().filter(|guard| counted(guard)).count() as u32
        };
        let counts = Counts {
            guarded: count(&|_| true),
            open: count(&|guard| guard.state() != State::Closed),
            ejected: count(&|guard| guard.ejected()),
        };
        assert_eq!(self.circuit.counts(), counts);
        assert_eq!(self.circuit.quiet(), counts.open == 0);
        assert_eq!(self.circuit.is_open(), counts.guarded > 0 && counts.open == counts.guarded);
        assert_eq!(self.circuit.unusable(), guards().filter(|guard| !guard.usable()).count());
        let percent = self.policy.as_ref().map_or(0.0, |policy| policy.max_ejection_percent);
        assert!(counts.ejected <= (f64::from(counts.guarded) * percent / 100.0).floor() as u32, "{counts:?}");
        for guard in self.endpoints.iter().map(|endpoint| endpoint.guard()) {
            assert!(guard.enabled() || (guard.state() == State::Closed && !guard.ejected()));
        }
    }
}

#[test]
fn whoever_is_told_to_come_again_finds_a_probe() {
    let mut world = World::new(2, policy());
    world.open(0);
    world.now += 3 * S;
    world.open(1);
    assert!(world.circuit.outlook(world.now).0 < 3 * S, "the first is due earlier");
    // It gets no probe: it fails its health checks.
    world.endpoints[0].set_health(Health::Unhealthy, world.now);
    let (wait, _) = world.circuit.outlook(world.now);
    assert!(wait > 4 * S, "{wait:?}");
    world.now += wait - MS;
    assert!(!world.circuit.is_due(world.now));
    world.now += MS;
    assert!(world.circuit.is_due(world.now) && world.due() == [world.endpoints[1].id]);
    // One that is half open and fails them tells nobody to come at once.
    world.endpoints[0].set_health(Health::Healthy, world.now);
    drop(world.probe(0).unwrap());
    world.open_again(1);
    assert_eq!(world.circuit.outlook(world.now).0, Duration::ZERO);
    world.endpoints[0].set_health(Health::Unhealthy, world.now);
    assert!(world.circuit.outlook(world.now).0 > 4 * S);
}

#[test]
fn an_endpoint_beyond_the_limit_is_open_and_kept_in_rotation() {
    let mut world = World::new(3, policy());
    assert!(world.open(0).ejected && !world.endpoints[0].usable());
    let second = world.open(1);
    assert_eq!((second.to, second.ejected, world.endpoints[1].usable()), (State::Open, false, true));
    assert!(!world.circuit.is_open() && !world.circuit.quiet());
    world.assert_counts();
    // A place becomes free: the one that goes on failing takes it.
    world.now += 4 * S;
    world.endpoints[0].guard().configure(None, world.now);
    world.endpoints[0].guard().configure(Some(&Arc::new(policy())), world.now);
    let event = world.record(1, Some(Failure::Reset), None).unwrap();
    assert_eq!((event.from, event.to, event.ejected), (State::Open, State::Open, true));
    assert!(event.lasts.unwrap() < 2 * S && event.evidence.starts_with("2 of 2"), "{event:?}");
    world.assert_counts();
    let ejections: HashMap<Cause, u64> = world.circuit.ejections.read().collect();
    assert_eq!(ejections[&Cause::ConsecutiveFailures], 2);
}

#[test]
fn the_kernels_evidence_opens_what_is_closed_if_the_policy_lets_it_count() {
    let mut world = World::new(4, CircuitBreaker { kernel_signals: false, ..policy() });
    let trip = |world: &mut World, n: usize| world.endpoints[n].trip("refused".into(), world.now, &mut world.rng);
    assert_eq!(trip(&mut world, 0), None);
    world.configure(None);
    assert_eq!(trip(&mut world, 0), None);
    world.configure(Some(policy()));
    let event = trip(&mut world, 0).unwrap();
    assert_eq!((event.from, event.to, event.ejected), (State::Closed, State::Open, true));
    assert_eq!((event.cause, &*event.evidence), (Some(Cause::Kernel), "refused"));
    let lasts = event.lasts.unwrap();
    assert!(lasts >= 4500 * MS && lasts <= 5500 * MS, "{lasts:?}");
    assert_eq!(world.circuit.events(), [event]);
    // Open, and half open: there is nothing to open.
    assert_eq!(trip(&mut world, 0), None);
    world.now += lasts;
    let probe = world.probe(0).unwrap();
    assert_eq!(trip(&mut world, 0), None);
    // What happens next is as ever: here for longer, because it is the second time.
    let again = world.record(0, Some(Failure::ConnectFailed), Some(probe)).unwrap();
    assert!(again.lasts.unwrap() > 8 * S);
    // Not more than half of them.
    assert!(trip(&mut world, 1).unwrap().ejected);
    assert!(!trip(&mut world, 2).unwrap().ejected && world.endpoints[2].usable());
    world.assert_counts();
    let ejections: HashMap<Cause, u64> = world.circuit.ejections.read().collect();
    assert_eq!((ejections[&Cause::Kernel], ejections[&Cause::ProbeFailed]), (2, 1));
    world.endpoints[3].mark_removed(world.now);
    assert_eq!(trip(&mut world, 3), None);
}

#[test]
fn a_service_with_one_endpoint_ejects_nobody_but_its_circuit_opens() {
    let mut world = World::new(1, policy());
    assert_eq!(world.circuit.view(world.now), CircuitView::Steady);
    assert!(!world.open(0).ejected);
    assert!(world.circuit.is_open() && world.endpoints[0].usable());
    assert_eq!((world.circuit.state(), world.circuit.view(world.now)), (State::Open, CircuitView::Open));
    let (wait, last) = world.circuit.outlook(world.now);
    assert!(wait > 4 * S && wait < 6 * S && &*last.unwrap().endpoint == "10.0.0.0:80");
    assert!(!world.circuit.is_due(world.now));
    world.now += 6 * S;
    assert!(world.circuit.is_due(world.now));
    let probe = world.probe(0).unwrap();
    assert!(world.circuit.is_open() && !world.circuit.is_due(world.now) && world.probe(0).is_none());
    assert_eq!((world.circuit.state(), world.circuit.outlook(world.now).0), (State::HalfOpen, Duration::ZERO));
    world.record(0, None, Some(probe)).unwrap();
    assert!(world.circuit.quiet() && world.due().is_empty());
    world.now += 3 * S;
    assert_eq!(world.circuit.view(world.now), CircuitView::Recovering(3 * S));
    world.assert_counts();
}

#[test]
fn a_probe_without_a_verdict_gives_its_slot_back() {
    let mut world = World::new(2, policy());
    world.open(0);
    world.now += 6 * S;
    let probe = world.probe(0).unwrap();
    assert!(!world.circuit.is_due(world.now));
    drop(probe);
    assert!(world.circuit.is_due(world.now));
    world.close(0);
    // Also when the policy was another one in the meantime, or none at all.
    world.now += 60 * S;
    world.open(0);
    world.now += 6 * S;
    let probe = world.probe(0).unwrap();
    world.configure(None);
    assert!(world.circuit.quiet() && world.endpoints[0].usable());
    world.configure(Some(policy()));
    world.now += S;
    world.open(0);
    world.now += 6 * S;
    let new = world.probe(0).unwrap();
    drop(probe);
    assert!(world.probe(0).is_none(), "an old probe has no slot to give back");
    drop(new);
    world.close(0);
    world.assert_counts();
}

#[test]
fn an_endpoint_that_recovers_is_as_good_as_new() {
    let mut world = World::new(2, policy());
    let start = world.now;
    world.endpoints[0].observe(start, 900 * MS, world.now);
    world.open(0);
    let generation = crate::endpoint::health_generation();
    world.now += 6 * S;
    assert_eq!(world.endpoints[0].usable_for(world.now), 6 * S);
    world.close(0);
    assert_ne!(crate::endpoint::health_generation(), generation);
    assert_eq!(world.endpoints[0].usable_for(world.now), Duration::ZERO);
    assert_eq!(world.endpoints[0].latency.get(world.now), crate::balance::ewma::DEFAULT_RTT);
    // A request that hung since before says nothing of it now.
    world.endpoints[0].observe(start, 6 * S, world.now);
    assert_eq!(world.endpoints[0].latency.get(world.now), crate::balance::ewma::DEFAULT_RTT);
    world.endpoints[0].observe(world.now, 7 * MS, world.now);
    assert_eq!(world.endpoints[0].latency.get(world.now), 7 * MS);
}

#[test]
fn health_and_ejection_count_once_and_probes_go_to_the_healthy() {
    let mut world = World::new(2, policy());
    world.open(0);
    world.endpoints[0].set_health(Health::Unhealthy, world.now);
    assert_eq!(world.circuit.unusable(), 1);
    world.now += 6 * S;
    assert!(!world.circuit.is_due(world.now) && world.due().is_empty(), "it would not even be picked");
    world.endpoints[0].set_health(Health::Healthy, world.now);
    assert_eq!((world.circuit.unusable(), world.due()), (1, vec![world.endpoints[0].id]));
    // All of them open and unhealthy: then health is no guide.
    world.open(1);
    world.now += 6 * S;
    world.endpoints.iter().for_each(|endpoint| endpoint.set_health(Health::Unhealthy, world.now));
    assert_eq!(world.due(), [world.endpoints[0].id, world.endpoints[1].id]);
    assert!(world.circuit.is_due(world.now));
    assert!(world.circuit.due(false, world.now).is_empty());
    world.endpoints[1].set_health(Health::Unknown, world.now);
    assert_eq!(world.due(), [world.endpoints[1].id]);
    world.assert_counts();
}

#[test]
fn fewer_may_be_ejected_after_a_change() {
    let mut world = World::new(4, policy());
    world.open(0);
    world.open(1);
    assert_eq!(world.circuit.counts(), Counts { guarded: 4, open: 2, ejected: 2 });
    world.configure(Some(CircuitBreaker { max_ejection_percent: 25.0, ..policy() }));
    assert_eq!(world.circuit.counts(), Counts { guarded: 4, open: 2, ejected: 1 });
    world.assert_counts();
    // Three of them leave: one of one cannot be ejected.
    for n in 1..4 {
        world.endpoints[n].mark_removed(world.now);
    }
    world.configure(world.policy.clone());
    assert_eq!(world.circuit.counts(), Counts { guarded: 1, open: 1, ejected: 0 });
    assert!(world.circuit.is_open());
    world.assert_counts();
    world.endpoints[0].mark_removed(world.now);
    assert_eq!(world.circuit.counts(), Counts::default());
    assert!(world.circuit.quiet() && !world.circuit.is_open() && world.due().is_empty());
}

#[test]
fn the_last_events_are_kept() {
    let mut world = World::new(2, policy());
    for _ in 0..10 {
        world.open(0);
        world.now += 40 * S;
        world.close(0);
        world.now += 2 * S;
    }
    let events = world.circuit.events();
    assert_eq!(events.len(), MAX_EVENTS);
    let last: Vec<_> = events[13..].iter().map(|event| (event.from, event.to)).collect();
    let expected = [(State::Closed, State::Open), (State::Open, State::HalfOpen), (State::HalfOpen, State::Closed)];
    assert_eq!(last, expected);
    let view = world.endpoints[0].guard().view(world.now);
    assert_eq!((view.state, view.evidence, view.left), (State::Closed, None, None));
    world.open(0);
    let view = world.endpoints[0].guard().view(world.now + S);
    assert_eq!(view.evidence.as_deref(), Some("2 of 2 failed: connect_failed ×2"));
    assert!(view.ejected && view.left.unwrap() < 60 * S && view.openings > 1, "{view:?}");
}

#[derive(Debug, Clone)]
enum Op {
    Record(usize, bool),
    Probe,
    Verdict(usize, bool),
    Drop(usize),
    Health(usize, Health),
    Policy(Option<(u32, u32)>),
    Remove(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let which = 0..8_usize;
    let health = prop::sample::select(vec![Health::Unknown, Health::Healthy, Health::Unhealthy]);
    prop_oneof![
        12 => (which.clone(), prop::bool::weighted(0.7)).prop_map(|(n, failed)| Op::Record(n, failed)),
        8 => Just(Op::Probe),
        6 => (which.clone(), any::<bool>()).prop_map(|(n, failed)| Op::Verdict(n, failed)),
        2 => which.clone().prop_map(Op::Drop),
        2 => (which.clone(), health).prop_map(|(n, health)| Op::Health(n, health)),
        1 => prop::option::weighted(0.8, (0_u32..101, 1_u32..4)).prop_map(Op::Policy),
        1 => which.prop_map(Op::Remove),
    ]
}

/// A probe as the test sees it: the endpoint, how many times it had been half open, and when it went out.
struct Out {
    n: usize,
    period: u32,
    at: Instant,
    probe: Probe,
}

proptest! {
    /// Requests of many clients, interleaved in every way, with the configuration and health changing under them.
    #[test]
    fn the_rules_hold_whatever_happens(
        count in 1_usize..8,
        seed: u64,
        ops in prop::collection::vec((op(), 0_u64..4000), 1..400),
    ) {
        let mut world = World::new(count, policy());
        world.rng = Rng::with_seed(seed);
        let mut out: Vec<Out> = Vec::new();
        // Per endpoint: its HalfOpen periods so far, and successes in the current one.
        let mut periods = vec![(0_u32, 0_u32); count];
        let mut openings = vec![0_u32; count];
        for (op, pause) in ops {
            world.now += Duration::from_millis(pause);
            let states: Vec<State> = world.endpoints.iter().map(|endpoint| endpoint.guard().state()).collect();
            let mut changed = None;
            match op {
                Op::Record(n, failed) if n < count => {
                    changed = world.record(n, failed.then_some(Failure::Reset), None).map(|event| (n, event));
                }
                Op::Probe => {
                    let due = if world.circuit.is_due(world.now) { world.due() } else { Vec::new() };
                    if let Some(n) = due.first().and_then(|id| world.endpoints.iter().position(|e| e.id == *id)) {
                        let probe = world.probe(n);
                        prop_assert!(probe.is_some(), "who is due has a probe");
                        if states[n] == State::Open {
                            periods[n] = (periods[n].0 + 1, 0);
                        }
                        let (period, succeeded) = periods[n];
                        out.push(Out { n, period, at: world.now, probe: probe.unwrap() });
                        let held = out.iter().filter(|out| {
                            (out.n, out.period) == (n, period) && world.now < out.at + PROBE_LAPSE
                        });
                        let held = held.count() as u32 + succeeded;
                        prop_assert!(held <= world.policy.as_ref().unwrap().half_open_requests, "{} probes", held);
                    }
                }
                Op::Verdict(which, failed) if !out.is_empty() => {
                    let Out { n, period, probe, .. } = out.remove(which % out.len());
                    let counts = states[n] == State::HalfOpen && period == periods[n].0;
                    changed = world.record(n, failed.then_some(Failure::Timeout), Some(probe)).map(|event| (n, event));
                    if counts {
                        periods[n].1 += u32::from(!failed);
                        prop_assert!(!failed || changed.is_some(), "the first failure opens it");
                    }
                }
                Op::Drop(which) if !out.is_empty() => drop(out.remove(which % out.len())),
                Op::Health(n, health) if n < count => world.endpoints[n].set_health(health, world.now),
                Op::Policy(change) => {
                    world.configure(change.map(|(percent, half_open_requests)| CircuitBreaker {
                        max_ejection_percent: percent.into(),
                        half_open_requests,
                        ..policy()
                    }));
                    if change.is_none() {
                        openings.fill(0);
                    }
                }
                Op::Remove(n) if n < count && world.rng.u32(0..4) == 0 => {
                    world.endpoints[n].mark_removed(world.now);
                    world.configure(world.policy.clone());
                }
                _ => {}
            }
            world.assert_counts();
            let Some((n, event)) = changed else { continue };
            prop_assert_eq!(event.ejected, world.endpoints[n].guard().ejected());
            if event.to == State::Open && event.from != State::Open {
                let view = world.endpoints[n].guard().view(world.now);
                let expected = (5 * S * view.openings).min(30 * S).as_secs_f64();
                let lasts = event.lasts.unwrap().as_secs_f64();
                prop_assert!((0.9 - 1e-9..=1.1 + 1e-9).contains(&(lasts / expected)), "{} of {}", lasts, expected);
                prop_assert!(view.openings >= 1 && view.openings <= openings[n] + 1);
                prop_assert!(event.from != State::HalfOpen || view.openings == openings[n] + 1, "grows");
                openings[n] = view.openings;
            }
        }
        // Whatever it was: once everything works again, the probes find out.
        out.clear();
        for endpoint in &world.endpoints {
            endpoint.set_health(Health::Healthy, world.now);
        }
        let mut rounds = 0;
        while !world.circuit.quiet() {
            world.now += 34 * S;
            prop_assert!(world.circuit.is_due(world.now), "stuck");
            let id = *world.due().first().unwrap();
            let n = world.endpoints.iter().position(|endpoint| endpoint.id == id).unwrap();
            let probe = world.probe(n).unwrap();
            world.record(n, None, Some(probe));
            rounds += 1;
            prop_assert!(rounds < 100);
        }
        world.assert_counts();
        prop_assert_eq!(world.circuit.unusable(), 0);
    }
}

#[test]
fn threads_do_not_lose_count() {
    let mut world = World::new(6, CircuitBreaker { base_ejection_time: MS, max_ejection_time: 3 * MS, ..policy() });
    let done = AtomicBool::new(false);
    let (endpoints, circuit, start) = (&world.endpoints, &world.circuit, world.now);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|seed| {
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(seed);
                    let mut held = Vec::new();
                    for step in 0..20_000 {
                        let (now, n) = (start + Duration::from_micros(20) * step, rng.usize(..6));
                        let outcome = Outcome { failure: rng.bool().then_some(Failure::Reset), took: Duration::ZERO };
                        match rng.u32(..8) {
                            0 => held.extend(endpoints[n].probe(now).map(|probe| (n, probe))),
                            1 => drop(held.pop()),
                            2 => {
                                let health = if rng.bool() { Health::Healthy } else { Health::Unhealthy };
                                endpoints[n].set_health(health, now);
                            }
                            3 if !held.is_empty() => {
                                let (n, probe) = held.swap_remove(0);
                                endpoints[n].record(outcome, Some(probe), now, &mut rng);
                            }
                            _ => drop(endpoints[n].record(outcome, None, now, &mut rng)),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let counts = circuit.counts();
                assert!(counts.ejected <= 3 && counts.open <= 6 && counts.guarded == 6, "{counts:?}");
            }
        });
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, Relaxed);
    });
    world.now += S;
    world.assert_counts();
    let waiting = world.endpoints.iter().filter(|endpoint| endpoint.guard().state() != State::Closed).count();
    assert_eq!(lock(&world.circuit.inner).waiting.len(), waiting);
    let ejected = world.circuit.ejections.read().map(|(_, count)| count).sum::<u64>();
    assert!(ejected > 100, "nothing was tested: {ejected}");
}
