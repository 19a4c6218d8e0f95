//! Active health checks: ask every endpoint now and then, and tell the balancer about those that do not answer.
//!
//! [`Tracker`] decides; [`Checker`] drives it with one task per endpoint on the ordinary runtime, never on a worker.
//! Every probe makes a connection of its own, because that is part of what an endpoint has to be able to do.

mod grpc;
mod http;
mod tcp;
#[cfg(test)]
mod tests;
mod tracker;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use rustls_pki_types::ServerName;
use tokio::{runtime::Handle, task::AbortHandle, time::Instant};
use weft_model::{
    config::AppProtocol,
    policy::{HealthCheck, Probe},
};

pub use self::tracker::Tracker;
use crate::endpoint::{Endpoint, Health};

/// Called after the health of an endpoint has changed, with the reason for people.
pub type OnChange = Arc<dyn Fn(&Endpoint, Health, &str) + Send + Sync>;

/// TLS towards endpoints: the configuration and the name that the certificate has to carry.
pub type Tls = (Arc<rustls::ClientConfig>, ServerName<'static>);

/// An interval is spread by this share in both directions, so that nodes do not probe in step.
const JITTER: f64 = 0.1;

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("not a valid request: {0}")]
    Request(#[from] ::http::Error),
    #[error("status {0}")]
    Status(::http::StatusCode),
    #[error("grpc-status {0}")]
    GrpcStatus(String),
    #[error("the service reports {0}")]
    NotServing(&'static str),
    #[error("the answer is not a HealthCheckResponse")]
    BadGrpc,
}

/// What all probes of a checker have in common.
struct Plan {
    spec: HealthCheck,
    protocol: AppProtocol,
    tls: Option<Tls>,
    on_change: OnChange,
}

/// Health checks of the endpoints of one service. Dropping it ends them and leaves the verdicts as they are, so that
/// a successor goes on from there; [`Checker::forget`] takes them back.
pub struct Checker {
    handle: Handle,
    plan: Arc<Plan>,
    tasks: HashMap<u64, Task>,
}

struct Task {
    abort: AbortHandle,
    /// Whether the endpoint's verdict goes with the task.
    forget: Arc<AtomicBool>,
}

impl Task {
    fn forget(self) {
        self.forget.store(true, SeqCst);
        self.abort.abort();
    }
}

/// Part of a task: takes the verdict back when the task has ended, if that is wanted. Done from outside, it might come
/// before the last thing that the task does.
struct Verdict {
    endpoint: Arc<Endpoint>,
    forget: Arc<AtomicBool>,
}

impl Drop for Verdict {
    fn drop(&mut self) {
        if self.forget.load(SeqCst) {
            self.endpoint.set_health(Health::Unknown, Instant::now().into_std());
        }
    }
}

impl Checker {
    /// Starts to check `targets` on the runtime of `handle`. The first probe of each comes after a random part of the
    /// interval. Verdicts are written to the endpoints before `on_change` is told.
    ///
    /// `protocol` says whether an HTTP probe uses HTTP/1.1 or HTTP/2; over TLS, what ALPN agrees on comes first.
    pub fn start(
        handle: &Handle,
        spec: HealthCheck,
        targets: Vec<Arc<Endpoint>>,
        protocol: AppProtocol,
        tls: Option<Tls>,
        on_change: OnChange,
    ) -> Self {
        let plan = Arc::new(Plan { spec, protocol, tls, on_change });
        let mut checker = Self { handle: handle.clone(), plan, tasks: HashMap::new() };
        checker.update(targets);
        checker
    }

    /// Checks `targets` from now on. Those that stay keep their rhythm and their count; those that left are forgotten:
    /// their task ends, and then their health is [`Health::Unknown`].
    pub fn update(&mut self, targets: Vec<Arc<Endpoint>>) {
        let mut before = std::mem::take(&mut self.tasks);
        for endpoint in targets {
            let id = endpoint.id;
            if self.tasks.contains_key(&id) {
                continue;
            }
            let task = before.remove(&id).unwrap_or_else(|| {
                let forget = Arc::new(AtomicBool::new(false));
                let verdict = Verdict { endpoint, forget: forget.clone() };
                Task { abort: self.handle.spawn(check(verdict, self.plan.clone())).abort_handle(), forget }
            });
            self.tasks.insert(id, task);
        }
        before.into_values().for_each(Task::forget);
    }

    /// Ends the checks and takes all verdicts back: for a service that is no longer checked.
    pub fn forget(mut self) {
        self.update(Vec::new());
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.tasks.values().for_each(|task| task.abort.abort());
    }
}

/// Probes one endpoint until it is removed.
async fn check(verdict: Verdict, plan: Arc<Plan>) {
    let endpoint = &*verdict.endpoint;
    let spec = &plan.spec;
    let mut rng = fastrand::Rng::new();
    let mut tracker = Tracker::new(spec.healthy, spec.unhealthy, endpoint.health());
    let mut next = Instant::now() + spec.interval.mul_f64(rng.f64());
    loop {
        tokio::time::sleep_until(next).await;
        if endpoint.is_removed() {
            return;
        }
        next = Instant::now() + jittered(spec.interval, &mut rng);
        let result = match tokio::time::timeout(spec.timeout, probe(endpoint, &plan)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::TimedOut(spec.timeout)),
        };
        let change = tracker.record(result.is_ok());
        // Every time: a checker that is still ending may have taken its own verdict back.
        endpoint.set_health(tracker.verdict(), Instant::now().into_std());
        if let Some(health) = change {
            let why = match &result {
                Ok(()) => "health check passed".to_owned(),
                Err(failure) => format!("health check failed: {failure}"),
            };
            (plan.on_change)(endpoint, health, &why);
        }
        // A probe that took longer than the interval is not followed by another one at once.
        next = next.max(Instant::now() + spec.interval.mul_f64(JITTER));
    }
}

async fn probe(endpoint: &Endpoint, plan: &Plan) -> Result<(), Failure> {
    let connection = tcp::connect(endpoint.address, plan.tls.as_ref()).await?;
    match &plan.spec.probe {
        Probe::Tcp => Ok(()),
        Probe::Http(path) => {
            let http2 = connection.alpn_h2.unwrap_or(matches!(plan.protocol, AppProtocol::Http2 | AppProtocol::Grpc));
            http::probe(connection.io, http2, plan.tls.is_some(), &authority(endpoint, plan.tls.is_some()), path).await
        }
        Probe::Grpc(service) => {
            grpc::probe(connection.io, plan.tls.is_some(), &authority(endpoint, plan.tls.is_some()), service).await
        }
    }
}

/// `Host`: the name of the endpoint if it has one, else its address; the port unless it is the scheme's own.
fn authority(endpoint: &Endpoint, tls: bool) -> String {
    match (&endpoint.hostname, endpoint.address.port()) {
        (Some(name), port) if port == if tls { 443 } else { 80 } => name.to_string(),
        (Some(name), port) => format!("{name}:{port}"),
        (None, _) => endpoint.label.to_string(),
    }
}

fn jittered(interval: Duration, rng: &mut fastrand::Rng) -> Duration {
    interval.mul_f64(1.0 - JITTER + 2.0 * JITTER * rng.f64())
}
