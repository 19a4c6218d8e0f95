//! `/debug/heap`: how much memory the process has, by the kernel's account.

use std::{fs, io};

use serde_json::{Map, Value, json};

/// From `/proc/self/status` and `/proc/self/smaps_rollup`, in bytes.
pub fn report() -> Value {
    json!({
        "status": section(
            fs::read_to_string("/proc/self/status"),
            &["VmPeak", "VmSize", "VmHWM", "VmRSS", "RssAnon", "RssFile", "VmData", "VmSwap", "Threads"],
        ),
        "smaps_rollup": section(
            fs::read_to_string("/proc/self/smaps_rollup"),
            &["Rss", "Pss", "Private_Clean", "Private_Dirty", "Anonymous", "AnonHugePages", "Swap"],
        ),
    })
}

fn section(text: io::Result<String>, wanted: &[&str]) -> Value {
    match text {
        Ok(text) => Value::Object(parse(&text, wanted)),
        Err(error) => json!({ "error": error.to_string() }),
    }
}

/// `VmRSS:     1234 kB` → `"VmRSS": 1263616`.
fn parse(text: &str, wanted: &[&str]) -> Map<String, Value> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| wanted.contains(name))
        .filter_map(|(name, value)| {
            let mut words = value.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            let unit = if words.next() == Some("kB") { 1024 } else { 1 };
            Some((name.to_owned(), number.saturating_mul(unit).into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kibibytes_become_bytes() {
        let parsed =
            parse("Name:\tweft\nVmRSS:\t   10 kB\nThreads:\t3\nVmSize: x kB\n", &["VmRSS", "Threads", "VmSize"]);
        assert_eq!(Value::Object(parsed), json!({ "VmRSS": 10_240, "Threads": 3 }));
    }
}
