//! The only wiring: workers, configuration, health checks, name resolution, admin, readiness, drain.
//!
//! Everything here runs on an ordinary runtime beside the workers. A configuration goes through [`App::apply`]: compile,
//! bind, publish. If any step fails, the one in force stays as it is.

pub mod admin;
mod bind;
mod capturer;
mod metrics;
mod signals;
#[cfg(test)]
mod tests;
mod watch;

pub use bind::hint as bind_hint;
pub use capturer::Capturer;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch as channel};
use weft_model::Config;

use crate::{
    endpoint::InFlight,
    identity::{Identities, IdentityError},
    kernel::Kernel,
    layer::shed::{self, Shed},
    options::Options,
    snapshot::{
        PortId, Snapshot,
        compile::{self, CompileError},
    },
    source::control,
    telemetry::{Exporter, Telemetry, export::Environment},
    worker::{self, Command, Shared},
};

/// Longest wait for the names of a new configuration.
const RESOLVE: Duration = Duration::from_secs(2);
/// How often limits of which nobody asks anything give memory back.
const TIDY: Duration = Duration::from_secs(30);
/// How often adaptive limits are looked at that may be stuck.
const TICK: Duration = Duration::from_secs(1);
/// Longest wait for the last lines of the access log.
const FLUSH: Duration = Duration::from_secs(2);

/// Why a configuration is not in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Key material cannot be used: every reason.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Identity(Vec<IdentityError>),
    /// A port cannot be had.
    #[error("cannot listen on {address}: {source}{}", bind::hint(.source))]
    Bind {
        /// The port.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread or runtime for a worker.
    #[error("cannot start a worker: {0}")]
    Worker(io::Error),
    /// A port for captured connections cannot be had.
    #[error("cannot listen for captured connections on {address}: {source}{}", bind::hint(.source))]
    Bind {
        /// The port.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A running node.
pub struct App {
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    threads: Vec<JoinHandle<()>>,
    /// Ports that are bound.
    ports: BTreeMap<PortId, ()>,
    captured: Vec<SocketAddr>,
    config: Arc<Config>,
    revision: u64,
    /// Identities were taken and given back since the snapshot in force was compiled: not all of them are those in it.
    given_back: bool,
    watch: watch::Watch,
    exporter: Exporter,
    identities: Arc<Identities>,
    state: Arc<State>,
}

/// What readiness and the admin server look at.
#[derive(Debug)]
pub struct State {
    /// Configurations that were refused.
    pub reload_failures: AtomicU64,
    /// Why the last one was, until one is accepted again.
    pub last_error: ArcSwap<Option<String>>,
    /// A drain has begun.
    pub draining: AtomicBool,
    /// Asks the owner of the process to drain.
    pub drain: channel::Sender<bool>,
    /// How the node stands with its control plane, if it follows one.
    pub control: OnceLock<Arc<control::Status>>,
}

impl App {
    /// Starts the workers, without any port of a configuration yet. With a `kernel`, captured connections are listened for
    /// from now on.
    ///
    /// # Errors
    /// When a thread cannot be made, or when a port for captured connections is not to be had.
    pub fn start(options: Options, kernel: Option<Arc<dyn Kernel>>) -> Result<Self, StartError> {
        let workers = options.workers.max(1);
        let listening = if kernel.is_some() { bind::captured(&options.captured, workers)? } else { Vec::new() };
        let telemetry = Arc::new(Telemetry::new(&options.node, Environment::read(), std::io::stdout()));
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            generation: AtomicU64::new(0),
            load: (0..workers).map(|_| AtomicU32::new(0)).collect(),
            requests: (0..workers).map(|_| InFlight::default()).collect(),
            telemetry: telemetry.clone(),
            shed: Shed::new(workers),
            kernel,
            options,
        });
        metrics::show(&shared);
        tokio::spawn(every(TIDY, Arc::downgrade(&shared), tidy));
        tokio::spawn(every(TICK, Arc::downgrade(&shared), tick));
        tokio::spawn(shed::watch(Arc::downgrade(&shared)));
        if let Some(kernel) = &shared.kernel {
            tokio::spawn(signals::watch(Arc::downgrade(&shared), kernel.clone()));
        }
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
        let mut threads = Vec::with_capacity(workers);
        for (id, commands) in receivers.into_iter().enumerate() {
            let (shared, siblings) = (shared.clone(), senders.clone());
            let thread = std::thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
                if let Err(error) = worker::run(id, shared, siblings, commands) {
                    tracing::error!(worker = id, %error, "worker ended");
                }
            });
            threads.push(thread.map_err(StartError::Worker)?);
        }
        let mut captured = Vec::with_capacity(listening.len());
        for (address, sockets) in listening {
            captured.push(address);
            for (worker, socket) in senders.iter().zip(sockets) {
                let _ = worker.send(Command::Capture(0, address, socket));
            }
        }
        let state = Arc::new(State {
            reload_failures: AtomicU64::new(0),
            last_error: ArcSwap::from_pointee(None),
            draining: AtomicBool::new(false),
            drain: channel::channel(false).0,
            control: OnceLock::new(),
        });
        Ok(Self {
            shared,
            workers: senders,
            threads,
            ports: BTreeMap::new(),
            captured,
            config: Arc::default(),
            revision: 0,
            given_back: false,
            watch: watch::Watch::new(tokio::runtime::Handle::current()),
            exporter: telemetry.spawn_exporter(),
            identities: Arc::default(),
            state,
        })
    }

    /// What all threads share.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Certificates in use.
    pub fn identities(&self) -> &Arc<Identities> {
        &self.identities
    }

    /// What readiness looks at.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Puts a configuration in force, as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be compiled or a new port cannot be bound; what was in force stays.
    ///
    /// Endpoints by name are resolved first, for at most `RESOLVE`: a new name must not answer 503 for a moment. Where only
    /// endpoints are different, nothing else is looked at: they come and go all the time.
    pub async fn apply(&mut self, config: Arc<Config>) -> Result<(), ApplyError> {
        if let Some(moved) = compile::moved(&self.config, &config).filter(|_| !self.given_back) {
            let snapshot =
                self.compile_with(&config, self.revision + 1, |input, previous| moved.compile(input, previous))?;
            self.revision += 1;
            self.config = config;
            self.publish(snapshot);
            self.state.last_error.store(Arc::new(None));
            return Ok(());
        }
        self.watch.resolve(&config, RESOLVE).await;
        self.identities.apply(&config, SystemTime::now()).map_err(ApplyError::Identity)?;
        let applied = self.apply_with_identities(config);
        self.given_back = applied.is_err();
        if applied.is_err()
            && let Err(errors) = self.identities.apply(&self.config, SystemTime::now())
        {
            tracing::error!(?errors, "the certificates of the configuration in force cannot be loaded any more");
        }
        applied
    }

    fn apply_with_identities(&mut self, config: Arc<Config>) -> Result<(), ApplyError> {
        let revision = self.revision + 1;
        let snapshot = self.compile(&config, revision)?;
        let wanted: Vec<PortId> = snapshot.ports.iter().map(|port| port.id).collect();
        let mut fresh = Vec::new();
        let mut own: Vec<PortId> = self.ports.keys().copied().collect();
        for id in wanted.iter().filter(|id| !self.ports.contains_key(id)) {
            let sockets = bind::sockets(*id, self.workers.len(), &own)
                .map_err(|source| ApplyError::Bind { address: *id, source })?;
            own.push(*id);
            fresh.push((*id, sockets));
        }
        // From here on nothing can fail.
        self.revision = revision;
        self.config = config;
        self.publish(snapshot);
        for (id, sockets) in fresh {
            self.ports.insert(id, ());
            for (worker, socket) in self.workers.iter().zip(sockets) {
                let _ = worker.send(Command::Listen(id, socket));
            }
        }
        let gone: Vec<PortId> = self.ports.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in gone {
            self.ports.remove(&id);
            self.tell(|| Command::Unlisten(id));
        }
        self.shared.telemetry.configure(&self.config.telemetry);
        self.state.last_error.store(Arc::new(None));
        Ok(())
    }

    /// The configuration comes from a control plane.
    pub fn follows(&self, control: Arc<control::Status>) {
        if self.state.control.set(control.clone()).is_ok() {
            self.shared.telemetry.metrics.add_source(move |samples| control.collect(samples));
        }
    }

    /// Notes that a configuration was refused.
    pub fn refused(&self, why: String) {
        self.state.reload_failures.fetch_add(1, Ordering::Relaxed);
        self.shared.telemetry.metrics.config_reload_failures.fetch_add(1, Ordering::Relaxed);
        self.state.last_error.store(Arc::new(Some(why)));
    }

    /// Notes that what was refused is no longer wanted.
    pub fn nothing_refused(&self) {
        self.state.last_error.store(Arc::new(None));
    }

    /// Waits until an endpoint's name resolves to something else, and takes it over.
    pub async fn resolved(&mut self) {
        self.watch.changed().await;
        match self.compile(&self.config.clone(), self.revision) {
            Ok(snapshot) => self.publish(snapshot),
            Err(error) => tracing::error!(%error, "new addresses are not in force"),
        }
    }

    fn compile(&self, config: &Arc<Config>, revision: u64) -> Result<Snapshot, CompileError> {
        self.compile_with(config, revision, compile::compile)
    }

    fn compile_with(
        &self,
        config: &Arc<Config>,
        revision: u64,
        compile: impl FnOnce(&compile::Input<'_>, &Snapshot) -> Result<Snapshot, CompileError>,
    ) -> Result<Snapshot, CompileError> {
        let previous = self.shared.snapshot.load();
        let input = compile::Input {
            config: config.clone(),
            revision,
            zone: self.shared.options.zone.as_deref().map(Into::into),
            resolved: self.watch.addresses(),
            identities: &self.identities,
            telemetry: &self.shared.telemetry,
            now: Instant::now(),
        };
        compile(&input, &previous)
    }

    fn publish(&mut self, snapshot: Snapshot) {
        let previous = self.shared.snapshot.load_full();
        let snapshot = Arc::new(snapshot);
        self.watch.follow(&snapshot);
        let now = Instant::now();
        self.shared.publish(snapshot.clone());
        for places in snapshot.review_places() {
            if let Some(worker) = self.workers.first() {
                let _ = worker.send(Command::Reclaim(places, self.workers.len() - 1));
            }
        }
        for endpoint in snapshot.removed(&previous) {
            endpoint.mark_removed(now);
        }
        snapshot.enforce(&previous, now);
        self.shared.telemetry.metrics.config_revision.store(self.revision, Ordering::Relaxed);
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker is gone only when the process is on its way out.
            let _ = worker.send(command());
        }
    }

    /// Revision of the configuration in force.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Ports that are bound.
    pub fn ports(&self) -> impl Iterator<Item = PortId> {
        self.ports.keys().copied()
    }

    /// Where captured connections are listened for: those of [`Options::captured`] that this host could give; none without
    /// a kernel program.
    pub fn captured(&self) -> &[SocketAddr] {
        &self.captured
    }

    /// Listens for captured connections in other network namespaces too.
    pub fn capturer(&self) -> Capturer {
        Capturer::new(self.captured.clone(), self.workers.clone())
    }

    /// Requests in flight and open connections, over all workers.
    pub fn load(&self) -> (u32, u32) {
        let requests = self.shared.requests.iter().map(InFlight::get).sum();
        let connections = self.shared.load.iter().map(|load| load.load(Ordering::Relaxed)).sum();
        (requests, connections)
    }

    /// Stops accepting, lets what is in flight finish, and ends the workers. Returns whether everything had ended.
    ///
    /// Idle HTTP/1.1 connections get a moment before they are closed: a request that is already on its way is still
    /// answered, with `Connection: close`.
    pub async fn drain(mut self) -> bool {
        const QUIET: Duration = Duration::from_secs(1);
        let timeout = self.shared.options.drain_timeout;
        let deadline = tokio::time::Instant::now() + timeout;
        self.state.draining.store(true, Ordering::Relaxed);
        self.tell(|| Command::Drain);
        let started = tokio::time::Instant::now();
        let mut told = false;
        let ended = loop {
            let (_, connections) = self.load();
            if connections == 0 {
                break true;
            }
            let now = tokio::time::Instant::now();
            if now >= deadline {
                break false;
            }
            if !told && now >= started + QUIET.min(timeout / 2) {
                told = true;
            }
            if told {
                self.tell(|| Command::CloseIdle);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.tell(|| Command::Stop);
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so already.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.exporter.shutdown().await;
        let shared = self.shared.clone();
        let _ = tokio::task::spawn_blocking(move || shared.telemetry.flush_access_log(FLUSH)).await;
        ended
    }
}

/// Does `work` every `period`; ends with the node.
async fn every(period: Duration, shared: Weak<Shared>, work: impl Fn(&Snapshot, Instant)) {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        work(&shared.snapshot.load_full(), Instant::now());
    }
}

/// Limits of which nobody asks anything give memory back.
fn tidy(snapshot: &Snapshot, now: Instant) {
    snapshot.limits.values().for_each(|limits| limits.tidy(now));
}

/// Adaptive limits that may be stuck are looked at.
fn tick(snapshot: &Snapshot, now: Instant) {
    for service in snapshot.services.values() {
        if let Some(gradient) = &service.concurrency {
            gradient.tick(service.in_flight.get(), now);
        }
    }
}
