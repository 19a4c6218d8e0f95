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
