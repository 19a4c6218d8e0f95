#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_wire::discovery::Status;

use super::*;
use crate::push::{
    log::{Change, Resource, TypeSpec},
    testing::{SPEC, now, put, remove, resource, text},
};

const FULL: TypeSpec = TypeSpec { full: true, ..SPEC };

/// A log and one stream of it.
struct Pair {
    log: Log,
    stream: Sotw,
    nonce: u64,
    /// What the client has accepted.
    version: String,
    names: Vec<String>,
}

impl Pair {
    fn new(spec: TypeSpec) -> Self {
        let mut log = Log::new(spec);
        log.publish(1, vec![put("a", 1), put("b", 1)]);
        Self { log, stream: Sotw::default(), nonce: 0, version: String::new(), names: vec![] }
    }

    fn publish(&mut self, changes: Vec<Change>) {
        self.log.publish(self.log.revision() + 1, changes);
    }

    fn request(&mut self, nonce: u64, version: &str, error: Option<&str>) -> Answer {
        let error_detail = error.map(|message| Status { message: message.into(), ..Status::default() });
        let request = SotwRequest {
            version_info: version.into(),
            resource_names: self.names.clone(),
            response_nonce: if nonce == 0 { String::new() } else { nonce.to_string() },
            error_detail,
            ..SotwRequest::default()
        };
        self.stream.request(request, &self.log, now())
    }

    /// From now on these are wanted.
    fn ask(&mut self, names: &[&str]) {
        self.names = names.iter().map(ToString::to_string).collect();
        let version = self.version.clone();
        assert_eq!(self.request(self.nonce, &version, None), Answer::None);
    }

    fn ack(&mut self) -> Answer {
        self.version.clone_from(&self.stream.version);
        let version = self.version.clone();
        self.request(self.nonce, &version, None)
    }

    fn nack(&mut self) -> Answer {
        let version = self.version.clone();
        self.request(self.nonce, &version, Some("no"))
    }

    fn sent(&mut self, hold: bool) -> Option<Vec<String>> {
        let batch = self.stream.next(&self.log, hold).unwrap()?;
        assert!(batch.removed.is_empty());
        self.nonce += 1;
        let contents = batch.contents.iter().map(|(name, version)| (name, version));
        self.stream.exchange.sent(self.nonce, batch.revision, contents, now());
        Some(batch.resources.iter().map(|resource| text(resource)).collect())
    }

    fn taken(&mut self) -> Option<Vec<String>> {
        let sent = self.sent(false);
        if sent.is_some() {
            assert_eq!(self.ack(), Answer::Ack);
        }
        sent
    }
}

fn some(what: &[&str]) -> Option<Vec<String>> {
    Some(what.iter().map(ToString::to_string).collect())
}

#[test]
fn a_full_type_comes_whole_when_anything_of_it_changes() {
    let mut pair = Pair::new(FULL);
    pair.ask(&[]);
    assert_eq!(pair.taken(), some(&["a=1", "b=1"]));
    assert_eq!(pair.taken(), None);
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.taken(), some(&["a=1", "b=2"]));
    pair.publish(vec![remove("a")]);
    assert_eq!(pair.taken(), some(&["b=2"]));
    pair.publish(vec![Change::Put(Resource { listed: false, ..resource("c", 4) })]);
    assert_eq!(pair.taken(), None, "nothing that it wants");
    pair.publish(vec![remove("b")]);
    assert_eq!(pair.taken(), some(&[]), "everything is gone");
}

#[test]
fn naming_nothing_is_everything_until_something_was_named() {
    let mut pair = Pair::new(FULL);
    pair.ask(&[]);
    pair.taken();
    pair.ask(&["*", "a"]);
    assert_eq!(pair.taken(), some(&["a=1", "b=1"]), "a is asked for anew");
    pair.ask(&["a"]);
    assert_eq!(pair.taken(), None, "less is wanted");
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.taken(), None);
    pair.ask(&[]);
    pair.publish(vec![put("a", 3)]);
    assert_eq!(pair.taken(), None, "nothing is wanted");
    pair.ask(&["*"]);
    assert_eq!(pair.taken(), some(&["a=3", "b=2"]));
}

#[test]
fn a_full_type_by_name_is_answered_even_if_there_is_no_such_thing() {
    let mut pair = Pair::new(FULL);
    pair.ask(&["x"]);
    assert_eq!(pair.taken(), some(&[]));
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.taken(), None);
    pair.publish(vec![put("x", 3)]);
    assert_eq!(pair.taken(), some(&["x=3"]));
    pair.publish(vec![remove("x")]);
    assert_eq!(pair.taken(), some(&[]));
}

#[test]
fn of_other_types_only_what_is_asked_for_and_has_changed() {
    let mut pair = Pair::new(SPEC);
    pair.ask(&["x", "a"]);
    assert_eq!(pair.taken(), some(&["a=1"]));
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.taken(), None);
    pair.ask(&["x", "a", "b"]);
    assert_eq!(pair.taken(), some(&["b=2"]));
    pair.publish(vec![put("x", 3)]);
    assert_eq!(pair.taken(), some(&["x=3"]));
    pair.publish(vec![remove("a")]);
    assert_eq!(pair.taken(), None, "the protocol has no words for it");
    pair.stream.resend("b");
    assert_eq!(pair.taken(), some(&["b=2"]));
    // Given up and asked for again.
    pair.ask(&["a"]);
    pair.ask(&["a", "b"]);
    assert_eq!(pair.taken(), some(&["b=2"]));
}

#[test]
fn what_a_client_says_it_has_from_another_stream_counts_for_nothing() {
    let mut pair = Pair::new(FULL);
    assert_eq!(pair.request(7, "1", None), Answer::None);
    assert_eq!(pair.taken(), some(&["a=1", "b=1"]));
}

#[test]
fn only_the_last_nonce_answers() {
    let mut pair = Pair::new(FULL);
    pair.ask(&[]);
    pair.taken();
    pair.publish(vec![put("a", 2)]);
    pair.sent(false);
    assert_eq!(pair.request(1, "1", None), Answer::None);
    assert_eq!(pair.request(1, "1", Some("no")), Answer::None);
    pair.publish(vec![put("a", 3)]);
    assert_eq!(pair.sent(false), None, "one at a time");
    assert_eq!(pair.ack(), Answer::Ack);
    assert_eq!(pair.taken(), some(&["a=3", "b=1"]));
}

#[test]
fn after_a_nack_other_names_are_no_ack() {
    let mut pair = Pair::new(FULL);
    pair.ask(&[]);
    pair.taken();
    pair.publish(vec![put("a", 2)]);
    assert_eq!(pair.sent(false), some(&["a=2", "b=1"]));
    assert!(matches!(pair.nack(), Answer::Nack { new } if new.len() == 2));
    assert_eq!(pair.sent(false), None, "not the same again");
    pair.ask(&["*", "a"]);
    assert_eq!(pair.stream.exchange.rejections().0.len(), 2);
    assert_eq!(pair.stream.exchange.acknowledged(), 1);
    assert_eq!(pair.taken(), some(&["a=2", "b=1"]), "asked for");
    assert_eq!(pair.stream.exchange.rejections().0.len(), 0);
}

#[test]
fn what_is_gone_may_be_kept_for_a_while() {
    let mut pair = Pair::new(TypeSpec { removed_after: &["other"], ..FULL });
    pair.ask(&[]);
    pair.taken();
    pair.publish(vec![remove("a"), put("c", 2)]);
    assert_eq!(pair.sent(true), some(&["a=1", "b=1", "c=2"]));
    assert_eq!(pair.ack(), Answer::Ack);
    assert_eq!(pair.sent(true), None);
    assert!(!pair.stream.is_settled(&pair.log));
    let before = pair.version.clone();
    assert_eq!(pair.taken(), some(&["b=1", "c=2"]));
    assert_ne!(pair.version, before, "other contents, another version");
    assert!(pair.stream.is_settled(&pair.log));
}

#[derive(Debug, Clone)]
enum Step {
    Put(usize),
    Remove(usize),
    Send { hold: bool },
    Answer { nack: bool },
    Ask(Vec<usize>),
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "*"];

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4usize).prop_map(Step::Put),
        2 => (0..4usize).prop_map(Step::Remove),
        5 => prop::bool::weighted(0.2).prop_map(|hold| Step::Send { hold }),
        5 => prop::bool::weighted(0.2).prop_map(|nack| Step::Answer { nack }),
        2 => prop::collection::vec(0..5usize, 0..4).prop_map(Step::Ask),
    ]
}

proptest! {
    /// In any order: what was sent last is, in the end, exactly what is wanted and there.
    #[test]
    fn the_client_comes_to_have_what_it_wants(full: bool, steps in prop::collection::vec(a_step(), 1..80)) {
        let mut pair = Pair::new(TypeSpec { full, removed_after: &["other"], ..SPEC });
        pair.ask(&[]);
        let mut has: BTreeMap<String, String> = BTreeMap::new();
        let end = (0..6).flat_map(|_| [Step::Answer { nack: false }, Step::Send { hold: false }]);
        for step in steps.into_iter().chain(end) {
            match step {
                Step::Put(name) => pair.publish(vec![put(NAMES[name], pair.log.revision() + 1)]),
                Step::Remove(name) => pair.publish(vec![remove(NAMES[name])]),
                Step::Answer { nack: true } if pair.nonce > 0 => {
                    pair.nack();
                }
                Step::Answer { .. } if pair.nonce > 0 => {
                    pair.ack();
                }
                Step::Answer { .. } => {}
                Step::Ask(names) => {
                    pair.names = names.into_iter().map(|name| NAMES[name].to_owned()).collect();
                    let version = pair.version.clone();
                    pair.request(pair.nonce, &version, None);
                }
                Step::Send { hold } => {
                    let waiting = pair.stream.exchange.waiting();
                    let Some(sent) = pair.sent(hold) else { continue };
                    prop_assert!(!waiting, "one at a time");
                    let sent: BTreeMap<String, String> = sent
                        .iter()
                        .map(|one| one.split_once('=').unwrap())
                        .map(|(name, version)| (name.to_owned(), version.to_owned()))
                        .collect();
                    if full {
                        has.clear();
                    }
                    for (name, version) in sent {
                        if let Some(entry) = pair.log.get(&name) {
                            prop_assert_eq!(&*entry.version, &*version, "the latest");
                            prop_assert!(pair.stream.wants(entry));
                        } else {
                            prop_assert!(hold && full, "{name} is gone");
                        }
                        has.insert(name, version);
                    }
                }
            }
        }
        prop_assert!(pair.stream.is_settled(&pair.log));
        let there: BTreeMap<String, String> = pair.log.present().filter(|entry| pair.stream.wants(entry))
            .map(|entry| (entry.name.to_string(), entry.version.to_string())).collect();
        // Less wanted is not said, and what is gone is not said of other types than full ones.
        has.retain(|name, _| there.contains_key(name) || (full && pair.stream.names.contains(name.as_str())));
        prop_assert_eq!(has, there);
    }
}
