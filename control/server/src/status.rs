//! What an object's status says, in the form that Gateway API publishes.
//!
//! Whatever is stored was checked together with everything else, so it is accepted, and what it refers to is there. What
//! is left to say is whether the nodes have it in force: [`Programmed`].

use serde_json::{Value, json};

/// Whose conditions they are.
pub const CONTROLLER: &str = "weft.dev/control";

/// How far the nodes are with an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Programmed {
    /// How many nodes are connected to the control plane.
    pub nodes: usize,
    /// On how many of them it is in force.
    pub acknowledged: usize,
    /// A node that does not take it, and why.
    pub rejected: Option<(String, String)>,
}

impl Programmed {
    /// The condition's status, reason and message.
    fn verdict(&self) -> (&'static str, &'static str, String) {
        match (self, &self.rejected) {
            (_, Some((node, why))) => ("False", "Rejected", format!("{node}: {why}")),
            (Self { nodes: 0, .. }, _) => {
                ("Unknown", "NoNodes", "no node is connected to this control plane".to_owned())
            }
            (Self { nodes, acknowledged, .. }, _) if acknowledged < nodes => {
                ("False", "Pending", format!("in force on {acknowledged} of {nodes} nodes"))
            }
            (Self { nodes, .. }, _) => ("True", "Programmed", format!("in force on {nodes} nodes")),
        }
    }
}

/// The status of a document as stored; `routes` are the stored routes, and matter to a Gateway.
pub fn of(document: &Value, generation: u64, programmed: &Programmed, routes: &[Value]) -> Value {
    let created = document["metadata"]["creationTimestamp"].as_str().unwrap_or("1970-01-01T00:00:00Z");
    let condition = |kind: &str, (status, reason, message): (&str, &str, String), since: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    };
    let accepted = condition("Accepted", ("True", "Accepted", "it was checked with everything else".into()), created);
    let resolved =
        condition("ResolvedRefs", ("True", "ResolvedRefs", "everything it refers to is there".into()), created);
    // When nodes took it is not recorded.
    let programmed = condition("Programmed", programmed.verdict(), created);
    match document["kind"].as_str() {
        Some("Gateway") => {
            let listeners = document["spec"]["listeners"].as_array().map(Vec::as_slice).unwrap_or_default();
            let listener = |listener: &Value| {
                json!({
                    "name": listener["name"],
                    "supportedKinds": kinds(listener).iter().map(|kind| {
                        json!({"group": "gateway.networking.k8s.io", "kind": kind})
                    }).collect::<Vec<_>>(),
                    "attachedRoutes": routes.iter().filter(|route| attaches(route, document, listener)).count(),
                    "conditions": [accepted, programmed, resolved],
                })
            };
            let listeners: Vec<Value> = listeners.iter().map(listener).collect();
            json!({"conditions": [accepted, programmed], "listeners": listeners})
        }
        Some("HTTPRoute" | "GRPCRoute" | "TCPRoute") => {
            let parents = document["spec"]["parentRefs"].as_array().map(Vec::as_slice).unwrap_or_default();
            let parent = |parent: &Value| {
                let conditions = [&accepted, &resolved, &programmed];
                json!({"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions})
            };
            json!({"parents": parents.iter().map(parent).collect::<Vec<_>>()})
        }
        _ => json!({"conditions": [accepted, resolved, programmed]}),
    }
}

/// The kinds of routes that a listener takes.
fn kinds(listener: &Value) -> &'static [&'static str] {
    match listener["protocol"].as_str() {
        Some("TCP") => &["TCPRoute"],
        _ => &["HTTPRoute", "GRPCRoute"],
    }
}

/// Does the route attach to this listener of the gateway?
fn attaches(route: &Value, gateway: &Value, listener: &Value) -> bool {
    let namespace = |document: &Value| document["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let (from, own) = (namespace(route), namespace(gateway));
    let all = listener["allowedRoutes"]["namespaces"]["from"] == "All";
    let named = |parent: &Value| {
        parent["kind"].as_str().unwrap_or("Gateway") == "Gateway"
            && parent["name"] == gateway["metadata"]["name"]
            && parent["namespace"].as_str().unwrap_or(&from) == own
            && (parent["sectionName"].is_null() || parent["sectionName"] == listener["name"])
            && (parent["port"].is_null() || parent["port"] == listener["port"])
    };
    let host = |host: &Value| host.as_str().unwrap_or_default().to_ascii_lowercase();
    let hosts = route["spec"]["hostnames"].as_array().map(Vec::as_slice).unwrap_or_default();
    let listens = host(&listener["hostname"]);
    route["kind"].as_str().is_some_and(|kind| kinds(listener).contains(&kind))
        && (all || from == own)
        && (hosts.is_empty() || listens.is_empty() || hosts.iter().any(|name| meet(&host(name), &listens)))
        && route["spec"]["parentRefs"].as_array().is_some_and(|parents| parents.iter().any(named))
}

/// Is there a host that both names mean? `*.` stands for one label or more.
fn meet(one: &str, other: &str) -> bool {
    match (one.strip_prefix('*'), other.strip_prefix('*')) {
        (None, None) => one == other,
        (Some(suffix), None) => other.ends_with(suffix),
        (None, Some(suffix)) => one.ends_with(suffix),
        (Some(one), Some(other)) => one.ends_with(other) || other.ends_with(one),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Value {
        json!({"kind": "Gateway", "metadata": {"name": "edge", "namespace": "default", "creationTimestamp": "T"},
        "spec": {"listeners": [
            {"name": "web", "port": 80, "protocol": "HTTP", "hostname": "*.shop.test"},
            {"name": "any", "port": 81, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}}},
            {"name": "tcp", "port": 82, "protocol": "TCP"},
        ]}})
    }

    fn route(kind: &str, namespace: &str, parent: Value, hosts: &[&str]) -> Value {
        json!({"kind": kind, "metadata": {"name": "r", "namespace": namespace},
            "spec": {"parentRefs": [parent], "hostnames": hosts}})
    }

    #[test]
    fn routes_are_counted_where_they_attach() {
        let edge = json!({"name": "edge"});
        for (route, expected) in [
            (route("HTTPRoute", "default", edge.clone(), &[]), [1, 1, 0]),
            (route("GRPCRoute", "default", edge.clone(), &["a.shop.test"]), [1, 1, 0]),
            (route("HTTPRoute", "default", edge.clone(), &["shop.test"]), [0, 1, 0]),
            (route("HTTPRoute", "default", edge.clone(), &["*.a.shop.test"]), [1, 1, 0]),
            (route("HTTPRoute", "other", edge.clone(), &[]), [0, 0, 0]),
            (route("HTTPRoute", "other", json!({"name": "edge", "namespace": "default"}), &[]), [0, 1, 0]),
            (route("HTTPRoute", "default", json!({"name": "edge", "sectionName": "any"}), &[]), [0, 1, 0]),
            (route("HTTPRoute", "default", json!({"name": "edge", "port": 80}), &[]), [1, 0, 0]),
            (route("HTTPRoute", "default", json!({"name": "edge", "kind": "Service"}), &[]), [0, 0, 0]),
            (route("TCPRoute", "default", edge, &[]), [0, 0, 1]),
        ] {
            let status = of(&gateway(), 1, &Programmed::default(), std::slice::from_ref(&route));
            let counts = [0, 1, 2].map(|at: usize| status["listeners"][at]["attachedRoutes"].as_u64().unwrap_or(9));
            assert_eq!(counts, expected, "{route}");
        }
    }

    #[test]
    fn conditions_have_their_published_form() {
        let status = of(&gateway(), 3, &Programmed::default(), &[]);
        assert_eq!(
            status["conditions"][1],
            json!({"type": "Programmed", "status": "Unknown", "reason": "NoNodes", "observedGeneration": 3,
                "message": "no node is connected to this control plane", "lastTransitionTime": "T"})
        );
        let parent = json!({"name": "edge"});
        let status = of(&route("HTTPRoute", "default", parent.clone(), &[]), 1, &Programmed::default(), &[]);
        assert_eq!(
            (&status["parents"][0]["parentRef"], &status["parents"][0]["controllerName"]),
            (&parent, &CONTROLLER.into())
        );
        assert_eq!(status["parents"][0]["conditions"][0]["type"], "Accepted");
        let nodes = |nodes, acknowledged| Programmed { nodes, acknowledged, ..Programmed::default() };
        let rejected = Programmed { rejected: Some(("n1".into(), "no such port".into())), ..nodes(3, 1) };
        for (programmed, expected) in [
            (nodes(0, 0), ("Unknown", "NoNodes")),
            (nodes(3, 2), ("False", "Pending")),
            (nodes(3, 3), ("True", "Programmed")),
            (rejected, ("False", "Rejected")),
        ] {
            let (status, reason, message) = programmed.verdict();
            assert_eq!((status, reason), expected, "{message}");
        }
    }
}
