//! What the node says of its services and endpoints, and of requests that it has traced.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::time::Instant;

use crate::{SOON, Weft};

impl Weft {
    /// A service in `/endpoints`.
    pub async fn service(&self, name: &str) -> Value {
        let all = self.admin_json("/endpoints").await;
        let found = all.as_array().unwrap().iter().find(|service| service["service"] == name);
        found.unwrap_or_else(|| panic!("{name} is missing: {all}")).clone()
    }

    /// An endpoint in `/endpoints`, of whatever service.
    pub async fn endpoint(&self, addr: SocketAddr) -> Value {
        let all = self.admin_json("/endpoints").await;
        let mut endpoints = all.as_array().unwrap().iter().flat_map(|s| s["endpoints"].as_array().unwrap());
        let found = endpoints.find(|endpoint| endpoint["address"] == addr.to_string());
        found.unwrap_or_else(|| panic!("{addr} is missing: {all}")).clone()
    }

    /// `closed`, `open` or `half_open`.
    pub async fn breaker(&self, addr: SocketAddr) -> String {
        let endpoint = self.endpoint(addr).await;
        endpoint["breaker"].as_str().unwrap_or_else(|| panic!("no breaker: {endpoint}")).to_owned()
    }

    /// Waits until the endpoint's breaker is in this state; the endpoint then.
    pub async fn until_breaker(&self, addr: SocketAddr, state: &str) -> Value {
        until(&format!("the breaker of {addr} is {state}"), async || {
            let endpoint = self.endpoint(addr).await;
            (endpoint["breaker"] == state, endpoint)
        })
        .await
    }

    /// Waits until the service's circuit is in this state; the service then.
    pub async fn until_circuit(&self, name: &str, state: &str) -> Value {
        until(&format!("the circuit of {name} is {state}"), async || {
            let service = self.service(name).await;
            (service["circuit"] == state, service)
        })
        .await
    }

    /// Waits until an ejected endpoint is due for a probe.
    pub async fn until_due(&self, addr: SocketAddr) {
        until(&format!("{addr} is due for a probe"), async || {
            let endpoint = self.endpoint(addr).await;
            (endpoint["ejection_ms_left"].as_f64().is_none_or(|ms| ms <= 0.0), endpoint)
        })
        .await;
        // Workers read the clock once per turn of their loop.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    /// Changes of breakers of a service, oldest first.
    pub async fn events(&self, service: &str) -> Vec<Value> {
        let service = self.service(service).await;
        let mut events = service["events"].as_array().unwrap_or_else(|| panic!("no events: {service}")).clone();
        // RFC 3339 in UTC sorts as text.
        events.sort_by_key(|event| event["at"].as_str().unwrap().to_owned());
        events
    }

    /// Waits until the sum of these samples is `expected`.
    pub async fn until_metric(&self, name: &str, labels: &[(&str, &str)], expected: usize) {
        until(&format!("{name} {labels:?} is {expected}"), async || {
            let sum = self.metrics().await.sum(name, labels);
            ((sum - expected as f64).abs() < 0.5, sum.into())
        })
        .await;
    }

    /// Every span in `/traces`.
    pub async fn spans(&self) -> Vec<Value> {
        let answer = self.admin_json("/traces?limit=1000").await;
        let traces = answer["traces"].as_array().unwrap_or_else(|| panic!("{answer}"));
        traces.iter().flat_map(|trace| trace["spans"].as_array().unwrap().clone()).collect()
    }

    /// Waits until a span of this kind (`server` or `client`) has an attribute for which `holds`; the span then.
    pub async fn until_span(&self, kind: &str, attribute: &str, holds: impl Fn(&Value) -> bool) -> Value {
        until(&format!("a {kind} span with {attribute}"), async || {
            let spans = self.spans().await;
            let of_kind = || spans.iter().filter(|span| span["kind"] == kind);
            match of_kind().find(|span| span["attributes"].get(attribute).is_some_and(&holds)) {
                Some(span) => (true, span.clone()),
                None => (false, of_kind().next_back().cloned().unwrap_or_default()),
            }
        })
        .await
    }
}

/// Waits until the first part of what `look` returns is true; fails the test with the second.
async fn until(what: &str, mut look: impl AsyncFnMut() -> (bool, Value)) -> Value {
    let end = Instant::now() + SOON;
    loop {
        let (done, seen) = look().await;
        if done {
            return seen;
        }
        assert!(Instant::now() < end, "not within {SOON:?}: {what}: {seen}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
