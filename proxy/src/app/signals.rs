//! What the kernel counts, once a second: shown in `/endpoints` and metrics, judged ([`crate::resilience::signals`]), and
//! looked into by connecting.
//!
//! Somebody has to find out whether an endpoint takes connections again when no request does: because the applications
//! go there directly, and the kernel passes it over or its breaker is open on the kernel's evidence.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::{
    net::TcpSocket,
    task::{Id, JoinError, JoinSet},
};
use weft_model::config::Key;

use crate::{
    endpoint::{Endpoint, FULL_WEIGHT},
    kernel::{Kernel, Signals},
    resilience::{
        breaker::State,
        guard::Probe,
        outcome::{Failure, Outcome},
        signals::{Judge, Observation},
    },
    snapshot::{Service, Snapshot},
    telemetry::metrics::Metrics,
    worker::Shared,
};

/// How often the counters are read, and an endpoint is probed at most: what [`crate::resilience::signals`] is made for.
const PERIOD: Duration = Duration::from_secs(1);

/// A probe begins up to so much later, so that nodes do not probe in step.
const JITTER: Duration = Duration::from_millis(250);

/// Probes under way at a time. Others wait for the next sample, those that waited longest come first.
const MAX_PROBES: usize = 64;

/// Longest wait for a connection where the policy sets no limit.
const CONNECT: Duration = Duration::from_secs(5);

/// Follows the kernel's counters until the node ends: weights, breakers and probes of the endpoints in force. To be
/// spawned once, on the runtime beside the workers.
pub async fn watch(shared: Weak<Shared>, kernel: Arc<dyn Kernel>) {
    if let Some(shared) = shared.upgrade() {
        show_verdicts(&shared.telemetry.metrics, &kernel);
    }
    let mut watch = Watch::new(kernel);
    let mut interval = tokio::time::interval(PERIOD);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            Some(probed) = watch.probes.join_next_with_id() => {
                watch.probed(probed, Instant::now());
                continue;
            }
        }
        let kernel = watch.kernel.clone();
        // Thousands of look-ups in the kernel's maps may take some milliseconds.
        let signals = match tokio::task::spawn_blocking(move || kernel.signals()).await {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(%error, "the kernel's signals cannot be read");
                continue;
            }
        };
        let Some(shared) = shared.upgrade() else { return };
        watch.sample(&shared.snapshot.load_full(), &signals, Instant::now());
    }
}

/// Verdicts are asked for at every scrape.
fn show_verdicts(metrics: &Metrics, kernel: &Arc<dyn Kernel>) {
    let kernel = Arc::downgrade(kernel);
    metrics.add_source(move |samples| {
        for (verdict, reason, count) in kernel.upgrade().iter().flat_map(|kernel| kernel.verdicts()) {
            samples.add("weft_verdicts_total", &[("verdict", verdict), ("reason", reason)], count as f64);
        }
    });
}

#[derive(Debug)]
struct Watch {
    kernel: Arc<dyn Kernel>,
    /// Of the services whose policy lets the kernel's signals count.
    judges: HashMap<(Key, u16), Judge>,
    /// By endpoint.
    suspects: HashMap<u64, Suspect>,
    probes: JoinSet<Probed>,
    rng: Rng,
}

/// An endpoint that is probed.
#[derive(Debug)]
struct Suspect {
    endpoint: Arc<Endpoint>,
    /// Longest wait for a connection.
    limit: Duration,
    /// Connections have failed since the last probe that succeeded: the kernel may pass it over.
    failing: bool,
    /// Its breaker is not Closed, on the kernel's evidence.
    tripped: bool,
    /// The probe that is under way.
    task: Option<Id>,
    /// When the last one was sent out.
    last: Option<Instant>,
    /// How many have been under way since the last sample.
    since_sample: u32,
}

/// A probe has ended.
#[derive(Debug)]
struct Probed {
    endpoint: Arc<Endpoint>,
    probe: Option<Probe>,
    /// Whether there was a connection; `None` when it was not the endpoint's fault.
    connected: Option<bool>,
    took: Duration,
}

impl Watch {
    fn new(kernel: Arc<dyn Kernel>) -> Self {
        Self { kernel, judges: HashMap::new(), suspects: HashMap::new(), probes: JoinSet::new(), rng: Rng::new() }
    }

    /// Takes new counters into account, and sends out probes.
    fn sample(&mut self, snapshot: &Snapshot, signals: &HashMap<u64, Signals>, now: Instant) {
        self.judges.retain(|id, _| snapshot.services.contains_key(id));
        for (id, service) in &snapshot.services {
            for endpoint in service.endpoints() {
                self.note(service, endpoint, signals.get(&endpoint.id).copied());
            }
            if service.common.breaker.as_ref().is_some_and(|breaker| breaker.kernel_signals) {
                self.judge(id, service, now);
            } else {
                self.judges.remove(id);
                service.endpoints().iter().for_each(|endpoint| endpoint.set_weight_percent(FULL_WEIGHT));
            }
        }
        self.send_probes(now);
    }

    /// Keeps what the kernel tells of an endpoint; looks into it if connections failed.
    fn note(&mut self, service: &Service, endpoint: &Arc<Endpoint>, signals: Option<Signals>) {
        let before = endpoint.signals();
        endpoint.set_signals(signals);
        let failed = |signals: Signals| signals.refused + signals.timed_out;
        if before.zip(signals).is_some_and(|(before, now)| failed(now) > failed(before)) && endpoint.weight() > 0 {
            self.suspect(service, endpoint).failing = true;
        }
    }

    fn suspect(&mut self, service: &Service, endpoint: &Arc<Endpoint>) -> &mut Suspect {
        let limit = Some(service.policy.timeouts.connect).filter(|limit| !limit.is_zero()).unwrap_or(CONNECT);
        self.suspects.entry(endpoint.id).or_insert_with(|| Suspect {
            endpoint: endpoint.clone(),
            limit,
            failing: false,
            tripped: false,
            task: None,
            last: None,
            since_sample: 0,
        })
    }

    fn judge(&mut self, id: &(Key, u16), service: &Service, now: Instant) {
        let endpoints = service.endpoints();
        let observe = |endpoint: &Arc<Endpoint>| Observation {
            id: endpoint.id,
            signals: endpoint.signals().unwrap_or_default(),
            probes: self.suspects.get(&endpoint.id).map_or(0, |suspect| suspect.since_sample),
            in_rotation: endpoint.weight() > 0 && endpoint.usable() && endpoint.guard().state() == State::Closed,
        };
        let observations: Vec<Observation> = endpoints.iter().map(observe).collect();
        let verdicts = self.judges.entry(id.clone()).or_default().judge(&observations, now);
        for (endpoint, verdict) in endpoints.iter().zip(verdicts) {
            let (before, percent) = (endpoint.weight_percent(), verdict.weight_percent);
            if before != percent {
                endpoint.set_weight_percent(percent);
                let (service, endpoint) = (&*service.name, &*endpoint.label);
                tracing::info!(
                    service,
                    endpoint,
                    before,
                    percent,
                    "part of the weight that counts, by loss of segments"
                );
            }
            let Some(evidence) = verdict.eject else { continue };
            if endpoint.trip(evidence, now, &mut self.rng).is_some() {
                self.suspect(service, endpoint).tripped = true;
            }
        }
    }

    fn send_probes(&mut self, now: Instant) {
        for suspect in self.suspects.values_mut() {
            suspect.since_sample = u32::from(suspect.task.is_some());
            suspect.tripped &= suspect.endpoint.guard().state() != State::Closed;
        }
        self.suspects.retain(|_, suspect| suspect.task.is_some() || suspect.is_wanted());
        let mut idle: Vec<&mut Suspect> = self.suspects.values_mut().filter(|suspect| suspect.task.is_none()).collect();
        idle.sort_unstable_by_key(|suspect| (suspect.last, suspect.endpoint.id));
        for suspect in idle {
            if self.probes.len() >= MAX_PROBES {
                break;
            }
            // Whose breaker is open is left alone until it is due.
            let probe = if suspect.tripped {
                let Some(probe) = suspect.endpoint.probe(now) else { continue };
                Some(probe)
            } else {
                None
            };
            let delay = JITTER.mul_f64(self.rng.f64());
            let probing = connect(suspect.endpoint.clone(), probe, self.kernel.clone(), delay, suspect.limit);
            suspect.task = Some(self.probes.spawn(probing).id());
            suspect.last = Some(now);
            suspect.since_sample += 1;
        }
    }

    /// Tells the breaker and the kernel how a probe ended.
    fn probed(&mut self, ended: Result<(Id, Probed), JoinError>, now: Instant) {
        let task = ended.as_ref().map_or_else(JoinError::id, |(task, _)| *task);
        let Some(suspect) = self.suspects.values_mut().find(|suspect| suspect.task == Some(task)) else { return };
        suspect.task = None;
        // One that panicked has said so already.
        let Ok((_, Probed { endpoint, probe, connected: Some(connected), took })) = ended else { return };
        if endpoint.is_removed() {
            return;
        }
        if connected {
            suspect.failing = false;
            self.kernel.recovered(endpoint.id);
        }
        if probe.is_some() {
            let outcome = Outcome { failure: (!connected).then_some(Failure::ConnectFailed), took };
            endpoint.record(outcome, probe, now, &mut self.rng);
        }
    }
}

impl Suspect {
    /// There is something to find out.
    fn is_wanted(&self) -> bool {
        (self.failing || self.tripped) && !self.endpoint.is_removed()
    }
}

/// One probe: a connection that is closed at once. The kernel sees how it ends too, and goes on to pass the endpoint over
/// if it is refused.
async fn connect(
    endpoint: Arc<Endpoint>,
    probe: Option<Probe>,
    kernel: Arc<dyn Kernel>,
    delay: Duration,
    limit: Duration,
) -> Probed {
    tokio::time::sleep(delay).await;
    let start = Instant::now();
    let connected = match socket(&endpoint) {
        Ok(socket) => {
            kernel.attribute(socket.as_fd(), endpoint.id);
            Some(matches!(tokio::time::timeout(limit, socket.connect(endpoint.address)).await, Ok(Ok(_))))
        }
        Err(error) => {
            tracing::warn!(endpoint = &*endpoint.label, %error, "no socket for a probe");
            None
        }
    };
    Probed { endpoint, probe, connected, took: start.elapsed() }
}

fn socket(endpoint: &Endpoint) -> io::Result<TcpSocket> {
    if endpoint.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}
