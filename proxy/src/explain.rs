//! What would happen to a request, and why: without sending it, without changing anything.
//!
//! Pure over a [`Snapshot`]: routes are asked by the code that routes requests ([`crate::route::explain`]), the request is
//! read by the code that reads requests ([`crate::layer::target`]), live state is only looked at. No endpoint is picked,
//! no token is taken, nothing is counted.

mod fate;
mod limits;
pub mod policy;
mod question;
pub mod routes;
mod rule;
pub mod service;

use std::{borrow::Cow, time::Instant};

use http::HeaderMap;
use serde_json::{Map, Value, json};
use weft_model::config::{BackendRef, Filter, Gateway, HttpRoute, HttpRule, Key, Listener, RouteKind};

pub use question::Question;

use crate::{
    error::{Reason, Refusal},
    headers::{self, Seen},
    layer::{shed::Shed, target::Asked},
    route::{
        Found, PrefixLen, RouteTable, View,
        explain::{Considered, Part, Verdict, describe},
        hosts::{self, Listeners},
        rewrite::Scheme,
    },
    snapshot::{
        PortId, PortKind, Snapshot,
        compile::{IMPLICIT, by_port},
    },
};

/// A request on one listener.
pub(crate) struct Case<'a> {
    pub(crate) snapshot: &'a Snapshot,
    /// What the node sheds.
    pub(crate) shed: &'a Shed,
    pub(crate) question: &'a Question,
    pub(crate) asked: &'a Asked<'a>,
    /// What the request's headers say at a glance.
    pub(crate) seen: Seen,
    /// Where it would arrive.
    pub(crate) at: PortId,
    /// What is served there.
    pub(crate) kind: &'a PortKind,
    /// The service that has the address, if the connection would be captured.
    pub(crate) captured: Option<&'a Key>,
    pub(crate) now: Instant,
    /// For each rule of the snapshot: its route, its number in it, and itself.
    pub(crate) written: &'a [(&'a HttpRoute, usize, &'a HttpRule)],
}

/// A rule as it was written.
pub(crate) struct Written<'a> {
    /// Its route; `None` for the rule that a service has without any.
    pub(crate) route: Option<&'a HttpRoute>,
    /// As spans and lists call it.
    pub(crate) name: Cow<'a, str>,
    pub(crate) filters: &'a [Filter],
    pub(crate) backends: Cow<'a, [BackendRef]>,
}

impl Case<'_> {
    pub(crate) fn headers(&self) -> &HeaderMap {
        self.question.request.headers()
    }

    /// What a rule of the snapshot was written as.
    pub(crate) fn written(&self, index: u32) -> Option<Written<'_>> {
        if let Some((route, number, rule)) = self.written.get(index as usize) {
            return Some(Written {
                route: Some(route),
                name: rule.name.as_deref().map_or_else(|| number.to_string().into(), Cow::Borrowed),
                filters: &rule.filters,
                backends: Cow::Borrowed(&rule.backends),
            });
        }
        let service = self.captured?.clone();
        let itself = BackendRef { service, port: self.at.port(), weight: 1, filters: Vec::new() };
        Some(Written { route: None, name: IMPLICIT.into(), filters: &[], backends: Cow::Owned(vec![itself]) })
    }

    pub(crate) fn query(&self) -> Option<&str> {
        self.question.request.uri().query()
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            host: self.asked.host(),
            method: self.question.request.method(),
            path: self.asked.path(),
            query: self.query(),
            headers: self.headers(),
        }
    }
}

/// Everything that is known about the fate of a request: see the README ("Ask why") for what it looks like.
///
/// `matched` says whether a rule serves it on some listener. `listeners` are those that would take it, each with its
/// rule; `skipped` are those that would not, each with the reason. Where Weft would answer itself, `refusal` says what:
/// of a listener if whatever backend is drawn, of a backend otherwise.
pub fn explain(snapshot: &Snapshot, shed: &Shed, question: &Question, now: Instant) -> Value {
    let method = question.request.method();
    let Ok(asked) = question.source.asked(method) else { return Value::Null };
    let (mut taken, mut skipped) = (Vec::new(), Vec::new());
    let listeners = by_port(&snapshot.config);
    let written: Vec<_> = snapshot.written().collect();
    let seen = headers::scan(question.request.headers());
    // What an application asks for that connects to a service's own address.
    let virtual_port = question.address.and_then(|at| Some((at, snapshot.virtual_port(at)?)));
    let case = |at: PortId, kind, captured| Case {
        snapshot,
        shed,
        question,
        asked: &asked,
        seen,
        at,
        kind,
        captured,
        now,
        written: &written,
    };
    let mut sort = |mut shown: Map<String, Value>, case: &Case<'_>, why: Option<String>| match why {
        Some(why) => {
            shown.insert("why".into(), json!(why));
            skipped.push(Value::Object(shown));
        }
        None => {
            shown.extend(on_listener(case));
            taken.push(Value::Object(shown));
        }
    };
    if let Some((at, port)) = virtual_port {
        let case = case(at, &port.kind, Some(&port.service));
        let shown = named(&case, format!("Service {}", port.service), at.port().to_string());
        sort(shown, &case, unfit(&case));
    }
    for port in &*snapshot.ports {
        let case = case(port.id, &port.kind, None);
        let own = listeners.get(&port.id).map_or(&[][..], Vec::as_slice);
        let hostnames = own.iter().enumerate().map(|(at, (_, listener))| (listener.hostname.clone(), at));
        let chosen = Listeners::build(hostnames.collect()).find(asked.host()).copied();
        for (at, (gateway, listener)) in own.iter().enumerate() {
            let shown = name(&case, gateway, listener);
            let elsewhere =
                virtual_port.map(|(_, port)| format!("the URL asks for an address of service {}", port.service));
            sort(shown, &case, elsewhere.or_else(|| refusal(&case, listener, chosen == Some(at))));
        }
    }
    json!({
        "revision": snapshot.revision,
        "request": {
            "method": method.as_str(),
            "scheme": question.scheme.as_str(),
            "port": question.port,
            "host": asked.host(),
            "path": asked.path(),
            "query": question.request.uri().query(),
            "headers": fields(question.request.headers()),
            "client": question.client.map(|client| client.to_string()),
        },
        "matched": taken.iter().any(|listener| listener["outcome"] == "match"),
        "listeners": taken,
        "skipped": skipped,
    })
}

fn fields(headers: &HeaderMap) -> Vec<Value> {
    headers.iter().map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())])).collect()
}

fn name(case: &Case<'_>, gateway: &Gateway, listener: &Listener) -> Map<String, Value> {
    let mut shown = named(case, gateway.key.to_string(), listener.name.to_string());
    shown.insert("hostname".into(), json!(listener.hostname.as_ref().map(ToString::to_string)));
    shown
}

fn named(case: &Case<'_>, gateway: String, listener: String) -> Map<String, Value> {
    let protocol = match case.kind {
        PortKind::Http { tls: None, .. } => "HTTP",
        PortKind::Http { tls: Some(_), .. } => "HTTPS",
        PortKind::Tcp(_) => "TCP",
    };
    let mut shown = Map::new();
    shown.insert("gateway".into(), json!(gateway));
    shown.insert("listener".into(), json!(listener));
    shown.insert("address".into(), json!(case.at.to_string()));
    shown.insert("protocol".into(), json!(protocol));
    shown.insert("hostname".into(), Value::Null);
    shown
}

/// Why a port does not take the request, whatever its host is.
fn unfit(case: &Case<'_>) -> Option<String> {
    let PortKind::Http { tls, .. } = case.kind else {
        return Some("carries TCP, without a look at requests".into());
    };
    if let Some(port) = case.question.port.filter(|port| *port != case.at.port()) {
        return Some(format!("the URL asks for port {port}"));
    }
    let scheme = if tls.is_some() { Scheme::Https } else { Scheme::Http };
    if scheme != case.question.scheme {
        let (speaks, wanted) = (scheme.as_str(), case.question.scheme.as_str());
        return Some(format!("speaks {speaks}, the URL asks for {wanted}"));
    }
    None
}

/// Why a listener does not take the request.
fn refusal(case: &Case<'_>, listener: &Listener, chosen: bool) -> Option<String> {
    if let Some(why) = unfit(case) {
        return Some(why);
    }
    let host = case.asked.host();
    match &listener.hostname {
        _ if chosen => None,
        Some(hostname) if !hosts::matches(hostname, host) => Some(format!("hostname {hostname} does not fit {host}")),
        _ => Some("another listener of this port fits the host better".into()),
    }
}

fn on_listener(case: &Case<'_>) -> Map<String, Value> {
    let mut shown = Map::new();
    let PortKind::Http { listeners, .. } = case.kind else { return shown };
    let Some(table) = listeners.find(case.asked.host()) else { return shown };
    let considered = candidates(table, case);
    let winner = considered.iter().find_map(|group| match group.best.verdict {
        Verdict::Serves(matched) => Some((group, matched)),
        _ => None,
    });
    let refused = match (winner, table.find(&case.view())) {
        (Some(_), _) => None,
        (None, Found::MethodMismatch(methods)) => {
            let methods: Vec<_> = methods.iter().map(|method| method.as_str()).collect();
            let refusal = Refusal::with(Reason::MethodNotAllowed, format!("only {}", methods.join(", ")));
            shown.insert("allow".into(), json!(methods));
            Some(refusal)
        }
        (None, _) => Some(Refusal::new(Reason::NoRoute, "no rule matches")),
    };
    let outcome = refused.as_ref().map_or("match", |refusal| refusal.reason.row().name);
    shown.insert("outcome".into(), json!(outcome));
    shown.insert("refusal".into(), json!(refused.map(|refusal| fate::show(case, &refusal))));
    if let Some((group, matched)) = winner {
        shown.insert("rule".into(), Value::Object(group.name(case)));
        shown.extend(rule::explain(case, *group.best.target, matched));
    }
    let others = considered.iter().filter(|group| !matches!(group.best.verdict, Verdict::Serves(_)));
    shown.insert("others".into(), others.map(|group| group.other(case)).collect());
    shown
}

/// One match of one rule, under all hostnames that its route has on the listener.
struct Group<'t> {
    best: Considered<'t, u32>,
    hostnames: Vec<String>,
}

impl Group<'_> {
    fn name(&self, case: &Case<'_>) -> Map<String, Value> {
        let mut name = Map::new();
        if let Some(written) = case.written(*self.best.target) {
            let key = written.route.map(|route| &route.key).or(case.captured);
            name.insert("kind".into(), json!(written.route.map_or(SERVICE, |route| kind(route.kind))));
            name.insert("route".into(), json!(key.map(ToString::to_string)));
            name.insert("rule".into(), json!(written.name));
        }
        name.insert("match".into(), json!(describe(self.best.matcher)));
        name.insert("hostnames".into(), json!(self.hostnames));
        name
    }

    fn other(&self, case: &Case<'_>) -> Value {
        let mut shown = self.name(case);
        let (fits, reasons) = match &self.best.verdict {
            Verdict::Serves(_) => (true, Vec::new()),
            Verdict::Outranked(criterion) => (true, vec![format!("fits, but the winner has {}", criterion.as_str())]),
            Verdict::Misses(misses) => {
                let text = |part: Part, text: &str| match part {
                    Part::Hostname if self.hostnames.len() > 1 => {
                        format!("hostnames {} do not fit {}", self.hostnames.join(", "), case.asked.host())
                    }
                    _ => text.to_owned(),
                };
                (false, misses.iter().map(|miss| text(miss.part, &miss.text)).collect())
            }
        };
        shown.insert("fits".into(), json!(fits));
        shown.insert("reasons".into(), json!(reasons));
        Value::Object(shown)
    }
}

/// All matches of the listener, near misses first.
fn candidates<'t>(table: &'t RouteTable<u32>, case: &Case<'_>) -> Vec<Group<'t>> {
    let mut groups: Vec<Group<'t>> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for considered in table.explain(&case.view()) {
        let hostname = considered.hostname.map(ToString::to_string);
        let at = *places.entry((*considered.target, considered.position)).or_insert(groups.len());
        match groups.get_mut(at) {
            Some(group) => {
                group.hostnames.extend(hostname);
                // In order of precedence: of two that fit the first is the better one.
                if considered.distance() < group.best.distance() {
                    group.best = considered;
                }
            }
            None => groups.push(Group { best: considered, hostnames: hostname.into_iter().collect() }),
        }
    }
    groups.sort_by_key(|group| group.best.distance());
    groups
}

/// What a rule that nobody wrote belongs to.
pub(crate) const SERVICE: &str = "Service";

/// As written in a document's `kind`.
pub(crate) const fn kind(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::Http => "HTTPRoute",
        RouteKind::Grpc => "GRPCRoute",
    }
}

#[cfg(test)]
mod tests;
