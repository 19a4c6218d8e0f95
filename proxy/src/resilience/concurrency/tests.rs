use std::{cmp::Reverse, collections::BinaryHeap};

use proptest::prelude::*;

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A service of `servers` that work at `service` seconds per request (exponentially distributed) and queue what comes
/// on top, behind a limit.
struct Simulation {
    start: Instant,
    /// Nanoseconds.
    now: u64,
    rng: fastrand::Rng,
    limit: Gradient,
    /// When each server is free.
    free: BinaryHeap<Reverse<u64>>,
    /// End, start, number in flight.
    under_way: BinaryHeap<Reverse<(u64, u64, u32)>>,
}

/// What happened in a stretch of time.
#[derive(Debug, Default)]
struct Seen {
    arrived: u32,
    refused: u32,
    /// Per second.
    throughput: f64,
    mean: Duration,
    /// Lowest and highest limit, probes apart.
    limits: (u32, u32),
}

impl Simulation {
    fn new(servers: usize) -> Self {
        let start = Instant::now();
        let limit = Gradient::new(&Concurrency { min: 3, max: 1_000 }, start);
        let mut this = Self {
            start,
            now: 0,
            rng: fastrand::Rng::with_seed(11),
            limit,
            free: BinaryHeap::new(),
            under_way: BinaryHeap::new(),
        };
        this.resize(servers);
        this
    }

    fn resize(&mut self, servers: usize) {
        let mut free: Vec<_> = std::mem::take(&mut self.free).into_sorted_vec();
        free.truncate(servers);
        free.resize(servers, Reverse(self.now));
        self.free = free.into();
    }

    fn exponential(&mut self, mean: f64) -> u64 {
        (-(1.0 - self.rng.f64()).ln() * mean * 1e9) as u64
    }

    fn at(&self, nanos: u64) -> Instant {
        self.start + Duration::from_nanos(nanos)
    }

    /// Requests arrive at `rate` per second for `seconds`; a share of `failing` times out.
    fn run(&mut self, seconds: u64, rate: f64, service: f64, failing: f64) -> Seen {
        let end = self.now + seconds * 1_000_000_000;
        let mut seen = Seen { limits: (u32::MAX, 0), ..Seen::default() };
        let (mut ended, mut took) = (0u32, 0u64);
        loop {
            let next = self.now + self.exponential(1.0 / rate);
            while let Some(Reverse((finish, start, number))) =
                self.under_way.peek().copied().filter(|Reverse(first)| first.0 <= next)
            {
                self.under_way.pop();
                let failed = self.rng.f64() < failing;
                self.limit.sample(Duration::from_nanos(finish - start), number, failed, self.at(finish));
                if self.limit.probe.is_none() {
                    let limit = self.limit.limit();
                    seen.limits = (seen.limits.0.min(limit), seen.limits.1.max(limit));
                }
                ended += 1;
                took += finish - start;
            }
            self.now = next;
            if next >= end {
                break;
            }
            seen.arrived += 1;
            let number = self.under_way.len() as u32 + 1;
            if number > self.limit.limit() {
                seen.refused += 1;
                continue;
            }
            let free = self.free.pop().map_or(next, |Reverse(free)| free.max(next));
            let finish = free + self.exponential(service);
            self.free.push(Reverse(finish));
            self.under_way.push(Reverse((finish, next, number)));
        }
        seen.throughput = f64::from(ended) / seconds as f64;
        seen.mean = Duration::from_nanos(took / u64::from(ended.max(1)));
        seen
    }
}

#[test]
fn a_service_with_room_is_left_alone() {
    let mut simulation = Simulation::new(100);
    // 50 in flight on average; the limit starts at 20.
    simulation.run(10, 1_000.0, 0.05, 0.0);
    let seen = simulation.run(120, 1_000.0, 0.05, 0.0);
    assert!(seen.refused * 1_000 < seen.arrived, "{seen:?}");
}

#[test]
fn under_overload_it_settles_near_the_capacity_and_stays() {
    let mut simulation = Simulation::new(50);
    simulation.run(60, 2_000.0, 0.05, 0.0);
    // Capacity: 50 in flight, 1,000 per second.
    for minute in 0..10 {
        let seen = simulation.run(60, 2_000.0, 0.05, 0.0);
        assert!(seen.limits.0 >= 45 && seen.limits.1 <= 125, "minute {minute}: {seen:?}");
        assert!(seen.throughput >= 950.0, "minute {minute}: {seen:?}");
        assert!(seen.mean <= ms(110), "minute {minute}: {seen:?}");
    }
}

#[test]
fn a_service_that_loses_capacity_is_followed_and_back() {
    let mut simulation = Simulation::new(100);
    simulation.run(60, 3_000.0, 0.05, 0.0);
    simulation.resize(25);
    simulation.run(30, 3_000.0, 0.05, 0.0);
    let small = simulation.run(60, 3_000.0, 0.05, 0.0);
    assert!(small.throughput >= 460.0 && small.limits.1 <= 75, "{small:?}");
    simulation.resize(100);
    simulation.run(30, 3_000.0, 0.05, 0.0);
    let large = simulation.run(60, 3_000.0, 0.05, 0.0);
    assert!(large.throughput >= 1_850.0 && large.limits.1 <= 250, "{large:?}");
}

#[test]
fn a_service_that_has_become_slower_gets_its_share_again() {
    let mut simulation = Simulation::new(50);
    simulation.run(60, 2_000.0, 0.05, 0.0);
    // Three times as slow: 333 per second is what it can do.
    let change = simulation.run(15, 2_000.0, 0.15, 0.0);
    assert!(change.throughput >= 200.0, "{change:?}");
    let slow = simulation.run(60, 2_000.0, 0.15, 0.0);
    assert!(slow.throughput >= 310.0 && slow.limits.1 <= 125, "{slow:?}");
    simulation.run(60, 2_000.0, 0.05, 0.0);
    let fast = simulation.run(60, 2_000.0, 0.05, 0.0);
    assert!(fast.throughput >= 950.0 && fast.mean <= ms(120), "{fast:?}");
}

#[test]
fn time_outs_lower_the_limit_and_their_end_raises_it() {
    let mut simulation = Simulation::new(50);
    simulation.run(60, 2_000.0, 0.05, 0.0);
    simulation.run(20, 2_000.0, 0.05, 1.0);
    assert_eq!(simulation.limit.limit(), 3);
    simulation.run(20, 2_000.0, 0.05, 0.0);
    let seen = simulation.run(30, 2_000.0, 0.05, 0.0);
    assert!(seen.throughput >= 900.0, "{seen:?}");
}

#[test]
fn only_a_limit_that_is_used_grows() {
    let start = Instant::now();
    let window = |samples, peak| Window { samples, total: ms(10) * samples as u32, failed: 0, peak };
    // Peak in flight, whether the limit of 20 grows.
    for (peak, grows) in [(0, false), (9, false), (10, true), (20, true)] {
        let mut limit = Gradient::new(&Concurrency { min: 1, max: 100 }, start);
        (0..10).for_each(|_| limit.learn(window(100, peak), start));
        assert_eq!(limit.limit > 20.0, grows, "{peak}");
    }
    let mut bounded = Gradient::new(&Concurrency { min: 30, max: 40 }, start);
    assert_eq!(bounded.limit(), 30);
    (0..100).for_each(|_| bounded.learn(window(100, 40), start));
    assert_eq!(bounded.limit(), 40);
    bounded.configure(&Concurrency { min: 1, max: 10 });
    assert_eq!(bounded.limit(), 10);
}

#[test]
fn a_probe_ends_even_when_nobody_can_be_measured() {
    let start = Instant::now();
    let mut limit = Gradient::new(&Concurrency { min: 1, max: 1_000 }, start);
    let slow = |total| Window { samples: 100, total: ms(total) * 100, failed: 0, peak: 1_000 };
    limit.learn(slow(10), start);
    let mut now = start;
    while limit.probe.is_none() {
        now += ms(100);
        limit.learn(slow(100), now);
    }
    let lowered = limit.limit();
    for _ in 0..60 {
        now += ms(100);
        limit.learn(slow(100), now);
    }
    assert!(limit.limit() > lowered || limit.probe.is_none(), "{limit:?}");
}

#[test]
fn the_shared_limit_learns_what_the_plain_one_does() {
    let start = Instant::now();
    let policy = Concurrency { min: 3, max: 1_000 };
    let (mut plain, shared) = (Gradient::new(&policy, start), SharedGradient::new(&policy, start));
    let mut rng = fastrand::Rng::with_seed(5);
    for tick in 0..20_000u64 {
        let now = start + ms(tick);
        let (rtt, number) = (Duration::from_micros(rng.u64(5_000..60_000)), rng.u32(1..=plain.limit()));
        let failed = rng.u32(..100) == 0;
        plain.sample(rtt, number, failed, now);
        shared.sample(rtt, number, failed, now);
        assert_eq!(plain.limit(), shared.limit(), "{tick}");
    }
    shared.configure(&Concurrency { min: 2, max: 2 });
    assert_eq!(shared.limit(), 2);
}

proptest! {
    #[test]
    fn the_limit_stays_within_its_bounds(
        min in 1u32..50, more in 0u32..500,
        samples in proptest::collection::vec((0u64..10_000_000, 0u32..2_000, any::<bool>(), 0u64..2_000), 1..400)
    ) {
        let start = Instant::now();
        let mut limit = Gradient::new(&Concurrency { min, max: min + more }, start);
        let mut now = start;
        for (micros, number, failed, wait) in samples {
            now += ms(wait);
            for _ in 0..10 {
                limit.sample(Duration::from_micros(micros), number, failed, now);
            }
            prop_assert!((min..=min + more).contains(&limit.limit()), "{limit:?}");
        }
    }
}

#[test]
fn streams_that_never_end_do_not_close_a_service() {
    let policy = Concurrency { min: 3, max: 25 };
    // What happens in each second: requests in flight beyond the limit's last value, samples; the limit afterwards.
    for (what, seconds, full, sampled, expected) in [
        ("silent and full", 10, true, false, 20),
        ("from the eleventh second on", 11, true, false, 21),
        ("one per second", 13, true, false, 23),
        ("up to the policy's maximum", 60, true, false, 25),
        ("samples come", 60, true, true, 20),
        ("there is room", 60, false, false, 20),
    ] {
        let start = Instant::now();
        let mut gradient = Gradient::new(&policy, start);
        for second in 0..seconds {
            let in_flight = if full { gradient.limit() } else { gradient.limit() - 1 };
            gradient.tick(sampled, in_flight, start + Duration::from_secs(second));
        }
        assert_eq!(gradient.limit(), expected, "{what}");
    }
}

#[test]
fn who_was_let_in_does_not_close_the_door_again() {
    let start = Instant::now();
    let at = |second| start + Duration::from_secs(second);
    let shared = SharedGradient::new(&Concurrency { min: 3, max: 1_000 }, start);
    for second in 0..15 {
        shared.tick(20, at(second));
    }
    assert_eq!(shared.limit(), 21, "one more has room");
    // Each one that is let in answers at once, and stays.
    for second in 15..20 {
        let in_flight = shared.limit();
        shared.sample(ms(5), in_flight, false, at(second));
        shared.tick(in_flight, at(second));
    }
    assert_eq!(shared.limit(), 26);
    for _ in 0..10 {
        shared.sample(ms(5), 26, false, at(20));
    }
    let learned = shared.limit();
    shared.tick(learned, at(21));
    assert_eq!((learned, shared.limit()), (27, 27), "latency decides again");
}

#[test]
fn a_measurement_of_the_baseline_does_not_wait_for_ever() {
    let start = Instant::now();
    let mut gradient = Gradient::new(&Concurrency { min: 3, max: 1_000 }, start);
    gradient.probe = Some(Probe { end: start + PROBE_TIME, seen: Window::default() });
    assert_eq!(gradient.limit(), 5);
    for second in 0..11 {
        gradient.tick(false, 20, start + Duration::from_secs(second));
    }
    assert_eq!(gradient.limit(), 21);
}
