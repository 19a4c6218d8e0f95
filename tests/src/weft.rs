//! The `weft` binary as a child process.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{Client, Reply, eventually, metrics::Metrics, ports};

/// How long a start may take: debug builds on a shared machine are slow.
const START: Duration = Duration::from_secs(30);

/// A running `weft proxy`. Killed, by its own id, when dropped. Not pinned: many of them share the cores.
pub struct Weft {
    child: Mutex<Child>,
    pub pid: u32,
    pub admin: SocketAddr,
    pub config: PathBuf,
    dir: TempDir,
}

/// What `weft proxy` is started with besides `--config` and `--admin`.
pub struct Options {
    /// Members of a control plane, to be followed instead of a file.
    pub control: Vec<SocketAddr>,
    pub workers: usize,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// A command that runs the binary; its own arguments come first.
    pub through: Vec<String>,
    /// Written beside the configuration before the start.
    pub files: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            control: Vec::new(),
            workers: 1,
            args: Vec::new(),
            env: Vec::new(),
            through: Vec::new(),
            files: Vec::new(),
        }
    }
}

/// Memory and processor use of the process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub rss_kib: u64,
    pub threads: u64,
    pub descriptors: usize,
}

impl Weft {
    /// Starts with one worker and waits until `/ready` is 200.
    pub async fn start(config: &str) -> Self {
        Self::start_with(config, Options::default()).await
    }

    pub async fn start_with(config: &str, options: Options) -> Self {
        let weft = Self::spawn(config, options);
        eventually("/ready is 200", START, async || {
            if let Some(status) = weft.exited() {
                panic!("weft exited at start: {status}");
            }
            matches!(weft.try_admin("/ready").await, Ok(reply) if reply.status == 200)
        })
        .await;
        weft
    }

    /// Starts without waiting.
    pub fn spawn(config: &str, options: Options) -> Self {
        let dir = TempDir::with_prefix("weft-e2e-").unwrap();
        // For a Weft that is somebody else.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for (name, text) in &options.files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let path = dir.path().join("weft.yaml");
        std::fs::write(&path, config).unwrap();
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()));
        let mut all = options.through.iter().map(AsRef::as_ref).chain([binary().as_os_str()]);
        let mut command = Command::new(all.next().unwrap_or_default());
        command
            .args(all)
            .arg("proxy")
            .args(if options.control.is_empty() {
                vec!["--config".into(), path.clone().into_os_string()]
            } else {
                vec![]
            })
            .args(options.control.iter().flat_map(|member| ["--control".to_owned(), member.to_string()]))
            .args(["--admin", &admin.to_string(), "--workers", &options.workers.to_string(), "--no-pin"])
            .args(&options.args)
            .envs(options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(dir.path().join("stdout")).unwrap())
            .stderr(std::fs::File::create(dir.path().join("stderr")).unwrap());
        let child = command.spawn().expect("the weft binary starts");
        Self { pid: child.id(), child: Mutex::new(child), admin, config: path, dir }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn stdout(&self) -> String {
        lossy(&self.dir.path().join("stdout"))
    }

    pub fn stderr(&self) -> String {
        lossy(&self.dir.path().join("stderr"))
    }

    /// Replaces the configuration file in one step, as an editor or a config map mount would.
    pub fn edit(&self, config: &str) {
        let new = self.dir.path().join(".weft.yaml.new");
        std::fs::write(&new, config).unwrap();
        std::fs::rename(new, &self.config).unwrap();
    }

    /// Replaces the configuration and waits until it is in force.
    pub async fn apply(&self, config: &str) {
        let before = self.revision().await;
        self.edit(config);
        eventually("the edited configuration is in force", Duration::from_secs(20), async || {
            self.revision().await > before
        })
        .await;
    }

    pub async fn revision(&self) -> u64 {
        self.metrics().await.sum("weft_config_revision", &[]) as u64
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The exit status, if the process has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    pub async fn wait_exit(&self, limit: Duration) -> ExitStatus {
        eventually("weft exits", limit, async || self.exited().is_some()).await;
        self.exited().unwrap()
    }

    pub async fn try_admin(&self, path: &str) -> Result<Reply, String> {
        // By this name: the admin port refuses others, against DNS rebinding.
        Client::h1(self.admin).await?.get("localhost", path).await
    }

    pub async fn admin(&self, path: &str) -> Reply {
        self.try_admin(path).await.expect("the admin port answers")
    }

    pub async fn admin_json(&self, path: &str) -> serde_json::Value {
        let reply = self.admin(path).await;
        serde_json::from_slice(&reply.body).unwrap_or_else(|e| panic!("{path} is not JSON: {e}\n{}", reply.text()))
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.admin("/metrics").await.text())
    }

    pub fn usage(&self) -> Usage {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process lives");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count);
        Usage { rss_kib: field("VmRSS:"), threads: field("Threads:"), descriptors }
    }

    /// Clock ticks (10 ms) of processor time used so far.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process lives");
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// After an attack: alive, ready, memory back to at most `more_kib` above `before`, and idle.
    pub async fn recovered(&self, before: Usage, more_kib: u64) {
        assert_eq!(self.exited(), None, "the process is alive");
        assert_eq!(self.admin("/ready").await.status, 200);
        eventually("memory is back within bounds", Duration::from_secs(15), async || {
            self.usage().rss_kib < before.rss_kib + more_kib
        })
        .await;
        eventually("descriptors are closed again", Duration::from_secs(15), async || {
            self.usage().descriptors <= before.descriptors + 8
        })
        .await;
        eventually("the processor is idle again", Duration::from_secs(15), async || {
            let ticks = self.cpu_ticks();
            tokio::time::sleep(Duration::from_millis(400)).await;
            self.cpu_ticks() - ticks <= 2
        })
        .await;
    }

    fn print_log(&self) {
        let mut text = String::new();
        for name in ["stdout", "stderr"] {
            let log = lossy(&self.dir.path().join(name));
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(60)..];
            let _ =
                writeln!(text, "--- weft {name}, last {} of {} lines\n{}", shown.len(), lines.len(), shown.join("\n"));
        }
        eprintln!("{text}--- end");
    }
}

impl Drop for Weft {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_log();
        }
        let child = self.child.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A verb that ends by itself: `weft validate FILE`, or a `weft proxy` that must not start.
pub async fn run(args: &[&str]) -> std::process::Output {
    let child = tokio::process::Command::new(binary())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the weft binary starts");
    crate::within(START, &format!("weft {args:?} ends"), child.wait_with_output()).await.unwrap()
}

/// Path of the binary under test: `WEFT_BIN`, or the one in the target directory of this test, built when it is
/// missing or older than its sources.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("WEFT_BIN") {
            return PathBuf::from(path);
        }
        let this = std::env::current_exe().unwrap();
        // target/<profile>/deps/e2e-…
        let profile = this.parent().and_then(Path::parent).expect("tests run from a target directory");
        let path = profile.join("weft");
        let stamp = profile.join(".weft-e2e-built");
        let lock = std::fs::File::create(profile.join(".weft-e2e-lock")).unwrap();
        lock.lock().unwrap();
        let built = modified(&path).max(modified(&stamp).filter(|_| path.exists()));
        if built.is_none_or(|built| built < newest_source()) {
            build(profile);
            std::fs::write(stamp, "").unwrap();
        }
        path
    })
}

fn build(profile: &Path) {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "-p", "weft"]).current_dir(workspace()).env("CARGO_TARGET_DIR", profile.parent().unwrap());
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => {}
        Some(name) => drop(command.args(["--profile", name])),
        None => {}
    }
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "building weft failed:\n{}", String::from_utf8_lossy(&output.stderr));
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn newest_source() -> SystemTime {
    fn walk(dir: &Path, newest: &mut SystemTime) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, newest);
            } else if let Some(time) = modified(&path) {
                *newest = time.max(*newest);
            }
        }
    }
    let root = workspace();
    let mut newest = modified(&root.join("Cargo.toml")).unwrap_or(SystemTime::UNIX_EPOCH);
    for dir in ["proxy", "control", "ebpf"] {
        walk(&root.join(dir), &mut newest);
    }
    newest
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|meta| meta.modified()).ok()
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
