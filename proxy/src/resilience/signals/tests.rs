//! Counters of made-up endpoints, second by second.
#![allow(clippy::unwrap_used, clippy::panic)]

use fastrand::Rng;
use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);

/// What happens at an endpoint in one second: established and closed, refused, unanswered, time-outs, segments sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Second(u64, u64, u64, u64, u64);

const IDLE: Second = Second(0, 0, 0, 0, 0);
const FINE: Second = Second(20, 0, 0, 0, 0);
const REFUSES: Second = Second(0, 1, 0, 0, 0);
const LOSES: Second = Second(20, 0, 0, 0, 40);
const STALLS: Second = Second(20, 0, 0, 3, 40);

impl Second {
    fn after(self, before: Signals) -> Signals {
        let Self(established, refused, timed_out, rto, retransmits) = self;
        Signals {
            attempts: before.attempts + established + refused + timed_out,
            established: before.established + established,
            refused: before.refused + refused,
            timed_out: before.timed_out + timed_out,
            rto: before.rto + rto,
            retransmits: before.retransmits + retransmits,
            closed: before.closed + established,
            ..before
        }
    }
}

struct World {
    judge: Judge,
    seen: Vec<Observation>,
    now: Instant,
}

impl World {
    /// Endpoints that the kernel has known for long.
    fn new(count: u64) -> Self {
        let signals = Signals { attempts: 500, established: 400, closed: 400, refused: 100, ..Signals::default() };
        let seen = (0..count).map(|id| Observation { id, signals, probes: 0, in_rotation: true }).collect();
        let mut world = Self { judge: Judge::default(), seen, now: Instant::now() };
        world.judge.judge(&world.seen, world.now);
        world
    }

    fn next(&mut self, seconds: impl IntoIterator<Item = Second>) -> Vec<Verdict> {
        for (seen, second) in self.seen.iter_mut().zip(seconds) {
            seen.signals = second.after(seen.signals);
        }
        self.now += S;
        self.judge.judge(&self.seen, self.now)
    }
}

/// What becomes of the first of three endpoints: its weight after each second, `!` where it is to be ejected.
fn story(own: &[Second], peers: [Second; 2]) -> (String, String) {
    let mut world = World::new(3);
    let (mut story, mut evidence) = (String::new(), String::new());
    for second in own {
        let verdicts = world.next([*second, peers[0], peers[1]]);
        for peer in &verdicts[1..] {
            assert!(peer.eject.is_none() || peers != [FINE; 2], "{peer:?}");
        }
        story.push_str(&format!("{} ", verdicts[0].weight_percent));
        if let Some(eject) = &verdicts[0].eject {
            story.push_str("! ");
            evidence.clone_from(eject);
        }
    }
    (story.trim_end().to_owned(), evidence)
}

/// What it is about, what happens at the endpoint and in each second at its peers, what becomes of it, the evidence.
type Story = (&'static str, Vec<Second>, [Second; 2], &'static str, &'static str);

#[test]
#[rustfmt::skip]
fn stories() {
    let run = |second, count| vec![second; count];
    let then = |parts: &[(Second, usize)]| parts.iter().flat_map(|(second, count)| vec![*second; *count]).collect::<Vec<_>>();
    let table: &[Story] = &[
        ("all well", run(FINE, 3), [FINE; 2], "100 100 100", ""),
        ("one refusal is no evidence", then(&[(REFUSES, 1), (FINE, 2)]), [FINE; 2], "100 100 100", ""),
        ("refusals in two samples are", run(REFUSES, 2), [FINE; 2], "100 100 !",
            "kernel: 2 connections refused in 2s, none established; peers: 0 refused"),
        ("and if there is a pause between them", then(&[(REFUSES, 1), (IDLE, 2), (REFUSES, 1)]), [FINE; 2], "100 100 100 100 !",
            "kernel: 2 connections refused in 4s, none established; peers: 0 refused"),
        ("but not a long one", then(&[(REFUSES, 1), (IDLE, 5), (REFUSES, 1)]), [FINE; 2], "100 100 100 100 100 100 100", ""),
        ("three at once suffice", vec![Second(0, 3, 0, 0, 0)], [FINE; 2], "100 !",
            "kernel: 3 connections refused in 1s, none established; peers: 0 refused"),
        ("unless one is established", run(Second(1, 3, 0, 0, 0), 5), [FINE; 2], "100 100 100 100 100", ""),
        ("no answer is as bad", run(Second(0, 1, 1, 0, 0), 2), [FINE; 2], "100 100 !",
            "kernel: 2 connections refused and 2 unanswered in 2s, none established; peers: 0 refused"),
        ("one peer that works suffices", run(REFUSES, 2), [FINE, REFUSES], "100 100 !",
            "kernel: 2 connections refused in 2s, none established; peers: 1 refused"),
        ("all refuse", run(Second(0, 9, 0, 0, 0), 9), [Second(0, 5, 0, 0, 0); 2], "100 100 100 100 100 100 100 100 100", ""),
        ("nobody else is asked", run(REFUSES, 3), [IDLE; 2], "100 100 100", ""),
        ("peers refuse most", run(Second(0, 9, 0, 0, 0), 3), [Second(2, 9, 0, 0, 0); 2], "100 100 100", ""),
        ("loss lowers the weight", run(LOSES, 9), [FINE; 2], "100 50 50 25 25 10 10 10 10", ""),
        ("one burst does not", then(&[(LOSES, 1), (FINE, 1), (LOSES, 1), (FINE, 1)]), [FINE; 2], "100 100 100 100", ""),
        ("little is normal", run(Second(20, 0, 0, 0, 3), 3), [FINE; 2], "100 100 100", ""),
        ("as much as with the others is normal", run(LOSES, 4), [Second(20, 0, 0, 0, 20); 2], "100 100 100 100", ""),
        ("one peer's loss does not excuse it", run(LOSES, 4), [FINE, LOSES], "100 100 100 100", ""),
        ("more traffic has more loss", run(Second(200, 0, 0, 0, 40), 4), [Second(20, 0, 0, 0, 4); 2], "100 100 100 100", ""),
        ("it comes back step by step", then(&[(LOSES, 4), (FINE, 10)]), [FINE; 2],
            "100 50 50 25 25 25 25 25 50 50 50 50 50 100", ""),
        ("idle is quiet", then(&[(LOSES, 2), (IDLE, 5)]), [FINE; 2], "100 50 50 50 50 50 100", ""),
        // 1 a second with half of the weight is 2 with all of it: neither quiet nor too much.
        ("in between nothing moves", then(&[(LOSES, 2), (Second(20, 0, 0, 0, 1), 8)]), [FINE; 2],
            "100 50 50 50 50 50 50 50 50 50", ""),
        ("sustained loss with time-outs ejects", run(STALLS, 5), [FINE; 2], "100 50 50 25 25 !",
            "kernel: 3 RTO and 40 retransmits/s for 5s, median of peers 0.0/s"),
        ("not if the time-outs end", then(&[(STALLS, 4), (LOSES, 1), (STALLS, 1)]), [FINE; 2], "100 50 50 25 25 10", ""),
        ("a neighbour that does not resolve", run(Second(0, 0, 0, 9, 0), 5), [FINE; 2], "100 50 50 25 25 !",
            "kernel: 9 RTO and 0 retransmits/s for 5s, median of peers 0.0/s"),
        ("all lose", run(STALLS, 9), [STALLS; 2], "100 100 100 100 100 100 100 100 100", ""),
        ("nobody else has traffic", run(STALLS, 9), [IDLE; 2], "100 100 100 100 100 100 100 100 100", ""),
    ];
    for (what, own, peers, expect, evidence) in table {
        assert_eq!(story(own, *peers), ((*expect).to_owned(), (*evidence).to_owned()), "{what}");
    }
}

#[test]
fn a_peer_with_open_connections_takes_them() {
    let mut world = World::new(2);
    world.seen[1].signals.established += 5;
    assert!(world.next([REFUSES, IDLE])[0].eject.is_none());
    assert!(world.next([REFUSES, IDLE])[0].eject.is_some());
    // But not when they stand still.
    let mut world = World::new(2);
    world.seen[1].signals.established += 5;
    world.next([IDLE; 2]);
    let verdicts: Vec<_> = (0..3).flat_map(|_| world.next([REFUSES, Second(0, 0, 0, 1, 1)])).collect();
    assert!(verdicts.iter().all(|verdict| verdict.eject.is_none()), "{verdicts:?}");
}

#[test]
fn counters_that_begin_anew_are_no_evidence() {
    let mut world = World::new(2);
    for _ in 0..2 {
        world.next([LOSES, FINE]);
    }
    world.seen[0].signals = Signals { attempts: 9, refused: 9, ..Signals::default() };
    let verdict = &world.next([IDLE, FINE])[0];
    assert_eq!((verdict.weight_percent, &verdict.eject), (50, &None));
    // From there on they count.
    assert!(world.next([Second(0, 3, 0, 0, 0), FINE])[0].eject.is_some());
}

#[test]
fn a_probe_is_no_evidence() {
    let mut world = World::new(2);
    world.seen[0].probes = 1;
    for _ in 0..9 {
        assert_eq!(world.next([REFUSES, FINE])[0].eject, None);
    }
    // Others are refused too.
    assert_eq!(world.next([Second(0, 2, 0, 0, 0), FINE])[0].eject, None);
    assert!(world.next([Second(0, 2, 0, 0, 0), FINE])[0].eject.is_some());
}

#[test]
fn whoever_is_out_of_rotation_is_neither_judged_nor_compared_with() {
    let mut world = World::new(2);
    for _ in 0..2 {
        world.next([LOSES, FINE]);
    }
    world.seen[0].in_rotation = false;
    for second in [IDLE, Second(0, 9, 0, 9, 90)].repeat(10) {
        let verdicts = world.next([second, REFUSES]);
        // Its weight waits for it; the other one has no peer any more.
        assert_eq!((verdicts[0].weight_percent, &verdicts[0].eject, &verdicts[1].eject), (50, &None, &None));
    }
    world.seen[0].in_rotation = true;
    assert_eq!(world.next([FINE, REFUSES])[0].weight_percent, 50);
}

#[test]
fn a_new_endpoint_has_no_past() {
    let mut world = World::new(1);
    world.seen.push(Observation { id: 7, ..world.seen[0] });
    world.seen[1].signals.refused += 1000;
    assert_eq!(world.next([FINE, IDLE])[1], Verdict { weight_percent: 100, eject: None });
    // One that left and came back neither.
    let gone = world.seen.remove(1);
    world.next([FINE]);
    world.seen.push(gone);
    world.seen[1].signals.refused += 1000;
    assert_eq!(world.next([FINE, IDLE])[1].eject, None);
}

#[test]
fn samples_that_are_too_close_change_nothing() {
    let mut world = World::new(2);
    world.next([REFUSES, FINE]);
    for _ in 0..10 {
        world.now += Duration::from_millis(1);
        world.seen[0].signals.refused += 1;
        assert_eq!(world.judge.judge(&world.seen, world.now)[0].eject, None);
    }
    assert!(world.next([IDLE, FINE])[0].eject.is_some(), "they count later");
}

fn seconds() -> impl Strategy<Value = Second> {
    let counts = (0_u64..30, 0_u64..6, 0_u64..6, 0_u64..6, 0_u64..50);
    prop_oneof![
        counts.prop_map(|(a, b, c, d, e)| Second(a, b, c, d, e)),
        prop::sample::select(&[IDLE, FINE, REFUSES, LOSES, STALLS][..]),
    ]
}

proptest! {
    #[test]
    fn nobody_falls_when_all_are_alike(script in prop::collection::vec(seconds(), 1..40), count in 1_u64..6) {
        let mut world = World::new(count);
        for second in script {
            for verdict in world.next(vec![second; count as usize]) {
                prop_assert_eq!(verdict, Verdict { weight_percent: 100, eject: None });
            }
        }
    }

    #[test]
    fn nobody_falls_alone_or_without_traffic(script in prop::collection::vec(seconds(), 1..40)) {
        let (mut alone, mut quiet) = (World::new(1), World::new(4));
        for second in script {
            prop_assert_eq!(&alone.next([second])[0], &Verdict { weight_percent: 100, eject: None });
            // Of four, only one has traffic.
            for verdict in quiet.next([IDLE, second, IDLE, IDLE]) {
                prop_assert_eq!(verdict, Verdict { weight_percent: 100, eject: None });
            }
        }
    }

    #[test]
    fn bounds_and_order(
        script in prop::collection::vec((prop::collection::vec(seconds(), 5), 0_u8..32, 0_u8..20), 1..40),
        seed in any::<u64>(),
    ) {
        let (mut world, mut other) = (World::new(5), World::new(5));
        let mut order: Vec<usize> = (0..5).collect();
        Rng::with_seed(seed).shuffle(&mut order);
        other.seen = order.iter().map(|&place| world.seen[place]).collect();
        for (seconds, rotation, anew) in script {
            for (place, seen) in world.seen.iter_mut().enumerate() {
                seen.in_rotation = rotation & 1 << place == 0;
                if usize::from(anew) == place {
                    seen.signals = Signals::default();
                }
            }
            for (seen, &place) in other.seen.iter_mut().zip(&order) {
                *seen = world.seen[place];
            }
            let verdicts = world.next(seconds.iter().copied());
            let shuffled = other.next(order.iter().map(|&place| seconds[place]));
            for (verdict, &place) in shuffled.iter().zip(&order) {
                prop_assert_eq!(verdict, &verdicts[place], "the order of the endpoints says nothing");
            }
            let ejected = verdicts.iter().filter(|verdict| verdict.eject.is_some()).count();
            prop_assert!(ejected < 5, "somebody is left");
            for (verdict, seen) in verdicts.iter().zip(&world.seen) {
                prop_assert!((10..=100).contains(&verdict.weight_percent));
                prop_assert!(verdict.eject.is_none() || seen.in_rotation);
            }
        }
    }
}
