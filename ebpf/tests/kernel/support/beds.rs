//! cgroups of tests. Also part of the harness of the end-to-end tests.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use weft_ebpf::{
    cgroup::{self, Cgroup, mount},
    pins::Pins,
    programs,
};

const PREFIX: &str = "weft-test-";

/// Those that are there from the start.
const WORKLOADS: [&str; 3] = ["web", "batch", "other"];

/// A cgroup below the cgroup2 mount. With it go its pins, whoever is still in it, and all cgroups below.
pub struct TestCgroup {
    pub path: PathBuf,
}

impl TestCgroup {
    /// The error is why this machine does not let us.
    pub fn make(test: &str) -> Result<Self, String> {
        static PRIVILEGED: OnceLock<Result<(), String>> = OnceLock::new();
        PRIVILEGED.get_or_init(privileged).clone()?;
        let mount = mount().map_err(|error| error.to_string())?;
        sweep(&mount);
        let path = mount.join(format!("{PREFIX}{}-{test}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        ran(test);
        let made = Self { path };
        // A cgroup that comes later is known a moment later.
        for workload in WORKLOADS {
            made.child(workload);
        }
        Ok(made)
    }

    /// A cgroup below this one, made when it is missing.
    pub fn child(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn open(&self) -> Cgroup {
        Cgroup::open(&self.path).unwrap()
    }

    pub fn pins(&self) -> Pins {
        Pins::of(&self.open(), false).unwrap()
    }

    /// Names of the cgroups directly below.
    pub fn children(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.path).unwrap().flatten();
        let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Why kernel programs cannot be tested here.
fn privileged() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".into());
    }
    let own = cgroup::own().map_err(|error| error.to_string())?;
    Pins::of(&own, true).map_err(|error| error.to_string())?;
    // Maps that cannot be made are no failure, programs that do not load are one, of `load`: the verifier, too, says that
    // something is not permitted.
    match programs::load(&programs::object().unwrap(), None) {
        Err(error @ programs::EbpfSetupError::Load { .. }) => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Notes in the file that `WEFT_KERNEL_TESTS_LOG` names that a test was not skipped: whoever must not do without kernel
/// tests looks whether there are any.
fn ran(test: &str) {
    let Some(path) = std::env::var_os("WEFT_KERNEL_TESTS_LOG") else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{} {test}", env!("CARGO_PKG_NAME")).unwrap();
}

/// Cgroups of test processes that were killed.
fn sweep(mount: &Path) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).unwrap_or_default();
        if !pid.is_empty() && !Path::new("/proc").join(pid).exists() {
            remove(&entry.path());
        }
    }
}

/// Only tests put processes into their cgroups, so whoever is there was started by one.
fn remove(path: &Path) {
    if let Ok(cgroup) = Cgroup::open(path)
        && let Ok(pins) = Pins::of(&cgroup, false)
    {
        let _ = pins.remove();
    }
    let gone = || {
        for directory in below(path) {
            let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in processes.lines().filter_map(|line| line.parse::<i32>().ok()) {
                if pid.cast_unsigned() == std::process::id() {
                    // An agent of this process did not move back.
                    if let Ok(mount) = mount() {
                        let _ = fs::write(mount.join("cgroup.procs"), pid.to_string());
                    }
                } else if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            let _ = fs::remove_dir(&directory);
        }
        !path.exists()
    };
    let end = std::time::Instant::now() + Duration::from_secs(5);
    while !gone() {
        if std::time::Instant::now() > end {
            eprintln!("{} cannot be removed", path.display());
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A directory and all below, the deepest first.
fn below(path: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(below(&entry.path()));
        }
    }
    all.push(path.into());
    all
}
