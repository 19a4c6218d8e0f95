//! What the admin port shows of a node.

use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weft_model::config::RateLimit;

use super::State;
use crate::{
    admin::{Admin, Readiness, TraceQuery},
    endpoint::Endpoint,
    explain::{self, Question},
    kernel::Signals,
    resilience::circuit::Event,
    resilience::limiter,
    snapshot::{Service, Snapshot},
    telemetry::access::rfc3339,
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
            let control = self.state.control.get();
            reasons.push(control.map_or_else(|| "no configuration yet".into(), |control| control.waiting_for().into()));
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
            "source": self.state.control.get().map_or_else(|| json!({ "kind": "file" }), |control| control.shown()),
            "rejected": self.state.last_error.load().as_ref().as_ref(),
            "reload_failures": self.state.reload_failures.load(Ordering::Relaxed),
            "ports": snapshot.ports.iter().map(|port| port.id.to_string()).collect::<Vec<_>>(),
            "virtual_ports": virtual_ports(&snapshot),
            "config": serde_json::to_value(&*snapshot.config).unwrap_or_else(|error| json!(error.to_string())),
        })
    }

    fn endpoints(&self) -> Value {
        let snapshot = self.shared.snapshot.load();
        let now = Instant::now();
        let mut services: Vec<_> = snapshot.services.values().collect();
        services.sort_by_key(|service| (&service.key, service.port));
        let retrying = snapshot.retrying();
        let services = services.into_iter().map(|service| {
            let budget = retrying.contains(&(service.key.clone(), service.port)).then(|| service.budget.remaining(now));
            let endpoints: Vec<Value> = service.endpoints().iter().map(|each| endpoint(service, each, now)).collect();
            let (connections, pending) = service.places.numbers();
            json!({
                "service": &*service.name,
                "port": service.port,
                "protocol": format!("{:?}", service.protocol).to_lowercase(),
                "balancer": format!("{:?}", service.policy.load_balancer.kind),
                "circuit": circuit(service),
                "requests_in_flight": service.in_flight.get(),
                "events": service.circuit.events().iter().map(|each| event(each)).collect::<Vec<_>>(),
                "connections": connections,
                "pending": pending,
                "retry_budget": budget.map(|remaining| json!({ "remaining": remaining })),
                "concurrency_limit": service.concurrency.as_ref().map(|gradient| gradient.limit()),
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
            limits.report(snapshot.circuit_of(limits, now), now).into_iter().map(|report| limit(owner, &report))
        });
        Value::Array(reports.collect())
    }

    fn explain(&self, question: &Question) -> Value {
        explain::explain(&self.shared.snapshot.load(), &self.shared.shed, question, Instant::now())
    }

    fn routes(&self) -> Value {
        let samples = self.shared.telemetry.metrics.collect();
        let requests = |route: &str| samples.sum("weft_requests_total", &[("route", route)]) as u64;
        explain::routes::list(&self.shared.snapshot.load(), requests)
    }

    fn connections(&self) -> Value {
        self.shared.kernel.as_ref().map_or_else(|| json!([]), |kernel| kernel.connections())
    }

    fn flows(&self, after: u64) -> Value {
        self.shared.kernel.as_ref().map_or_else(|| json!([]), |kernel| kernel.flows(after))
    }

    fn ebpf(&self) -> Value {
        self.shared.kernel.as_ref().map_or_else(|| json!({ "enabled": false }), |kernel| kernel.status())
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

/// The addresses of services whose connections come here when they are captured.
fn virtual_ports(snapshot: &Snapshot) -> Value {
    let mut ports: Vec<_> = snapshot.virtual_ports.iter().collect();
    ports.sort_by_key(|(address, _)| **address);
    let shown = ports.into_iter().map(|(address, port)| {
        json!({
            "address": address.to_string(),
            "service": port.service.to_string(),
            "protocol": port.protocol(),
            "routed": port.implicit.is_none(),
        })
    });
    Value::Array(shown.collect())
}

fn event(event: &Event) -> Value {
    json!({
        "at": rfc3339(event.at),
        "endpoint": &*event.endpoint,
        "from": event.from.as_str(),
        "to": event.to.as_str(),
        "evidence": &*event.evidence,
        "ejected": event.ejected,
        "for_ms": event.lasts.map(millis),
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

/// State of a service's circuit; `None` when its endpoints have no breakers.
pub(crate) fn circuit(service: &Service) -> Option<&'static str> {
    service.common.breaker.as_ref().map(|_| service.circuit.state().as_str())
}

/// What the kernel counts at an endpoint.
fn signals(signals: &Signals) -> Value {
    json!({
        "attempts": signals.attempts,
        "established": signals.established,
        "refused": signals.refused,
        "timed_out": signals.timed_out,
        "aborted": signals.aborted,
        "active": signals.active(),
        "rto": signals.rto,
        "retransmits": signals.retransmits,
        "srtt_ms": (signals.srtt_us > 0).then(|| f64::from(signals.srtt_us) / 1e3),
    })
}

/// One endpoint, as `/endpoints` and `/explain` show it.
pub(crate) fn endpoint(service: &Service, endpoint: &Endpoint, now: Instant) -> Value {
    let breaker = endpoint.guard().view(now);
    let mut shown = json!({
        "address": &*endpoint.label,
        "state": if service.drains(endpoint) { "draining" } else { "active" },
        "hostname": endpoint.hostname.as_deref(),
        "zone": endpoint.zone.as_deref(),
        "weight": endpoint.weight(),
        "weight_percent": endpoint.weight_percent(),
        "health": endpoint.health().as_str(),
        "breaker": breaker.state.as_str(),
        "ejected": breaker.ejected,
        "evidence": breaker.evidence.as_deref(),
        "ejection_ms_left": breaker.left.map(millis),
        "ejections": breaker.openings,
        "in_flight": endpoint.in_flight.get(),
        "ewma_ms": (endpoint.latency.get(now).as_secs_f64() * 1e6).round() / 1e3,
        "requests": endpoint.requests.load(Ordering::Relaxed),
        "failures": endpoint.failures.load(Ordering::Relaxed),
    });
    if let Some(known) = endpoint.signals() {
        shown["kernel"] = signals(&known);
    }
    shown
}
