//! Stand-in while the real one is written.
#![allow(missing_docs)]
use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Instant};

use http::{HeaderMap, Method, Request};

use crate::{conn::Conn, endpoint::Endpoint, error::Reason, snapshot::Rule};

pub mod metrics {
    #[derive(Debug, Clone)]
    pub struct Slot;
    #[derive(Debug)]
    pub struct InFlightGuard;
    #[derive(Debug)]
    pub struct ConnectionGuard;
}
use metrics::*;

#[derive(Debug)]
pub struct Telemetry;
#[derive(Debug)]
pub struct Worker;
#[derive(Debug)]
pub struct Record {
    pub slot: Option<Slot>,
    pub status: u16,
    pub reason: Option<Reason>,
    pub detail: Option<Cow<'static, str>>,
    pub bytes_in: u64,
    pub bytes_out: u64,
    method: Method,
    attempt: Instant,
}
impl Telemetry {
    pub fn new(_workers: usize, _node: &str) -> Arc<Self> {
        Arc::new(Self)
    }
    pub fn worker(&self, _id: usize) -> Worker {
        Worker
    }
    pub fn slot(&self, _route: &str, _template: &str, _service: &str) -> Slot {
        Slot
    }
    pub fn configure(&self, _t: &weft_model::config::Telemetry) {}
    pub fn reload_failed(&self) {}
    pub fn revision(&self, _r: u64) {}
    pub async fn shutdown(&self) {}
}
impl Worker {
    pub fn begin<B>(&self, request: &Request<B>, _peer: SocketAddr) -> Record {
        Record {
            slot: None,
            status: 0,
            reason: None,
            detail: None,
            bytes_in: 0,
            bytes_out: 0,
            method: request.method().clone(),
            attempt: Instant::now(),
        }
    }
    pub fn in_flight(&self, _slot: &Slot) -> InFlightGuard {
        InFlightGuard
    }
    pub fn connection(&self) -> ConnectionGuard {
        ConnectionGuard
    }
    pub fn handshake_failed(&self, _label: &'static str) {}
    pub fn refused(&self, _reason: Reason) {}
    pub fn finish(&self, _r: &mut Record, _rule: Option<&Rule>, _c: &Conn, _start: Instant, _end: Instant) {}
}
impl Record {
    pub fn method(&self) -> &Method {
        &self.method
    }
    pub fn attempt(&mut self, _e: &Arc<Endpoint>, now: Instant) {
        self.attempt = now;
    }
    pub fn attempt_start(&self) -> Instant {
        self.attempt
    }
    pub fn head(&mut self, _status: u16, _h: &HeaderMap, _now: Instant) {}
    pub fn attempt_failed(&mut self, _r: Reason, _now: Instant) {}
    pub fn grpc_status(&mut self, _t: &HeaderMap) {}
    pub fn propagate(&mut self, _w: &Worker, _h: &mut HeaderMap, _a: u64, _b: u64) {}
}
