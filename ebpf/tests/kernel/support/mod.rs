//! What the tests share: a cgroup with an agent on it, processes that connect and processes that are connected to.

pub mod beds;
pub mod child;
pub mod netns;
pub mod role;
pub mod yaml;

use std::{
    collections::HashSet,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    ops::Deref,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;
use weft_ebpf::{
    agent::{Agent, Listeners, Options},
    maps::Live,
};
use weft_model::{Config, config::Key};

pub use self::{beds::TestCgroup, child::Child};

/// What ought to happen at once. Generous: the machine is shared.
pub const SOON: Duration = Duration::from_secs(10);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A cgroup of the test's own, below the cgroup2 mount; while it is there no other test runs.
pub struct Bed {
    pub cgroup: TestCgroup,
    _alone: MutexGuard<'static, ()>,
}

impl Bed {
    /// `None`, said loudly, when this machine does not let us.
    pub fn make(test: &str) -> Option<Self> {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = match TestCgroup::make(test) {
            Ok(cgroup) => cgroup,
            Err(why) => {
                skip(test, &why);
                return None;
            }
        };
        Some(Self { cgroup, _alone: alone })
    }

    /// An agent in this process. Nothing is configured, nothing attached.
    pub fn agent(&self) -> TestAgent {
        self.agent_with(None)
    }

    pub fn agent_with(&self, end_stale: Option<Duration>) -> TestAgent {
        let options = Options { cgroup: self.cgroup.path.clone(), end_stale };
        TestAgent(Agent::start(&options).unwrap())
    }

    /// A process in the cgroup of a workload; `""`: directly in the attach point.
    pub fn client(&self, workload: &str) -> Child {
        Child::start("client").inside(&self.cgroup.child(workload))
    }
}

/// Stops the agent, which moves this process back, also when the test fails.
pub struct TestAgent(Agent);

impl TestAgent {
    pub fn attach(&self) {
        self.attach_with(Arc::new(Nowhere));
    }

    pub fn attach_with(&self, listeners: Arc<dyn Listeners>) {
        self.0.attach(listeners).unwrap();
    }

    pub fn put(&self, config: &Arc<Config>, live: Vec<Live>) {
        self.update(config.clone(), live).unwrap();
    }

    /// Counts of verdicts, as `"direct service"`.
    pub fn count(&self, what: &str) -> u64 {
        let of = |(verdict, reason, count)| (format!("{verdict} {reason}") == what).then_some(count);
        self.verdicts().into_iter().find_map(of).unwrap_or(0)
    }

    /// Events so far that are refusals.
    pub fn refusals(&self) -> Vec<Value> {
        let flows = self.flows(0);
        flows["flows"].as_array().unwrap().iter().filter(|flow| flow["verdict"] == "deny").cloned().collect()
    }
}

impl Deref for TestAgent {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.0
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Says loudly that a test did not test anything, and why.
pub fn skip(test: &str, why: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    eprintln!("SKIPPED ({} in this process): {test}: {why}", SKIPPED.fetch_add(1, Ordering::Relaxed) + 1);
}

/// The clock of the kernel programs, which is that of all processes.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap().as_nanos() as u64
}

/// Waits until `condition` holds; fails the test, naming `what`, when `deadline` passes first.
pub fn eventually(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    while !condition() {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

pub fn config(parts: &[String]) -> Arc<Config> {
    let text = parts.join("\n---\n");
    match weft_model::load_str("test.yaml", &text, weft_model::Options::default()) {
        Ok(checked) => Arc::new(checked.config),
        Err(problems) => panic!("{problems:?}\n{text}"),
    }
}

/// An endpoint that is alive. `port` is the service's.
pub fn live(service: &str, port: u16, id: u64, address: SocketAddr) -> Live {
    let service = Key::new("default", service);
    Live { service, port, id, address, weight: 1, usable: true, source: None }
}

/// Endpoints in this process. Each says its name to whoever connects, then repeats what it hears.
pub struct Endpoint {
    pub name: String,
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Endpoint {
    pub fn start(name: &str) -> Self {
        Self::at(name, (Ipv4Addr::LOCALHOST, 0).into())
    }

    pub fn at(name: &str, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (said, stopped) = (name.to_owned(), stop.clone());
        std::thread::spawn(move || role::server::serve(&listener, &said, &stopped));
        Self { name: name.into(), address, stop }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        wake(self.address);
    }
}

/// A thread that accepts.
fn wake(address: SocketAddr) {
    let _ = TcpStream::connect_timeout(&address, Duration::from_millis(200));
}

/// Stands for the proxy: tells whoever is captured where he wanted to go, and who he is. Listens in other network
/// namespaces too when it is what the agent is attached with.
pub struct Capture {
    pub addresses: [SocketAddr; 2],
    pub elsewhere: Arc<Elsewhere>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Capture {
    /// Listens on a free port on both loopback addresses, and tells the agent.
    pub fn start(agent: &Arc<TestAgent>) -> Self {
        let (v4, v6) = loop {
            let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            // The other family's port of that number may be somebody's.
            if let Ok(v6) = TcpListener::bind((Ipv6Addr::LOCALHOST, v4.local_addr().unwrap().port())) {
                break (v4, v6);
            }
        };
        let addresses = [&v4, &v6].map(|listener| listener.local_addr().unwrap());
        agent.captured(&addresses).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [v4, v6].map(|listener| {
            let (agent, stop) = (agent.clone(), stop.clone());
            std::thread::spawn(move || tell_origins(&agent, &listener, &stop))
        });
        let elsewhere = Elsewhere { agent: Arc::downgrade(agent), addresses, there: Mutex::default() };
        Self { addresses, elsewhere: Arc::new(elsewhere), stop, threads: threads.into() }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.addresses.into_iter().for_each(wake);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The same in other network namespaces.
pub struct Elsewhere {
    agent: Weak<TestAgent>,
    addresses: [SocketAddr; 2],
    /// Where it listens now, by cookie.
    pub there: Mutex<HashSet<u64>>,
}

impl Listeners for Elsewhere {
    fn listen(&self, netns: u64) -> io::Result<()> {
        for address in self.addresses {
            let listener = TcpListener::bind(address)?;
            let agent = self.agent.clone();
            // Until the test process ends; a thread that waits in accept() does no harm.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let (Ok(stream), Some(agent)) = (stream, agent.upgrade()) else { return };
                    tell_origin(&agent, stream);
                }
            });
        }
        self.there.lock().unwrap().insert(netns);
        Ok(())
    }

    fn leave(&self, netns: u64) {
        self.there.lock().unwrap().remove(&netns);
    }
}

/// Listens nowhere else.
pub struct Nowhere;

impl Listeners for Nowhere {
    fn listen(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn leave(&self, _: u64) {}
}

/// Greets each connection with `destination workload`, as [`Agent::origin`] has them when accept() returns.
pub fn tell_origins(agent: &Agent, listener: &TcpListener, stop: &AtomicBool) {
    for stream in listener.incoming().map_while(Result::ok) {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        tell_origin(agent, stream);
    }
}

fn tell_origin(agent: &Agent, mut stream: TcpStream) {
    let told = match agent.origin(stream.as_fd()) {
        Some(origin) => format!("{} {}\n", origin.destination, origin.workload.as_deref().unwrap_or("-")),
        None => "unknown\n".into(),
    };
    let _ = stream.write_all(told.as_bytes());
    // Kept until the client has hung up, or his greeting might be lost.
    std::thread::Builder::new().stack_size(128 << 10).spawn(move || drop(stream.read(&mut [0]))).unwrap();
}

/// A port of this host at which nobody listens and that nobody gets by chance: it is held by a socket that does not
/// listen.
pub struct Closed {
    pub address: SocketAddr,
    _held: socket2::Socket,
}

impl Closed {
    pub fn port() -> Self {
        let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        held.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let address = held.local_addr().unwrap().as_socket().unwrap();
        Self { address, _held: held }
    }
}
