#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::{
    endpoint::Health,
    resilience::{
        breaker::State,
        outcome::{Failure, Outcome},
    },
    snapshot::{
        Snapshot,
        fixture::{gateway, object, ours, snapshot},
    },
};

const S: Duration = Duration::from_secs(1);

struct World {
    snapshot: Snapshot,
    now: Instant,
    rng: Rng,
}

impl World {
    /// `count` endpoints; two failures in a row open a breaker. `load_balancer` is the text of a mapping.
    fn new(count: usize, load_balancer: &str, breaker: &str) -> Self {
        let endpoints: Vec<String> = (1..=count).map(|n| format!("{{address: 10.0.0.{n}, port: 9000}}")).collect();
        let policy = format!(
            "targetRefs: [{{group: weft.dev, kind: Service, name: cart}}], loadBalancer: {load_balancer}, \
             circuitBreaker: {{consecutiveFailures: 2{breaker}}}"
        );
        let route = "parentRefs: [{name: edge}], rules: [{backendRefs: [{group: weft.dev, kind: Service, name: cart, port: 80}]}]";
        let text = [
            gateway("edge", "[{name: http, port: 8001, protocol: HTTP}]"),
            ours("Service", "cart", &format!("ports: [{{port: 80}}], endpoints: [{}]", endpoints.join(", "))),
            ours("TrafficPolicy", "p", &policy),
            object("HTTPRoute", "name: r", route),
        ];
        let snapshot = snapshot(&text.concat());
        let now = Instant::now();
        snapshot.enforce(&Snapshot::empty(), now);
        Self { snapshot, now, rng: Rng::with_seed(5) }
    }

    fn upstream(&self) -> &Arc<Upstream> {
        self.snapshot.rules[0].backends.get(0).unwrap().upstream.as_ref().unwrap()
    }

    fn endpoint(&self, n: usize) -> Arc<Endpoint> {
        self.upstream().service.endpoints()[n].clone()
    }

    fn record(&mut self, n: usize, failure: Option<Failure>, probe: Option<Probe>) {
        let outcome = Outcome { failure, took: Duration::ZERO };
        self.endpoint(n).record(outcome, probe, self.now, &mut self.rng);
    }

    fn open(&mut self, which: &[usize]) {
        for &n in which {
            self.record(n, Some(Failure::ConnectFailed), None);
            self.record(n, Some(Failure::ConnectFailed), None);
            assert_eq!(self.endpoint(n).guard().state(), State::Open);
        }
    }

    /// Number of the endpoint, and the probe.
    fn pick(&mut self, tried: &[usize]) -> Result<(usize, Option<Probe>), Unpicked> {
        let tried: Vec<u64> = tried.iter().map(|&n| self.endpoint(n).id).collect();
        let upstream = self.upstream().clone();
        let pick = upstream.pick(self.rng.u64(..), &tried, self.now, &mut self.rng)?;
        Ok((upstream.service.endpoints().iter().position(|each| each.id == pick.endpoint.id).unwrap(), pick.probe))
    }

    /// Who gets requests.
    fn picked(&mut self) -> Vec<usize> {
        let mut picked: Vec<usize> = (0..300).map(|_| self.pick(&[]).unwrap()).map(|(n, _)| n).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }
}

#[test]
fn no_algorithm_picks_the_ejected() {
    for kind in ["PeakEWMA", "LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"] {
        let mut world = World::new(4, &format!("{{type: {kind}}}"), "");
        assert_eq!(world.picked(), [0, 1, 2, 3], "{kind}");
        world.open(&[1, 3]);
        assert_eq!(world.picked(), [0, 2], "{kind}");
        // A third one may not be ejected: it stays in rotation.
        world.open(&[2]);
        assert_eq!(world.picked(), [0, 2], "{kind}");
    }
}

#[test]
fn a_due_probe_comes_first() {
    let mut world = World::new(4, "{}", ", halfOpenRequests: 2");
    world.open(&[2]);
    world.now += S;
    world.open(&[0]);
    assert!(world.pick(&[]).unwrap().1.is_none());
    world.now += 10 * S;
    let (first, second) = (world.pick(&[]).unwrap(), world.pick(&[]).unwrap());
    assert_eq!([first.0, second.0], [2, 2], "the one that has waited longest, with all its probes");
    let (third, fourth) = (world.pick(&[]).unwrap(), world.pick(&[]).unwrap());
    assert_eq!([third.0, fourth.0], [0, 0]);
    assert!([first.1, second.1, third.1, fourth.1].iter().all(Option::is_some));
    // All given back. A request that has tried one gets the other; copies get none.
    assert_eq!(world.pick(&[2]).unwrap().0, 0);
    let upstream = world.upstream().clone();
    assert!(upstream.pick_for_copy(1, world.now, &mut world.rng).unwrap().probe.is_none());
    // Nor does anybody while its health checks fail.
    world.endpoint(2).set_health(Health::Unhealthy, world.now);
    world.endpoint(0).set_health(Health::Unhealthy, world.now);
    assert!(matches!(world.pick(&[]).unwrap(), (1 | 3, None)));
}

#[test]
fn an_open_circuit_refuses_and_says_when_to_come_again() {
    let mut world = World::new(2, "{}", "");
    world.open(&[0, 1]);
    let unpicked = world.pick(&[]).unwrap_err();
    let Unpicked::CircuitOpen { retry_after, open: 2 } = unpicked else { panic!("{unpicked:?}") };
    assert!((4 * S..6 * S).contains(&retry_after));
    let refusal = world.upstream().refusal(unpicked, world.now);
    assert_eq!((refusal.reason, refusal.retry_after), (Reason::CircuitOpen, Some(retry_after)));
    let detail = "all 2 endpoints of service cart are open; last: 10.0.0.2:9000: 2 of 2 failed: connect_failed ×2";
    assert_eq!(refusal.detail, detail);
    assert!(world.upstream().clone().pick_for_copy(1, world.now, &mut world.rng).is_err());
    // One probe each and nothing else, although panic would pick anybody.
    world.now += 6 * S;
    let probes = [world.pick(&[]).unwrap(), world.pick(&[]).unwrap()];
    assert!(probes.iter().all(|(_, probe)| probe.is_some()) && probes[0].0 != probes[1].0);
    let zero = Duration::ZERO;
    assert_eq!(world.pick(&[]).unwrap_err(), Unpicked::CircuitOpen { retry_after: zero, open: 2 });
    let [(n, probe), other] = probes;
    world.record(n, None, probe);
    assert_eq!(world.picked(), [n]);
    // Nobody else is left: the one that it has tried.
    world.record(other.0, Some(Failure::Timeout), other.1);
    world.open(&[n]);
    world.now += 20 * S;
    assert!(world.pick(&[0, 1]).unwrap().1.is_some());
}

#[test]
fn a_single_endpoint_is_never_ejected_but_its_circuit_opens() {
    let mut world = World::new(1, "{}", ", maxEjectionPercent: 50");
    world.open(&[0]);
    let unpicked = world.pick(&[]).unwrap_err();
    let refusal = world.upstream().refusal(unpicked, world.now);
    assert!(refusal.detail.starts_with("the only endpoint of service cart is open"), "{}", refusal.detail);
    world.now += 6 * S;
    let (_, probe) = world.pick(&[]).unwrap();
    world.record(0, None, probe);
    assert_eq!(world.picked(), [0]);
}

#[test]
fn panic_ignores_ejection_unless_the_circuit_is_open() {
    let mut world = World::new(4, "{panicThresholdPercent: 60}", "");
    world.open(&[0, 1]);
    assert_eq!(world.picked(), [0, 1, 2, 3], "2 of 4 are less than 60 %");
    world.open(&[2, 3]);
    assert!(world.pick(&[]).is_err());
}

#[test]
fn without_panic_nobody_may_be_left() {
    let mut world = World::new(2, "{panicThresholdPercent: 0}", "");
    world.open(&[0]);
    world.endpoint(1).set_health(Health::Unhealthy, world.now);
    let unpicked = world.pick(&[]).unwrap_err();
    assert_eq!(unpicked, Unpicked::NoEndpoint);
    assert!(world.upstream().refusal(unpicked, world.now).detail.starts_with("none of the 2 endpoints"));
}

#[test]
fn nobody_gets_ready_for_an_open_circuit_except_for_a_probe() {
    let mut world = World::new(2, "{}", ", baseEjectionTime: 5s");
    world.open(&[0]);
    assert_eq!(world.upstream().check(world.now), Ok(()));
    world.open(&[1]);
    let Err(Unpicked::CircuitOpen { retry_after, open: 2 }) = world.upstream().check(world.now) else { panic!() };
    world.now += retry_after;
    assert_eq!(world.upstream().check(world.now), Ok(()), "a probe is due");
    let probe = world.pick(&[]).unwrap().1;
    assert!(probe.is_some());
}
