#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_wire::{
    discovery::{Any, Status},
    resource::{REJECTED, Rejected},
};

use super::*;
use crate::push::{
    exchange::Rejection,
    log::{Change, Resource, TypeSpec},
    testing::{SPEC, now, put, remove, resource, text},
};

/// A log and one stream of it.
struct Pair {
    log: Log,
    stream: Subscription,
    nonce: u64,
}

impl Pair {
    fn new(spec: TypeSpec, changes: Vec<Change>) -> Self {
        let mut log = Log::new(spec);
        log.publish(1, changes);
        Self { log, stream: Subscription::default(), nonce: 0 }
    }

    fn publish(&mut self, changes: Vec<Change>) {
        self.log.publish(self.log.revision() + 1, changes);
    }

    fn request(&mut self, request: DeltaRequest) -> Answer {
        self.stream.request(request, &self.log, now())
    }

    fn ask(&mut self, subscribe: &[&str], unsubscribe: &[&str]) {
        self.request(DeltaRequest {
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..DeltaRequest::default()
        });
    }

    fn arrive(&mut self, subscribe: &[&str], has: &[(&str, &str)]) {
        self.request(DeltaRequest {
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            initial_resource_versions: has.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            ..DeltaRequest::default()
        });
    }

    fn ack(&mut self) -> Answer {
        self.request(DeltaRequest { response_nonce: self.nonce.to_string(), ..DeltaRequest::default() })
    }

    fn nack(&mut self, message: &str, named: &[(&str, &str)]) -> Answer {
        let detail = |(name, reason): &(&str, &str)| {
            Any::of(REJECTED, &Rejected { name: name.to_string(), reason: reason.to_string() })
        };
        let details = named.iter().map(detail).collect();
        let error_detail = Some(Status { message: message.into(), details, ..Status::default() });
        self.request(DeltaRequest { response_nonce: self.nonce.to_string(), error_detail, ..DeltaRequest::default() })
    }

    fn next(&mut self, hold: bool) -> Option<Batch> {
        let batch = self.stream.next(&self.log, hold).unwrap()?;
        self.nonce += 1;
        let contents = batch.contents.iter().map(|(name, version)| (name, version));
        self.stream.exchange.sent(self.nonce, batch.revision, contents, now());
        Some(batch)
    }

    /// The next response: what is in it, and `-NAME` for what is gone.
    fn sent(&mut self) -> Option<Vec<String>> {
        let batch = self.next(false)?;
        let removed = batch.removed.iter().map(|name| format!("-{name}"));
        Some(batch.resources.iter().map(|resource| text(resource)).chain(removed).collect())
    }

    /// As [`Self::sent`], and acknowledged.
    fn taken(&mut self) -> Option<Vec<String>> {
        let sent = self.sent();
        self.ack();
        sent
    }

    fn rejections(&self) -> Vec<(String, String)> {
        let (rejections, _) = self.stream.exchange.rejections();
        rejections.iter().map(|r| (format!("{}@{}", r.name, r.version), r.reason.to_string())).collect()
    }
}

fn some(what: &[&str]) -> Option<Vec<String>> {
    Some(what.iter().map(ToString::to_string).collect())
}

fn two() -> Pair {
    Pair::new(SPEC, vec![put("a", 1), put("b", 1)])
}

#[test]
fn naming_nothing_at_first_means_everything() {
    let mut pair = two();
    pair.ask(&[], &[]);
    assert_eq!(pair.taken(), some(&["a=1", "b=1"]));
    pair.ask(&[], &[]);
    assert_eq!(pair.sent(), None, "nothing is asked for");
    // It is still everything when something is named later, until that is given up.
    pair.ask(&["a"], &[]);
    assert_eq!(pair.taken(), some(&["a=1"]));
    pair.publish(vec![put("a", 2), put("b", 2)]);
    assert_eq!(pair.taken(), some(&["a=2", "b=2"]));
    pair.ask(&[], &["*"]);
    pair.publish(vec![put("a", 3), put("b", 3)]);
    assert_eq!(pair.taken(), some(&["a=3"]));
    pair.ask(&[], &["a"]);
    pair.publish(vec![put("a", 4)]);
    assert_eq!(pair.sent(), None, "naming nothing means nothing now");
    // What was missed comes when everything is wanted again.
    pair.ask(&["*"], &[]);
    assert_eq!(pair.taken(), some(&["b=3", "a=4"]));
}

#[test]
fn a_star_is_everything_and_not_asked_for_twice() {
    let mut pair = two();
    pair.ask(&["*"], &[]);
    assert_eq!(pair.taken(), some(&["a=1", "b=1"]));
    pair.ask(&["*"], &[]);
    assert_eq!(pair.sent(), None);
}

#[test]
fn naming_something_at_first_means_only_that() {
    let mut pair = two();
    pair.ask(&["a"], &[]);
    assert_eq!(pair.taken(), some(&["a=1"]));
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.sent(), None);
    pair.ask(&["b"], &["a"]);
    assert_eq!(pair.taken(), some(&["b=2"]));
    pair.publish(vec![put("a", 2), remove("b")]);
    assert_eq!(pair.taken(), some(&["-b"]));
}

#[test]
fn what_is_asked_for_again_is_sent_again() {
    let mut pair = two();
    pair.ask(&["a"], &[]);
    assert_eq!(pair.taken(), some(&["a=1"]));
    pair.ask(&["a"], &[]);
    assert_eq!(pair.taken(), some(&["a=1"]));
    // In one request given up and asked for: forgotten, and wanted.
    pair.ask(&["a"], &["a"]);
    assert_eq!(pair.taken(), some(&["a=1"]));
    assert_eq!(pair.sent(), None);
}

#[test]
fn what_does_not_exist_is_said_to_be_gone_and_comes_when_it_appears() {
    let mut pair = two();
    pair.ask(&["x"], &[]);
    assert_eq!(pair.taken(), some(&["-x"]));
    assert_eq!(pair.sent(), None);
    pair.publish(vec![put("x", 2)]);
    assert_eq!(pair.taken(), some(&["x=2"]));
}

#[test]
fn giving_up_a_name_under_a_wildcard_says_what_the_wildcard_has() {
    let mut pair = two();
    let hidden = |version| Change::Put(Resource { listed: false, ..resource("hidden", version) });
    pair.publish(vec![hidden(2)]);
    pair.ask(&["*", "a", "hidden"], &[]);
    assert_eq!(pair.taken(), some(&["b=1", "a=1", "hidden=2"]));
    pair.ask(&[], &["a", "hidden", "never"]);
    assert_eq!(pair.taken(), some(&["a=1", "-hidden"]));
    pair.publish(vec![hidden(3), put("a", 3)]);
    assert_eq!(pair.taken(), some(&["a=3"]), "what is not listed comes only to who names it");
}

#[test]
fn who_comes_back_gets_what_has_changed() {
    let mut pair = Pair::new(SPEC, vec![put("a", 1), put("b", 1), put("c", 1)]);
    pair.arrive(&[], &[("a", "1"), ("b", "0"), ("gone", "1")]);
    assert_eq!(pair.taken(), some(&["b=1", "c=1", "-gone"]));
    pair.publish(vec![put("a", 2)]);
    assert_eq!(pair.taken(), some(&["a=2"]));

    let mut named = Pair::new(SPEC, vec![put("a", 1), put("b", 1), put("c", 1)]);
    named.arrive(&["a", "b", "gone"], &[("a", "1"), ("b", "0"), ("c", "0"), ("gone", "1")]);
    assert_eq!(named.taken(), some(&["b=1", "-gone"]));
}

#[test]
fn the_first_request_is_answered_even_if_there_is_nothing() {
    let mut pair = Pair::new(SPEC, vec![]);
    pair.ask(&[], &[]);
    assert_eq!(pair.taken(), some(&[]));
    assert_eq!(pair.sent(), None);
    let mut same = two();
    same.arrive(&[], &[("a", "1"), ("b", "1")]);
    assert_eq!(same.taken(), some(&[]));
}

#[test]
fn one_response_at_a_time_and_then_the_latest() {
    let mut pair = two();
    pair.ask(&[], &[]);
    assert_eq!(pair.sent(), some(&["a=1", "b=1"]));
    for version in 2..10 {
        pair.publish(vec![put("a", version), put("c", version)]);
    }
    pair.publish(vec![remove("c")]);
    assert_eq!(pair.sent(), None);
    pair.ack();
    assert_eq!(pair.taken(), some(&["a=9"]), "what came and went in between was never there");
}

#[test]
fn what_is_asked_for_counts_even_with_an_old_nonce() {
    let mut pair = two();
    pair.ask(&["a"], &[]);
    pair.taken();
    pair.publish(vec![put("a", 2)]);
    assert_eq!(pair.sent(), some(&["a=2"]));
    let stale = DeltaRequest {
        response_nonce: "1".into(),
        resource_names_subscribe: vec!["b".into()],
        ..DeltaRequest::default()
    };
    assert_eq!(pair.request(stale), Answer::None);
    assert_eq!(pair.sent(), None, "the last response is not answered by it");
    assert_eq!(pair.ack(), Answer::Ack);
    assert_eq!(pair.taken(), some(&["b=1"]));
}

#[test]
fn what_was_refused_is_not_sent_again_until_it_changes() {
    let mut pair = two();
    pair.ask(&[], &[]);
    pair.sent();
    let Answer::Nack { new } = pair.nack("no", &[("a", "why a")]) else { panic!() };
    assert_eq!(new.iter().map(|r| (&*r.name, &*r.version, &*r.reason)).collect::<Vec<_>>(), [("a", "1", "why a")]);
    assert_eq!(pair.rejections(), [("a@1".into(), "why a".into())]);
    assert_eq!(pair.sent(), None);
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.sent(), some(&["b=2"]));
    // Still: that is nothing new.
    assert_eq!(pair.nack("no", &[("a", "why a")]), Answer::Nack { new: vec![] });
    pair.publish(vec![put("a", 3)]);
    assert_eq!(pair.taken(), some(&["a=3"]));
    assert_eq!(pair.rejections(), []);
}

#[test]
fn a_late_ack_says_that_it_is_in_force_now() {
    let mut pair = two();
    pair.ask(&[], &[]);
    pair.sent();
    pair.nack("port taken", &[("a", "port taken")]);
    assert_eq!(pair.stream.exchange.acknowledged(), 0);
    assert_eq!(pair.ack(), Answer::Ack);
    assert_eq!((pair.rejections(), pair.stream.exchange.acknowledged()), (vec![], 1));
    assert_eq!(pair.ack(), Answer::None, "once");
}

#[test]
fn a_nack_without_names_is_about_all_of_the_response_and_nothing_else() {
    let mut pair = two();
    pair.ask(&[], &[]);
    pair.sent();
    pair.nack("bad", &[]);
    assert_eq!(pair.rejections(), [("a@1".into(), "bad".into()), ("b@1".into(), "bad".into())]);
    pair.publish(vec![put("a", 2)]);
    assert_eq!(pair.taken(), some(&["a=2"]));
    assert_eq!(pair.rejections(), [("b@1".into(), "bad".into())], "such a client did not speak about b");
    pair.publish(vec![remove("b")]);
    assert_eq!(pair.taken(), some(&["-b"]));
    assert_eq!(pair.rejections(), []);
    pair.nack("again", &[]);
    assert_eq!(pair.rejections(), [("*@".into(), "again".into())]);
}

#[test]
fn what_goes_may_be_told_later_than_what_comes() {
    let mut pair = two();
    pair.ask(&[], &[]);
    pair.taken();
    pair.publish(vec![remove("a"), put("c", 2)]);
    let held = pair.next(true).unwrap();
    assert_eq!((held.resources.len(), held.removed.len()), (1, 0));
    pair.ack();
    assert_eq!(pair.next(true), None);
    assert!(!pair.stream.has_changes(&pair.log) && !pair.stream.is_settled(&pair.log));
    assert_eq!(pair.taken(), some(&["-a"]));
    assert!(pair.stream.is_settled(&pair.log));
}

#[test]
fn what_went_while_the_client_was_away_may_be_told_later_too() {
    let mut pair = two();
    pair.arrive(&["*", "never"], &[("a", "1"), ("gone", "1")]);
    let held = pair.next(true).unwrap();
    assert_eq!((held.resources.len(), held.removed), (1, vec!["never".into()]), "what was never there is said at once");
    pair.ack();
    assert!(!pair.stream.has_changes(&pair.log) && !pair.stream.is_settled(&pair.log));
    assert_eq!(pair.taken(), some(&["-gone"]));
    assert!(pair.stream.is_settled(&pair.log));
}

#[test]
fn a_client_that_is_ahead_waits() {
    let mut pair = two();
    pair.arrive(&[], &[("a", "3"), ("b", "1")]);
    assert!(pair.stream.ahead(&pair.log));
    assert_eq!(pair.sent(), None);
    pair.publish(vec![put("b", 2)]);
    assert_eq!(pair.sent(), None);
    pair.publish(vec![put("a", 3)]);
    assert_eq!(pair.taken(), some(&["b=2"]), "only what it has not");
}

#[test]
fn nothing_is_said_before_the_log_holds_what_there_is() {
    let mut pair = Pair { log: Log::new(SPEC), stream: Subscription::default(), nonce: 0 };
    pair.arrive(&[], &[("a", "0")]);
    assert_eq!(pair.sent(), None, "otherwise a would be gone");
    pair.publish(vec![put("a", 1)]);
    assert_eq!(pair.taken(), some(&["a=1"]));
}

#[test]
fn a_response_that_need_not_be_whole_is_split() {
    let mut pair = Pair::new(TypeSpec { response_max: 40, ..SPEC }, vec![]);
    for version in 1..=5 {
        pair.publish(vec![put(&format!("r{version}"), version)]);
    }
    pair.ask(&[], &[]);
    let mut seen = Vec::new();
    while let Some(batch) = pair.next(false) {
        seen.push((batch.resources.len(), batch.revision));
        pair.ack();
    }
    assert_eq!(seen, [(2, 3), (2, 5), (1, 6)], "each says how far it leads: revision 1 had nothing");
}

#[test]
fn a_client_that_was_away_too_long_is_told() {
    let mut pair = two();
    pair.ask(&[], &[]);
    pair.taken();
    pair.publish(vec![remove("a")]);
    pair.log.forget(0);
    assert_eq!(pair.stream.next(&pair.log, false), Err(TooFarBehind));
    let mut fresh = Subscription::default();
    fresh.request(DeltaRequest::default(), &pair.log, now());
    assert!(fresh.next(&pair.log, false).unwrap().is_some(), "one that knows nothing misses nothing");
}

#[derive(Debug, Clone)]
enum Step {
    Put { name: usize },
    Remove { name: usize },
    Send { hold: bool },
    Answer { nack: bool },
    Subscribe { name: usize },
    Unsubscribe { name: usize },
    Stale { name: usize },
    Reconnect { named: Option<usize> },
}

/// The last two are not listed.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "u", "v"];
const STAR: usize = NAMES.len();

fn name_of(name: usize) -> &'static str {
    NAMES.get(name).copied().unwrap_or("*")
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..STAR).prop_map(|name| Step::Put { name }),
        3 => (0..STAR).prop_map(|name| Step::Remove { name }),
        6 => prop::bool::weighted(0.2).prop_map(|hold| Step::Send { hold }),
        6 => prop::bool::weighted(0.2).prop_map(|nack| Step::Answer { nack }),
        2 => (0..=STAR).prop_map(|name| Step::Subscribe { name }),
        2 => (0..=STAR).prop_map(|name| Step::Unsubscribe { name }),
        1 => (0..=STAR).prop_map(|name| Step::Stale { name }),
        1 => prop::option::of(0..STAR).prop_map(|named| Step::Reconnect { named }),
    ]
}

/// A client, and what it may expect.
#[derive(Default)]
struct Model {
    wildcard: bool,
    named: BTreeSet<&'static str>,
    has: BTreeMap<String, u64>,
    /// Named, and nothing has been heard of them.
    open: BTreeSet<&'static str>,
    /// May come although nothing has changed.
    again: BTreeSet<&'static str>,
    /// The latest version that came on this stream.
    seen: BTreeMap<String, u64>,
}

impl Model {
    fn wants(&self, name: &str) -> bool {
        self.named.contains(name) || (self.wildcard && name < "u")
    }

    fn subscribe(&mut self, name: usize) {
        match NAMES.get(name) {
            None if !self.wildcard => {
                self.wildcard = true;
                self.again.extend(NAMES);
            }
            None => {}
            Some(name) => {
                self.named.insert(name);
                self.open.insert(name);
                self.again.insert(name);
            }
        }
    }

    fn unsubscribe(&mut self, name: usize) {
        match NAMES.get(name) {
            None => self.wildcard = false,
            Some(name) if self.named.remove(name) => {
                self.open.remove(name);
                if self.wildcard {
                    self.again.insert(name);
                }
            }
            Some(_) => {}
        }
        if !self.wildcard {
            self.has.retain(|name, _| self.named.contains(name.as_str()));
        }
    }
}

proptest! {
    /// Changes, answers, subscriptions and reconnections in any order: the client comes to have exactly what there is
    /// for it; nothing comes twice without a reason, or unasked; no version goes back.
    #[test]
    fn the_client_comes_to_have_what_there_is(
        steps in prop::collection::vec(a_step(), 1..120),
        max in prop_oneof![Just(1usize), Just(60), Just(1 << 20)],
    ) {
        let mut pair = Pair::new(TypeSpec { response_max: max, ..SPEC }, vec![]);
        let mut there: BTreeMap<String, u64> = BTreeMap::new();
        let mut model = Model { wildcard: true, ..Model::default() };
        pair.ask(&[], &[]);
        let steps = steps.into_iter();
        let end = (0..200).flat_map(|_| [Step::Answer { nack: false }, Step::Send { hold: false }]);
        for step in steps.chain(end) {
            match step {
                Step::Put { name } => {
                    let version = pair.log.revision() + 1;
                    let listed = name_of(name) < "u";
                    pair.publish(vec![Change::Put(Resource { listed, ..resource(name_of(name), version) })]);
                    there.insert(name_of(name).into(), version);
                }
                Step::Remove { name } => {
                    pair.publish(vec![remove(name_of(name))]);
                    there.remove(name_of(name));
                }
                Step::Answer { nack: true } => {
                    pair.nack("no", &[]);
                }
                Step::Answer { nack: false } => {
                    pair.ack();
                }
                Step::Subscribe { name } => {
                    pair.ask(&[name_of(name)], &[]);
                    model.subscribe(name);
                }
                Step::Unsubscribe { name } => {
                    pair.ask(&[], &[name_of(name)]);
                    model.unsubscribe(name);
                }
                Step::Stale { name } => {
                    let nonce = pair.nonce.saturating_sub(1).to_string();
                    let resource_names_subscribe = vec![name_of(name).to_owned()];
                    pair.request(DeltaRequest { response_nonce: nonce, resource_names_subscribe, ..DeltaRequest::default() });
                    model.subscribe(name);
                }
                Step::Reconnect { named } => {
                    pair.stream = Subscription::default();
                    let has: Vec<(String, String)> = model.has.iter().map(|(n, v)| (n.clone(), v.to_string())).collect();
                    let has: Vec<(&str, &str)> = has.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                    let named: Vec<&'static str> = named.into_iter().map(name_of).collect();
                    pair.arrive(&named, &has);
                    model = Model {
                        wildcard: named.is_empty(),
                        open: named.iter().copied().filter(|name| !model.has.contains_key(*name)).collect(),
                        named: named.into_iter().collect(),
                        seen: model.has.clone(),
                        has: model.has,
                        ..Model::default()
                    };
                    if !model.wildcard {
                        model.has.retain(|name, _| model.named.contains(name.as_str()));
                    }
                }
                Step::Send { hold } => {
                    let Some(batch) = pair.next(hold) else { continue };
                    let mut names = BTreeSet::new();
                    for (encoded, (name, version)) in batch.resources.iter().zip(&batch.contents) {
                        prop_assert_eq!(text(encoded), format!("{name}={version}"));
                        let version: u64 = version.parse().unwrap();
                        prop_assert!(model.wants(name), "{name} is not asked for");
                        prop_assert!(names.insert(name.to_string()), "{name} twice in a response");
                        prop_assert_eq!(there.get(&**name), Some(&version), "the latest");
                        let again = model.again.remove(&**name);
                        let seen = model.seen.insert(name.to_string(), version);
                        prop_assert!(again || seen != Some(version), "{name}@{version} again, without a reason");
                        prop_assert!(seen.is_none_or(|seen| seen <= version), "{name} goes back");
                        model.open.remove(&**name);
                        model.has.insert(name.to_string(), version);
                    }
                    for name in &batch.removed {
                        prop_assert!(names.insert(name.to_string()), "{name} twice in a response");
                        let gone = !there.contains_key(&**name) || !model.wants(name);
                        prop_assert!(gone, "{name} is there");
                        model.open.remove(&**name);
                        model.again.remove(&**name);
                        model.has.remove(&**name);
                        model.seen.remove(&**name);
                    }
                }
            }
        }
        prop_assert!(pair.stream.is_settled(&pair.log));
        let expected: BTreeMap<String, u64> = there.into_iter().filter(|(name, _)| model.wants(name)).collect();
        let has: BTreeMap<String, u64> = model.has.clone().into_iter().filter(|(name, _)| model.wants(name)).collect();
        prop_assert_eq!(has, expected);
        prop_assert_eq!(model.open, BTreeSet::new(), "nothing was said about these");
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Rejections are listed each once and up to a limit, whatever the client says.
    #[test]
    fn rejections_stay_in_bounds(names in prop::collection::vec(prop::collection::vec(0..300usize, 0..300), 1..5)) {
        let mut pair = Pair::new(SPEC, (0..300).map(|n| put(&n.to_string(), 1)).collect());
        pair.ask(&[], &[]);
        for names in names {
            pair.publish(vec![put("0", pair.log.revision() + 1)]);
            pair.sent();
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            pair.nack("no", &names.iter().map(|name| (name.as_str(), "why")).collect::<Vec<_>>());
            let (rejections, _) = pair.stream.exchange.rejections();
            let distinct: BTreeSet<&str> = rejections.iter().map(|Rejection { name, .. }| &**name).collect();
            prop_assert!(rejections.len() <= 256);
            prop_assert_eq!(distinct.len(), rejections.len());
        }
    }
}
