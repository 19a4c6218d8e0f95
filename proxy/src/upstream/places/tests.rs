//! Places, without sockets.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    task::Waker,
};

use super::*;

fn places(connections: u32, pending: u32) -> Arc<Places> {
    Arc::new(Places::new(Limits { connections, pending }))
}

fn review(places: &Arc<Places>, connections: u32) -> bool {
    places.review(Limits { connections, pending: 9 })
}

fn place(places: &Arc<Places>) -> Place {
    match places.ask().unwrap() {
        Asked::Place(place) => place,
        Asked::Wait(_) => panic!("no place"),
    }
}

fn wait(places: &Arc<Places>) -> Waiting {
    match places.ask().unwrap() {
        Asked::Place(_) => panic!("there was a place"),
        Asked::Wait(waiting) => waiting,
    }
}

fn got(waiting: &mut Waiting) -> Option<Place> {
    match waiting.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(place) => Some(place),
        Poll::Pending => None,
    }
}

#[test]
fn places_are_given_out_in_the_order_of_asking() {
    let places = places(2, 3);
    let (first, second) = (place(&places), place(&places));
    let mut waiting: Vec<_> = (0..3).map(|_| wait(&places)).collect();
    assert_eq!(places.ask().unwrap_err(), Full);
    assert_eq!((places.numbers(), places.pressed()), ((2, 3), true));
    drop(first);
    let third = got(&mut waiting[0]).unwrap();
    assert!(waiting[1..].iter_mut().all(|waiting| got(waiting).is_none()));
    assert_eq!(places.numbers(), (2, 2));
    // One who gives up makes room for another, and the next one moves up.
    drop(waiting.remove(1));
    assert_eq!(places.numbers(), (2, 1));
    drop(second);
    assert!(got(&mut waiting[1]).is_some_and(|place| place.0.numbers() == (2, 0)));
    drop((third, waiting));
    assert_eq!((places.numbers(), places.pressed()), ((0, 0), false));
}

#[test]
fn what_was_granted_to_somebody_who_has_gone_goes_to_the_next() {
    let places = places(1, 9);
    let held = place(&places);
    let (first, mut second) = (wait(&places), wait(&places));
    drop(held);
    assert!(got(&mut second).is_none(), "granted to the first, who has not looked");
    drop(first);
    assert!(got(&mut second).is_some());
}

#[test]
fn a_raised_limit_counts_for_those_who_wait_and_a_lowered_one_for_what_is_open() {
    let places = places(1, 9);
    let held = place(&places);
    let mut waiting: Vec<_> = (0..3).map(|_| wait(&places)).collect();
    assert!(!review(&places, 3), "one more waits, and the search for idle connections is under way");
    let taken: Vec<_> = waiting.iter_mut().filter_map(got).collect();
    assert_eq!((taken.len(), places.numbers()), (2, (3, 1)));
    drop(waiting);
    assert_eq!((places.pressed(), places.returned(None, true)), (false, Verdict::Keep));
    assert!(review(&places, 1), "two are too many");
    assert!(places.pressed());
    let verdicts = [(); 3].map(|()| places.returned(None, true));
    assert_eq!(verdicts, [Verdict::Close, Verdict::Close, Verdict::Keep]);
    drop(taken);
    assert_eq!((places.numbers(), places.pressed()), ((1, 0), false));
    drop(held);
}

#[test]
fn an_idle_connection_goes_to_its_own_workers_waiters_unless_another_has_waited_too_long() {
    let places = places(1, 99);
    let held = place(&places);
    let mut elsewhere = wait(&places);
    let here: Vec<_> = (0..20).map(|_| wait(&places)).collect();
    for waiting in &here[..PASSES as usize] {
        assert_eq!(places.returned(Some(waiting.ticket), true), Verdict::HandOver);
    }
    let next = here[PASSES as usize].ticket;
    assert_eq!(places.returned(Some(next), true), Verdict::Close);
    drop(held);
    let mut taken = got(&mut elsewhere);
    assert!(taken.is_some());
    // Now those who are here are the first; the one who is elsewhere has had its turn.
    drop(elsewhere);
    assert_eq!(places.returned(Some(next), true), Verdict::HandOver);
    drop(taken.take());
    assert_eq!(places.numbers(), (1, 2));
}

#[test]
fn a_busy_connection_is_retired_when_others_have_been_passed_over_often_enough() {
    let places = places(1, 99);
    let _held = place(&places);
    let _elsewhere = wait(&places);
    for _ in 0..PASSES {
        assert_eq!(places.returned(None, false), Verdict::Keep);
    }
    assert_eq!(places.returned(None, false), Verdict::Retire);
    assert_eq!(places.returned(None, true), Verdict::Close, "idle at last");
    assert_eq!(places.returned(None, true), Verdict::Keep, "one is enough for one");
}

#[test]
fn copies_leave_the_last_places_to_requests() {
    for (connections, copies) in [(1, 1), (2, 1), (10, 9), (11, 9), (1024, 921)] {
        let places = places(connections, 9);
        let taken: Vec<_> = std::iter::from_fn(|| places.spare()).collect();
        assert_eq!(taken.len(), copies, "of {connections}");
    }
    let places = places(2, 9);
    let _held = [place(&places), place(&places)];
    let _waiting = wait(&places);
    assert!(places.spare().is_none());
}

#[test]
fn idle_connections_are_looked_for_once_and_again_when_more_are_needed() {
    let places = places(2, 9);
    let held = [place(&places), place(&places)];
    let first = wait(&places);
    assert!(first.search && places.searched(false), "on to the next worker");
    let second = wait(&places);
    assert!(!second.search, "a search is under way");
    assert!(places.searched(true), "but who came in between needs another round");
    assert!(!places.searched(true));
    assert!(!wait(&places).search, "there are none");
    assert_eq!([places.reclaim(), places.reclaim(), places.reclaim()], [true, true, false], "as many as wait");
    assert!(!places.searched(false), "enough are about to end");
    drop(held);
    assert_eq!(places.numbers(), (2, 0));
    drop((first, second));
    assert_eq!(places.numbers(), (0, 0));
    // Somebody may have left a connection idle meanwhile.
    let _held = [place(&places), place(&places)];
    assert!(wait(&places).search);
}

#[test]
fn nobody_is_forgotten_by_many_threads() {
    const ROUNDS: usize = 2000;
    let places = places(2, u32::MAX);
    let (open, most) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (places, open, most) = (&places, &open, &most);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                for _ in 0..ROUNDS {
                    let place = match places.ask().unwrap() {
                        Asked::Place(place) => place,
                        Asked::Wait(waiting) if rng.u8(..) < 64 => {
                            drop(waiting);
                            continue;
                        }
                        Asked::Wait(waiting) => {
                            let limit = std::time::Duration::from_secs(20);
                            let place = async { tokio::time::timeout(limit, waiting.place()).await };
                            runtime.block_on(place).unwrap()
                        }
                    };
                    most.fetch_max(open.fetch_add(1, Relaxed) + 1, Relaxed);
                    std::thread::yield_now();
                    open.fetch_sub(1, Relaxed);
                    drop(place);
                }
            });
        }
    });
    assert_eq!((most.load(Relaxed), places.numbers(), places.pressed()), (2, (0, 0), false));
}

mod any_order {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Ask,
        GiveBack(usize),
        GiveUp(usize),
        Limit(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Ask),
            4 => (0..8_usize).prop_map(Step::GiveBack),
            2 => (0..8_usize).prop_map(Step::GiveUp),
            1 => (1..5_u32).prop_map(Step::Limit),
        ]
    }

    proptest! {
        #[test]
        fn no_place_is_lost_and_nobody_waits_who_need_not(steps in proptest::collection::vec(step(), 1..80)) {
            let places = places(2, 4);
            let (mut held, mut waiting) = (Vec::new(), Vec::<Waiting>::new());
            for step in steps {
                match step {
                    Step::Ask => match places.ask() {
                        Ok(Asked::Place(place)) => held.push(place),
                        Ok(Asked::Wait(new)) => waiting.push(new),
                        Err(Full) => prop_assert!(waiting.len() >= 4),
                    },
                    Step::GiveBack(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                    Step::GiveUp(at) if !waiting.is_empty() => drop(waiting.remove(at % waiting.len())),
                    Step::Limit(connections) => drop(places.review(Limits { connections, pending: 4 })),
                    Step::GiveBack(_) | Step::GiveUp(_) => {}
                }
                waiting.retain_mut(|waiting| got(waiting).is_none_or(|place| { held.push(place); false }));
                let open = u32::try_from(held.len()).unwrap();
                prop_assert_eq!(places.numbers(), (open, u32::try_from(waiting.len()).unwrap()));
                prop_assert!(waiting.is_empty() || places.limits().connections <= open, "they wait for nothing");
                prop_assert!(waiting.is_empty() || places.pressed());
            }
            drop((held, waiting));
            prop_assert_eq!((places.numbers(), places.pressed()), ((0, 0), false));
        }
    }
}
