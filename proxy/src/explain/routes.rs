//! `/routes`: every rule of every route, for lists.

use serde_json::{Value, json};
use weft_model::config::{HttpRoute, ParentRef};

use super::kind;
use crate::{route::explain::describe, snapshot::Snapshot};

/// One object per rule, in the order of the configuration; TCPRoutes last, without matches. `requests` counts those of
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
    Value::Array(rules)
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
