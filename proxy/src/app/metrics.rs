//! What is asked at every scrape, because it is a state and not a count: endpoints, breakers, budgets.

use std::{collections::BTreeMap, sync::Arc};

use std::time::Instant;

use crate::{snapshot::Snapshot, telemetry::metrics::Samples, worker::Shared};

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
    let retrying = snapshot.retrying();
    for (id, service) in &snapshot.services {
        for endpoint in service.endpoints() {
            let port = service.port.to_string();
            let labels = [("service", &*service.name), ("port", &port), ("endpoint", &*endpoint.label)];
            samples.add("weft_endpoint_health", &labels, f64::from(u8::from(endpoint.usable())));
            if service.common.breaker.is_some() {
                let state = breakers.entry((service.name.clone(), endpoint.label.clone())).or_default();
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
    for (service, remaining) in budgets {
        samples.add("weft_retry_budget_remaining", &[("service", &*service)], f64::from(remaining));
    }
}
