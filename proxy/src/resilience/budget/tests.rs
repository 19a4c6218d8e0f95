use std::time::Duration;

use proptest::prelude::*;

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn policy(percent: f64, min_per_second: u32, ttl: u64) -> RetryBudget {
    RetryBudget { percent, min_per_second, ttl: ms(ttl) }
}

/// How many retries are granted at once.
fn drain(budget: &mut Budget, now: Instant) -> u32 {
    (0..u32::MAX).find(|_| !budget.withdraw(now)).unwrap()
}

#[test]
fn the_share_and_the_minimum_add_up() {
    let start = Instant::now();
    // Percent, minimum per second, ttl in ms, requests, retries granted.
    let table = [
        (20.0, 0, 10_000, 0, 0),
        (20.0, 0, 10_000, 4, 0),
        (20.0, 0, 10_000, 5, 1),
        (20.0, 10, 10_000, 0, 100),
        (20.0, 10, 10_000, 100, 120),
        (0.0, 1, 500, 1_000, 0),
        (0.0, 2, 500, 1_000, 1),
        (100.0, 0, 1_000, 7, 7),
        (0.1, 0, 1_000, 999, 0),
        (0.1, 0, 1_000, 1_000, 1),
    ];
    for (percent, min, ttl, requests, granted) in table {
        let mut budget = Budget::new(&policy(percent, min, ttl), start);
        (0..requests).for_each(|_| budget.deposit(start));
        assert_eq!(budget.remaining(start), granted, "{percent} % + {min}/s of {requests}");
        assert_eq!(drain(&mut budget, start), granted);
        assert_eq!(budget.remaining(start), 0);
    }
}

#[test]
fn a_boundary_of_the_window_does_not_let_twice_the_budget_through() {
    let start = Instant::now();
    let mut budget = Budget::new(&policy(0.0, 10, 1_000), start);
    assert_eq!(drain(&mut budget, start + ms(999)), 10);
    for at in [1_000, 1_001, 1_500, 1_949, 1_998] {
        assert_eq!(drain(&mut budget, start + ms(at)), 0, "{at} ms");
    }
    assert_eq!(drain(&mut budget, start + ms(2_000)), 10);
}

#[test]
fn requests_leave_before_the_retries_they_paid_for() {
    let start = Instant::now();
    let mut budget = Budget::new(&policy(50.0, 0, 1_000), start);
    (0..10).for_each(|_| budget.deposit(start + ms(40)));
    assert_eq!(drain(&mut budget, start + ms(40)), 5);
    assert_eq!(budget.remaining(start + ms(1_000)), 0, "the requests are gone");
    (0..10).for_each(|_| budget.deposit(start + ms(1_000)));
    assert_eq!(budget.remaining(start + ms(1_040)), 0, "the retries are not");
    assert_eq!(budget.remaining(start + ms(1_050)), 5);
}

#[test]
fn a_steady_load_gets_its_share() {
    let start = Instant::now();
    let mut budget = Budget::new(&policy(20.0, 0, 10_000), start);
    let (mut requests, mut retries) = (0, 0);
    for tick in 0..60_000u64 {
        let now = start + ms(tick);
        budget.deposit(now);
        let after_warm_up = tick > 10_000;
        if budget.withdraw(now) && after_warm_up {
            retries += 1;
        }
        requests += u32::from(after_warm_up);
    }
    let share = f64::from(retries) / f64::from(requests);
    assert!((0.19..=0.2).contains(&share), "{share}");
}

#[test]
fn another_policy_keeps_the_counts() {
    let start = Instant::now();
    for (ttl, later) in [(10_000, 10_000), (10_000, 1_000), (1_000, 10_000)] {
        let mut budget = Budget::new(&policy(20.0, 0, ttl), start);
        let now = start + ms(1);
        (0..100).for_each(|_| budget.deposit(now));
        assert_eq!(drain(&mut budget, now), 20);
        budget.configure(&policy(50.0, 0, later), now);
        assert_eq!(budget.remaining(now), 30, "{ttl} → {later}");
        budget.configure(&policy(10.0, 0, later), now);
        assert_eq!(budget.remaining(now), 0);
        assert!(budget.retries == 20, "retries are not forgotten");
        assert_eq!(budget.remaining(now + ms(later + later)), 0);
        assert_eq!(budget.retries, 0);
    }
}

#[test]
fn all_workers_share_one_budget() {
    let start = Instant::now();
    let budget = SharedBudget::new(&policy(10.0, 0, 10_000), start);
    let granted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            let (budget, granted) = (&budget, &granted);
            scope.spawn(move || {
                for request in 0..1_000 {
                    let now = start + ms(worker + request);
                    budget.deposit(now);
                    if budget.withdraw(now) {
                        granted.fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });
    let now = start + ms(1_010);
    let total = granted.load(Relaxed) + (0..u32::MAX).find(|_| !budget.withdraw(now)).unwrap();
    assert_eq!(total, 400);
    budget.configure(&policy(20.0, 0, 10_000), now);
    assert_eq!(budget.remaining(now), 400);
    // Requests are counted when they came, not when somebody asks.
    (0..100).for_each(|_| budget.deposit(now));
    assert_eq!(budget.remaining(now + ms(60_000)), 0);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Wait(u64),
    Deposit(u8),
    Withdraw(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u64..700).prop_map(Step::Wait),
        (0u8..30).prop_map(Step::Deposit),
        (0u8..10).prop_map(Step::Withdraw),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #[test]
    fn no_window_holds_more_retries_than_its_requests_pay_for(
        steps in steps(), percent in 0.0f64..=100.0, min in 0u32..5, ttl in 1u64..3_000
    ) {
        let start = Instant::now();
        let policy = policy(percent, min, ttl);
        let (mut budget, shared) = (Budget::new(&policy, start), SharedBudget::new(&policy, start));
        let (mut requests, mut retries) = (Vec::new(), Vec::new());
        let mut now = start;
        for step in steps {
            match step {
                Step::Wait(millis) => now += ms(millis),
                Step::Deposit(count) => (0..count).for_each(|_| {
                    budget.deposit(now);
                    shared.deposit(now);
                    requests.push(now);
                }),
                Step::Withdraw(count) => for _ in 0..count {
                    let remaining = budget.remaining(now);
                    let granted = budget.withdraw(now);
                    prop_assert_eq!(granted, remaining > 0);
                    prop_assert_eq!(granted, shared.withdraw(now), "the shared one decides alike");
                    if granted {
                        retries.push(now);
                        let in_window = |times: &[Instant]| times.iter().filter(|at| **at + policy.ttl > now).count() as f64;
                        let allowed = in_window(&requests) * percent / 100.0 + f64::from(min) * policy.ttl.as_secs_f64();
                        prop_assert!(in_window(&retries) <= allowed + 1e-3, "{} of {allowed}", in_window(&retries));
                    }
                },
            }
        }
    }

    #[test]
    fn a_change_of_policy_keeps_the_sums_true(steps in steps(), ttls in proptest::collection::vec(1u64..5_000, 1..6)) {
        let start = Instant::now();
        let mut budget = Budget::new(&policy(100.0, 1, 1_000), start);
        let mut now = start;
        for (index, step) in steps.into_iter().enumerate() {
            match step {
                Step::Wait(millis) => now += ms(millis),
                Step::Deposit(count) => (0..count).for_each(|_| budget.deposit(now)),
                Step::Withdraw(_) => {
                    budget.withdraw(now);
                    budget.configure(&policy(50.0, 1, ttls[index % ttls.len()]), now);
                }
            }
            let all: u64 = budget.slots.iter().map(|slot| u64::from(slot.requests)).sum();
            let outside = u64::from(budget.slots[budget.place(STEPS)].requests);
            prop_assert_eq!(budget.requests, all - outside);
            prop_assert_eq!(budget.retries, budget.slots.iter().map(|slot| u64::from(slot.retries)).sum::<u64>());
        }
    }
}
