//! What the kernel says about processes and CPUs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit};

/// CPU time and memory of a process group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time in user mode, reaped children included.
    pub user: Duration,
    /// Time in the kernel, reaped children included.
    pub system: Duration,
    /// Resident bytes, summed over the processes.
    pub rss: u64,
}

impl Usage {
    /// User and system time together.
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// The usage of all processes whose group is `group`: a master and its workers alike.
pub fn group_usage(group: u32) -> Result<Usage> {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as u64;
    let mut usage = Usage::default();
    let mut members = 0;
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        // A process may leave between the listing and the read.
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some(stat) = Stat::parse(&text) else { continue };
        if stat.group == group {
            usage.user += Duration::from_secs_f64(stat.user_ticks as f64 / ticks);
            usage.system += Duration::from_secs_f64(stat.system_ticks as f64 / ticks);
            usage.rss += stat.rss_pages * page;
            members += 1;
        }
    }
    if members == 0 {
        bail!("process group {group} has left");
    }
    Ok(usage)
}

/// The fields of `/proc/PID/stat` that are of use here; see proc(5).
#[derive(Debug, PartialEq)]
struct Stat {
    group: u32,
    user_ticks: u64,
    system_ticks: u64,
    rss_pages: u64,
}

impl Stat {
    /// The command, in parentheses, may hold spaces and parentheses itself: fields are counted from its last one.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            group: u32::try_from(number(5)?).ok()?,
            user_ticks: number(14)? + number(16)?,
            system_ticks: number(15)? + number(17)?,
            rss_pages: number(24)?,
        })
    }
}

/// Where load and proxy run: the first two CPUs that this process may use.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// The load generator and the upstream.
    pub load: usize,
    /// The proxy that is measured.
    pub proxy: usize,
}

impl Cores {
    /// Chooses two different CPUs; on a machine with only one everything shares it, which is said aloud.
    pub fn choose() -> Result<Self> {
        let allowed = rustix::thread::sched_getaffinity(None).context("read the CPU affinity")?;
        let mut cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let load = cpus.next().context("no CPU is allowed")?;
        let proxy = cpus.next().unwrap_or_else(|| {
            eprintln!("warning: only one CPU: load and proxy share it, rates and latencies mean little");
            load
        });
        Ok(Self { load, proxy })
    }
}

/// Raises the soft limit of open files to the hard one, so that children inherit it, and checks that `needed` fit.
pub fn allow_open_files(needed: u64) -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raise the limit of open files")?;
    match limit.maximum {
        Some(hard) if hard < needed => {
            bail!("{needed} open files are needed and the hard limit is {hard}: raise it with `ulimit -Hn`")
        }
        _ => Ok(()),
    }
}

/// One line about the machine, for the head of a table.
pub fn describe() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?");
    format!("{count} × {}, Linux {}, load average {load}", model.unwrap_or("unknown CPU"), kernel.trim())
}

/// The root of the workspace: what cargo says, else the nearest directory above that has `bench/` in it.
pub fn workspace() -> Result<std::path::PathBuf> {
    let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(dir) => dir.into(),
        None => std::env::current_dir()?,
    };
    let is_root = |dir: &&Path| dir.join("bench/Cargo.toml").is_file();
    start.ancestors().find(is_root).map(Path::to_owned).context("not inside Weft's workspace: run through cargo")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 1 70 7 0 -1 4194560 1 0 0 0 11 13 2 3 20 0 1 0 55 9000000 300 18446744073709551615";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat, Stat { group: 70, user_ticks: 13, system_ticks: 16, rss_pages: 300 });
    }

    #[test]
    fn a_cut_line_is_refused() {
        assert_eq!(Stat::parse("7 (a) S 1 70"), None);
        assert_eq!(Stat::parse(""), None);
    }
}
