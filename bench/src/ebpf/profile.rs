//! How long the attached programs run, as the kernel counts it while it is asked to.

use std::path::Path;

use anyhow::{Context, Result};

const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// `enum bpf_prog_type`.
const SOCK_OPS: u64 = 13;
const SOCK_ADDR: u64 = 18;

/// The kernel counts as long as this lives. It costs each program some ten nanoseconds.
pub struct Counting {
    before: String,
}

impl Counting {
    /// Switches it on.
    pub fn start() -> Result<Self> {
        let before = std::fs::read_to_string(SWITCH).context(SWITCH)?;
        std::fs::write(SWITCH, "1").context(SWITCH)?;
        Ok(Self { before })
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(SWITCH, &self.before) {
            eprintln!("warning: {SWITCH} stays on: {error}");
        }
    }
}

/// What programs of this process have run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Runs {
    /// Nanoseconds within connect().
    pub hook_ns: u64,
    /// Nanoseconds of sock_ops.
    pub life_ns: u64,
    /// How often sock_ops ran.
    pub life_runs: u64,
}

impl Runs {
    /// Until now.
    pub fn read() -> Result<Self> {
        let mut runs = Self::default();
        let mut seen = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fdinfo")?.flatten() {
            let Some(text) = text(&entry.path()) else { continue };
            let (Some(id), Some(kind)) = (field(&text, "prog_id"), field(&text, "prog_type")) else { continue };
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            let (time, count) = (field(&text, "run_time_ns").unwrap_or(0), field(&text, "run_cnt").unwrap_or(0));
            match kind {
                SOCK_ADDR => runs.hook_ns += time,
                SOCK_OPS => {
                    runs.life_ns += time;
                    runs.life_runs += count;
                }
                _ => {}
            }
        }
        Ok(runs)
    }
}

/// A number in what /proc/PID/fdinfo says.
pub fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok())
}

/// A descriptor may be gone.
fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "pos:\t0\nprog_type:\t13\nprog_id:\t7\nrun_time_ns:\t900\nrun_cnt:\t3\n";
        assert_eq!(field(text, "run_cnt"), Some(3));
        assert_eq!(field(text, "prog"), None);
        assert_eq!(field(text, "map_id"), None);
    }
}
