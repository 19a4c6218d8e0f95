//! The cgroups in which measurements take place. Nothing outside of them is captured.
//!
//! ```text
//! <cgroup2>/weft-bench-<pid>-<purpose>/mesh        the programs are attached here
//!                                          /app   clients that are captured
//!                                     /out         clients that are not
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use weft_ebpf::cgroup::{self, Cgroup, OWN};
use weft_ebpf::pins::Pins;

const PREFIX: &str = "weft-bench-";
/// How long processes that were killed may take to leave.
const PATIENCE: Duration = Duration::from_secs(5);

/// cgroups and pins; removed when dropped. To be dropped after everything that runs in it.
pub struct Stage {
    base: PathBuf,
    /// Where programs are attached.
    pub mesh: PathBuf,
    /// Processes here are captured; the workload `app`.
    pub app: PathBuf,
    /// Processes here are not.
    pub out: PathBuf,
}

impl Stage {
    /// Makes the cgroups, and removes those that a run left which was killed.
    pub fn new(purpose: &str) -> Result<Self> {
        let mount = cgroup::mount()?;
        sweep(&mount);
        let base = mount.join(format!("{PREFIX}{}-{purpose}", std::process::id()));
        let mesh = base.join("mesh");
        let stage = Self { app: mesh.join("app"), out: base.join("out"), mesh, base };
        for path in [&stage.base, &stage.mesh, &stage.app, &stage.out] {
            std::fs::create_dir(path)
                .with_context(|| format!("create {} (the kernel side is measured by root only)", path.display()))?;
        }
        Ok(stage)
    }

    /// The pins of the programs.
    pub fn pins(&self) -> Result<Pins> {
        Ok(Pins::of(&Cgroup::open(&self.mesh)?, true)?)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.base) {
            eprintln!("warning: {} is left over: {error:#}", self.base.display());
        }
    }
}

/// Removes what belongs to runs whose process is gone.
fn sweep(mount: &Path) {
    for entry in std::fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            eprintln!("removing {}, left by a run that was killed", entry.path().display());
            let _ = remove(&entry.path());
        }
    }
}

/// Detaches the programs, ends what still runs in these cgroups, all of it started by the run, and removes them.
fn remove(base: &Path) -> Result<()> {
    let mesh = base.join("mesh");
    if mesh.is_dir() {
        Pins::of(&Cgroup::open(&mesh)?, false).and_then(|pins| pins.remove()).context("remove the pins")?;
    }
    let own = cgroup::own()?.path;
    let deadline = Instant::now() + PATIENCE;
    for path in [mesh.join("app"), mesh.join(OWN), base.join("out"), mesh, base.to_owned()] {
        while path.is_dir() {
            if !own.starts_with(&path) {
                let _ = std::fs::write(path.join("cgroup.kill"), "1");
            }
            match std::fs::remove_dir(&path) {
                Ok(()) => break,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error).with_context(|| path.display().to_string()),
            }
        }
    }
    Ok(())
}
