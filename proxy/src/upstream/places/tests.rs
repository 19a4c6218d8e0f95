//! Places, without sockets.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::task::Waker;

use super::*;

fn limits(connections: u32, pending: u32) -> Arc<Limits> {
    Arc::new(Limits { connections: connections.into(), pending: pending.into() })
}

fn place(places: &Arc<Places>, limits: &Arc<Limits>) -> Place {
    match places.ask(limits).unwrap() {
        Asked::Place(place) => place,
        Asked::Wait(_) => panic!("no place"),
    }
}

fn wait(places: &Arc<Places>, limits: &Arc<Limits>) -> Waiting {
    match places.ask(limits).unwrap() {
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
    let (places, limits) = (Arc::<Places>::default(), limits(2, 3));
    let (first, second) = (place(&places, &limits), place(&places, &limits));
    let mut waiting: Vec<_> = (0..3).map(|_| wait(&places, &limits)).collect();
    assert_eq!(places.ask(&limits).unwrap_err(), Full);
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
