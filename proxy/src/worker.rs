//! One worker: a pinned thread with a current-thread runtime and everything that its connections share.
//!
//! State here is `Rc` and `Cell`: nothing leaves the thread. What workers share with each other is in [`Shared`].

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::{
    accept,
    conn::Connections,
    endpoint::InFlight,
    identity::handshake::Handshakes,
    kernel::Kernel,
    layer::shed::{self, Shed},
    options::Options,
    snapshot::Snapshot,
    telemetry,
    upstream::{
        places::{Places, Waiting},
        pool::Pools,
    },
    wheel::Wheel,
};

/// TLS handshakes under way on one worker; further clients wait. Many, because a stalled one costs a few KiB and nothing
/// else: a small number would let one client that never finishes keep everybody out.
const MAX_HANDSHAKES: usize = 8192;

/// What all workers and the control side see.
#[derive(Debug)]
pub struct Shared {
    /// How this node was started.
    pub options: Options,
    /// The routing state in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Counts snapshots, so that a worker sees with one load whether its copy is old.
    pub generation: AtomicU64,
    /// Open client connections, per worker.
    pub load: Box<[AtomicU32]>,
    /// Requests in flight, per worker.
    pub requests: Box<[InFlight]>,
    /// Metrics, spans, access log.
    pub telemetry: Arc<telemetry::Telemetry>,
    /// Which requests are refused under pressure.
    pub shed: Shed,
    /// The kernel programs, if there are any.
    pub kernel: Option<Arc<dyn Kernel>>,
}

impl Shared {
    /// Puts `snapshot` in force.
    pub fn publish(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// What the control side tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept on this socket, for this port of the snapshot.
    Listen(crate::snapshot::PortId, std::net::TcpListener),
    /// Stop accepting there.
    Unlisten(crate::snapshot::PortId),
    /// Accept captured connections on this socket, which is in this network namespace (0: the proxy's own).
    Capture(u64, std::net::SocketAddr, std::net::TcpListener),
    /// Stop accepting captured connections in this network namespace.
    Leave(u64),
    /// A connection that another worker accepted.
    Adopt(accept::Arrived, std::net::TcpStream),
    /// Stop accepting everywhere; connections end after their next response.
    Drain,
    /// Close what is idle, now that clients have had time to notice.
    CloseIdle,
    /// Close idle connections of a service that somebody waits for, then pass it on to the next of so many workers.
    Reclaim(Arc<Places>, usize),
    /// End the worker.
    Stop,
}

/// The worker's coarse clock: right to within one request or one tick.
#[derive(Debug)]
pub struct Clock(Rc<Cell<Instant>>);

impl Clock {
    /// Last time that somebody looked.
    pub fn now(&self) -> Instant {
        self.0.get()
    }

    /// The cell itself, for those who only look.
    pub fn cell(&self) -> Rc<Cell<Instant>> {
        self.0.clone()
    }

    /// Reads the real clock, once for everybody.
    pub fn read(&self) -> Instant {
        let now = Instant::now();
        self.0.set(now);
        now
    }
}

/// A snapshot as one worker holds it. Requests count their references here, and not in a counter that all cores write.
#[allow(clippy::redundant_allocation, reason = "the outer count is the point")]
pub type Local = Rc<Arc<Snapshot>>;

/// Per-thread state.
#[derive(Debug)]
pub struct Worker {
    /// 0-based.
    pub id: usize,
    /// Shared with everybody.
    pub shared: Arc<Shared>,
    /// Connections to endpoints.
    pub pools: Pools,
    /// Connections from clients.
    pub connections: Connections,
    /// Deadlines.
    pub wheel: Rc<Wheel>,
    /// Coarse time.
    pub clock: Rc<Clock>,
    /// Not for secrets.
    pub rng: RefCell<fastrand::Rng>,
    /// Metrics and spans of this worker.
    pub telemetry: telemetry::Worker,
    /// To the other workers, for connections that fit better there.
    pub siblings: Vec<mpsc::UnboundedSender<Command>>,
    /// Bounds TLS handshakes.
    pub handshakes: Handshakes,
    /// Set once, at the start of a drain.
    pub draining: Cell<bool>,
    /// Mirrored requests under way.
    pub copies: Cell<u32>,
    snapshot: RefCell<(u64, Local)>,
}

impl Worker {
    /// A worker without connections. Nothing runs yet.
    pub fn new(id: usize, shared: Arc<Shared>, siblings: Vec<mpsc::UnboundedSender<Command>>) -> Rc<Self> {
        let clock = Rc::new(Clock(Rc::new(Cell::new(Instant::now()))));
        Rc::new(Self {
            id,
            pools: Pools::new(clock.clone()),
            connections: Connections::default(),
            wheel: Wheel::new(clock.now()),
            rng: RefCell::new(fastrand::Rng::new()),
            telemetry: shared.telemetry.worker(),
            siblings,
            handshakes: Handshakes::new(MAX_HANDSHAKES, shared.options.limits.handshake_timeout),
            draining: Cell::new(false),
            copies: Cell::new(0),
            snapshot: RefCell::new((shared.generation.load(Ordering::Acquire), Rc::new(shared.snapshot.load_full()))),
            clock,
            shared,
        })
    }

    /// The snapshot in force; one atomic load when it has not changed.
    pub fn snapshot(&self) -> Local {
        let generation = self.shared.generation.load(Ordering::Acquire);
        let mut cached = self.snapshot.borrow_mut();
        if cached.0 != generation {
            *cached = (generation, Rc::new(self.shared.snapshot.load_full()));
        }
        cached.1.clone()
    }

    /// Looks for idle connections, here and at the other workers, if whoever waits has to.
    pub fn search_for(&self, waiting: &Waiting, places: &Arc<Places>) {
        if waiting.search {
            self.reclaim(places, self.siblings.len().saturating_sub(1));
        }
    }

    /// Closes idle connections as far as somebody waits for their places, and passes the search on to the next worker;
    /// `left` are those that come after this one.
    pub fn reclaim(&self, places: &Arc<Places>, left: usize) {
        self.pools.reclaim(places);
        if places.searched(left == 0) {
            let workers = self.siblings.len();
            let left = left.checked_sub(1).unwrap_or(workers.saturating_sub(1));
            if let Some(next) = self.siblings.get((self.id + 1) % workers.max(1)) {
                // It fails only while that worker ends, and then the whole process does.
                let _ = next.send(Command::Reclaim(places.clone(), left));
            }
        }
    }

    /// A random number for picks, ids and jitter.
    pub fn random(&self) -> u64 {
        self.rng.borrow_mut().u64(..)
    }
}

/// Spawns onto the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub struct LocalExec;

impl<F> hyper::rt::Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Runs a worker on the calling thread until it has drained.
///
/// # Errors
/// When the runtime cannot be made (out of descriptors).
pub fn run(
    id: usize,
    shared: Arc<Shared>,
    siblings: Vec<mpsc::UnboundedSender<Command>>,
    commands: mpsc::UnboundedReceiver<Command>,
) -> std::io::Result<()> {
    if shared.options.pin_workers {
        pin(id);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(id, shared, siblings);
        tokio::task::spawn_local(worker.wheel.clone().turn());
        tokio::task::spawn_local(sweep(worker.clone()));
        tokio::task::spawn_local(shed::measure_lag(worker.clone()));
        accept::run(worker, commands).await;
    });
    Ok(())
}

/// Once a second: connections past a deadline, pooled connections nobody needs.
async fn sweep(worker: Rc<Worker>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = worker.clock.read();
        worker.connections.sweep(now, &worker.shared.options.limits);
        worker.pools.sweep(now);
    }
}

/// Pins the calling thread to the `id`-th core that the process may use; a failure only costs locality.
fn pin(id: usize) {
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    if cores.is_empty() {
        return;
    }
    let mut one = rustix::thread::CpuSet::new();
    one.set(cores[id % cores.len()]);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &one) {
        tracing::debug!(worker = id, %error, "not pinned");
    }
}
