//! Child processes and directories that end with their guard: on return, on error, on a signal and on a panic.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::machine;

/// How long a child may take to leave after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A directory under the system's temporary directory, removed when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates a directory that no other run uses: the process id and a counter are in its name.
    pub fn new(purpose: &str) -> Result<Self> {
        for attempt in 0..100 {
            let path = std::env::temp_dir().join(format!("weft-bench-{}-{purpose}-{attempt}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("create {}", path.display())),
            }
        }
        bail!("no free name for a temporary directory")
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into the directory and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A loopback port that was free a moment ago.
pub fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("ask the kernel for a port")?;
    Ok(listener.local_addr()?)
}

/// A running server, leader of its own process group.
pub struct Server {
    name: String,
    process: std::process::Child,
    log: PathBuf,
}

impl Server {
    /// Starts `program` with `args`, on one CPU when `cpu` is given. Its output goes to a file in `dir`.
    ///
    /// `setpriv` has the kernel end the child when this process dies without running its guards.
    pub fn start<S: AsRef<OsStr>>(
        name: &str,
        cpu: Option<usize>,
        dir: &TempDir,
        program: impl AsRef<OsStr>,
        args: &[S],
    ) -> Result<Self> {
        let log = dir.path().join("output.log");
        let out = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]);
        if let Some(cpu) = cpu {
            command.args(["taskset", "-c", &cpu.to_string()]);
        }
        command.arg(program).args(args);
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let process = command.spawn().context("start setpriv (package util-linux)")?;
        Ok(Self { name: name.to_owned(), process, log })
    }

    /// The process id, which is the process group's id too.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// CPU time and memory of the whole process group.
    pub fn usage(&self) -> Result<machine::Usage> {
        machine::group_usage(self.pid())
    }

    /// Resident bytes once they have stopped moving for a second, or after ten seconds.
    pub async fn settled_rss(&self) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut last = self.usage()?.rss;
        let mut still = 0;
        while still < 5 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = self.usage()?.rss;
            still = if now.abs_diff(last) * 1000 <= last { still + 1 } else { 0 };
            last = now;
        }
        Ok(last)
    }

    /// Waits until `addr` accepts a connection, and fails early, with the output's end, when the process leaves first.
    pub async fn ready(&mut self, addr: SocketAddr, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("{} ended with {status}: {}", self.name, self.last_words());
            }
            if tokio::net::TcpStream::connect(addr).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} does not listen on {addr} after {within:?}: {}", self.name, self.last_words());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks the process to leave and waits for it.
    pub async fn stop(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM);
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} has not left {within:?} after SIGTERM: {}", self.name, self.last_words());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends the process without asking, and waits for it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL);
        Ok(self.process.wait()?)
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// The last lines that the process wrote.
    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        match lines.len() {
            0 => "it wrote nothing".to_owned(),
            n => lines[n.saturating_sub(3)..].join(" | "),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::KILL);
        let _ = self.process.wait();
    }
}

/// What to put before a program and its arguments so that it starts in a cgroup: its sockets belong there from the first.
pub fn into_cgroup(cgroup: &Path) -> Vec<OsString> {
    const ENTER: &str = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
    vec![
        "setpriv".into(),
        "--pdeathsig".into(),
        "KILL".into(),
        "--".into(),
        "sh".into(),
        "-c".into(),
        ENTER.into(),
        cgroup.into(),
    ]
}

/// Where a program is, looked up on `PATH` and in the directories that hold servers.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}
