//! Metrics: plain cells that each worker writes alone, summed when somebody scrapes.
//!
//! A request costs one hash look-up and two stores: `weft_requests_total` is the count of the duration histogram, and
//! both are told apart by (slot, method, status, reason, gRPC status), a combination that is registered under a lock the
//! first time a worker meets it. What a client can make up (methods) is folded before it becomes a label.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Method;

use super::names::{self, Side};
use crate::{error::Reason, resilience::circuit::Ejections};

mod connections;
mod encode;
pub mod histogram;
mod limited;
mod process;
pub mod table;
#[cfg(test)]
mod tests;

pub use connections::{ConnectionGuard, ConnectionSide, ConnectionState};
pub use encode::{Format, Samples};
use histogram::{Count, Histogram};
pub use table::{METRICS, Metric};

/// Most combinations that one worker keeps apart. Beyond it, methods and exact status codes are folded: an upstream
/// that answers with random codes cannot fill the memory.
const MAX_CELLS: usize = 10_000;

/// What requests are counted under: a route's match and the service that it led to. Made when a snapshot is compiled.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    index: u32,
    /// Name of the route, as in `weft routes`; empty when no route matched.
    pub route: Arc<str>,
    /// `http.route`: the path template or prefix that matched.
    pub http_route: Arc<str>,
    /// Name of the service; empty when none was chosen.
    pub service: Arc<str>,
}

/// The registry of a node. Counters keep their values across configurations.
#[derive(Default)]
pub struct Metrics {
    slots: Mutex<HashMap<[Arc<str>; 3], Arc<Slot>>>,
    workers: Mutex<Vec<Arc<Shared>>>,
    #[expect(clippy::type_complexity, reason = "a list of closures")]
    sources: Mutex<Vec<Box<dyn Fn(&mut Samples) + Send + Sync>>>,
    /// Revision of the configuration in force.
    pub config_revision: AtomicU64,
    /// Configurations refused.
    pub config_reload_failures: AtomicU64,
    /// Spans that did not fit into a worker's queue.
    pub spans_queue_full: AtomicU64,
    /// Spans that the collector did not take.
    pub spans_export_failed: AtomicU64,
    /// Spans that the collector took.
    pub spans_exported: AtomicU64,
    /// Access log lines left out.
    pub access_log_dropped: AtomicU64,
    /// Endpoints taken out by their breakers.
    pub ejections: Arc<Ejections>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// The slot of a (route, matched path, service); the same one whenever it is asked for again.
    pub fn slot(&self, route: &str, http_route: &str, service: &str) -> Arc<Slot> {
        let mut slots = lock(&self.slots);
        let index = u32::try_from(slots.len()).unwrap_or(u32::MAX);
        let [route, http_route, service] = [route, http_route, service].map(Arc::<str>::from);
        let key = [route.clone(), http_route.clone(), service.clone()];
        slots.entry(key).or_insert_with(|| Arc::new(Slot { index, route, http_route, service })).clone()
    }

    /// The cells of one more worker.
    pub fn worker(&self) -> WorkerMetrics {
        let shared = Arc::<Shared>::default();
        lock(&self.workers).push(shared.clone());
        WorkerMetrics { shared, cells: RefCell::default(), slots: RefCell::default(), limited: Default::default() }
    }

    /// Adds somebody who is asked at every scrape: breakers, endpoints, the kernel. It must not block.
    pub fn add_source(&self, source: impl Fn(&mut Samples) + Send + Sync + 'static) {
        lock(&self.sources).push(Box::new(source));
    }

    /// Everything, summed over the workers.
    pub fn collect(&self) -> Samples {
        let mut samples = Samples::default();
        for worker in lock(&self.workers).iter() {
            worker.collect(&mut samples);
        }
        samples.add("weft_config_revision", &[], self.config_revision.load(Relaxed) as f64);
        samples.add("weft_config_reload_failures_total", &[], self.config_reload_failures.load(Relaxed) as f64);
        samples.add("weft_spans_dropped_total", &[("cause", "queue_full")], self.spans_queue_full.load(Relaxed) as f64);
        let failed = self.spans_export_failed.load(Relaxed) as f64;
        samples.add("weft_spans_dropped_total", &[("cause", "export_failed")], failed);
        samples.add("weft_spans_exported_total", &[], self.spans_exported.load(Relaxed) as f64);
        samples.add("weft_access_log_dropped_total", &[], self.access_log_dropped.load(Relaxed) as f64);
        for (cause, count) in self.ejections.read() {
            samples.add("weft_ejections_total", &[("reason", cause.as_str())], count as f64);
        }
        samples.add("weft_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        process::collect(&mut samples);
        for source in lock(&self.sources).iter() {
            source(&mut samples);
        }
        samples
    }

    /// The reply to a scrape: body, and its `Content-Type`. `accept` is the request's `Accept`.
    pub fn scrape(&self, accept: Option<&str>) -> (String, &'static str) {
        let format = Format::from_accept(accept);
        (self.collect().encode(format), format.content_type())
    }
}

/// The part of a worker's cells that the scraper reads.
#[derive(Debug, Default)]
struct Shared {
    cells: Mutex<Vec<Arc<Cell>>>,
    slots: Mutex<Vec<Arc<SlotCells>>>,
    connections: connections::Shared,
    limited: limited::Shared,
}

/// What tells cells apart, packed into the key of the worker's map.
#[derive(Debug, Clone, Copy)]
struct Labels {
    side: Side,
    method: u8,
    /// 0 when no status came.
    code: u16,
    reason: Option<Reason>,
    grpc: Option<u8>,
}

impl Labels {
    fn pack(self, slot: u32) -> u64 {
        let reason = self.reason.map_or(63, |reason| reason as u64);
        let grpc = u64::from(self.grpc.unwrap_or(31));
        u64::from(slot) << 26
            | u64::from(self.code) << 16
            | u64::from(self.method) << 12
            | reason << 6
            | grpc << 1
            | u64::from(self.side == Side::Client)
    }
}

#[derive(Debug)]
struct Cell {
    slot: Arc<Slot>,
    labels: Labels,
    duration: Histogram,
}

#[derive(Debug)]
struct SlotCells {
    slot: Arc<Slot>,
    in_flight: Count,
    retries: [Count; RetryOutcome::NAMES.len()],
    /// By whether they were faster.
    hedges: [Count; HEDGES.len()],
}

/// Outcomes of hedges.
const HEDGES: [&str; 2] = ["lost", "won"];

/// What came of a failed attempt that a retry policy looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOutcome {
    /// A later attempt succeeded.
    Recovered,
    /// All attempts failed.
    Failed,
    /// The retry budget did not allow another attempt.
    BudgetExhausted,
    /// The body was too large to be kept for another attempt.
    BodyTooLarge,
}

impl RetryOutcome {
    const NAMES: [&'static str; 4] = ["recovered", "failed", "budget_exhausted", "body_too_large"];
}

/// The cells of one worker. Belongs to its thread; the worker puts it into an [`Rc`].
#[derive(Debug)]
pub struct WorkerMetrics {
    shared: Arc<Shared>,
    cells: RefCell<HashMap<u64, Arc<Cell>, foldhash::fast::RandomState>>,
    slots: RefCell<Vec<Option<Arc<SlotCells>>>>,
    limited: limited::Limited,
}

impl WorkerMetrics {
    /// Counts a request that was answered. `duration` is from its head to the end of its response.
    pub fn request_done(
        &self,
        slot: &Arc<Slot>,
        method: &Method,
        code: u16,
        reason: Option<Reason>,
        grpc: Option<u8>,
        duration: Duration,
    ) {
        let method = names::method_index(method);
        self.observe(slot, Labels { side: Side::Server, method, code, reason, grpc }, duration);
    }

    /// Counts one attempt at an endpoint. `code` is 0 when no response head came, and `reason` says why.
    pub fn client_done(
        &self,
        slot: &Arc<Slot>,
        method: &Method,
        code: u16,
        reason: Option<Reason>,
        grpc: Option<u8>,
        duration: Duration,
    ) {
        let method = names::method_index(method);
        self.observe(slot, Labels { side: Side::Client, method, code, reason, grpc }, duration);
    }

    /// Counts what came of a retry policy's work on one request.
    pub fn retried(&self, slot: &Arc<Slot>, outcome: RetryOutcome) {
        self.with_slot(slot, |cells| cells.retries[outcome as usize].add(1));
    }

    /// Counts a request that a rate limit refused. `limit` is a name from the configuration.
    pub fn rate_limited(&self, slot: &Arc<Slot>, limit: &Arc<str>) {
        self.limited.count(slot, limit, &self.shared.limited);
    }

    /// Counts a request that was sent beside another; `won` says whether its answer was the one that counted.
    pub fn hedged(&self, slot: &Arc<Slot>, won: bool) {
        self.with_slot(slot, |cells| cells.hedges[usize::from(won)].add(1));
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn in_flight(self: &Rc<Self>, slot: &Arc<Slot>) -> InFlightGuard {
        self.with_slot(slot, |cells| cells.in_flight.add(1));
        InFlightGuard { worker: Rc::clone(self), slot: slot.index }
    }

    fn observe(&self, slot: &Arc<Slot>, labels: Labels, duration: Duration) {
        let labels = Labels { code: labels.code.min(999), grpc: labels.grpc.map(|code| code.min(30)), ..labels };
        if let Some(cell) = self.cells.borrow().get(&labels.pack(slot.index)) {
            return cell.duration.observe(duration);
        }
        self.register(slot, labels).duration.observe(duration);
    }

    #[cold]
    fn register(&self, slot: &Arc<Slot>, labels: Labels) -> Arc<Cell> {
        let mut cells = self.cells.borrow_mut();
        let labels = if cells.len() < MAX_CELLS {
            labels
        } else {
            Labels { method: names::OTHER_INDEX, code: labels.code / 100 * 100, grpc: None, ..labels }
        };
        let new = || {
            let cell = Arc::new(Cell { slot: slot.clone(), labels, duration: Histogram::default() });
            lock(&self.shared.cells).push(cell.clone());
            cell
        };
        cells.entry(labels.pack(slot.index)).or_insert_with(new).clone()
    }

    fn with_slot<T>(&self, slot: &Arc<Slot>, f: impl FnOnce(&SlotCells) -> T) -> T {
        if let Some(Some(cells)) = self.slots.borrow().get(slot.index as usize) {
            return f(cells);
        }
        f(&self.register_slot(slot))
    }

    #[cold]
    fn register_slot(&self, slot: &Arc<Slot>) -> Arc<SlotCells> {
        let cells = Arc::new(SlotCells {
            slot: slot.clone(),
            in_flight: Count::default(),
            retries: Default::default(),
            hedges: Default::default(),
        });
        let (mut slots, index) = (self.slots.borrow_mut(), slot.index as usize);
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index] = Some(cells.clone());
        lock(&self.shared.slots).push(cells.clone());
        cells
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct InFlightGuard {
    worker: Rc<WorkerMetrics>,
    slot: u32,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        if let Some(Some(cells)) = self.worker.slots.borrow().get(self.slot as usize) {
            cells.in_flight.sub(1);
        }
    }
}

impl Shared {
    fn collect(&self, samples: &mut Samples) {
        // Copies of the lists: a worker that registers a cell does not wait for the encoding.
        let cells = lock(&self.cells).clone();
        for cell in &cells {
            cell.collect(samples);
        }
        let slots = lock(&self.slots).clone();
        for SlotCells { slot, in_flight, retries, hedges } in slots.iter().map(|cells| &**cells) {
            let service = ("service", &*slot.service);
            samples.add("weft_requests_in_flight", &[service], in_flight.get() as f64);
            for (outcome, count) in RetryOutcome::NAMES.iter().zip(retries).filter(|(_, count)| count.get() > 0) {
                samples.add("weft_retries_total", &[service, ("outcome", outcome)], count.get() as f64);
            }
            for (outcome, count) in HEDGES.iter().zip(hedges).filter(|(_, count)| count.get() > 0) {
                samples.add("weft_hedges_total", &[service, ("outcome", outcome)], count.get() as f64);
            }
        }
        self.limited.collect(samples);
        self.connections.collect(samples);
    }
}

impl Cell {
    fn collect(&self, samples: &mut Samples) {
        let Labels { side, method, code, reason, grpc } = self.labels;
        let read = self.duration.read();
        let code_text = if code == 0 { String::new() } else { code.to_string() };
        let error_type = names::error_type(side, code, grpc, reason).unwrap_or_default();
        let common = [
            ("http_request_method", names::method_by_index(method)),
            ("http_response_status_code", &code_text),
            ("error_type", &error_type),
            ("service", &self.slot.service),
        ];
        if side == Side::Client {
            return samples.add_distribution("http_client_request_duration_seconds", &common, &read);
        }
        let requests = [
            ("route", &*self.slot.route),
            ("service", &self.slot.service),
            ("code", &code_text),
            ("reason", reason.map_or("", |reason| reason.row().name)),
        ];
        samples.add("weft_requests_total", &requests, read.count() as f64);
        let [method, status, error, service] = common;
        let labels = [method, ("http_route", &*self.slot.http_route), status, error, requests[0], service];
        samples.add_distribution("http_server_request_duration_seconds", &labels, &read);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
