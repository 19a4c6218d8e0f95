//! The transparent mesh: processes whose connections are captured.
//!
//! Programs are attached to a cgroup of the test's own, never to that of anybody else. Tests skip loudly where kernel
//! programs cannot be had.

#[path = "../../ebpf/tests/kernel/support/beds.rs"]
mod cgroups;
#[allow(dead_code, reason = "the kernel's own tests use more of it")]
#[path = "../../ebpf/tests/kernel/support/netns.rs"]
mod netns;

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::Command,
    sync::watch,
    task::JoinHandle,
};

pub use self::{cgroups::TestCgroup, netns::Netns};
use crate::{Options, Weft, curl::Curl, eventually, ports, skip};

/// A cgroup, and a port for captured connections. Several Wefts may be there one after the other.
pub struct Bed {
    pub cgroup: TestCgroup,
    pub captured: u16,
}

impl Bed {
    /// `None`, said loudly, when this machine does not let us.
    pub fn make(test: &str) -> Option<Self> {
        match TestCgroup::make(test) {
            Ok(cgroup) => Some(Self { cgroup, captured: ports::free() }),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    /// How a Weft is started that captures what is in the cgroup.
    pub fn options(&self) -> Options {
        let captured = self.captured;
        let args = ["--ebpf", "require", "--cgroup", self.cgroup.path.to_str().unwrap()].map(str::to_owned);
        let addresses = [format!("127.0.0.1:{captured}"), format!("[::1]:{captured}")];
        let args = args.into_iter().chain(addresses.into_iter().flat_map(|address| ["--captured".into(), address]));
        Options { args: args.collect(), ..Options::default() }
    }

    pub async fn weft(&self, config: &str) -> Weft {
        Weft::start_with(config, self.options()).await
    }

    /// A command that runs another one in the cgroup of a workload; `""`: directly in the attach point.
    pub fn inside(&self, workload: &str) -> Vec<String> {
        let procs = self.cgroup.child(workload).join("cgroup.procs");
        let script = format!("echo $$ > {} && exec \"$@\"", procs.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).into()
    }

    fn command(&self, workload: &str, program: &str) -> Command {
        let through = self.inside(workload);
        let mut command = Command::new(&through[0]);
        command.args(&through[1..]).arg(program).kill_on_drop(true);
        command
    }

    /// Runs a command as a workload, which has to end by itself.
    pub async fn run(&self, workload: &str, program: &str, args: &[&str]) -> Curl {
        let mut command = self.command(workload, program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let output = crate::within(Duration::from_secs(60), program, child.wait_with_output()).await.unwrap();
        Curl {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `curl -sS --max-time 20` with these arguments, as a workload.
    pub async fn curl(&self, workload: &str, args: &[&str]) -> Curl {
        let args: Vec<&str> = ["-sS", "--max-time", "20"].iter().chain(args).copied().collect();
        self.run(workload, "curl", &args).await
    }

    /// The body of a GET, which must be answered with 200.
    pub async fn get(&self, workload: &str, url: &str) -> Value {
        let out = self.curl(workload, &["--fail", url]).await;
        assert_eq!(out.code, 0, "{url}: {}", out.stderr);
        serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{url}: {e}: {}", out.stdout))
    }

    /// A connection of a workload that stays: what it heard first is its greeting.
    pub async fn hold(&self, workload: &str, to: SocketAddr) -> Held {
        let mut command = self.command(workload, "python3");
        command.args(["-c", HOLD, &to.ip().to_string(), &to.port().to_string()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        crate::soon("a greeting", out.read_line(&mut line)).await.unwrap();
        let shown: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{to}: {e}: {line}"));
        Held { shown, process, out }
    }

    /// Connections of a workload, one after the other in each thread, until it is told to stop.
    pub fn storm(&self, workload: &str, kind: Kind, to: SocketAddr) -> Storm {
        let (kind, path) = match kind {
            Kind::Banner => ("banner", "-"),
            Kind::Get(path) => ("get", path),
        };
        let mut command = self.command(workload, "python3");
        command.args(["-c", STORM, kind, &to.ip().to_string(), &to.port().to_string(), path]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let (send, far) = watch::channel(0);
        let tally = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                match line.parse() {
                    Ok(done) => drop(send.send(done)),
                    Err(_) => return serde_json::from_str(&line).unwrap(),
                }
            }
            panic!("the storm ended by itself")
        });
        Storm { process, far, tally }
    }
}

/// Connects, tells what it sees, then repeats lines until its input ends.
const HOLD: &str = r#"
import json, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
s = socket.create_connection((host, port), 10)
hello = s.makefile("rb").readline().decode().strip()
print(json.dumps({"hello": hello, "peer": s.getpeername()[:2], "local": s.getsockname()[:2]}), flush=True)
for line in sys.stdin:
    try:
        s.sendall(line.encode())
        print(s.recv(100).decode().strip() or "closed", flush=True)
    except OSError as error:
        print(error, flush=True)
"#;

/// A connection of a workload.
pub struct Held {
    pub shown: Value,
    process: tokio::process::Child,
    out: BufReader<tokio::process::ChildStdout>,
}

impl Held {
    pub fn hello(&self) -> &str {
        self.shown["hello"].as_str().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.process.id().unwrap()
    }

    /// The echo of a line, or what happened instead.
    pub async fn say(&mut self, text: &str) -> String {
        self.process.stdin.as_mut().unwrap().write_all(format!("{text}\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        crate::soon("an echo", self.out.read_line(&mut line)).await.unwrap();
        line.trim().to_owned()
    }
}

/// What each connection of a storm is for.
#[derive(Clone, Copy)]
pub enum Kind {
    /// The server speaks first.
    Banner,
    /// A GET of this path.
    Get(&'static str),
}

/// Closes with a reset once it has what it wanted: a storm must not use up the ports.
const STORM: &str = r#"
import errno, json, socket, struct, sys, threading, time
kind, host, port, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
stop, lock = threading.Event(), threading.Lock()
done, failed, names = 0, [], {}

def transfer(s):
    if kind == "banner":
        line = s.makefile("rb").readline().decode().strip()
        if not line:
            raise EOFError("no banner")
        return line
    s.sendall(f"GET {path} HTTP/1.1\r\nhost: mesh.test\r\nconnection: close\r\n\r\n".encode())
    head = s.makefile("rb").read().decode()
    if not head:
        raise EOFError("no answer")
    return head.split()[1]

def one():
    global done
    s = socket.socket(family)
    s.settimeout(10)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    start, stage, name, error = time.monotonic_ns(), "connect", None, None
    try:
        s.connect((host, port))
        stage = "transfer"
        name = transfer(s)
    except (OSError, EOFError) as e:
        number = getattr(e, "errno", None)
        error = errno.errorcode.get(number) if number else type(e).__name__
        if number == errno.ECONNRESET:
            # It stood, and was reset perhaps before connect() returned: its listener ended.
            stage = "transfer"
    s.close()
    with lock:
        done += 1
        if name is None:
            failed.append({"stage": stage, "error": error, "start_ns": start, "end_ns": time.monotonic_ns()})
        else:
            seen = names.setdefault(name, {"count": 0, "last_ns": 0})
            seen["count"] += 1
            seen["last_ns"] = max(seen["last_ns"], start)

def go_on():
    while not stop.is_set():
        one()
        time.sleep(0.001)

def report():
    while not stop.wait(0.02):
        print(done, flush=True)

threads = [threading.Thread(target=f) for f in (go_on, go_on, report)]
for t in threads: t.start()
sys.stdin.read()
stop.set()
for t in threads: t.join()
print(json.dumps({"failed": failed, "names": names}), flush=True)
"#;

/// A storm that goes on.
pub struct Storm {
    process: tokio::process::Child,
    far: watch::Receiver<u64>,
    tally: JoinHandle<Value>,
}

impl Storm {
    /// Waits for so many connections more.
    pub async fn progress(&self, more: u64) {
        let goal = *self.far.borrow() + more;
        eventually("the storm goes on", Duration::from_secs(30), async || *self.far.borrow() >= goal).await;
    }

    pub async fn calm(mut self) -> Tally {
        drop(self.process.stdin.take());
        let tally = crate::within(Duration::from_secs(30), "the storm calms", self.tally).await.unwrap();
        let _ = self.process.wait().await;
        Tally(tally)
    }
}

/// What a storm met.
pub struct Tally(pub Value);

impl Tally {
    /// Each failure: `stage` (connect or transfer), `error`, `start_ns`, `end_ns`.
    pub fn failed(&self) -> &Vec<Value> {
        self.0["failed"].as_array().unwrap()
    }

    pub fn fine(&self) {
        assert!(self.failed().is_empty(), "{}", self.0);
    }

    /// Connections that met this endpoint, or got this status.
    pub fn count(&self, name: &str) -> u64 {
        self.0["names"][name]["count"].as_u64().unwrap_or(0)
    }

    /// When the last of those began.
    pub fn last_ns(&self, name: &str) -> u64 {
        self.0["names"][name]["last_ns"].as_u64().unwrap_or(0)
    }

    /// What was met.
    pub fn names(&self) -> Vec<&str> {
        self.0["names"].as_object().unwrap().keys().map(String::as_str).collect()
    }
}

/// The clock of all processes and of the kernel.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap().as_nanos() as u64
}

/// A server that speaks first: its name, then an echo.
pub struct Banner {
    pub addr: SocketAddr,
    accept: JoinHandle<()>,
}

impl Banner {
    pub async fn start(name: &str) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), name).await
    }

    pub async fn at(addr: SocketAddr, name: &str) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let greeting = format!("{name}\n");
        let accept = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let greeting = greeting.clone();
                tokio::spawn(async move {
                    stream.write_all(greeting.as_bytes()).await?;
                    let mut buffer = [0; 1024];
                    loop {
                        match stream.read(&mut buffer).await? {
                            0 => return Ok::<(), std::io::Error>(()),
                            length => stream.write_all(&buffer[..length]).await?,
                        }
                    }
                });
            }
        });
        Self { addr, accept }
    }

    /// Nobody listens there any more.
    pub async fn stop(self) -> SocketAddr {
        self.accept.abort();
        while !self.accept.is_finished() {
            tokio::task::yield_now().await;
        }
        self.addr
    }
}

impl Drop for Banner {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

/// Sockets of a process that are connected to this address, or from it.
pub fn sockets(pid: u32, addr: SocketAddr) -> usize {
    let inodes: Vec<String> = (std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten())
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let hex = match addr {
        SocketAddr::V4(addr) => format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port()),
        SocketAddr::V6(_) => panic!("IPv4 only"),
    };
    let table = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net/tcp")).unwrap();
    table
        .lines()
        .skip(1)
        .filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let established = fields[3] == "01";
            established && fields[1..3].contains(&hex.as_str()) && inodes.iter().any(|inode| inode == fields[9])
        })
        .count()
}
