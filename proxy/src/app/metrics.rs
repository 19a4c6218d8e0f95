//! What is asked at every scrape, because it is a state and not a count: endpoints, breakers, budgets.

use std::{collections::BTreeMap, sync::Arc};

use std::time::Instant;

use crate::{kernel::Signals, snapshot::Snapshot, telemetry::metrics::Samples, worker::Shared};

/// Adds the node's services to its metrics.
pub fn show(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared.telemetry.metrics.add_source(move |samples| {
        if let Some(shared) = weak.upgrade() {
            samples.add("weft_load_shed_level", &[], f64::from(shared.shed.level()));
            collect(&shared.snapshot.load(), samples, Instant::now());
        }
    });
}

fn collect(snapshot: &Snapshot, samples: &mut Samples, now: Instant) {
    // Ports of a service may share an address, which has one series.
    let mut breakers = BTreeMap::<(Arc<str>, Arc<str>), u8>::new();
    // And they have budgets of their own, whose series is that of the service.
    let mut budgets = BTreeMap::<Arc<str>, u32>::new();
    let mut round_trips = BTreeMap::<(Arc<str>, Arc<str>), u32>::new();
    let retrying = snapshot.retrying();
    for (id, service) in &snapshot.services {
        for endpoint in service.endpoints() {
            let port = service.port.to_string();
            let labels = [("service", &*service.name), ("port", &port), ("endpoint", &*endpoint.label)];
            samples.add("weft_endpoint_health", &labels, f64::from(u8::from(endpoint.usable())));
            let both = || (service.name.clone(), endpoint.label.clone());
            if let Some(signals) = endpoint.signals() {
                connections(&service.name, &endpoint.label, &signals, samples);
                let round_trip = round_trips.entry(both()).or_default();
                *round_trip = (*round_trip).max(signals.srtt_us);
            }
            if service.common.breaker.is_some() {
                let state = breakers.entry(both()).or_default();
                *state = (*state).max(endpoint.guard().state() as u8);
            }
        }
        if retrying.contains(id) {
            *budgets.entry(service.name.clone()).or_default() += service.budget.remaining(now);
        }
    }
    for ((service, endpoint), state) in breakers {
        let labels = [("service", &*service), ("endpoint", &*endpoint)];
        samples.add("weft_endpoint_breaker_state", &labels, f64::from(state));
    }
    for ((service, endpoint), micros) in round_trips.into_iter().filter(|(_, micros)| *micros > 0) {
        let labels = [("service", &*service), ("endpoint", &*endpoint)];
        samples.add("weft_tcp_srtt_seconds", &labels, f64::from(micros) / 1e6);
    }
    for (service, remaining) in budgets {
        samples.add("weft_retry_budget_remaining", &[("service", &*service)], f64::from(remaining));
    }
}

/// What the kernel counts; ports of a service that share an address are added up.
fn connections(service: &str, endpoint: &str, signals: &Signals, samples: &mut Samples) {
    let Signals { established, refused, timed_out, aborted, .. } = *signals;
    let labels = [("service", service), ("endpoint", endpoint)];
    let outcomes = [("established", established), ("refused", refused), ("timed_out", timed_out), ("aborted", aborted)];
    for (outcome, count) in outcomes {
        let labels = [labels[0], labels[1], ("outcome", outcome)];
        samples.add("weft_tcp_connects_total", &labels, count as f64);
    }
    samples.add("weft_tcp_connections", &labels, signals.active() as f64);
    samples.add("weft_tcp_retransmits_total", &labels, signals.retransmits as f64);
    samples.add("weft_tcp_rto_total", &labels, signals.rto as f64);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{app::admin, snapshot::fixture};

    #[test]
    fn what_the_kernel_counts_is_shown_once_it_has_told() {
        let spec = "ports: [{name: a, port: 80}, {name: b, port: 81}], endpoints: [{address: 10.0.0.1, port: 80}]";
        let snapshot = fixture::snapshot(&fixture::ours("Service", "cart", spec));
        let collect = || {
            let mut samples = Samples::default();
            super::collect(&snapshot, &mut samples, Instant::now());
            samples
        };
        let labels = [("service", "cart"), ("endpoint", "10.0.0.1:80")];
        assert_eq!(collect().value("weft_tcp_connections", &labels), None);
        let signals = Signals {
            attempts: 10,
            established: 6,
            refused: 2,
            timed_out: 1,
            aborted: 1,
            closed: 4,
            rto: 3,
            retransmits: 12,
            srtt_us: 420,
        };
        let one = snapshot.services.values().next().unwrap();
        let endpoints = || snapshot.services.values().flat_map(|service| service.endpoints());
        assert_eq!(admin::endpoint(one, endpoints().next().unwrap(), Instant::now()).get("kernel"), None);
        for (nth, endpoint) in (0..).zip(endpoints()) {
            endpoint.set_signals(Some(Signals { srtt_us: signals.srtt_us + nth, ..signals }));
        }
        let samples = collect();
        // Two ports, one address.
        let value = |name| samples.value(name, &labels).unwrap();
        assert_eq!([value("weft_tcp_connections"), value("weft_tcp_retransmits_total")], [4.0, 24.0]);
        assert_eq!([value("weft_tcp_rto_total"), value("weft_tcp_srtt_seconds")], [6.0, 0.000_421]);
        let connects = |outcome| {
            let labels = [labels[0], labels[1], ("outcome", outcome)];
            samples.value("weft_tcp_connects_total", &labels).unwrap()
        };
        assert_eq!(["established", "refused", "timed_out", "aborted"].map(connects), [12.0, 4.0, 2.0, 2.0]);
        let shown = admin::endpoint(one, endpoints().next().unwrap(), Instant::now());
        let expect = serde_json::json!({
            "attempts": 10, "established": 6, "refused": 2, "timed_out": 1, "aborted": 1, "active": 2, "rto": 3,
            "retransmits": 12, "srtt_ms": 0.42,
        });
        assert_eq!((&shown["kernel"], &shown["weight_percent"]), (&expect, &serde_json::json!(100)));
    }
}
