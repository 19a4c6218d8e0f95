//! `/routes`: every rule of every route, for lists, and those that services have without one.

use serde_json::{Value, json};
use weft_model::config::{HttpRoute, ParentRef};

use super::{SERVICE, kind};
use crate::{
    route::explain::describe,
    snapshot::{Snapshot, compile::IMPLICIT},
};

/// One object per rule, in the order of the configuration; TCPRoutes after them, without matches, and what no route
/// is bound to last. `requests` counts those of
/// the whole route, whatever became of them.
pub fn list(snapshot: &Snapshot, requests: impl Fn(&str) -> u64) -> Value {
    let mut rules = Vec::new();
    for route in &snapshot.config.http_routes {
        let name = route.key.to_string();
        let requests = requests(&name);
        for (number, rule) in route.rules.iter().enumerate() {
            rules.push(json!({
                "kind": kind(route.kind),
                "route": name,
                "rule": rule.name.as_deref().map_or_else(|| number.to_string(), str::to_owned),
                "parents": parents(&route.parents),
                "hostnames": hostnames(route),
                "matches": rule.matches.iter().map(describe).collect::<Vec<_>>(),
                "backends": backends(&rule.backends),
                "redirect": rule.filters.iter().any(|filter| matches!(filter, weft_model::config::Filter::Redirect(_))),
                "requests": requests,
            }));
        }
    }
    for route in &snapshot.config.tcp_routes {
        rules.push(json!({
            "kind": "TCPRoute",
            "route": route.key.to_string(),
            "rule": "0",
            "parents": parents(&route.parents),
            "hostnames": [],
            "matches": [],
            "backends": backends(&route.backends),
            "redirect": false,
            "requests": null,
        }));
    }
    rules.extend(implicit(snapshot, requests));
    Value::Array(rules)
}

/// The rules of services to which no route is bound.
fn implicit(snapshot: &Snapshot, requests: impl Fn(&str) -> u64) -> Vec<Value> {
    let mut ports: Vec<_> = snapshot.virtual_ports.iter().filter(|(_, port)| port.implicit.is_some()).collect();
    ports.sort_by_key(|(address, port)| (&port.service, address.port()));
    // A service may have several addresses.
    ports.dedup_by_key(|(address, port)| (&port.service, address.port()));
    let shown = ports.into_iter().map(|(address, port)| {
        let (name, number) = (port.service.to_string(), address.port());
        json!({
            "kind": SERVICE,
            "route": name,
            "rule": IMPLICIT,
            "parents": [format!("{SERVICE} {name}:{number}")],
            "hostnames": [],
            "matches": ["/*"],
            "backends": [{"service": name, "port": number, "weight": 1}],
            "redirect": false,
            "requests": requests(&name),
        })
    });
    shown.collect()
}

fn hostnames(route: &HttpRoute) -> Vec<String> {
    route.hostnames.iter().map(ToString::to_string).collect()
}

fn parents(parents: &[ParentRef]) -> Vec<String> {
    let port = |port: &Option<u16>| port.map_or_else(String::new, |port| format!(":{port}"));
    let parents = parents.iter().map(|parent| match parent {
        ParentRef::Gateway { key, section, port: number } => {
            let section = section.as_ref().map_or_else(String::new, |section| format!("/{section}"));
            format!("{key}{section}{}", port(number))
        }
        ParentRef::Service { key, port: number } => format!("Service {key}{}", port(number)),
    });
    parents.collect()
}

fn backends(backends: &[weft_model::config::BackendRef]) -> Value {
    let backend = |backend: &weft_model::config::BackendRef| json!({"service": backend.service.to_string(), "port": backend.port, "weight": backend.weight});
    backends.iter().map(backend).collect()
}
