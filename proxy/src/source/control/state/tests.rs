#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use proptest::prelude::*;
use serde_json::json;
use weft_wire::{
    discovery::{Any, Resource},
    resource::{self, Object, object_name},
};

use super::*;

/// A resource of a document of the namespace `default`.
pub fn document(kind: &str, name: &str, version: u64, spec: serde_json::Value) -> Resource {
    let api =
        if kind == "Gateway" || kind == "HTTPRoute" { "gateway.networking.k8s.io/v1" } else { "weft.dev/v1alpha1" };
    let json = json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let object =
        Object { kind: kind.into(), namespace: "default".into(), name: name.into(), document: json.to_string().into() };
    let name = object_name(kind, "default", name);
    Resource { version: version.to_string(), resource: Some(Any::of(OBJECT, &object)), name }
}

pub fn service(name: &str, version: u64, ports: &[u16]) -> Resource {
    let ports: Vec<_> = ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    document("Service", name, version, json!({"ports": ports, "endpoints": [{"address": "10.0.0.1", "port": 80}]}))
}

pub fn gateway(name: &str, version: u64, port: u16) -> Resource {
    let listeners = json!([{"name": "http", "port": port, "protocol": "HTTP"}]);
    let spec = json!({"gatewayClassName": "weft", "addresses": [{"value": "127.0.0.1"}], "listeners": listeners});
    document("Gateway", name, version, spec)
}

pub fn route(name: &str, version: u64, gateway: &str, to: &str) -> Resource {
    let backend = json!({"group": "weft.dev", "kind": "Service", "name": to, "port": 80});
    let spec = json!({"parentRefs": [{"name": gateway}], "rules": [{"backendRefs": [backend]}]});
    document("HTTPRoute", name, version, spec)
}

pub fn endpoint(service: &str, place: &str, version: u64, weight: u32) -> Resource {
    let (address, port) = place.rsplit_once(':').unwrap();
    let endpoint = resource::Endpoint {
        namespace: "default".into(),
        service: service.into(),
        address: address.into(),
        port: port.parse().unwrap(),
        weight,
        ..resource::Endpoint::default()
    };
    let name = format!("default/{service}/{place}");
    Resource { version: version.to_string(), resource: Some(Any::of(ENDPOINT, &endpoint)), name }
}

fn response(kind: Kind, resources: &[Resource], removed: &[&str]) -> DeltaResponse {
    DeltaResponse {
        resources: resources.to_vec(),
        type_url: kind.type_url().into(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaResponse::default()
    }
}

/// Takes documents, and puts everything in force that this host, which refuses nothing, is asked to.
fn objects(state: &mut State, resources: &[Resource], removed: &[&str]) {
    state.receive(Kind::Object, &response(Kind::Object, resources, removed));
    rounds(state, |_| Ok(()));
}

fn endpoints(state: &mut State, resources: &[Resource], removed: &[&str]) {
    state.receive(Kind::Endpoint, &response(Kind::Endpoint, resources, removed));
    rounds(state, |_| Ok(()));
}

fn rounds(state: &mut State, mut host: impl FnMut(&Config) -> Result<(), Refusal>) -> usize {
    let mut count = 0;
    while let Some(proposal) = state.propose() {
        count += 1;
        assert!(count < 100, "it never ends");
        if !state.settle(host(&proposal.config)) {
            break;
        }
    }
    count
}

fn in_force(state: &State) -> &Arc<Config> {
    &state.in_force.as_ref().unwrap().config
}

fn rejected(state: &State, kind: Kind) -> Vec<(String, String)> {
    state.rejected(kind).iter().map(|one| (one.name.to_string(), one.reason.to_string())).collect()
}

fn names(state: &State) -> Vec<String> {
    rejected(state, Kind::Object).into_iter().map(|(name, _)| name).collect()
}

fn versions(state: &State, kind: Kind) -> BTreeMap<String, String> {
    state.versions(kind).iter().map(|(name, version)| (name.to_string(), version.to_string())).collect()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect()
}

fn shares(state: &State, name: &str) -> Vec<(String, u32)> {
    let service = in_force(state).services.iter().find(|service| &*service.key.name == name).unwrap();
    service.endpoints.iter().map(|one| (format!("{}:{}", one.address, one.port), one.share())).collect()
}

#[test]
fn an_invalid_document_does_not_hold_up_the_others() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80]), gateway("edge", 2, 8001)], &[]);
    assert_eq!(rejected(&state, Kind::Object), []);
    let bad = document("Service", "cart", 3, json!({"ports": [{"port": 0}]}));
    objects(&mut state, &[bad, route("all", 4, "edge", "web")], &[]);
    assert_eq!(names(&state), ["Service/default/cart"]);
    assert_eq!((in_force(&state).http_routes.len(), in_force(&state).services.len()), (1, 1));
    let all = map(&[("Service/default/web", "1"), ("Gateway/default/edge", "2"), ("HTTPRoute/default/all", "4")]);
    assert_eq!(versions(&state, Kind::Object), all, "what was rejected is not claimed");

    // The version of before stays in force.
    objects(&mut state, &[document("Service", "web", 5, json!({"prots": []}))], &[]);
    assert_eq!(names(&state), ["Service/default/cart", "Service/default/web"]);
    assert!(rejected(&state, Kind::Object)[1].1.contains("did you mean"), "{:?}", rejected(&state, Kind::Object));
    assert_eq!(versions(&state, Kind::Object)["Service/default/web"], "1");
    assert_eq!(in_force(&state).services[0].ports[0].port, 80);

    // Good again, or gone.
    objects(&mut state, &[service("web", 6, &[80, 81])], &["Service/default/cart"]);
    assert_eq!(rejected(&state, Kind::Object), []);
    assert_eq!(in_force(&state).services[0].ports.len(), 2);
}

#[test]
fn what_was_rejected_is_tried_again_with_what_comes_later() {
    let mut state = State::default();
    objects(&mut state, &[gateway("edge", 1, 8001), route("all", 2, "edge", "web")], &[]);
    assert_eq!(names(&state), ["HTTPRoute/default/all"]);
    objects(&mut state, &[service("web", 3, &[80])], &[]);
    assert_eq!(rejected(&state, Kind::Object), []);
    let accepted: Vec<_> = state.take_accepted().iter().map(|one| one.name.to_string()).collect();
    assert_eq!(accepted, ["Gateway/default/edge", "HTTPRoute/default/all", "Service/default/web"]);
}

#[test]
fn a_removal_that_breaks_others_is_refused() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80]), gateway("edge", 2, 8001), route("all", 3, "edge", "web")], &[]);
    objects(&mut state, &[], &["Service/default/web", "Service/default/never-seen"]);
    assert_eq!(names(&state), ["Service/default/web"]);
    assert_eq!(in_force(&state).services.len(), 1);
    assert_eq!(versions(&state, Kind::Object).len(), 3, "it is still here");
    // With the route gone as well, it works.
    objects(&mut state, &[], &["HTTPRoute/default/all"]);
    assert_eq!(rejected(&state, Kind::Object), []);
    assert_eq!((in_force(&state).services.len(), in_force(&state).http_routes.len()), (0, 0));
}

#[test]
fn who_was_rejected_before_is_suspected_first() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80]), gateway("edge", 2, 8001), route("all", 3, "edge", "web")], &[]);
    objects(&mut state, &[], &["Service/default/web"]);
    objects(&mut state, &[service("cart", 4, &[80])], &[]);
    assert_eq!(names(&state), ["Service/default/web"]);
    assert_eq!(in_force(&state).services.len(), 2);
}

/// A host on which these ports are taken.
fn taken(ports: &[u16]) -> impl FnMut(&Config) -> Result<(), Refusal> {
    let ports = ports.to_vec();
    move |config| {
        for gateway in &config.gateways {
            if gateway.listeners.iter().any(|listener| ports.contains(&listener.port)) {
                let suspects = vec![vec![object_name("Gateway", "default", &gateway.key.name)]];
                let blame = Blame { suspects, reason: "taken".into() };
                return Err(Refusal { reason: "cannot listen".into(), blamed: vec![blame] });
            }
        }
        Ok(())
    }
}

#[test]
fn what_a_host_cannot_have_is_left_out_and_tried_again() {
    let mut state = State::default();
    let all =
        [service("web", 1, &[80]), gateway("edge", 2, 8001), gateway("other", 3, 8002), route("a", 4, "edge", "web")];
    state.receive(Kind::Object, &response(Kind::Object, &all, &[]));
    assert_eq!(rounds(&mut state, taken(&[8001])), 2);
    // The route leads nowhere without its Gateway.
    assert_eq!(names(&state), ["Gateway/default/edge", "HTTPRoute/default/a"]);
    assert!(state.has_refused());
    assert_eq!(in_force(&state).gateways.len(), 1);
    state.retry();
    rounds(&mut state, taken(&[8001]));
    assert_eq!(names(&state), ["Gateway/default/edge", "HTTPRoute/default/a"]);
    // The port is free now.
    state.retry();
    rounds(&mut state, taken(&[]));
    assert_eq!(rejected(&state, Kind::Object), []);
    assert!(!state.has_refused());
    assert_eq!(in_force(&state).http_routes.len(), 1);
    // Moved to a port that is taken, it stays where it is.
    state.receive(Kind::Object, &response(Kind::Object, &[gateway("edge", 5, 8003)], &[]));
    rounds(&mut state, taken(&[8003]));
    assert_eq!(rejected(&state, Kind::Object), [("Gateway/default/edge".to_owned(), "taken".to_owned())]);
    assert_eq!(in_force(&state).gateways[0].listeners[0].port, 8001);
    assert_eq!(versions(&state, Kind::Object)["Gateway/default/edge"], "2");
}

#[test]
fn a_refusal_that_blames_nobody_is_everybodys() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80])], &[]);
    let before = in_force(&state).clone();
    state.receive(Kind::Object, &response(Kind::Object, &[service("a", 2, &[80]), service("b", 3, &[80])], &[]));
    let refuse = |config: &Config| match config.services.len() {
        1 => Ok(()),
        _ => Err(Refusal { reason: "no".into(), blamed: Vec::new() }),
    };
    rounds(&mut state, refuse);
    assert_eq!(names(&state), ["Service/default/a", "Service/default/b"]);
    assert!(Arc::ptr_eq(in_force(&state), &before), "nothing is put in force once more");
}

#[test]
fn endpoints_are_checked_one_by_one_and_merged() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80]), service("cart", 2, &[80])], &[]);
    let mut heavy = endpoint("web", "10.0.0.3:80", 4, 2_000_000);
    let good = [endpoint("web", "10.0.0.2:80", 3, 2), endpoint("later", "10.0.0.9:80", 5, 1)];
    endpoints(&mut state, &[&good[..], &[heavy.clone()]].concat(), &["default/web/10.9.9.9:80", "nonsense"]);
    assert_eq!(shares(&state, "web"), [("10.0.0.1:80".to_owned(), 1), ("10.0.0.2:80".to_owned(), 2)]);
    let rejections = rejected(&state, Kind::Endpoint);
    assert_eq!(rejections.len(), 1);
    assert_eq!(rejections[0].0, "default/web/10.0.0.3:80");
    assert!(rejections[0].1.contains("too large"), "{rejections:?}");
    assert_eq!(
        versions(&state, Kind::Endpoint),
        map(&[("default/web/10.0.0.2:80", "3"), ("default/later/10.0.0.9:80", "5")])
    );
    // A registered one counts instead of a written one; a bad version leaves the good one.
    endpoints(&mut state, &[endpoint("web", "10.0.0.1:80", 6, 9), endpoint("web", "10.0.0.2:80", 7, 2_000_000)], &[]);
    assert_eq!(shares(&state, "web"), [("10.0.0.1:80".to_owned(), 9), ("10.0.0.2:80".to_owned(), 2)]);
    assert_eq!(versions(&state, Kind::Endpoint)["default/web/10.0.0.2:80"], "3");
    heavy = endpoint("web", "10.0.0.3:80", 8, 3);
    endpoints(&mut state, &[heavy, endpoint("web", "10.0.0.2:80", 9, 2)], &["default/web/10.0.0.1:80"]);
    assert_eq!(rejected(&state, Kind::Endpoint), []);
    let all = [("10.0.0.1:80".to_owned(), 1), ("10.0.0.2:80".to_owned(), 2), ("10.0.0.3:80".to_owned(), 3)];
    assert_eq!(shares(&state, "web"), all);
    // The service of those that were there before it.
    objects(&mut state, &[service("later", 10, &[80])], &[]);
    assert_eq!(shares(&state, "later").len(), 2);
}

#[test]
fn endpoints_leave_everything_else_as_it_is() {
    let mut state = State::default();
    let all =
        [service("web", 1, &[80]), service("cart", 2, &[80]), gateway("edge", 3, 8001), route("a", 4, "edge", "web")];
    objects(&mut state, &all, &[]);
    let before = in_force(&state).clone();
    state.receive(Kind::Endpoint, &response(Kind::Endpoint, &[endpoint("web", "10.0.0.2:80", 5, 1)], &[]));
    assert!(!state.is_due(), "no document is read again");
    let proposal = state.propose().unwrap();
    assert!(!proposal.objects && proposal.warnings.is_empty());
    assert!(!state.settle(Ok(())));
    let of = |config: &Config, name: &str| {
        config.services.iter().find(|service| &*service.key.name == name).unwrap().clone()
    };
    assert!(Arc::ptr_eq(&of(&before, "cart"), &of(in_force(&state), "cart")));
    assert!(!Arc::ptr_eq(&of(&before, "web"), &of(in_force(&state), "web")));
    // Another version that says the same is nothing new; neither is an endpoint of a service that is not there.
    let now = in_force(&state).clone();
    endpoints(&mut state, &[endpoint("web", "10.0.0.2:80", 6, 1), endpoint("none", "10.0.0.2:80", 7, 1)], &[]);
    assert!(Arc::ptr_eq(in_force(&state), &now));
    assert_eq!(versions(&state, Kind::Endpoint)["default/web/10.0.0.2:80"], "6");
    // Documents that say the same, too.
    objects(&mut state, &[service("web", 8, &[80])], &[]);
    assert!(Arc::ptr_eq(in_force(&state), &now));
    assert_eq!(versions(&state, Kind::Object)["Service/default/web"], "8");
    // And one that does not takes only its own service along.
    objects(&mut state, &[service("cart", 9, &[81])], &[]);
    assert!(Arc::ptr_eq(&of(&now, "web"), &of(in_force(&state), "web")));
}

#[test]
fn nonsense_is_rejected_by_name_and_hurts_nobody() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80])], &[]);
    let object = |kind: &str, name: &str, document: &[u8]| Object {
        kind: kind.into(),
        namespace: "default".into(),
        name: name.into(),
        document: document.to_vec().into(),
    };
    let named = |name: &str, any: Option<Any>| Resource { version: "2".into(), resource: any, name: name.into() };
    let web = br#"{"apiVersion":"weft.dev/v1alpha1","kind":"Service","metadata":{"name":"web"},"spec":{"ports":[{"port":1}]}}"#;
    let nonsense = [
        named("Service/default/a", None),
        named("Service/default/b", Some(Any { type_url: OBJECT.into(), value: vec![0xff; 9].into() })),
        named("Service/default/c", Some(Any::of(ENDPOINT, &object("Service", "c", b"{}")))),
        named("Service/default/d", Some(Any::of(OBJECT, &object("Service", "d", b"{")))),
        named("Service/default/e", Some(Any::of(OBJECT, &object("Service", "e", &[0xc3])))),
        named("Service/default/f", Some(Any::of(OBJECT, &object("Service", "web", web)))),
        named("Service/default/g", Some(Any::of(OBJECT, &object("Service", "g", web)))),
        named("Cervice/default/h", Some(Any::of(OBJECT, &object("Cervice", "h", b"[]")))),
        named("", Some(Any::of(OBJECT, &object("", "", b"")))),
        named("Service/default/web", Some(Any::of(OBJECT, &object("Service", "web", b"null")))),
    ];
    let count = nonsense.len();
    objects(&mut state, &[&nonsense[..], &[service("cart", 3, &[80])]].concat(), &["/", "Service/default/x"]);
    assert_eq!(rejected(&state, Kind::Object).len(), count, "{:?}", rejected(&state, Kind::Object));
    assert!(rejected(&state, Kind::Object).iter().all(|(_, reason)| !reason.is_empty()));
    assert_eq!(in_force(&state).services.len(), 2);
    assert_eq!(versions(&state, Kind::Object)["Service/default/web"], "1");

    let endpoint = endpoint("web", "10.0.0.2:80", 4, 1);
    let nonsense = [
        named("default/web/10.0.0.7:80", endpoint.resource.clone()),
        named("default/web/10.0.0.8:80", Some(Any { type_url: ENDPOINT.into(), value: vec![0xff; 9].into() })),
        named("default/web/10.0.0.9:80", None),
        named("", Some(Any::of(ENDPOINT, &resource::Endpoint::default()))),
    ];
    endpoints(&mut state, &[&nonsense[..], &[endpoint]].concat(), &["/", "a/b", "default/web/1.2.3.4:1"]);
    assert_eq!(rejected(&state, Kind::Endpoint).len(), 4);
    assert_eq!(shares(&state, "web").len(), 2);
}

#[test]
fn relative_paths_in_documents_start_in_the_working_directory() {
    let mut state = State::default();
    let files = json!({"certFile": "tls/cert.pem", "keyFile": "tls/key.pem"});
    objects(&mut state, &[document("Certificate", "site", 1, files)], &[]);
    assert_eq!(rejected(&state, Kind::Object), []);
    let chain = in_force(&state).certificates[0].chain.clone().unwrap();
    assert_eq!(String::from(chain), "tls/cert.pem");
}

#[test]
fn what_is_restored_is_wanted_until_this_host_has_it() {
    let mut state = State::default();
    objects(&mut state, &[service("web", 1, &[80]), gateway("edge", 2, 8001)], &[]);
    endpoints(&mut state, &[endpoint("web", "10.0.0.2:80", 3, 1)], &[]);
    let saved = state.take_accepted();
    let mut state = State::default();
    state.restore(saved);
    assert!(state.versions(Kind::Object).is_empty() && !state.is_configured());
    rounds(&mut state, taken(&[8001]));
    assert_eq!(names(&state), ["Gateway/default/edge"]);
    assert_eq!(versions(&state, Kind::Object), map(&[("Service/default/web", "1")]));
    assert_eq!(versions(&state, Kind::Endpoint).len(), 1);
    assert_eq!(shares(&state, "web").len(), 2);
    // A cache without documents is none.
    let mut state = State::default();
    state.restore(Vec::new());
    assert!(!state.is_due());
}

/// What a model of a control plane says, and what a host can have.
struct World {
    rng: Rng,
    version: u64,
    objects: BTreeMap<String, Resource>,
    endpoints: BTreeMap<String, Resource>,
    taken: BTreeSet<u16>,
}

impl World {
    fn change(&mut self, kind: Kind) -> DeltaResponse {
        let (mut resources, mut removed) = (Vec::new(), Vec::new());
        for _ in 0..self.rng.usize(1..5) {
            self.version += 1;
            let resource = match kind {
                Kind::Endpoint => self.an_endpoint(),
                Kind::Object => self.an_object(),
            };
            let all = if kind == Kind::Object { &mut self.objects } else { &mut self.endpoints };
            if self.rng.u8(..4) == 0 {
                all.remove(&resource.name);
                removed.push(resource.name);
            } else {
                all.insert(resource.name.clone(), resource.clone());
                resources.push(resource);
            }
        }
        // The last word about a name counts, as a real one says only that.
        let mut seen = BTreeSet::new();
        resources.reverse();
        resources.retain(|one| seen.insert(one.name.clone()));
        let all = if kind == Kind::Object { &self.objects } else { &self.endpoints };
        resources.retain(|one| all.get(&one.name) == Some(one));
        removed.retain(|name| !all.contains_key(name));
        DeltaResponse { resources, removed_resources: removed, ..response(kind, &[], &[]) }
    }

    fn an_object(&mut self) -> Resource {
        let names = ["a", "b", "c"];
        let name = names[self.rng.usize(..3)];
        let other = names[self.rng.usize(..3)];
        match self.rng.u8(..8) {
            0..3 => service(name, self.version, &[80, self.rng.u16(81..84)]),
            3 => document("Service", name, self.version, json!({"ports": "many"})),
            4 | 5 => gateway(name, self.version, self.rng.u16(8001..8004)),
            _ => route(name, self.version, other, names[self.rng.usize(..3)]),
        }
    }

    fn an_endpoint(&mut self) -> Resource {
        let service = ["a", "b", "x"][self.rng.usize(..3)];
        let weight = if self.rng.u8(..6) == 0 { 9_000_000 } else { self.rng.u32(0..3) };
        endpoint(service, &format!("10.0.0.{}:80", self.rng.u8(1..4)), self.version, weight)
    }

    /// Whether this host can have it: ports that it has already are its own.
    fn has(&self, config: &Config, now: Option<&Config>) -> Result<(), Refusal> {
        let listeners = now.into_iter().flat_map(|now| &now.gateways).flat_map(|gateway| &gateway.listeners);
        let own: BTreeSet<u16> = listeners.map(|listener| listener.port).collect();
        taken(&self.taken.difference(&own).copied().collect::<Vec<_>>())(config)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever comes, and whatever the host can have: what is in force is made of exactly the versions that are said to
    /// be, each of them is valid, and once everything is good and to be had, everything is in force.
    #[test]
    fn what_is_said_is_in_force(seed: u64) {
        let mut world = World {
            rng: Rng::with_seed(seed),
            version: 0,
            objects: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            taken: BTreeSet::new(),
        };
        let mut state = State::default();
        let mut saved: BTreeMap<(Kind, Arc<str>), (Arc<str>, Bytes)> = BTreeMap::new();
        let mut sent: BTreeMap<(Kind, String, String), Resource> = BTreeMap::new();
        let mut heard = false;
        for _ in 0..12 {
            let kind = if !heard || world.rng.bool() { Kind::Object } else { Kind::Endpoint };
            heard = true;
            if world.rng.bool() {
                world.taken = (0..world.rng.usize(..3)).map(|_| world.rng.u16(8001..8004)).collect();
            }
            let changed = world.change(kind);
            for one in &changed.resources {
                sent.insert((kind, one.name.clone(), one.version.clone()), one.clone());
            }
            state.receive(kind, &changed);
            if world.rng.u8(..4) == 0 {
                state.retry();
            }
            let mut last = state.in_force.as_ref().map(|now| now.config.clone());
            while let Some(proposal) = state.propose() {
                let outcome = world.has(&proposal.config, last.as_deref());
                if outcome.is_ok() {
                    last = Some(proposal.config.clone());
                }
                if !state.settle(outcome) {
                    break;
                }
            }
            let now = state.in_force.as_ref().map(|now| now.config.clone());
            prop_assert_eq!(now.is_some(), last.is_some());
            for Accepted { kind, name, resource } in state.take_accepted() {
                match resource {
                    Some(resource) => drop(saved.insert((kind, name), resource)),
                    None => drop(saved.remove(&(kind, name))),
                }
            }
            let Some(now) = now else { continue };
            prop_assert_eq!(&now, &last.unwrap());
            // The same versions, given to somebody else, are the same configuration.
            let mut other = State::default();
            for kind in Kind::ALL {
                let own = state.versions(kind).into_iter().map(|(name, version)| {
                    sent[&(kind, name.to_string(), version.to_string())].clone()
                });
                let own: Vec<Resource> = own.collect();
                let all: BTreeMap<_, _> = own.iter().map(|one| ((kind, Arc::from(&*one.name)), Arc::from(&*one.version))).collect();
                let kept = saved.iter().filter(|((of, _), _)| *of == kind);
                let kept: BTreeMap<(Kind, Arc<str>), Arc<str>> =
                    kept.map(|(key, (version, _))| (key.clone(), version.clone())).collect();
                prop_assert_eq!(&kept, &all, "the cache holds what is said to be in force");
                other.receive(kind, &response(kind, &own, &[]));
            }
            rounds(&mut other, |_| Ok(()));
            prop_assert_eq!(other.rejected(Kind::Object), vec![]);
            prop_assert_eq!(in_force(&other), &now);
            // Everything else is rejected, and has a reason.
            let wanted: BTreeSet<_> = world.objects.values().map(|one| (one.name.clone(), one.version.clone())).collect();
            let have: BTreeSet<_> = versions(&state, Kind::Object).into_iter().collect();
            let differ: BTreeSet<String> = wanted.symmetric_difference(&have).map(|(name, _)| name.clone()).collect();
            let named: BTreeSet<String> = names(&state).into_iter().collect();
            prop_assert_eq!(named, differ);
        }
        // Everything is repaired.
        world.taken.clear();
        let fine = ["a", "b", "c"].map(|name| service(name, 1000, &[80]));
        let gone: Vec<String> = world.objects.keys().filter(|name| !name.starts_with("Service/")).cloned().collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        state.receive(Kind::Object, &response(Kind::Object, &fine, &gone));
        rounds(&mut state, |_| Ok(()));
        prop_assert_eq!(state.rejected(Kind::Object), vec![]);
        prop_assert_eq!(in_force(&state).services.len(), 3);
    }
}
