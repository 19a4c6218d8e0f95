//! An exchange to try things on: a GET that took 12 ms, answered 200 by the only attempt.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Version};

use super::{Attempt, Finished, context::Trace, metrics::Slot};
use crate::{endpoint::Endpoint, resilience::circuit::Circuit};

/// What a [`Finished`] borrows.
pub(super) struct Exchange {
    pub slot: Option<Arc<Slot>>,
    pub method: Method,
    pub path: String,
    pub query: Option<String>,
    pub user_agent: HeaderValue,
    pub request_id: HeaderValue,
    pub status: u16,
    pub reason: Option<crate::error::Reason>,
    pub grpc: Option<Option<u8>>,
    pub workload: Option<Arc<str>>,
    pub trace: Trace,
    pub attempts: Vec<Attempt>,
    pub start: Instant,
    pub took: Duration,
}

impl Exchange {
    pub fn new(slot: Option<Arc<Slot>>) -> Self {
        let start = Instant::now();
        let mut trace = Trace::OFF;
        (trace.trace_id, trace.span_id, trace.sampled) = (0xabc, 0x1, true);
        Self {
            slot,
            method: Method::GET,
            path: "/cart/7".into(),
            query: None,
            user_agent: HeaderValue::from_static("curl/8"),
            request_id: HeaderValue::from_static("req-1"),
            status: 200,
            reason: None,
            grpc: None,
            workload: None,
            trace,
            attempts: vec![attempt(start)],
            start,
            took: Duration::from_millis(12),
        }
    }

    pub fn facts(&self) -> Finished<'_> {
        Finished {
            slot: self.slot.as_ref(),
            rule: Some("rule-0"),
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            host: Some("shop.example.com:8080"),
            scheme: "http",
            version: Version::HTTP_11,
            status: self.status,
            reason: self.reason,
            grpc: self.grpc,
            start: self.start,
            end: self.start + self.took,
            bytes_in: 3,
            bytes_out: 512,
            client: Some(([192, 0, 2, 1], 5555).into()),
            user_agent: Some(&self.user_agent),
            request_id: Some(&self.request_id),
            workload: self.workload.as_ref(),
            trace: &self.trace,
            attempts: &self.attempts,
        }
    }
}

/// An attempt that began at `start` and was answered after 10 ms.
pub(super) fn attempt(start: Instant) -> Attempt {
    let circuit = Arc::new(Circuit::new("cart".into(), Arc::default(), start));
    Attempt {
        span_id: 0x2,
        start,
        head: Some(start + Duration::from_millis(10)),
        end: None,
        endpoint: Some(Arc::new(Endpoint::new(([10, 0, 0, 1], 9000).into(), None, None, 1, circuit, start))),
        tls: false,
        status: 200,
        grpc_status: None,
        reason: None,
        breaker: None,
    }
}
