//! `process_*`: what Prometheus's client libraries report about a process, read from `/proc`.

use std::fs;

use super::Samples;

/// `USER_HZ`: the unit of times in `/proc/*/stat`; 100 on every architecture that Linux's ABI fixes it for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Adds what can be read; a file that is missing is left out.
pub(super) fn collect(samples: &mut Samples) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse_stat) {
        samples.add("process_cpu_seconds_total", &[], stat.cpu_seconds);
        samples.add("process_threads", &[], stat.threads);
        if let Some(boot) = boot_time() {
            samples.add("process_start_time_seconds", &[], boot + stat.started_after_boot);
        }
    }
    if let Some(kib) = field("/proc/self/status", "VmRSS:") {
        samples.add("process_resident_memory_bytes", &[], kib * 1024.0);
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory itself.
        samples.add("process_open_fds", &[], fds.count().saturating_sub(1) as f64);
    }
    if let Some(limit) = field("/proc/self/limits", "Max open files") {
        samples.add("process_max_fds", &[], limit);
    }
}

struct Stat {
    cpu_seconds: f64,
    threads: f64,
    started_after_boot: f64,
}

/// Fields by number: see proc_pid_stat(5). The second is the command in parentheses and may contain anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect::<Vec<_>>();
    let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_seconds: (number(14)? + number(15)?) / TICKS_PER_SECOND,
        threads: number(20)?,
        started_after_boot: number(22)? / TICKS_PER_SECOND,
    })
}

fn boot_time() -> Option<f64> {
    field("/proc/stat", "btime")
}

/// The first number behind `label` at the start of a line.
fn field(path: &str, label: &str) -> Option<f64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(label)?.split_ascii_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let text = "7 (we) ft) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 12345 1 2 3";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.cpu_seconds, stat.threads, stat.started_after_boot), (3.0, 9.0, 123.45));
    }

    #[test]
    fn this_process_is_plausible() {
        let mut samples = Samples::default();
        collect(&mut samples);
        let value = |name| samples.value(name, &[]).unwrap();
        assert!(value("process_resident_memory_bytes") > 1e6);
        assert!(value("process_open_fds") >= 3.0 && value("process_open_fds") <= value("process_max_fds"));
        assert!(value("process_start_time_seconds") > 1.6e9);
        assert!(value("process_threads") >= 1.0);
    }
}
