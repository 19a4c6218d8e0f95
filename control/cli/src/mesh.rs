//! Between the proxy and the kernel side: what the proxy knows goes into the kernel's maps, what the kernel sees goes to
//! the proxy.
//!
//! ```text
//!  a configuration, a name resolved ──▶ Mesh::follow ─┐
//!  an endpoint ejected, unhealthy, lighter ─────────────┴─▶ mask at once ─▶ tables ─▶ the kernel
//! ```

use std::{
    collections::HashMap,
    io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle};
use weft_ebpf::{
    agent::{Agent, Listeners, Options},
    maps::Live,
    programs::EbpfSetupError,
};
use weft_proxy::{
    app::{App, Capturer},
    endpoint::{self, FULL_WEIGHT},
    kernel::{Kernel, Origin, Signals},
    snapshot::Snapshot,
};

/// Between the end of the heartbeat and that of the listeners: a connect() that was let through just before is still
/// accepted.
const SETTLE: Duration = Duration::from_millis(50);
/// Changes that come close to one another make one new table. Masks do not wait for it.
const GATHER: Duration = Duration::from_millis(20);

/// The kernel side of a running node.
#[derive(Debug)]
pub struct Mesh {
    agent: Arc<Agent>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    task: Option<JoinHandle<()>>,
}

impl Mesh {
    /// Loads the programs. To be called before any socket is made: see [`Agent::start`].
    ///
    /// # Errors
    /// Why there can be no kernel side.
    pub fn start(options: &Options) -> Result<Self, EbpfSetupError> {
        let agent = Arc::new(Agent::start(options)?);
        Ok(Self { agent, snapshots: watch::channel(Arc::new(Snapshot::empty())).0, task: None })
    }

    /// For the proxy.
    pub fn kernel(&self) -> Arc<dyn Kernel> {
        Arc::new(Bridge(self.agent.clone()))
    }

    /// Puts what the proxy has in force into the kernel's maps, and begins to capture.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, app: &App) -> Result<(), EbpfSetupError> {
        self.agent.captured(app.captured())?;
        let snapshot = app.shared().snapshot.load_full();
        self.agent.update(snapshot.config.clone(), live(&snapshot))?;
        self.agent.attach(Arc::new(Elsewhere(app.capturer())))?;
        self.snapshots.send_replace(snapshot);
        self.task = Some(tokio::spawn(keep_up(self.agent.clone(), self.snapshots.subscribe())));
        Ok(())
    }

    /// Another snapshot may be in force.
    pub fn follow(&self, app: &App) {
        let snapshot = app.shared().snapshot.load_full();
        self.snapshots.send_if_modified(|current| {
            let changed = !Arc::ptr_eq(current, &snapshot);
            *current = snapshot;
            changed
        });
    }

    /// The proxy is about to stop listening.
    pub async fn suspend(&self) {
        self.agent.suspend();
        tokio::time::sleep(SETTLE).await;
    }

    /// The proxy has stopped. Programs and maps stay in the kernel: see `weft ebpf unload`.
    pub async fn stop(self) {
        if let Some(task) = self.task {
            task.abort();
        }
        let agent = self.agent;
        let _ = tokio::task::spawn_blocking(move || agent.stop()).await;
    }
}

/// Keeps the kernel's maps in line until the node ends.
async fn keep_up(agent: Arc<Agent>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    // What was masked, by endpoint.
    let masked: Arc<Mutex<HashMap<u64, bool>>> = Arc::default();
    loop {
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            () = endpoint::health_changes().notified() => {}
        }
        let snapshot = snapshots.borrow_and_update().clone();
        let (mask_agent, seen) = (agent.clone(), masked.clone());
        blocking(move || mask(&mask_agent, &snapshot, &mut seen.lock().unwrap_or_else(PoisonError::into_inner))).await;
        tokio::time::sleep(GATHER).await;
        let (agent, snapshot) = (agent.clone(), snapshots.borrow_and_update().clone());
        blocking(move || agent.update(snapshot.config.clone(), live(&snapshot))).await;
    }
}

/// Writes to maps are system calls, thousands of them at worst.
async fn blocking(work: impl FnOnce() -> Result<(), EbpfSetupError> + Send + 'static) {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the kernel's maps are not up to date; the next change tries again"),
        Err(error) => tracing::error!(%error, "a defect in Weft: the kernel's maps are not up to date"),
    }
}

/// Has endpoints passed over that must not be used any more, before tables without them are made.
fn mask(agent: &Agent, snapshot: &Snapshot, masked: &mut HashMap<u64, bool>) -> Result<(), EbpfSetupError> {
    let endpoints = snapshot.services.values().flat_map(|service| service.endpoints());
    let now: HashMap<u64, bool> = endpoints.map(|endpoint| (endpoint.id, !endpoint.usable())).collect();
    for (id, hidden) in &now {
        if *hidden != masked.get(id).copied().unwrap_or(false) {
            agent.mask(*id, *hidden)?;
        }
    }
    *masked = now;
    Ok(())
}

/// Endpoints as the kernel side takes them.
fn live(snapshot: &Snapshot) -> Vec<Live> {
    let services = snapshot.services.values();
    let endpoints = services.flat_map(|service| {
        let weighted = service.endpoints.weighted();
        weighted.map(move |(endpoint, weight)| Live {
            service: service.key.clone(),
            port: service.port,
            id: endpoint.id,
            address: endpoint.address,
            weight: share(weight, endpoint.weight_percent()),
            usable: endpoint.usable(),
            source: None,
        })
    });
    endpoints.collect()
}

/// A weight that counts for so many percent. Never rounded down to nothing.
fn share(weight: u32, percent: u32) -> u32 {
    // What all endpoints have in common is cancelled where tables are made.
    u32::try_from(u64::from(weight) * u64::from(percent)).unwrap_or(u32::MAX / FULL_WEIGHT)
}

/// The proxy, as it listens in other network namespaces.
struct Elsewhere(Capturer);

impl Listeners for Elsewhere {
    fn listen(&self, netns: u64) -> io::Result<()> {
        self.0.listen(netns)
    }

    fn leave(&self, netns: u64) {
        self.0.leave(netns);
    }
}

/// The agent, as the proxy knows it.
#[derive(Debug)]
struct Bridge(Arc<Agent>);

impl Kernel for Bridge {
    fn origin(&self, accepted: BorrowedFd<'_>) -> Option<Origin> {
        let weft_ebpf::agent::Origin { destination, workload } = self.0.origin(accepted)?;
        Some(Origin { destination, workload })
    }

    fn attribute(&self, socket: BorrowedFd<'_>, endpoint: u64) {
        self.0.attribute(socket, endpoint);
    }

    fn signals(&self) -> HashMap<u64, Signals> {
        let signals = self.0.signals().into_iter().map(|(id, stats)| {
            let signals = Signals {
                attempts: stats.attempts,
                established: stats.established,
                refused: stats.refused,
                timed_out: stats.timed_out,
                aborted: stats.aborted,
                closed: stats.closed,
                rto: stats.rto,
                retransmits: stats.retransmits,
                srtt_us: stats.srtt_us,
            };
            (id, signals)
        });
        signals.collect()
    }

    fn recovered(&self, endpoint: u64) {
        self.0.recovered(endpoint);
    }

    fn verdicts(&self) -> Vec<(&'static str, &'static str, u64)> {
        self.0.verdicts()
    }

    fn connections(&self) -> Value {
        self.0.connections()
    }

    fn flows(&self, after: u64) -> Value {
        self.0.flows(after)
    }

    fn status(&self) -> Value {
        self.0.status()
    }
}
