//! The agent: has the programs loaded and attached, keeps their maps in line, shows that the proxy is alive, and reads
//! what the programs report.
//!
//! ```text
//! start ─▶ load maps and programs, move to the own cgroup          nothing is captured yet
//!       ─▶ captured(addresses), update(config, endpoints)          maps are filled
//!       ─▶ attach ─▶ beat, look at events, find new cgroups …      a thread, twice a second and on events
//! stop  ─▶ no more heartbeat: PROXY fails open or closed, DIRECT goes on by itself
//! ```

mod background;
mod namespaces;
mod show;
mod update;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, SkStorage},
};
use weft_ebpf_abi::{Addr, Meta, Settings, Stats, Verdict};
use weft_model::Config;

use crate::{
    cgroup::{Cgroup, OwnCgroup},
    flows::{Flows, socket},
    maps::Live,
    names::Names,
    netns,
    pins::Pins,
    programs::{self, EbpfSetupError},
    reconcile::{Reconciler, Removed, StoreError},
    store::{self, Maps},
    sys,
};

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// What programs are attached to: a cgroup2 directory. Every process below it is captured.
    pub cgroup: PathBuf,
    /// Connections that go straight to an endpoint which was removed are ended after this time; `None`: never.
    pub end_stale: Option<Duration>,
}

/// The kernel side of this node.
#[derive(Debug)]
pub struct Agent {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
    own: Mutex<Option<OwnCgroup>>,
}

struct Inner {
    attach: Cgroup,
    pins: Pins,
    end_stale: Option<Duration>,
    /// Held as long as this process manages the attach point.
    held: Mutex<Option<File>>,
    /// Read by workers at accept.
    origins: SkStorage<MapData, Meta>,
    /// Written by workers before connect.
    marks: Mutex<SkStorage<MapData, Meta>>,
    /// Not part of the state: a long update must not stop it.
    heartbeat: Mutex<Array<MapData, u64>>,
    state: Mutex<State>,
    /// Read often, written with a new configuration.
    view: RwLock<View>,
    flows: Mutex<Flows>,
    /// When somebody last asked for flows, in nanoseconds of the kernel's clock.
    followed_ns: AtomicU64,
    stopping: AtomicBool,
}

/// What changes, and what it takes to change it.
struct State {
    ebpf: Ebpf,
    maps: Maps,
    reconciler: Reconciler,
    settings: Settings,
    config: Arc<Config>,
    live: Vec<Live>,
    attached: bool,
    /// cgroups of workloads, as far as they exist.
    cgroups: HashSet<u64>,
    /// Some policy goes by addresses.
    by_address: bool,
    /// Some service needs the proxy.
    proxied: bool,
    /// The last update left something out, which may fit now.
    again: bool,
    /// When that was.
    applied_ns: u64,
    /// Connections to these are to be ended, and when.
    stale: Vec<(u64, Removed)>,
    /// What was last said of what does not fit.
    complained: Vec<String>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("attach", &self.attach).field("pins", &self.pins).finish_non_exhaustive()
    }
}

/// What is looked up all the time.
#[derive(Debug, Default)]
struct View {
    names: Names,
    /// Place, generation and service, by the id of the proxy's endpoint.
    places: HashMap<u64, (u32, u32)>,
}

/// Listens for captured connections where the proxy itself is not: every network namespace has a loopback of its own.
pub trait Listeners: Send + Sync {
    /// Listens on the captured addresses in the network namespace of the calling thread, whose cookie this is.
    ///
    /// # Errors
    /// What the kernel says; it is tried again.
    fn listen(&self, netns: u64) -> std::io::Result<()>;

    /// Nobody is in this namespace any more.
    fn leave(&self, netns: u64);
}

/// Where a captured connection was to go, and whence it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The address that the application connected to.
    pub destination: SocketAddr,
    /// Name of the workload; `None`: one that nobody named.
    pub workload: Option<Arc<str>>,
}

impl Agent {
    /// Loads the programs and takes over maps that are there. Moves the process to a cgroup of its own if it has none
    /// below the attach point: sockets that programs should see have to be made after this. Nothing is attached yet.
    ///
    /// # Errors
    /// When a privilege or a feature of the kernel is missing, or another agent is there.
    pub fn start(options: &Options) -> Result<Self, EbpfSetupError> {
        let attach = Cgroup::open(&options.cgroup)?;
        let held = attach.manage()?.ok_or_else(|| EbpfSetupError::Taken(attach.path.clone()))?;
        let pins = Pins::of(&attach, true).map_err(|source| EbpfSetupError::Pins { source })?;
        let all = Pins::all().map_err(|source| EbpfSetupError::Pins { source })?;
        for dead in all.into_iter().filter(Pins::are_dead) {
            tracing::info!(pins = %dead.path().display(), "the cgroup of these pins is gone: they are removed");
            dead.remove().map_err(|source| EbpfSetupError::Pins { source })?;
        }
        let mut ebpf = programs::load(&programs::object()?, Some(&pins))?;
        let maps = Maps::take(&mut ebpf)?;
        let reconciler = Reconciler::adopt(&maps)?;
        let own = OwnCgroup::settle(&attach)?;
        let settings = Settings {
            proxy_cgroup: own.cgroup.id,
            proxy_netns: netns::cookie()?,
            level: attach.level,
            ..maps.settings.get(&0, 0).unwrap_or_default()
        };
        let mut state = State {
            ebpf,
            maps,
            reconciler,
            settings,
            config: Arc::default(),
            live: Vec::new(),
            attached: false,
            cgroups: HashSet::new(),
            by_address: false,
            proxied: false,
            again: false,
            applied_ns: 0,
            stale: Vec::new(),
            complained: Vec::new(),
        };
        let mut heartbeat = store::heartbeat(&pins)?;
        // Programs of a process before this one are to know the proxy's connections from now on, and to send it none
        // before it knows whose they are: a process that was killed may count as alive for a while.
        state.write_settings()?;
        heartbeat.set(0, 0, 0).map_err(|source| EbpfSetupError::Map { name: "HEARTBEAT", source })?;
        let inner = Inner {
            origins: store::socket_storage(&pins)?,
            marks: Mutex::new(store::socket_storage(&pins)?),
            attach,
            pins,
            end_stale: options.end_stale,
            held: Mutex::new(Some(held)),
            heartbeat: Mutex::new(heartbeat),
            state: Mutex::new(state),
            view: RwLock::default(),
            flows: Mutex::default(),
            followed_ns: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner), thread: Mutex::new(None), own: Mutex::new(Some(own)) })
    }

    /// The proxy listens for captured connections here.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn captured(&self, addresses: &[SocketAddr]) -> Result<(), EbpfSetupError> {
        let mut state = lock(&self.inner.state);
        let find = |v4: bool| addresses.iter().find(|address| address.is_ipv4() == v4);
        let addr = |v4| find(v4).map_or(Addr::NONE, |address| address.ip().into());
        state.settings.capture4 = addr(true);
        state.settings.capture6 = addr(false);
        state.settings.capture_port = addresses.first().map_or(0, |address| address.port().into());
        state.write_settings()
    }

    /// Puts a configuration in force, with the endpoints that are alive. What does not fit is in the report and in the
    /// log; everything else is in force.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn update(&self, config: Arc<Config>, live: Vec<Live>) -> Result<(), EbpfSetupError> {
        if self.inner.stopping.load(Relaxed) {
            return Ok(());
        }
        let mut state = lock(&self.inner.state);
        self.stay_apart(&config, &mut state)?;
        state.config = config;
        state.live = live;
        self.inner.reconcile(&mut state)
    }

    /// The cgroup of a workload is no place for the proxy: whoever comes there would pass for the proxy.
    fn stay_apart(&self, config: &Config, state: &mut State) -> Result<(), EbpfSetupError> {
        let mut own = lock(&self.own);
        let Some(own) = own.as_mut() else { return Ok(()) };
        let attach = &self.inner.attach;
        let claims = |cgroup: &str| own.cgroup.path.starts_with(attach.path.join(cgroup));
        if config.workloads.iter().any(|workload| claims(&workload.cgroup)) {
            tracing::info!(from = %own.cgroup.path.display(), "a workload's cgroup: moving to one of our own");
            own.leave_for_own(attach)?;
            state.settings.proxy_cgroup = own.cgroup.id;
            state.write_settings()?;
        }
        Ok(())
    }

    /// Attaches the programs, or puts them in place of those of a process before. From here on connections are captured.
    ///
    /// # Errors
    /// When the kernel refuses.
    ///
    /// `listeners` is asked to listen in the network namespaces of captured processes.
    pub fn attach(&self, listeners: Arc<dyn Listeners>) -> Result<(), EbpfSetupError> {
        self.inner.beat()?;
        let mut state = lock(&self.inner.state);
        programs::attach(&state.ebpf, &self.inner.attach, &self.inner.pins)?;
        state.attached = true;
        drop(state);
        let inner = self.inner.clone();
        let thread =
            std::thread::Builder::new().name("ebpf".into()).spawn(move || background::run(&inner, &*listeners))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Has an endpoint passed over, or no longer, at once. `id` is that of the proxy's endpoint.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn mask(&self, id: u64, masked: bool) -> Result<(), EbpfSetupError> {
        let state = &mut *lock(&self.inner.state);
        state.reconciler.mask(id, masked, &mut state.maps)?;
        // Otherwise the next look at cgroups would put back what was known before.
        state.live.iter_mut().filter(|live| live.id == id).for_each(|live| live.usable = !masked);
        Ok(())
    }

    /// Whence an accepted connection comes, if it was captured.
    pub fn origin(&self, accepted: BorrowedFd<'_>) -> Option<Origin> {
        let meta = self.inner.origins.get(&accepted.as_raw_fd(), 0).ok()?;
        if meta.verdict != Verdict::Proxy as u32 {
            return None;
        }
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let destination = socket(meta.dest, meta.dest_port);
        Some(Origin { destination, workload: view.names.name(meta.workload).cloned() })
    }

    /// `socket` is about to be connected to the proxy's endpoint `id`.
    pub fn attribute(&self, socket: BorrowedFd<'_>, id: u64) {
        let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
        let Some(&(endpoint, generation)) = view.places.get(&id) else { return };
        let Some(address) = view.names.endpoint(endpoint, generation) else { return };
        drop(view);
        let addr = Addr::from(address.ip());
        let port = u32::from(address.port());
        let meta = Meta {
            dest: addr,
            backend: addr,
            dest_port: port,
            backend_port: port,
            endpoint,
            generation,
            verdict: Verdict::Pass as u32,
            pid: std::process::id(),
            ..Meta::default()
        };
        if let Err(error) = lock(&self.inner.marks).insert(&socket.as_raw_fd(), meta, 0) {
            tracing::debug!(%error, "a connection is not counted by the kernel");
        }
    }

    /// What the kernel has seen of each of the proxy's endpoints.
    pub fn signals(&self) -> HashMap<u64, Stats> {
        let places: Vec<(u64, u32)> = {
            let view = self.inner.view.read().unwrap_or_else(PoisonError::into_inner);
            view.places.iter().map(|(id, (place, _))| (*id, *place)).collect()
        };
        let state = lock(&self.inner.state);
        places.into_iter().filter_map(|(id, place)| Some((id, state.maps.stats(place).ok()?))).collect()
    }

    /// The endpoint takes connections again: it is no longer passed over for having refused one.
    pub fn recovered(&self, id: u64) {
        let place = self.inner.view.read().unwrap_or_else(PoisonError::into_inner).places.get(&id).copied();
        let Some((place, _)) = place else { return };
        if let Err(error) = lock(&self.inner.state).maps.hold.set(place, 0, 0) {
            tracing::warn!(%error, "an endpoint that recovered is passed over for some seconds more");
        }
    }

    /// Ends the heartbeat: from now on new connections to PROXY services fail open or closed; those to DIRECT services go
    /// on, with or without this process. To be called before the proxy stops to listen, so that no connect() meets a
    /// closed port.
    pub fn suspend(&self) {
        self.inner.stopping.store(true, Relaxed);
        if let Err(error) = lock(&self.inner.heartbeat).set(0, 0, 0) {
            tracing::warn!(%error, "the kernel cannot be told that the proxy stops");
        }
        // The next one may begin while this one drains.
        lock(&self.inner.held).take();
    }

    /// Ends the agent. Programs and maps stay.
    pub fn stop(&self) {
        self.suspend();
        if let Some(thread) = lock(&self.thread).take() {
            // It has said why, if it panicked.
            let _ = thread.join();
        }
        if let Some(own) = lock(&self.own).take() {
            own.leave();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    /// The proxy is alive.
    fn beat(&self) -> Result<(), EbpfSetupError> {
        let mut heartbeat = lock(&self.heartbeat);
        // Nothing after the last word: see `suspend`.
        if self.stopping.load(Relaxed) {
            return Ok(());
        }
        heartbeat.set(0, sys::now_ns(), 0).map_err(|source| EbpfSetupError::Map { name: "HEARTBEAT", source })
    }
}

impl State {
    fn write_settings(&mut self) -> Result<(), EbpfSetupError> {
        let failed = |source| EbpfSetupError::Map { name: "SETTINGS", source };
        self.maps.settings.set(0, self.settings, 0).map_err(failed)
    }
}

impl From<StoreError> for EbpfSetupError {
    fn from(error: StoreError) -> Self {
        Self::Io(std::io::Error::other(error))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
