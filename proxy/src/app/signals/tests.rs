//! The task with a kernel that was made up, and endpoints on this machine.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    net::{Ipv4Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Mutex,
};

use serde_json::Value;
use tokio::net::TcpListener;

use super::*;
use crate::{endpoint::health_changes, kernel::Origin, snapshot::fixture};

const BREAKER: &str = "circuitBreaker: {baseEjectionTime: 5s, maxEjectionPercent: 100}";

/// Notes what it is told.
#[derive(Debug, Default)]
struct Told {
    attributed: Mutex<Vec<u64>>,
    recovered: Mutex<Vec<u64>>,
}

impl Kernel for Told {
    fn origin(&self, _: BorrowedFd<'_>) -> Option<Origin> {
        None
    }

    fn attribute(&self, _: BorrowedFd<'_>, endpoint: u64) {
        self.attributed.lock().unwrap().push(endpoint);
    }

    fn signals(&self) -> HashMap<u64, Signals> {
        HashMap::new()
    }

    fn recovered(&self, endpoint: u64) {
        self.recovered.lock().unwrap().push(endpoint);
    }

    fn verdicts(&self) -> Vec<(&'static str, &'static str, u64)> {
        vec![("direct", "no_l7", 7), ("deny", "policy", 2)]
    }

    fn connections(&self) -> Value {
        Value::Null
    }

    fn flows(&self, _: u64) -> Value {
        Value::Null
    }

    fn status(&self) -> Value {
        Value::Null
    }
}

struct World {
    told: Arc<Told>,
    watch: Watch,
    snapshot: Snapshot,
    signals: HashMap<u64, Signals>,
    now: Instant,
}

impl World {
    fn new(endpoints: &[SocketAddr], policy: &str) -> Self {
        let listed = endpoints.iter().map(|at| format!("{{address: {}, port: {}}}", at.ip(), at.port()));
        let listed = listed.collect::<Vec<_>>().join(", ");
        let target = "targetRefs: [{group: weft.dev, kind: Service, name: cart}]";
        let snapshot = fixture::snapshot(
            &[
                fixture::ours("Service", "cart", &format!("ports: [{{port: 80}}], endpoints: [{listed}]")),
                fixture::ours("TrafficPolicy", "cart", &format!("{target}, {policy}")),
            ]
            .concat(),
        );
        let now = Instant::now();
        snapshot.enforce(&Snapshot::empty(), now);
        let told = Arc::new(Told::default());
        let mut world = Self { watch: Watch::new(told.clone()), told, snapshot, signals: HashMap::new(), now };
        world.sample(|_, _| {});
        world
    }

    fn endpoint(&self, place: usize) -> Arc<Endpoint> {
        self.snapshot.services.values().next().unwrap().endpoints()[place].clone()
    }

    /// One second later, `happens` has happened to the counters of each endpoint.
    fn sample(&mut self, happens: impl Fn(usize, &mut Signals)) {
        for (place, endpoint) in self.snapshot.services.values().next().unwrap().endpoints().iter().enumerate() {
            happens(place, self.signals.entry(endpoint.id).or_default());
        }
        self.now += PERIOD;
        self.watch.sample(&self.snapshot, &self.signals, self.now);
    }

    /// Waits until the probes that are out have ended.
    async fn probed(&mut self) {
        while let Some(ended) = self.watch.probes.join_next_with_id().await {
            self.watch.probed(ended, self.now);
        }
    }

    fn recovered(&self) -> usize {
        self.told.recovered.lock().unwrap().len()
    }

    fn probes(&self) -> usize {
        self.told.attributed.lock().unwrap().len()
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Refuses connections until it listens; nobody else gets the port meanwhile.
fn closed() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

fn fine(signals: &mut Signals) {
    signals.attempts += 9;
    signals.established += 9;
}

fn refused(signals: &mut Signals) {
    signals.attempts += 5;
    signals.refused += 5;
}

fn first_refuses(place: usize, signals: &mut Signals) {
    if place == 0 { refused(signals) } else { fine(signals) }
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_ejected_and_probed_until_it_does_not() {
    let (socket, refusing) = closed();
    let (_peer, working) = listener().await;
    let mut world = World::new(&[refusing, working], BREAKER);
    let endpoint = world.endpoint(0);
    // Whatever other tests have changed.
    let _ = tokio::time::timeout(Duration::ZERO, health_changes().notified()).await;
    world.sample(first_refuses);
    assert!(!endpoint.usable());
    assert!(tokio::time::timeout(Duration::from_secs(5), health_changes().notified()).await.is_ok());
    let event = endpoint.guard().circuit().events().pop().unwrap();
    assert_eq!(&*event.evidence, "kernel: 5 connections refused in 1s, none established; peers: 0 refused");
    // Not due yet: its breaker is open, and nobody asks.
    world.sample(|place, signals| {
        if place == 1 {
            fine(signals)
        }
    });
    world.probed().await;
    assert_eq!((world.probes(), endpoint.guard().state()), (0, State::Open));
    // Due, and refused: open for longer.
    world.now += Duration::from_secs(6);
    world.sample(|_, _| {});
    assert_eq!(endpoint.guard().state(), State::HalfOpen);
    world.probed().await;
    assert_eq!((world.probes(), world.recovered(), endpoint.guard().state()), (1, 0, State::Open));
    assert_eq!(
        endpoint.guard().circuit().events().pop().unwrap().evidence,
        Arc::from("a probe failed: connect_failed")
    );
    // Due, and it works.
    socket.listen(1).unwrap();
    world.now += Duration::from_secs(12);
    world.sample(|_, _| {});
    world.probed().await;
    assert_eq!((world.probes(), world.recovered(), endpoint.guard().state()), (2, 1, State::Closed));
    world.sample(|_, _| {});
    assert!(world.watch.suspects.is_empty() && endpoint.usable());
}

#[tokio::test]
async fn an_endpoint_that_the_kernel_passes_over_is_probed_without_any_policy() {
    let (socket, refusing) = closed();
    let (_peer, working) = listener().await;
    let mut world = World::new(&[refusing, working], "timeouts: {connect: 2s}");
    let endpoint = world.endpoint(0);
    world.sample(first_refuses);
    world.probed().await;
    assert!(endpoint.usable());
    assert_eq!((world.probes(), world.recovered()), (1, 0));
    // Every second, although nothing new has happened.
    world.sample(|_, _| {});
    world.probed().await;
    assert_eq!((world.probes(), world.recovered()), (2, 0));
    socket.listen(1).unwrap();
    world.sample(|_, _| {});
    world.probed().await;
    assert_eq!((world.probes(), world.recovered()), (3, 1));
    world.sample(|_, _| {});
    world.probed().await;
    assert_eq!((world.probes(), world.watch.suspects.len()), (3, 0));
    assert_eq!(*world.told.recovered.lock().unwrap(), [endpoint.id]);
}

#[tokio::test]
async fn probes_are_no_evidence() {
    let (_socket, refusing) = closed();
    let (_peer, working) = listener().await;
    let mut world = World::new(&[refusing, working], BREAKER);
    let one = |place: usize, signals: &mut Signals| {
        if place == 1 {
            return fine(signals);
        }
        signals.attempts += 1;
        signals.refused += 1;
    };
    world.sample(one);
    for _ in 0..5 {
        world.probed().await;
        // What the probe met.
        world.sample(one);
    }
    assert_eq!(world.probes(), 5);
    assert!(world.endpoint(0).usable());
}

#[tokio::test]
async fn probes_are_bounded_and_end_with_the_endpoint() {
    let (_socket, refusing) = closed();
    let all: Vec<SocketAddr> =
        (0..100).map(|n| SocketAddr::from((Ipv4Addr::new(127, 0, 1, n), refusing.port()))).collect();
    let mut world = World::new(&all, "timeouts: {connect: 2s}");
    world.sample(|_, signals| refused(signals));
    assert_eq!(world.watch.probes.len(), MAX_PROBES);
    world.probed().await;
    // Those who have waited come first.
    world.sample(|_, _| {});
    world.probed().await;
    assert_eq!(world.probes(), 2 * MAX_PROBES);
    let mut seen = world.told.attributed.lock().unwrap().clone();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 100);
    for place in 0..100 {
        world.endpoint(place).mark_removed(world.now);
    }
    world.snapshot = Snapshot::empty();
    world.watch.sample(&world.snapshot, &HashMap::new(), world.now + PERIOD);
    assert!(world.watch.probes.is_empty() && world.watch.suspects.is_empty() && world.watch.judges.is_empty());
}

#[tokio::test]
async fn loss_lowers_the_weight_where_the_policy_lets_it_count() {
    let addresses = [1, 2, 3].map(|n| SocketAddr::from(([10, 0, 0, n], 80)));
    let loses = |place: usize, signals: &mut Signals| {
        fine(signals);
        signals.retransmits += if place == 0 { 40 } else { 0 };
    };
    for (policy, expect) in
        [(BREAKER, 50), ("circuitBreaker: {kernelSignals: false}", 100), ("timeouts: {connect: 2s}", 100)]
    {
        let mut world = World::new(&addresses, policy);
        world.sample(loses);
        world.sample(loses);
        assert_eq!(world.endpoint(0).weight_percent(), expect, "{policy}");
        assert_eq!(world.endpoint(1).weight_percent(), 100);
        // Nobody refuses: nobody is probed.
        assert!(world.watch.suspects.is_empty());
        assert_eq!(world.endpoint(0).signals().unwrap().retransmits, 80);
    }
}

#[tokio::test]
async fn a_weight_is_given_back_with_the_policy() {
    let addresses = [1, 2].map(|n| SocketAddr::from(([10, 0, 0, n], 80)));
    let mut world = World::new(&addresses, BREAKER);
    for _ in 0..2 {
        world.sample(|place, signals| {
            fine(signals);
            signals.retransmits += if place == 0 { 40 } else { 0 };
        });
    }
    let endpoint = world.endpoint(0);
    assert_eq!(endpoint.weight_percent(), 50);
    let plain = fixture::ours("Service", "cart", "ports: [{port: 80}], endpoints: [{address: 10.0.0.1, port: 80}]");
    world.snapshot = fixture::Node::new().next(&plain, &world.snapshot);
    world.sample(|_, _| {});
    assert_eq!((world.endpoint(0).id, endpoint.weight_percent()), (endpoint.id, 100));
    assert!(world.watch.judges.is_empty());
}

#[test]
fn verdicts_are_shown_as_long_as_there_is_a_kernel() {
    let (metrics, kernel) = (Metrics::default(), Arc::new(Told::default()) as Arc<dyn Kernel>);
    show_verdicts(&metrics, &kernel);
    let labels = [("verdict", "direct"), ("reason", "no_l7")];
    assert_eq!(metrics.collect().value("weft_verdicts_total", &labels), Some(7.0));
    drop(kernel);
    assert_eq!(metrics.collect().value("weft_verdicts_total", &labels), None);
}
