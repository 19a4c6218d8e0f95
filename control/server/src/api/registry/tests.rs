#![allow(clippy::unwrap_used)]
use bytes::Bytes;
use weft_store::types::Revision;

use super::*;

fn endpoint(weight: u32, draining: bool) -> Endpoint {
    Endpoint { service: "web".into(), address: "10.0.0.7".into(), port: 80, weight, zone: String::new(), draining }
}

fn stored(weight: u32, draining: bool, lease: Option<&str>) -> Option<Arc<Object>> {
    let endpoint = endpoint(weight, draining);
    Some(Arc::new(Object {
        key: key(&endpoint, "default", 0).unwrap(),
        spec: endpoint.body().into(),
        status: Bytes::new(),
        created: Revision(1),
        modified: Revision(3),
        generation: 1,
        lease: lease.map(LeaseId::new),
    }))
}

fn by(agent: Option<&str>, take_over: bool) -> Holder {
    Holder { lease: agent.map(|agent| (LeaseId::new(agent), 1)), take_over }
}

/// The action, or the code of the refusal.
fn decided(holder: &Holder, goal: Goal, found: Option<Arc<Object>>) -> (String, usize) {
    let key = key(&endpoint(1, false), "default", 0).unwrap();
    match plan(holder, &[(key, goal)], &[found]) {
        Ok(plan) => {
            assert_eq!(plan.require.len(), plan.writes.len(), "what is written is as it was seen");
            (plan.actions[0].to_owned(), plan.writes.len())
        }
        Err(refusal) => (format!("{:?}", refusal.code()), 0),
    }
}

#[test]
fn who_may_do_what_to_an_endpoint() {
    let registered = || Goal::Registered(endpoint(1, false));
    let (x, y, operator) = (by(Some("x"), false), by(Some("y"), false), by(None, false));
    for (holder, goal, found, expected, writes) in [
        (&x, registered(), None, "registered", 1),
        (&x, registered(), stored(1, false, Some("x")), "unchanged", 0),
        (&x, registered(), stored(2, false, Some("x")), "configured", 1),
        (&x, registered(), stored(1, true, Some("x")), "configured", 1),
        // What an operator registered becomes the agent's.
        (&x, registered(), stored(1, false, None), "configured", 1),
        (&y, registered(), stored(1, false, Some("x")), "\"owned\"", 0),
        (&by(Some("y"), true), registered(), stored(1, false, Some("x")), "configured", 1),
        (&operator, registered(), stored(1, false, Some("x")), "\"owned\"", 0),
        (&by(None, true), registered(), stored(1, false, Some("x")), "configured", 1),
        (&operator, registered(), stored(1, false, None), "unchanged", 0),
        (&x, Goal::Gone, stored(1, false, Some("x")), "deregistered", 1),
        (&y, Goal::Gone, stored(1, false, Some("x")), "\"owned\"", 0),
        (&operator, Goal::Gone, stored(1, false, Some("x")), "deregistered", 1),
        (&operator, Goal::Gone, None, "absent", 0),
        (&operator, Goal::Draining(true), None, "\"not_found\"", 0),
        (&operator, Goal::Draining(true), stored(1, false, Some("x")), "draining", 1),
        (&operator, Goal::Draining(true), stored(1, true, Some("x")), "unchanged", 0),
        (&x, Goal::Draining(false), stored(1, true, Some("x")), "ready", 1),
        (&y, Goal::Draining(true), stored(1, false, Some("x")), "\"owned\"", 0),
    ] {
        assert_eq!(decided(holder, goal.clone(), found), (expected.to_owned(), writes), "{holder:?} {goal:?}");
    }
}

#[test]
fn draining_leaves_the_rest_as_it_is_and_keeps_the_lease() {
    let key = key(&endpoint(1, false), "default", 0).unwrap();
    let plan = plan(&by(None, false), &[(key, Goal::Draining(true))], &[stored(7, false, Some("x"))]).unwrap();
    let Write::Put(put) = &plan.writes[0] else { unreachable!("a put") };
    assert_eq!((put.spec.as_deref(), &put.lease), (Some(endpoint(7, true).body().as_bytes()), &Attach::Keep));
}
