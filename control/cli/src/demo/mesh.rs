//! The transparent part of the demo, where the kernel may be used: two processes in cgroups of their own that connect to
//! services' addresses as if there were no mesh.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use serde_json::Value;
use weft_ebpf::{
    agent,
    cgroup::{self, Cgroup},
    pins::Pins,
};

use super::services::Samples;
use crate::{exit::Done, kernel::Wanted, query};

/// Addresses of services; nothing else may have them.
pub const HELLO: &str = "10.96.0.10";
const STORE: &str = "10.96.0.20:6379";
/// Between two rounds of a client.
const PAUSE: Duration = Duration::from_millis(200);
/// After this time the kernel has seen some connections of each kind.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// The cgroups of the demo. Everything in the kernel and below them goes when this is dropped.
#[derive(Debug)]
pub struct Stage {
    cgroup: Cgroup,
    clients: Vec<Child>,
}

impl Stage {
    /// Makes the cgroups.
    ///
    /// # Errors
    /// Why the kernel may not be used.
    pub fn set() -> Result<Self, Box<dyn std::error::Error>> {
        let path = cgroup::mount()?.join(format!("weft-demo-{}", std::process::id()));
        fs::create_dir(&path)?;
        let stage = Self { cgroup: Cgroup::open(&path)?, clients: Vec::new() };
        stage.cgroup.child("shop")?;
        stage.cgroup.child("batch")?;
        Ok(stage)
    }

    /// What the node is asked for.
    pub fn wanted(&self) -> Wanted {
        Wanted { required: false, agent: agent::Options { cgroup: self.cgroup.path.clone(), end_stale: None } }
    }

    /// Where to put a process to have it captured.
    pub fn path(&self) -> &Path {
        &self.cgroup.path
    }

    /// Starts the clients.
    ///
    /// # Errors
    /// When a process cannot be started.
    pub fn play(&mut self) -> io::Result<()> {
        for name in ["shop", "batch"] {
            let client = Command::new(std::env::current_exe()?)
                .args(["demo-client", "--cgroup"])
                .arg(self.cgroup.path.join(name))
                // Its end tells the client that the demo has ended, however it ended.
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            self.clients.push(client);
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
        // What is left costs an empty directory.
        let _ = Pins::of(&self.cgroup, false).and_then(|pins| pins.remove());
        for name in ["shop", "batch", cgroup::OWN] {
            let _ = fs::remove_dir(self.cgroup.path.join(name));
        }
        let _ = fs::remove_dir(&self.cgroup.path);
    }
}

/// The documents that make the demo transparent.
pub fn configuration(samples: &Samples) -> String {
    let endpoint = |address: &SocketAddr| format!("  - {{address: {}, port: {}}}", address.ip(), address.port());
    let endpoints: Vec<String> = samples.store.iter().map(endpoint).collect();
    include_str!("mesh.yaml").replace("STORE", &endpoints.join("\n"))
}

/// A port that is free on loopback, for captured connections.
///
/// # Errors
/// When there is none.
pub fn captured() -> io::Result<Vec<SocketAddr>> {
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))])
}

/// Says in one line which verdicts there were.
pub fn verdicts(admin: SocketAddr) -> Option<String> {
    std::thread::sleep(FIRST_LOOK);
    let status = query::get(admin, "/ebpf").ok()?;
    let counts = status["verdicts"].as_array()?.iter().filter_map(|count| {
        let (verdict, reason) = (count["verdict"].as_str()?, count["reason"].as_str()?);
        let means = match (verdict, reason) {
            ("proxy", _) => "PROXY (shop and batch to hello)",
            ("direct", _) => "DIRECT (shop to store, without Weft on the path)",
            ("deny", "access_denied") => "DENY (batch to store)",
            _ => return None,
        };
        Some(format!("{} {means}", query::text(count.get("count").unwrap_or(&Value::Null))))
    });
    Some(format!("Verdicts of the kernel so far: {}.", counts.collect::<Vec<_>>().join(", ")))
}

/// Arguments of the clients that the demo starts.
#[derive(Debug, clap::Args)]
pub struct ClientArgs {
    /// Where it goes first.
    #[arg(long)]
    cgroup: PathBuf,
}

/// A client: a request to hello and a line to store, five times a second, until the demo ends.
pub fn client(args: &ClientArgs) -> Done {
    let moved = Cgroup::open(&args.cgroup).and_then(|cgroup| cgroup.enter());
    moved.map_err(|error| crate::exit::Failure::new(crate::exit::Exit::Failed, error))?;
    let (sender, ended) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _ = io::stdin().read(&mut [0]);
        drop(sender);
    });
    while ended.recv_timeout(PAUSE) == Err(mpsc::RecvTimeoutError::Timeout) {
        // Whatever becomes of it can be seen at the admin port.
        let hello = format!("GET / HTTP/1.1\r\nhost: {HELLO}\r\nconnection: close\r\n\r\n");
        let _ = exchange(&format!("{HELLO}:80"), &hello);
        let _ = exchange(STORE, "PING\n");
    }
    Ok(())
}

fn exchange(address: &str, text: &str) -> io::Result<()> {
    let address = address.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(text.as_bytes())?;
    let _ = stream.read(&mut [0; 1024])?;
    Ok(())
}
