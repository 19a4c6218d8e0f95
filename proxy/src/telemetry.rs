//! What Weft says about the traffic: metrics, spans, access log. One call at the start of a request and one at its end.
//!
//! [`Telemetry`] is the node's; it is configured from the model and read by the admin endpoint. [`Worker`] is one
//! thread's; the pipeline calls [`Worker::begin`] with the arriving headers, [`context::Trace::inject`] before each
//! attempt, and [`Worker::finish`] when the exchange is over. What is off costs one comparison.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::{ArcSwap, Cache};
use http::{HeaderMap, HeaderValue, Method, Version};
use weft_model::config;

use crate::{endpoint::Endpoint, error::Reason, resilience::circuit::Event};

pub mod access;
pub mod context;
pub mod export;
#[cfg(test)]
mod fixture;
pub mod metrics;
pub mod names;
pub mod sampler;
pub mod span;
pub mod store;
#[cfg(test)]
mod tests;

use access::LogWriter;
use context::Trace;
pub use export::Exporter;
use export::{Destination, Environment, SpanQueues, SpanSender};
use metrics::{Metrics, Slot, WorkerMetrics};
use sampler::Sampler;
use store::TraceStore;

/// After this long, the wall clock is read again: Weft follows a clock that is set.
const ANCHOR_AGE: Duration = Duration::from_secs(10);

/// The telemetry of a node. Shared by all threads.
#[derive(Debug)]
pub struct Telemetry {
    /// Counters and histograms; what `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// The last sampled traces; what `/traces` shows.
    pub traces: Arc<TraceStore>,
    sampler: Arc<Sampler>,
    settings: Arc<ArcSwap<Settings>>,
    environment: Environment,
    queues: Arc<SpanQueues>,
    log: LogWriter,
    node: Arc<str>,
}

/// What is on, as the workers see it.
#[derive(Debug, Default)]
struct Settings {
    /// Contexts are read, decided about and handed on.
    tracing: bool,
    access_log: Option<config::AccessLog>,
}

impl Telemetry {
    /// Everything off until [`Self::configure`]. `node` is the node's name in resource attributes; `environment` is
    /// usually [`Environment::read`]; log lines go to `log`, usually standard output.
    pub fn new(node: &str, environment: Environment, log: impl std::io::Write + Send + 'static) -> Self {
        let metrics = Arc::<Metrics>::default();
        Self {
            log: LogWriter::new(Box::new(log), Arc::clone(&metrics)),
            queues: Arc::new(SpanQueues::new(Arc::clone(&metrics))),
            metrics,
            traces: Arc::default(),
            sampler: Arc::new(Sampler::new(0.0)),
            settings: Arc::default(),
            environment,
            node: node.into(),
        }
    }

    /// Applies a configuration; running requests keep what they decided.
    pub fn configure(&self, telemetry: &config::Telemetry) {
        let destination = Destination::choose(telemetry.otlp.as_ref(), &self.environment);
        let by_environment = telemetry.otlp.is_none() && destination.is_some();
        let untouched = *telemetry == config::Telemetry::default();
        let percent = if by_environment && untouched { 100.0 } else { telemetry.sample_percent };
        self.sampler.set_percent(percent);
        let tracing = destination.is_some() || percent > 0.0;
        self.queues.set_destination(destination);
        self.settings.store(Arc::new(Settings { tracing, access_log: telemetry.access_log.clone() }));
    }

    /// The part of the calling thread.
    pub fn worker(&self) -> Worker {
        Worker {
            metrics: Rc::new(self.metrics.worker()),
            unrouted: self.metrics.slot("", "", ""),
            settings: RefCell::new(Cache::new(Arc::clone(&self.settings))),
            sampler: Arc::clone(&self.sampler),
            rng: RefCell::new(fastrand::Rng::new()),
            spans: self.queues.sender(),
            log: self.log.sender(),
            anchor: Cell::new((Instant::now(), SystemTime::now())),
        }
    }

    /// Starts the task that collects, keeps and exports spans, on the current runtime (not a worker's).
    pub fn spawn_exporter(&self) -> Exporter {
        Exporter::spawn(Arc::clone(&self.queues), Arc::clone(&self.traces), &self.environment, &self.node)
    }

    /// Writes the access log lines that are still buffered; waits at most `limit`. Blocks: call it last.
    pub fn flush_access_log(&self, limit: Duration) {
        self.log.flush(limit);
    }
}

/// The telemetry of one worker thread.
#[derive(Debug)]
pub struct Worker {
    /// Cells of this worker, for guards and for retries.
    pub metrics: Rc<WorkerMetrics>,
    unrouted: Arc<Slot>,
    settings: RefCell<Cache<Arc<ArcSwap<Settings>>, Arc<Settings>>>,
    sampler: Arc<Sampler>,
    rng: RefCell<fastrand::Rng>,
    spans: SpanSender,
    log: access::LogSender,
    anchor: Cell<(Instant, SystemTime)>,
}

/// One attempt at an endpoint. The pipeline keeps these while the exchange runs.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Its CLIENT span, as given to [`Trace::inject`]; 0 when the request is not sampled.
    pub span_id: u64,
    /// When it began: before a connection was looked for.
    pub start: Instant,
    /// When the response head came.
    pub head: Option<Instant>,
    /// When it was given up. `None` for the attempt whose response went to the client: it ended with the exchange.
    pub end: Option<Instant>,
    /// Where it went.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Whether TLS was spoken.
    pub tls: bool,
    /// The upstream's status, 0 when none came.
    pub status: u16,
    /// The upstream's `grpc-status`, when it is a gRPC exchange and one came.
    pub grpc_status: Option<u8>,
    /// Why it failed, when there was no usable response.
    pub reason: Option<Reason>,
    /// What its outcome did to the endpoint's breaker.
    pub breaker: Option<Arc<Event>>,
}

/// A finished exchange, borrowed from whoever ran it.
#[derive(Debug, Clone, Copy)]
pub struct Finished<'a> {
    /// Route and service; `None` when no route matched.
    pub slot: Option<&'a Arc<Slot>>,
    /// Name of the rule, or its position in the route.
    pub rule: Option<&'a str>,
    /// As the client sent it.
    pub method: &'a Method,
    /// As the client sent it, without the query. May be empty unless [`Worker::keeps_details`]; so may all texts below.
    pub path: &'a str,
    /// Without `?`.
    pub query: Option<&'a str>,
    /// `Host` or `:authority`.
    pub host: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Of the client's connection.
    pub version: Version,
    /// Sent to the client; 0 when the client was gone before.
    pub status: u16,
    /// Why Weft answered itself.
    pub reason: Option<Reason>,
    /// `Some` for a gRPC request: its `grpc-status`, if one was seen.
    pub grpc: Option<Option<u8>>,
    /// When the request's head was complete.
    pub start: Instant,
    /// When the last byte of the response was handed on.
    pub end: Instant,
    /// Of the request's body.
    pub bytes_in: u64,
    /// Of the response's body.
    pub bytes_out: u64,
    /// The peer, or whom trusted headers name.
    pub client: Option<SocketAddr>,
    /// `user-agent`
    pub user_agent: Option<&'a HeaderValue>,
    /// `x-request-id`, sent or made.
    pub request_id: Option<&'a HeaderValue>,
    /// Whose process asked, if the connection was captured and that is known.
    pub workload: Option<&'a Arc<str>>,
    /// From [`Worker::begin`].
    pub trace: &'a Trace,
    /// In order; empty when nothing was sent upstream.
    pub attempts: &'a [Attempt],
}

impl Finished<'_> {
    /// From head to end.
    pub fn duration(&self) -> Duration {
        self.end.saturating_duration_since(self.start)
    }

    fn grpc_status(&self) -> Option<u8> {
        self.grpc.flatten()
    }
}

impl Worker {
    /// Decides about the tracing of a request.
    pub fn begin(&self, headers: &HeaderMap) -> Trace {
        let mut settings = self.settings.borrow_mut();
        match &**settings.load() {
            Settings { tracing: true, .. } => Trace::start(headers, &self.sampler, &mut self.rng.borrow_mut()),
            Settings { access_log: Some(_), .. } => Trace::pass_through(headers),
            _ => Trace::OFF,
        }
    }

    /// Whether [`Self::finish`] will want the texts of [`Finished`] (path, host, user agent, …): somebody records them.
    pub fn keeps_details(&self, trace: &Trace) -> bool {
        trace.sampled || self.settings.borrow_mut().load().access_log.is_some()
    }

    /// Span id for an attempt; 0 when the request is not sampled.
    pub fn attempt_span(&self, trace: &Trace) -> u64 {
        if trace.sampled { context::new_span_id(&mut self.rng.borrow_mut()) } else { 0 }
    }

    /// What requests without a route are counted under.
    pub fn unrouted(&self) -> &Arc<Slot> {
        &self.unrouted
    }

    /// Records an exchange: metrics always, spans and a log line if wanted. Call it once.
    pub fn finish(&self, facts: &Finished<'_>) {
        let slot = facts.slot.unwrap_or(&self.unrouted);
        let (method, grpc) = (facts.method, facts.grpc_status());
        self.metrics.request_done(slot, method, facts.status, facts.reason, grpc, facts.duration());
        for attempt in facts.attempts {
            let took = attempt.end.unwrap_or(facts.end).saturating_duration_since(attempt.start);
            self.metrics.client_done(slot, method, attempt.status, attempt.reason, attempt.grpc_status, took);
        }
        if facts.trace.sampled {
            self.spans.send(span::spans(facts, slot, |at| self.wall(at)));
        }
        if let Some(log) = &self.settings.borrow_mut().load().access_log {
            self.log.write(log, facts, slot, || self.wall(facts.start));
        }
    }

    /// The time of day at an instant.
    fn wall(&self, at: Instant) -> SystemTime {
        let (mut instant, mut system) = self.anchor.get();
        if at.saturating_duration_since(instant) > ANCHOR_AGE {
            (instant, system) = (Instant::now(), SystemTime::now());
            self.anchor.set((instant, system));
        }
        match at.checked_duration_since(instant) {
            Some(later) => system + later,
            None => system - instant.duration_since(at),
        }
    }
}
