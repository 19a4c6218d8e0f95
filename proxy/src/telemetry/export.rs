//! From the workers to a collector: bounded queues, one task that batches, and OTLP over gRPC or HTTP.
//!
//! A worker hands over the spans of a whole exchange without waiting, waking nobody unless the task sleeps. What does not
//! fit is dropped and counted. The task runs beside the workers, keeps every exchange in the [`TraceStore`] and sends
//! batches; its own connection never passes through the proxy.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{metrics::Metrics, span::SpanRecord, store::TraceStore};

mod client;
mod convert;
mod destination;
#[cfg(test)]
mod tests;

pub use destination::{Destination, Environment};

/// Sampled exchanges of one worker that may wait for the task.
const QUEUE: usize = 2048;

/// The task is woken when so many came from one worker since the last time.
const WAKE_EVERY: u32 = 256;

/// Most spans in one request to the collector.
const BATCH: usize = 512;

/// A span waits at most so long for its batch to fill.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How often the queues are looked at while there is traffic.
const TICK: Duration = Duration::from_millis(100);

/// How long a shutdown waits for the collector.
const FLUSH: Duration = Duration::from_secs(2);

/// The queues between workers and the task, and where the task sends.
#[derive(Debug)]
pub(super) struct SpanQueues {
    receivers: Mutex<Vec<Receiver<Vec<SpanRecord>>>>,
    wake: Notify,
    /// The task sleeps and wants to be woken by the next span.
    idle: AtomicBool,
    destination: watch::Sender<Option<Destination>>,
    metrics: Arc<Metrics>,
}

impl SpanQueues {
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            receivers: Mutex::default(),
            wake: Notify::new(),
            idle: AtomicBool::new(false),
            destination: watch::Sender::new(None),
            metrics,
        }
    }

    pub(super) fn sender(self: &Arc<Self>) -> SpanSender {
        let (queue, receiver) = sync_channel(QUEUE);
        self.lock().push(receiver);
        SpanSender { queue, queues: Arc::clone(self), sent: Cell::new(0) }
    }

    /// Takes effect with the next batch.
    pub(super) fn set_destination(&self, destination: Option<Destination>) {
        self.destination.send_if_modified(|current| {
            let changed = *current != destination;
            *current = destination;
            changed
        });
    }

    fn drain(&self, mut each: impl FnMut(Vec<SpanRecord>)) {
        self.lock().iter().for_each(|receiver| receiver.try_iter().take(QUEUE).for_each(&mut each));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Receiver<Vec<SpanRecord>>>> {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's end.
#[derive(Debug)]
pub(super) struct SpanSender {
    queue: SyncSender<Vec<SpanRecord>>,
    queues: Arc<SpanQueues>,
    sent: Cell<u32>,
}

impl SpanSender {
    /// Never waits.
    pub(super) fn send(&self, spans: Vec<SpanRecord>) {
        let count = spans.len() as u64;
        if self.queue.try_send(spans).is_err() {
            self.queues.metrics.spans_queue_full.fetch_add(count, Relaxed);
            return;
        }
        self.sent.set(self.sent.get().wrapping_add(1));
        if self.sent.get().is_multiple_of(WAKE_EVERY) || self.queues.idle.load(SeqCst) {
            self.queues.wake.notify_one();
        }
    }
}

/// The running task.
#[derive(Debug)]
pub struct Exporter {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Exporter {
    pub(super) fn spawn(
        queues: Arc<SpanQueues>,
        store: Arc<TraceStore>,
        environment: &Environment,
        node: &str,
    ) -> Self {
        let resource = destination::resource(environment, node);
        let (stop, stopped) = oneshot::channel();
        let task =
            tokio::spawn(Task { queues, store, resource, link: None, pending: Vec::new(), since: None }.run(stopped));
        Self { stop, task }
    }

    /// Sends what is left, for at most 2 seconds.
    pub async fn shutdown(mut self) {
        // The task may be gone already.
        let _ = self.stop.send(());
        if timeout(FLUSH, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the last spans are lost: the OTLP collector did not take them within {FLUSH:?}");
        }
    }
}

struct Task {
    queues: Arc<SpanQueues>,
    store: Arc<TraceStore>,
    resource: Resource,
    link: Option<Link>,
    pending: Vec<SpanData>,
    /// When the oldest pending span was taken over.
    since: Option<Instant>,
}

/// The way to one collector.
struct Link {
    destination: Destination,
    exporter: opentelemetry_otlp::SpanExporter,
    /// What was last logged; `None` before the first batch.
    works: Option<bool>,
}

impl Task {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut destination = self.queues.destination.subscribe();
        let current = destination.borrow_and_update().clone();
        self.link = current.and_then(|destination| Link::new(destination, &self.resource));
        let queues = Arc::clone(&self.queues);
        loop {
            let quiet = !self.collect() && self.pending.is_empty() && {
                queues.idle.store(true, SeqCst);
                // A span may have come before the workers saw the flag.
                !self.collect()
            };
            tokio::select! {
                biased;
                _ = &mut stopped => break,
                Ok(()) = destination.changed() => {
                    let destination = destination.borrow_and_update().clone();
                    self.link = destination.and_then(|destination| Link::new(destination, &self.resource));
                }
                () = queues.wake.notified() => {}
                () = sleep(TICK), if !quiet => {}
            }
            queues.idle.store(false, SeqCst);
            self.collect();
            let due = self.since.is_some_and(|since| since.elapsed() >= MAX_WAIT);
            if due || self.pending.len() >= BATCH {
                // A shutdown interrupts a batch that hangs; what is left of it is sent again below.
                tokio::select! {
                    () = self.deliver() => {}
                    _ = &mut stopped => break,
                }
            }
        }
        self.collect();
        self.deliver().await;
    }

    /// Takes over what the workers sent. Says whether there was anything.
    fn collect(&mut self) -> bool {
        let (mut any, exports) = (false, self.link.is_some());
        self.queues.drain(|spans| {
            any = true;
            if exports {
                self.pending.extend(spans.iter().map(convert::span_data));
            }
            self.store.push(spans);
        });
        if !self.pending.is_empty() {
            self.since.get_or_insert_with(Instant::now);
        }
        any
    }

    /// Sends everything pending, batch by batch.
    async fn deliver(&mut self) {
        while !self.pending.is_empty() {
            let count = self.pending.len().min(BATCH);
            let Some(link) = &mut self.link else {
                self.queues.metrics.spans_export_failed.fetch_add(self.pending.len() as u64, Relaxed);
                self.pending.clear();
                break;
            };
            let result = link.exporter.export(self.pending[..count].to_vec()).await;
            self.pending.drain(..count);
            let metrics = &self.queues.metrics;
            let counter = if result.is_ok() { &metrics.spans_exported } else { &metrics.spans_export_failed };
            counter.fetch_add(count as u64, Relaxed);
            link.report(result.err());
        }
        self.since = None;
    }
}

impl Link {
    fn new(destination: Destination, resource: &Resource) -> Option<Self> {
        let mut exporter = match client::build(&destination) {
            Ok(exporter) => exporter,
            Err(error) => {
                let endpoint = &*destination.endpoint;
                tracing::error!(endpoint, %error, "spans are not exported: correct the OTLP endpoint, for instance http://127.0.0.1:4317");
                return None;
            }
        };
        exporter.set_resource(resource);
        Some(Self { destination, exporter, works: None })
    }

    /// Logs a change of the state, not every batch.
    fn report(&mut self, error: Option<opentelemetry_sdk::error::OTelSdkError>) {
        let (endpoint, protocol) = (&*self.destination.endpoint, self.destination.protocol_name());
        match (error, self.works) {
            (Some(error), None | Some(true)) => {
                self.works = Some(false);
                tracing::warn!(endpoint, protocol, %error, "the OTLP collector does not take spans, they are dropped: check that it listens there and speaks this protocol");
            }
            (None, None | Some(false)) => {
                self.works = Some(true);
                tracing::info!(endpoint, protocol, "the OTLP collector takes spans");
            }
            _ => {}
        }
    }
}
