//! What the admin port shows of a node.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use serde_json::{Value, json};
use weft_model::config::RateLimit;

use super::State;
use crate::{
    admin::{Admin, Readiness, TraceQuery},
    endpoint::Endpoint,
    resilience::limiter::{self, CircuitView},
    worker::Shared,
};

/// The node, as its admin port sees it.
#[derive(Debug)]
pub struct NodeAdmin {
    shared: Arc<Shared>,
    state: Arc<State>,
}

impl NodeAdmin {
    /// Shows this node.
    pub const fn new(shared: Arc<Shared>, state: Arc<State>) -> Self {
        Self { shared, state }
    }
}

impl Admin for NodeAdmin {
    fn ready(&self) -> Readiness {
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        if self.state.draining.load(Ordering::Relaxed) {
            reasons.push("draining".into());
        }
        if self.shared.snapshot.load().revision == 0 {
            reasons.push("no configuration yet".into());
        }
        Readiness { reasons }
    }

    fn metrics(&self, accept: &str) -> (String, String) {
        let (text, kind) = self.shared.telemetry.metrics.scrape(Some(accept));
        (text, kind.to_owned())
    }

    fn config_dump(&self) -> Value {
        let snapshot = self.shared.snapshot.load();
        json!({
            "revision": snapshot.revision,
            "node": self.shared.options.node,
            "rejected": self.state.last_error.load().as_ref().as_ref(),
            "reload_failures": self.state.reload_failures.load(Ordering::Relaxed),
            "ports": snapshot.ports.iter().map(|port| port.id.to_string()).collect::<Vec<_>>(),
            "config": serde_json::to_value(&*snapshot.config).unwrap_or_else(|error| json!(error.to_string())),
        })
    }

    fn endpoints(&self) -> Value {
        let snapshot = self.shared.snapshot.load();
        let now = Instant::now();
        let mut services: Vec<_> = snapshot.services.values().collect();
        services.sort_by_key(|service| (&service.key, service.port));
        let services = services.into_iter().map(|service| {
            let endpoints: Vec<Value> = service.endpoints().iter().map(|each| endpoint(each, now)).collect();
            json!({
                "service": &*service.name,
                "port": service.port,
                "protocol": format!("{:?}", service.protocol).to_lowercase(),
                "balancer": format!("{:?}", service.policy.load_balancer.kind),
                "endpoints": endpoints,
            })
        });
        Value::Array(services.collect())
    }

    fn traces(&self, query: &TraceQuery) -> Value {
        self.shared.telemetry.traces.query(query)
    }

    fn limits(&self) -> Value {
        let snapshot = self.shared.snapshot.load();
        let now = Instant::now();
        let mut owners: Vec<_> = snapshot.limits.iter().map(|(owner, limits)| (owner.to_string(), limits)).collect();
        owners.sort_by(|(one, _), (other, _)| one.cmp(other));
        let reports = owners.iter().flat_map(|(owner, limits)| {
            limits.report(CircuitView::Steady, now).into_iter().map(|report| limit(owner, &report))
        });
        Value::Array(reports.collect())
    }

    fn tasks(&self) -> Value {
        let workers = self.shared.load.iter().zip(&self.shared.requests).enumerate();
        Value::Array(
            workers
                .map(|(id, (load, requests))| {
                    json!({
                        "worker": id,
                        "connections": load.load(Ordering::Relaxed),
                        "requests_in_flight": requests.get(),
                    })
                })
                .collect(),
        )
    }

    fn drain(&self) {
        self.state.drain.send_replace(true);
    }
}

fn limit(owner: &str, report: &limiter::Report) -> Value {
    let RateLimit { requests, per, burst, .. } = &report.written;
    json!({
        "name": &*report.name,
        "target": owner,
        "key": report.key.to_string(),
        "requests": requests,
        "per_ms": per.as_millis() as u64,
        "burst": burst,
        "scope": "node",
        "factor": f64::from(report.percent) / 100.0,
        "keys": report.keys,
        "remaining": report.remaining,
        "refused": report.refused,
    })
}

fn endpoint(endpoint: &Endpoint, now: Instant) -> Value {
    json!({
        "address": &*endpoint.label,
        "hostname": endpoint.hostname.as_deref(),
        "zone": endpoint.zone.as_deref(),
        "weight": endpoint.weight(),
        "health": endpoint.health().as_str(),
        "breaker": "closed",
        "in_flight": endpoint.in_flight.get(),
        "ewma_ms": (endpoint.latency.get(now).as_secs_f64() * 1e6).round() / 1e3,
        "requests": endpoint.requests.load(Ordering::Relaxed),
        "failures": endpoint.failures.load(Ordering::Relaxed),
    })
}
