#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use weft_wire::discovery::{DeltaRequest, SotwRequest};

use super::*;
use crate::push::{
    log::{Change, Resource, TypeSpec},
    sotw::Sotw,
    subscription::Subscription,
    testing::{SPEC, now, put, remove, resource, text},
};

const CDS: TypeSpec = TypeSpec {
    url: "cds",
    full: true,
    removed_after: &["eds", "lds", "rds"],
    with: Some("eds"),
    revisions: false,
    ..SPEC
};
const EDS: TypeSpec =
    TypeSpec { url: "eds", after: &["cds"], removed_after: &["lds", "rds"], revisions: false, ..SPEC };
const LDS: TypeSpec = TypeSpec { url: "lds", full: true, after: &["cds", "eds"], revisions: false, ..SPEC };
const RDS: TypeSpec = TypeSpec { url: "rds", after: &["cds", "eds", "lds"], revisions: false, ..SPEC };

/// Logs as Envoy's, and what a client of either protocol says.
struct Four<P> {
    logs: Vec<Log>,
    types: Types<P>,
}

trait Speaks: Protocol {
    fn asks(names: &[&str]) -> Self::Request;
    /// In the state of the world, each request names all that is wanted.
    fn acks(nonce: u64, version: &str, names: &[&str]) -> Self::Request;
}

impl Speaks for Subscription {
    fn asks(names: &[&str]) -> DeltaRequest {
        DeltaRequest {
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaRequest::default()
        }
    }

    fn acks(nonce: u64, _: &str, _: &[&str]) -> DeltaRequest {
        DeltaRequest { response_nonce: nonce.to_string(), ..DeltaRequest::default() }
    }
}

impl Speaks for Sotw {
    fn asks(names: &[&str]) -> SotwRequest {
        SotwRequest { resource_names: names.iter().map(ToString::to_string).collect(), ..SotwRequest::default() }
    }

    fn acks(nonce: u64, version: &str, names: &[&str]) -> SotwRequest {
        SotwRequest { response_nonce: nonce.to_string(), version_info: version.into(), ..Self::asks(names) }
    }
}

fn cluster(name: &str, version: u64) -> Change {
    Change::Put(Resource { with: Some(format!("e-{name}").into()), ..resource(name, version) })
}

impl<P: Speaks> Four<P> {
    /// One cluster, with endpoints, a listener and a route; the client has it all.
    fn with_all() -> Self {
        let mut four = Self { logs: [CDS, EDS, LDS, RDS].map(Log::new).into_iter().collect(), types: Types::default() };
        four.publish([vec![cluster("c", 1)], vec![put("e-c", 1)], vec![put("l", 1)], vec![put("r", 1)]]);
        for (at, names) in [(0, &[][..]), (1, &["e-c", "e-d"]), (2, &[]), (3, &["r"])] {
            four.ask(at, names);
        }
        assert_eq!(four.all(), ["cds c=1", "eds e-c=1", "lds l=1", "rds r=1"]);
        four
    }

    fn ask(&mut self, at: usize, names: &[&str]) {
        self.types.ask(at).request(P::asks(names), &self.logs[at], now());
    }

    fn publish(&mut self, changes: [Vec<Change>; 4]) {
        let revision = self.logs[0].revision() + 1;
        for (log, changes) in self.logs.iter_mut().zip(changes) {
            log.publish(revision, changes);
        }
    }

    /// The next response, unanswered: where, what, and its nonce and version.
    fn one(&mut self, now: Now) -> Option<(usize, String, u64, String)> {
        let Next::Send { at, batch, nonce } = self.types.next(&self.logs, now).unwrap() else { return None };
        let mut what: Vec<String> = batch.resources.iter().map(|resource| text(resource)).collect();
        // Names that do not exist are not the matter here.
        what.extend(batch.removed.iter().filter(|name| &***name != "e-d").map(|name| format!("-{name}")));
        Some((at, format!("{} {}", self.logs[at].spec().url, what.join(" ")), nonce, batch.version))
    }

    fn ack(&mut self, at: usize, nonce: u64, version: &str) {
        let names = [&[][..], &["e-c", "e-d"], &[], &["r"]][at];
        self.types.ask(at).request(P::acks(nonce, version, names), &self.logs[at], now());
    }

    /// All responses, each acknowledged at once.
    fn all(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some((at, what, nonce, version)) = self.one(now()) {
            self.ack(at, nonce, &version);
            seen.push(what);
        }
        seen
    }
}

/// Traffic moves from one cluster to another.
fn moves(four: &mut Four<impl Speaks>) -> Vec<String> {
    four.publish([vec![remove("c"), cluster("d", 2)], vec![remove("e-c"), put("e-d", 2)], vec![], vec![put("r", 2)]]);
    four.all()
}

#[test]
fn what_is_new_comes_before_what_is_gone_goes() {
    let delta = moves(&mut Four::<Subscription>::with_all());
    assert_eq!(delta, ["cds d=2", "eds e-d=2", "rds r=2", "cds -c", "eds -e-c"]);
    let sotw = moves(&mut Four::<Sotw>::with_all());
    assert_eq!(sotw, ["cds c=1 d=2", "eds e-d=2", "rds r=2", "cds d=2"]);
}

fn changes(mut four: Four<impl Speaks>) {
    four.publish([vec![cluster("c", 2)], vec![], vec![], vec![]]);
    assert_eq!(four.all(), ["cds c=2", "eds e-c=1"], "the client waits for its endpoints");
    four.publish([vec![], vec![put("e-c", 3)], vec![], vec![]]);
    assert_eq!(four.all(), ["eds e-c=3"]);
    four.publish([vec![remove("c")], vec![remove("e-c")], vec![], vec![]]);
    let gone = four.all();
    assert!(gone == ["cds -c", "eds -e-c"] || gone == ["cds "], "{gone:?}");
}

#[test]
fn a_changed_cluster_is_followed_by_its_endpoints() {
    changes(Four::<Subscription>::with_all());
    changes(Four::<Sotw>::with_all());
}

fn waits(mut four: Four<impl Speaks>) {
    let begin = now();
    let later = |seconds| Now { instant: begin.instant + Duration::from_secs(seconds), ..begin };
    four.publish([vec![cluster("c", 2)], vec![], vec![], vec![put("r", 2)]]);
    let (at, what, nonce, version) = four.one(begin).unwrap();
    assert_eq!(what, "cds c=2");
    assert!(matches!(four.types.next(&four.logs, begin), Ok(Next::Again)), "its answer comes first");
    assert_eq!(four.one(later(6)).unwrap().1, "eds e-c=1", "not for ever");
    four.ack(at, nonce, &version);
    assert!(matches!(four.types.next(&four.logs, later(7)), Ok(Next::Again)));
    assert_eq!(four.one(later(12)).unwrap().1, "rds r=2");
    assert!(matches!(four.types.next(&four.logs, later(12)), Ok(Next::Wait)));
    assert_eq!(four.types.open(), 0b101, "two have not been answered");
}

#[test]
fn what_depends_on_another_waits_for_its_answer() {
    waits(Four::<Subscription>::with_all());
    waits(Four::<Sotw>::with_all());
}
