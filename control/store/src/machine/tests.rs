use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::codec::Wire;
use crate::types::{ClientId, RequestId};

const HERE: Position = Position { term: 1, index: 7 };

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("Service", "default", name)
}

fn run(machine: &mut Machine, op: Op) -> Outcome {
    machine.apply(HERE, &Command::new("alice", 1000, op))
}

fn put(machine: &mut Machine, name: &str, spec: &'static str) -> Outcome {
    run(machine, Op::put(Put::spec(key(name), spec)))
}

fn done(revision: u64, changed: u64) -> Outcome {
    Outcome::Done { revision: Revision(revision), changed }
}

#[test]
fn a_revision_per_change_and_a_generation_per_spec() {
    let mut machine = Machine::default();
    assert_eq!(put(&mut machine, "a", "1"), done(1, 1));
    assert_eq!(put(&mut machine, "b", "1"), done(2, 1));
    assert_eq!(put(&mut machine, "a", "1"), done(2, 0), "the same again is no change");
    assert_eq!(put(&mut machine, "a", "2"), done(3, 1));
    let status = Put { key: key("a"), spec: None, status: Some(Bytes::from("ok")), lease: Attach::Keep };
    assert_eq!(run(&mut machine, Op::put(status)), done(4, 1));

    let a = machine.get(&key("a")).unwrap();
    assert_eq!((a.created, a.modified, a.generation), (Revision(1), Revision(4), 2));
    assert_eq!((&*a.spec, &*a.status), (&b"2"[..], &b"ok"[..]));

    assert_eq!(run(&mut machine, Op::delete(key("a"))), done(5, 1));
    assert_eq!(run(&mut machine, Op::delete(key("a"))), done(5, 0));
    assert_eq!(put(&mut machine, "a", "3"), done(6, 1));
    let a = machine.get(&key("a")).unwrap();
    assert_eq!((a.created, a.generation), (Revision(6), 1), "a new object, not the old one");
}

#[test]
fn a_status_without_an_object_is_refused() {
    let mut machine = Machine::default();
    let status = Put { key: key("a"), spec: None, status: Some(Bytes::new()), lease: Attach::Keep };
    assert_eq!(run(&mut machine, Op::put(status)), Outcome::Rejected(Rejection::NoObject(key("a"))));
}

#[test]
fn a_transaction_is_all_or_nothing_in_one_revision() {
    let mut machine = Machine::default();
    put(&mut machine, "a", "1");
    put(&mut machine, "b", "1");
    let writes =
        vec![Write::Put(Put::spec(key("a"), "2")), Write::Delete(key("b")), Write::Put(Put::spec(key("c"), "1"))];
    let require = |that| vec![Require { key: key("a"), that: That::At(Revision(1)) }, Require { key: key("c"), that }];

    let before = machine.clone();
    let refused = run(&mut machine, Op::Write { require: require(That::Exists), writes: writes.clone() });
    assert_eq!(refused, Outcome::Rejected(Rejection::Conflict { key: key("c"), found: None }));
    let mut broken = writes.clone();
    broken.push(Write::Put(Put::spec(key("d"), "1").attached(LeaseId::new("nobody"))));
    run(&mut machine, Op::Write { require: vec![], writes: broken });
    assert_eq!(machine, before);

    assert_eq!(run(&mut machine, Op::Write { require: require(That::Absent), writes: writes.clone() }), done(3, 3));
    let again = run(&mut machine, Op::Write { require: require(That::Absent), writes });
    assert_eq!(again, Outcome::Rejected(Rejection::Conflict { key: key("a"), found: Some(Revision(3)) }));
    assert_eq!(machine.events_after(Revision(2)).unwrap().count(), 1);
}

#[test]
fn within_a_transaction_later_writes_see_earlier_ones() {
    let mut machine = Machine::default();
    put(&mut machine, "a", "1");
    let writes = vec![
        Write::Put(Put::spec(key("a"), "2")),
        Write::Put(Put::spec(key("a"), "3")),
        Write::Put(Put::spec(key("b"), "1")),
        Write::Delete(key("b")),
    ];
    assert_eq!(run(&mut machine, Op::Write { require: vec![], writes }), done(2, 1));
    assert_eq!(machine.get(&key("a")).unwrap().generation, 2);
    let undone = vec![Write::Delete(key("b")), Write::Put(Put::spec(key("a"), "3"))];
    assert_eq!(run(&mut machine, Op::Write { require: vec![], writes: undone }), done(2, 0));
}

#[test]
fn a_retry_of_an_unknown_write_is_answered_and_not_applied() {
    let mut machine = Machine::default();
    let request = RequestId { client: ClientId(1), sequence: 1, settled: 0, issued: 5 };
    let command = Command::new("alice", 1, Op::put(Put::spec(key("a"), "1"))).identified(request);
    assert_eq!(machine.apply(HERE, &command), done(1, 1));
    put(&mut machine, "a", "2");
    assert_eq!(machine.apply(Position { term: 2, index: 9 }, &command), done(1, 1));
    assert_eq!(&*machine.get(&key("a")).unwrap().spec, b"2");
    // A rejection is an outcome too.
    let request = RequestId { sequence: 2, ..request };
    let require = vec![Require { key: key("z"), that: That::Exists }];
    let command = Command::new("alice", 1, Op::Write { require, writes: vec![] }).identified(request);
    let refused = machine.apply(HERE, &command);
    put(&mut machine, "z", "1");
    assert_eq!(machine.apply(HERE, &command), refused);
}

#[test]
fn an_expiry_takes_everything_attached_in_one_revision() {
    let mut machine = Machine::default();
    let lease = LeaseId::new("node-1");
    let attached = |name| Op::put(Put::spec(key(name), "1").attached(LeaseId::new("node-1")));
    assert_eq!(run(&mut machine, attached("a")), Outcome::Rejected(Rejection::NoLease(lease.clone())));
    assert_eq!(run(&mut machine, Op::Grant { lease: lease.clone(), ttl_ms: 10 }), Outcome::Granted { generation: 1 });
    assert_eq!(machine.revision(), Revision(0), "a lease is no object");
    run(&mut machine, attached("a"));
    run(&mut machine, attached("b"));
    run(&mut machine, attached("c"));
    run(&mut machine, Op::put(Put { lease: Attach::Detach, ..Put::spec(key("c"), "1") }));
    put(&mut machine, "b", "2");

    assert_eq!(run(&mut machine, Op::Expire { term: 1, leases: vec![(lease.clone(), 1)] }), done(6, 2));
    assert_eq!(machine.lease(&lease), None);
    assert_eq!(machine.list(&Filter::default()).len(), 1, "c was detached");
    assert_eq!(machine.events_after(Revision(5)).unwrap().next().unwrap().changes.len(), 2);
}

/// Catches the mutation "expire from a stale leader": without the comparison of terms, the first expiry succeeds;
/// without that of generations, the second does.
#[test]
fn an_object_is_attached_to_the_grant_that_is_meant_or_to_none() {
    let mut machine = Machine::default();
    let held = |lease: &str, generation| {
        let lease = Attach::Held { lease: LeaseId::new(lease), generation };
        Op::put(Put { lease, ..Put::spec(key("a"), "1") })
    };
    run(&mut machine, Op::Grant { lease: LeaseId::new("n"), ttl_ms: 1000 });
    assert_eq!(run(&mut machine, held("m", 1)), Outcome::Rejected(Rejection::NoLease(LeaseId::new("m"))));
    run(&mut machine, Op::Grant { lease: LeaseId::new("n"), ttl_ms: 1000 });
    assert_eq!(run(&mut machine, held("n", 1)), Outcome::Rejected(Rejection::StaleLease));
    assert_eq!(run(&mut machine, held("n", 2)), done(1, 1));
    assert_eq!(machine.get(&key("a")).unwrap().lease, Some(LeaseId::new("n")));
    run(&mut machine, Op::Revoke { lease: LeaseId::new("n"), generation: 2 });
    assert!(machine.is_empty());
}

#[test]
fn a_stale_expiry_does_nothing() {
    let mut machine = Machine::default();
    let lease = LeaseId::new("node-1");
    run(&mut machine, Op::Grant { lease: lease.clone(), ttl_ms: 10 });
    run(&mut machine, Op::put(Put::spec(key("a"), "1").attached(lease.clone())));

    let expire = Command::new("leader", 1, Op::Expire { term: 1, leases: vec![(lease.clone(), 1)] });
    let late = machine.apply(Position { term: 2, index: 9 }, &expire);
    assert_eq!(late, Outcome::Rejected(Rejection::StaleTerm));
    assert!(machine.lease(&lease).is_some());

    // The agent restarts and is granted its lease anew; an expiry or a revocation of the old grant comes late.
    run(&mut machine, Op::Grant { lease: lease.clone(), ttl_ms: 10 });
    assert_eq!(machine.apply(HERE, &expire), done(1, 0));
    let revoke = Op::Revoke { lease: lease.clone(), generation: 1 };
    assert_eq!(run(&mut machine, revoke), Outcome::Rejected(Rejection::StaleLease));
    assert_eq!(machine.lease(&lease).unwrap().keys.len(), 1, "what was attached stays");

    assert_eq!(run(&mut machine, Op::Revoke { lease: lease.clone(), generation: 2 }), done(2, 1));
    assert!(machine.is_empty());
}

#[test]
fn history_is_bounded_by_count_by_command_and_by_time() {
    let mut machine = Machine::default();
    for at in 1..=10 {
        let op = Op::put(Put::spec(key("a"), Bytes::from(at.to_string())));
        machine.apply(Position { term: 1, index: at }, &Command::new("alice", at, op));
    }
    run(&mut machine, Op::Trim { history: 4, clients: 0 });
    assert_eq!(machine.compacted(), Revision(3));
    run(&mut machine, Op::Compact { through: Revision(5) });
    assert_eq!(machine.events_after(Revision(4)).err(), Some(Compacted { at: Revision(5) }));
    assert_eq!(machine.events_after(Revision(5)).unwrap().count(), 5);
    let past = machine.history(&key("a"));
    assert_eq!(past.len(), 5);
    assert_eq!((past[0].0.revision, past[0].0.at), (Revision(10), 10));
    run(&mut machine, Op::Compact { through: Revision(99) });
    assert_eq!(machine.compacted(), Revision(10));
    assert_eq!(put(&mut machine, "a", "x"), done(11, 1));
    assert_eq!(machine.events_after(Revision(10)).unwrap().count(), 1);
    assert_eq!(machine.events_after(Revision(99)).unwrap().count(), 0, "the future has not happened");

    let mut ring = History::default();
    let change = Change { before: None, after: None };
    for revision in 1..=30 {
        let changes = vec![change.clone(); EVENTS / 10];
        ring.push(Event { revision: Revision(revision), index: 0, actor: "a".into(), at: 0, changes });
    }
    assert_eq!((ring.events.len(), ring.compacted), (10, Revision(20)));

    // The bytes are shared here, but count as if they were not.
    let spec = Bytes::from(vec![0; BODY_MAX]);
    for body in 0..300u64 {
        let (spec, status) = (Some(spec.clone()), Some(Bytes::from(body.to_string())));
        run(&mut machine, Op::put(Put { key: key("big"), spec, status, lease: Attach::Keep }));
    }
    let kept = machine.events_after(machine.compacted()).unwrap().count();
    assert!((50..64).contains(&kept), "{kept}");
}

#[test]
fn what_is_too_large_is_refused() {
    let mut machine = Machine::default();
    let big = Bytes::from(vec![0; BODY_MAX + 1]);
    assert!(matches!(run(&mut machine, Op::put(Put::spec(key("a"), big))), Outcome::Rejected(Rejection::TooLarge(_))));
    assert!(matches!(put(&mut machine, &"n".repeat(300), "1"), Outcome::Rejected(Rejection::TooLarge(_))));
    let forever = Op::Grant { lease: LeaseId::new("n"), ttl_ms: u64::MAX };
    assert!(matches!(run(&mut machine, forever), Outcome::Rejected(Rejection::TooLarge(_))));
    let many = vec![Write::Delete(key("a")); WRITES_MAX + 1];
    assert!(matches!(
        run(&mut machine, Op::Write { require: vec![], writes: many }),
        Outcome::Rejected(Rejection::TooLarge(_))
    ));
}

#[test]
fn lists_are_by_kind_namespace_and_prefix() {
    let mut machine = Machine::default();
    for (kind, namespace, name) in
        [("Service", "a", "x1"), ("Service", "a", "x2"), ("Service", "b", "x1"), ("Route", "a", "x1"), ("S", "a", "x")]
    {
        run(&mut machine, Op::put(Put::spec(ObjectKey::new(kind, namespace, name), "1")));
    }
    let names = |filter: Filter| machine.list(&filter).iter().map(|o| o.key.to_string()).collect::<Vec<_>>();
    assert_eq!(names(Filter::default()).len(), 5);
    assert_eq!(names(Filter::kind("Service")), ["Service/a/x1", "Service/a/x2", "Service/b/x1"]);
    assert_eq!(names(Filter::kind("Service").within("b")), ["Service/b/x1"]);
    assert_eq!(names(Filter::kind("Service").prefixed("x2")), ["Service/a/x2"]);
    assert_eq!(names(Filter::default().within("a").prefixed("x1")), ["Route/a/x1", "Service/a/x1"]);
    assert_eq!(names(Filter { kinds: vec!["S".into(), "Route".into()], ..Filter::default() }), ["Route/a/x1", "S/a/x"]);
}

fn an_op() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(vec!["a", "b", "c", "d"]).prop_map(key);
    let lease = prop::sample::select(vec!["n1", "n2"]).prop_map(LeaseId::new);
    let attach = prop_oneof![
        3 => Just(Attach::Keep),
        1 => Just(Attach::Detach),
        2 => lease.clone().prop_map(Attach::To),
        1 => (lease.clone(), 1..8u64).prop_map(|(lease, generation)| Attach::Held { lease, generation }),
    ];
    let body = || prop::option::of(prop::sample::select(vec!["1", "2", "3"]).prop_map(Bytes::from));
    let put = (name.clone(), body(), body(), attach)
        .prop_map(|(key, spec, status, lease)| Write::Put(Put { key, spec, status, lease }));
    let write = prop_oneof![3 => put, 1 => name.clone().prop_map(Write::Delete)];
    let that = prop_oneof![Just(That::Exists), Just(That::Absent), (1..20u64).prop_map(|r| That::At(Revision(r)))];
    let require = (name, that).prop_map(|(key, that)| Require { key, that });
    prop_oneof![
        12 => (prop::collection::vec(require, 0..2), prop::collection::vec(write, 1..4))
            .prop_map(|(require, writes)| Op::Write { require, writes }),
        2 => lease.clone().prop_map(|lease| Op::Grant { lease, ttl_ms: 10 }),
        1 => (lease.clone(), 1..6u64).prop_map(|(lease, generation)| Op::Revoke { lease, generation }),
        2 => (1..3u64, prop::collection::vec((lease, 1..6u64), 1..3))
            .prop_map(|(term, leases)| Op::Expire { term, leases }),
        1 => (0..30u64).prop_map(|r| Op::Compact { through: Revision(r) }),
        1 => (0..60u64).prop_map(|history| Op::Trim { history, clients: history }),
    ]
}

proptest! {
    /// The past can be rebuilt, snapshots are faithful, leases and objects agree about who is attached to whom.
    #[test]
    fn any_commands_keep_the_promises(ops in prop::collection::vec((an_op(), prop::option::of(0..40u64)), 1..60)) {
        let mut machine = Machine::default();
        let mut past: Vec<(Revision, BTreeMap<ObjectKey, Arc<Object>>)> = vec![(Revision(0), BTreeMap::new())];
        for (index, (op, sequence)) in ops.into_iter().enumerate() {
            let index = index as u64;
            let before = machine.clone();
            let mut command = Command::new("alice", index, op);
            if let Some(sequence) = sequence {
                let client = ClientId(u128::from(sequence % 3));
                command = command.identified(RequestId { client, sequence, settled: index / 8, issued: index });
            }
            prop_assert_eq!(Command::decode(&command.encode()), Ok(command.clone()));
            let outcome = machine.apply(Position { term: 1 + index / 20, index }, &command);
            prop_assert_eq!(Outcome::decode(&outcome.encode()), Ok(outcome.clone()));

            if machine.objects != before.objects {
                prop_assert_eq!(machine.revision(), before.revision().next());
                past.push((machine.revision(), machine.objects.clone()));
            } else {
                prop_assert_eq!(machine.revision(), before.revision());
            }
            for (revision, objects) in &past {
                match machine.at(*revision) {
                    Ok(rebuilt) => prop_assert_eq!(&rebuilt, objects),
                    Err(Compacted { at }) => prop_assert!(*revision < at),
                }
            }
            for object in machine.objects.values() {
                if let Some(lease) = &object.lease {
                    prop_assert!(machine.lease(lease).is_some_and(|lease| lease.keys.contains(&object.key)));
                }
            }
            let attached: usize = machine.leases.values().map(|lease| lease.keys.len()).sum();
            prop_assert_eq!(attached, machine.objects.values().filter(|object| object.lease.is_some()).count());
        }
        let bytes = machine.encode();
        let decoded = Machine::decode(&bytes).unwrap();
        prop_assert_eq!(&decoded, &machine);
        prop_assert_eq!(decoded.encode(), bytes, "the same state is the same bytes");
    }

    #[test]
    fn a_damaged_snapshot_is_refused_without_a_panic(cut in 0..400usize, flip in 0..400usize) {
        let mut machine = Machine::default();
        for n in 0..20 {
            put(&mut machine, ["a", "b", "c"][n % 3], ["1", "2"][n % 2]);
        }
        let mut bytes = machine.encode();
        let at = flip % bytes.len();
        bytes[at] ^= 0x55;
        let _ = Machine::decode(&bytes);
        bytes.truncate(cut % bytes.len());
        prop_assert!(Machine::decode(&bytes).is_err());
    }
}
