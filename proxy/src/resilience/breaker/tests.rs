#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;
use weft_model::policy::{FailureRate, SlowCalls};

use super::{super::outcome::Failure, Rng, *};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

pub fn policy() -> CircuitBreaker {
    CircuitBreaker {
        consecutive_failures: 5,
        failure_rate: FailureRate { percent: 50.0, minimum_requests: 20, window: 10 * S },
        slow_calls: None,
        base_ejection_time: 5 * S,
        max_ejection_time: 300 * S,
        max_ejection_percent: 50.0,
        half_open_requests: 1,
        kernel_signals: true,
    }
}

/// One step of a script. Times are in milliseconds since the one before.
#[derive(Debug, Clone, Copy)]
enum Do {
    Good,
    Slow,
    Fail(Failure),
    /// The first half in turn with a success, so that no run becomes long.
    Mixed(Failure, u32),
    /// Must be given out.
    Probe,
    /// Must not be given out.
    NoProbe,
    /// The oldest probe that is out ends.
    ProbeOk,
    ProbeSlow,
    ProbeFail(Failure),
    GiveBack,
    /// `halfOpenRequests` from now on.
    Needs(u32),
}

use Do::*;

struct Script {
    policy: CircuitBreaker,
    breaker: Breaker,
    now: Instant,
    rng: Rng,
    probes: Vec<Slot>,
    last: Option<Transition>,
}

impl Script {
    fn new(policy: CircuitBreaker) -> Self {
        let now = Instant::now();
        let breaker = Breaker::new(&policy, now);
        Self { policy, breaker, now, rng: Rng::with_seed(3), probes: Vec::new(), last: None }
    }

    fn record(&mut self, outcome: Outcome, probe: Option<Slot>) {
        let before = self.breaker.state();
        let transition = self.breaker.record(&self.policy, outcome, probe, self.now, &mut self.rng);
        if let Some(transition) = &transition {
            assert_eq!((transition.from, transition.to), (before, self.breaker.state()));
        } else {
            assert_eq!(before, self.breaker.state());
        }
        self.last = transition.or(self.last.take());
    }

    fn fail(&mut self, failure: Failure) {
        self.record(Outcome::failure(failure, MS), None);
    }

    fn run(&mut self, step: Do) {
        match step {
            Good => self.record(Outcome::success(MS), None),
            Slow => self.record(Outcome::success(900 * MS), None),
            Fail(failure) => self.fail(failure),
            Mixed(failure, count) => {
                for _ in 0..count {
                    self.record(Outcome::success(MS), None);
                    self.fail(failure);
                }
            }
            Probe => {
                let (slot, transition) = self.breaker.probe(&self.policy, self.now).unwrap();
                self.probes.push(slot);
                self.last = transition.or(self.last.take());
            }
            NoProbe => assert_eq!(self.breaker.probe(&self.policy, self.now), None),
            ProbeOk => {
                let slot = self.probes.remove(0);
                self.record(Outcome::success(MS), Some(slot));
            }
            ProbeSlow => {
                let slot = self.probes.remove(0);
                self.record(Outcome::success(1200 * MS), Some(slot));
            }
            ProbeFail(failure) => {
                let slot = self.probes.remove(0);
                self.record(Outcome::failure(failure, MS), Some(slot));
            }
            GiveBack => {
                let slot = self.probes.remove(0);
                self.breaker.give_back(slot);
            }
            Needs(requests) => {
                self.policy.half_open_requests = requests;
                let transition = self.breaker.configure(&self.policy, self.now);
                self.last = transition.or(self.last.take());
            }
        }
    }
}

/// What it is about, the policy, pauses and steps, the state at the end, the last evidence.
type Case = (&'static str, CircuitBreaker, Vec<(u64, Do)>, State, &'static str);

#[test]
#[rustfmt::skip]
fn states_by_script() {
    const REFUSED: Failure = Failure::ConnectFailed;
    const F503: Failure = Failure::Status(503);
    let two = CircuitBreaker { consecutive_failures: 2, ..policy() };
    let rate = CircuitBreaker { consecutive_failures: 100, ..policy() };
    let percent = |percent, minimum_requests| CircuitBreaker {
        failure_rate: FailureRate { percent, minimum_requests, window: 10 * S },
        ..rate.clone()
    };
    let slow = CircuitBreaker {
        slow_calls: Some(SlowCalls { threshold: 800 * MS, percent: 60.0, minimum_requests: 5 }),
        ..policy()
    };
    let open2 = [(0, Fail(REFUSED)), (0, Fail(REFUSED))];
    let probing = [&open2[..], &[(6000, Probe)]].concat();
    let probes = |needs: u32, rest: &[(u64, Do)]| [&[(0, Needs(needs))], &probing[..], rest].concat();
    let after = |rest: &[(u64, Do)]| [&probing[..], rest].concat();
    let table: Vec<Case> = vec![
        ("four in a row are not five", policy(), vec![(0, Fail(REFUSED)); 4], State::Closed, ""),
        ("five in a row", policy(), vec![(0, Fail(REFUSED)); 5], State::Open, "5 of 5 failed: connect_failed ×5"),
        ("a run may last", policy(), vec![(60_000, Fail(F503)); 5], State::Open, "5 of 5 failed: 503 ×5"),
        ("a success ends the run", policy(), [vec![(0, Fail(F503)); 4], vec![(0, Good)], vec![(0, Fail(F503)); 4]].concat(), State::Closed, ""),
        ("of several kinds", two.clone(), vec![(0, Fail(F503)), (0, Fail(Failure::Grpc(14)))], State::Open, "2 of 2 failed: 503 ×1, grpc:UNAVAILABLE ×1"),
        ("a rate needs enough requests", rate.clone(), vec![(0, Mixed(F503, 9)), (0, Fail(F503))], State::Closed, ""),
        ("a rate", rate.clone(), vec![(0, Mixed(F503, 10))], State::Open, "10 of 20 failed in 10s (50 % ≥ 50 %): 503 ×10"),
        ("a success may complete the number", rate.clone(), vec![(0, Fail(F503)), (0, Mixed(F503, 9)), (0, Good)], State::Open, "10 of 20 failed in 10s (50 % ≥ 50 %): 503 ×10"),
        ("the worst comes first", percent(66.5, 8), vec![(0, Fail(Failure::Reset)), (0, Fail(Failure::Reset)), (0, Good), (0, Mixed(F503, 1)), (0, Good), (0, Fail(F503)), (0, Fail(F503)), (0, Fail(F503))], State::Open, "6 of 9 failed in 10s (66.67 % ≥ 66.5 %): 503 ×4, upstream_reset ×2"),
        ("old failures leave the window", rate.clone(), vec![(0, Mixed(F503, 9)), (11_000, Fail(F503)), (0, Fail(F503))], State::Closed, ""),
        ("0 % needs a failure", percent(0.0, 1), vec![(0, Good); 30], State::Closed, ""),
        ("0 %", percent(0.0, 1), vec![(0, Good), (0, Fail(F503))], State::Open, "1 of 2 failed in 10s (50 % ≥ 0 %): 503 ×1"),
        ("slow calls", slow.clone(), vec![(0, Good), (0, Slow), (0, Slow), (0, Good), (0, Slow)], State::Open, "3 of 5 took 800ms or longer (60 % ≥ 60 %)"),
        ("slow calls are off unless there is a policy", policy(), vec![(0, Slow); 50], State::Closed, ""),
        ("open: no probe before the time", two.clone(), [&open2[..], &[(4400, NoProbe)]].concat(), State::Open, "2 of 2 failed: connect_failed ×2"),
        ("open: what comes in late does not matter", two.clone(), [&open2[..], &[(0, Fail(F503)), (0, Good), (0, Fail(F503))]].concat(), State::Open, "2 of 2 failed: connect_failed ×2"),
        ("half open, at most one probe", two.clone(), after(&[(0, NoProbe)]), State::HalfOpen, "open for 6s: time for a probe"),
        ("half open: others do not matter", two.clone(), after(&[(0, Good), (0, Fail(F503)), (0, Fail(F503))]), State::HalfOpen, "open for 6s: time for a probe"),
        ("a probe succeeds", two.clone(), after(&[(0, ProbeOk)]), State::Closed, "a probe succeeded"),
        ("a probe fails", two.clone(), after(&[(0, ProbeFail(F503))]), State::Open, "a probe failed: 503"),
        ("a slow probe succeeds if it was failures", CircuitBreaker { consecutive_failures: 2, ..slow.clone() }, after(&[(0, ProbeSlow)]), State::Closed, "a probe succeeded"),
        ("a slow probe fails if it was slow calls", slow.clone(), [vec![(0, Slow); 5], vec![(6000, Probe), (0, ProbeSlow)]].concat(), State::Open, "a probe was slow: it took 1.2s"),
        ("a slot that is given back is used again", two.clone(), after(&[(0, GiveBack), (0, Probe), (0, NoProbe), (0, ProbeOk)]), State::Closed, "a probe succeeded"),
        ("all probes have to succeed", two.clone(), probes(3, &[(0, Probe), (0, Probe), (0, NoProbe), (0, ProbeOk), (0, ProbeOk)]), State::HalfOpen, "open for 6s: time for a probe"),
        ("all probes succeed", two.clone(), probes(3, &[(0, ProbeOk), (9, Probe), (9, Probe), (0, NoProbe), (0, ProbeOk), (0, ProbeOk)]), State::Closed, "3 probes succeeded"),
        ("the last probe fails", two.clone(), probes(2, &[(0, ProbeOk), (0, Probe), (0, ProbeFail(F503))]), State::Open, "a probe failed: 503"),
        ("fewer probes are needed now: enough", two.clone(), probes(3, &[(0, ProbeOk), (0, Probe), (0, Needs(1))]), State::Closed, "a probe succeeded"),
        ("fewer probes are needed now: the next", two.clone(), probes(3, &[(0, Probe), (0, Needs(1)), (0, NoProbe), (0, ProbeOk)]), State::Closed, "a probe succeeded"),
        ("more probes are needed now", two.clone(), after(&[(0, Needs(2)), (0, ProbeOk), (0, Probe), (0, NoProbe)]), State::HalfOpen, "open for 6s: time for a probe"),
        ("a silent probe does not block for ever", two.clone(), after(&[(29_999, NoProbe), (1, Probe), (0, NoProbe)]), State::HalfOpen, "open for 6s: time for a probe"),
        ("fewer probes are needed, and several are silent", two.clone(), probes(2, &[(10_000, Probe), (0, Needs(1)), (20_000, NoProbe), (9_999, NoProbe), (1, Probe)]), State::HalfOpen, "open for 6s: time for a probe"),
        ("… and may still speak", two.clone(), after(&[(30_000, Probe), (0, ProbeFail(F503))]), State::Open, "a probe failed: 503"),
        ("a probe of an earlier period has no say", two.clone(), probes(2, &[(0, Probe), (0, ProbeFail(F503)), (12_000, Probe), (0, ProbeFail(F503))]), State::HalfOpen, "open for 12s: time for a probe"),
        ("closed: counts from nothing", two.clone(), after(&[(0, ProbeOk), (2, Fail(F503))]), State::Closed, "a probe succeeded"),
        ("closed: what began before does not count", two.clone(), after(&[(0, ProbeOk), (0, Fail(F503)), (0, Fail(F503)), (0, Fail(F503))]), State::Closed, "a probe succeeded"),
        ("closed: opens again", two.clone(), after(&[(0, ProbeOk), (2, Fail(F503)), (0, Fail(F503))]), State::Open, "2 of 2 failed: 503 ×2"),
    ];
    for (what, policy, steps, state, evidence) in table {
        let mut script = Script::new(policy);
        for (pause, step) in steps {
            script.now += Duration::from_millis(pause);
            script.run(step);
        }
        let last = script.last.map_or(String::new(), |last| last.evidence);
        assert_eq!((script.breaker.state(), &*last), (state, evidence), "{what}");
    }
}

#[test]
fn the_time_grows_with_each_opening_and_is_forgotten_step_by_step() {
    let mut script = Script::new(CircuitBreaker { max_ejection_time: 18 * S, ..policy() });
    let near = |transition: &Transition, seconds: u32| {
        let (lasts, expected) = (transition.lasts.unwrap().as_secs_f64(), f64::from(seconds));
        assert!((lasts / expected - 1.0).abs() <= 0.1 + 1e-9, "{lasts} s instead of {expected} s");
    };
    (0..5).for_each(|_| script.fail(Failure::Reset));
    near(script.last.as_ref().unwrap(), 5);
    for seconds in [10, 15, 18, 18] {
        script.now += 20 * S;
        script.run(Probe);
        script.run(ProbeFail(Failure::Reset));
        near(script.last.as_ref().unwrap(), seconds);
    }
    assert_eq!(script.breaker.openings(&script.policy, script.now), 5);
    script.now += 20 * S;
    script.run(Probe);
    script.run(ProbeOk);
    // Closed for two and a half times the base: two less, and the next one makes four.
    script.now += 12_500 * MS;
    assert_eq!(script.breaker.openings(&script.policy, script.now), 3);
    (0..5).for_each(|_| script.fail(Failure::Reset));
    assert_eq!(script.breaker.openings(&script.policy, script.now), 4);
    near(script.last.as_ref().unwrap(), 18);
    // A shorter maximum holds at once.
    let policy = CircuitBreaker { max_ejection_time: 6 * S, ..policy() };
    script.breaker.configure(&policy, script.now);
    assert!(script.breaker.due(&policy).unwrap() <= script.now + 6600 * MS);
    // Without a policy everything is forgotten.
    assert_eq!(script.breaker.reset(script.now).unwrap().to, State::Closed);
    assert_eq!((script.breaker.openings(&policy, script.now), script.breaker.due(&policy)), (0, None));
    assert_eq!(script.breaker.reset(script.now), None);
}

#[test]
fn jitter_spreads_both_ways() {
    let times: Vec<f64> = (0..200)
        .map(|seed| {
            let mut script = Script::new(policy());
            script.rng = Rng::with_seed(seed);
            (0..5).for_each(|_| script.fail(Failure::Reset));
            script.last.unwrap().lasts.unwrap().as_secs_f64()
        })
        .collect();
    let (least, most) =
        times.iter().fold((f64::MAX, 0.0_f64), |(least, most), &time| (least.min(time), most.max(time)));
    assert!((4.5..4.6).contains(&least) && (5.4..=5.5).contains(&most), "{least}..{most}");
}

#[test]
fn durations_are_short() {
    let table = [(4_712_345, "4.7s"), (10_000_000, "10s"), (61_700_000, "62s"), (800_000, "800ms"), (250, "250µs")];
    for (micros, expected) in table {
        assert_eq!(human(Duration::from_micros(micros)), expected);
    }
}

proptest! {
    /// The rules once more, as simply as possible: all outcomes since it closed, in a list.
    #[test]
    fn opens_when_the_rules_say_so(
        seed: u64,
        consecutive in 2_u32..6,
        percent in 10_u32..100,
        minimum in 1_u32..30,
        steps in prop::collection::vec((0_u32..5, 0_u32..10, 0_u64..3000), 1..300),
    ) {
        let slow = SlowCalls { threshold: 500 * MS, percent: 40.0, minimum_requests: minimum };
        let failure_rate = FailureRate { percent: percent.into(), minimum_requests: minimum, window: 10 * S };
        let policy =
            CircuitBreaker { consecutive_failures: consecutive, failure_rate, slow_calls: Some(slow), ..policy() };
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&policy, now);
        let mut rng = Rng::with_seed(seed);
        let mut seen: Vec<(Instant, bool, bool)> = Vec::new();
        for (kind, took, pause) in steps {
            // In steps of a bucket, so that the list knows exactly what is in the window.
            now += S * (pause / 1000) as u32;
            let took = MS * took * 100;
            let failed = kind == 0;
            let outcome = Outcome { failure: failed.then_some(Failure::Reset), took };
            let transition = breaker.record(&policy, outcome, None, now, &mut rng);
            seen.push((now, failed, took >= 500 * MS));
            let window: Vec<_> = seen.iter().filter(|(at, ..)| now.duration_since(*at) < 10 * S).collect();
            let share = |count: usize, percent: f64| {
                count > 0 && window.len() >= minimum as usize && count as f64 * 100.0 >= percent * window.len() as f64
            };
            let run = seen.iter().rev().take_while(|(_, failed, _)| *failed).count();
            let cause = if run >= consecutive as usize {
                Some(Cause::ConsecutiveFailures)
            } else if share(window.iter().filter(|(_, failed, _)| *failed).count(), percent.into()) {
                Some(Cause::FailureRate)
            } else if share(window.iter().filter(|(.., slow)| *slow).count(), 40.0) {
                Some(Cause::SlowCalls)
            } else {
                None
            };
            prop_assert_eq!(transition.as_ref().and_then(|transition| transition.cause), cause);
            let Some(transition) = transition else { continue };
            prop_assert_eq!((transition.from, transition.to), (State::Closed, State::Open));
            // Back to Closed, late enough that nothing old is left.
            let due = breaker.due(&policy).unwrap();
            prop_assert_eq!(due, now + transition.lasts.unwrap());
            now += 100 * S;
            let (slot, _) = breaker.probe(&policy, now).unwrap();
            breaker.record(&policy, Outcome::success(MS), Some(slot), now, &mut rng).unwrap();
            prop_assert_eq!(breaker.state(), State::Closed);
            seen.clear();
            now += 10 * S;
        }
    }
}
