//! wrk and h2load, run as children, their output read into an [`Outcome`].

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::Outcome;
use crate::child::{self, TempDir, find_program};

/// Streams per connection when the load is HTTP/2.
const STREAMS: u32 = 8;

/// wrk counts 3xx as success and prints rounded figures; its hook at the end knows better. No hook runs per request.
const WRK_SUMMARY: &str = r#"done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'outcome {"requests":%d,"seconds":%.6f,"p50_us":%d,"p99_us":%d,"non_2xx":%d,"socket_errors":%d,"connect_errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout, e.connect))
end
"#;

/// What makes the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tool {
    /// HTTP/1.1, the usual choice.
    Wrk,
    /// HTTP/2 with prior knowledge.
    H2load,
    /// This program, where wrk is not installed.
    Own,
}

impl Tool {
    /// The best tool that is installed.
    pub fn choose(h2: bool) -> Result<Self> {
        match (h2, find_program("h2load"), find_program("wrk")) {
            (true, Some(_), _) => Ok(Self::H2load),
            (true, None, _) => bail!("--h2 needs h2load: apt-get install nghttp2-client"),
            (false, _, Some(_)) => Ok(Self::Wrk),
            (false, _, None) => {
                eprintln!("wrk is missing (apt-get install wrk): the built-in generator makes the load");
                Ok(Self::Own)
            }
        }
    }

    fn command(self, job: &Job<'_>, dir: &TempDir) -> Result<Vec<OsString>> {
        let url = &format!("http://{}/", job.target);
        let seconds = job.seconds.to_string();
        let connections = job.connections;
        let args: Vec<OsString> = match self {
            _ if job.rate.is_some() && self != Self::Own => bail!("only the built-in generator keeps a rate"),
            Self::Wrk => {
                let script = dir.write("summary.lua", WRK_SUMMARY)?;
                let connections = format!("-c{connections}");
                let duration = format!("-d{seconds}");
                let options = ["wrk", "-t1", &connections, &duration, "-s"].map(OsString::from);
                options.into_iter().chain([script.into(), url.into()]).collect()
            }
            Self::H2load => {
                let clients = connections.div_ceil(STREAMS).to_string();
                let streams = STREAMS.to_string();
                ["h2load", "-t1", "-c", &clients, "-m", &streams, "-D", &seconds, url].map(OsString::from).into()
            }
            Self::Own => {
                let exe = std::env::current_exe().context("find this program")?;
                let connections = connections.to_string();
                let options = ["load", url, "--json", "--connections", &connections, "--seconds", &seconds];
                let rate = job.rate.map(|rate| OsString::from(format!("--rate={rate}")));
                [exe.into()].into_iter().chain(options.map(OsString::from)).chain(rate).collect()
            }
        };
        Ok(args)
    }
}

/// What to load, and how.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Where.
    pub target: SocketAddr,
    /// Connections, each with one request in flight (fewer connections with more streams for HTTP/2).
    pub connections: u32,
    /// How long.
    pub seconds: u32,
    /// Requests per second over all connections; closed loop without. Only for [`Tool::Own`].
    pub rate: Option<u32>,
    /// The CPU to load from; without, the kernel chooses.
    pub cpu: Option<usize>,
    /// The cgroup to load from; without, that of this process.
    pub cgroup: Option<&'a Path>,
}

/// Loads. Ends the tool when the future is dropped.
pub async fn run(tool: Tool, job: Job<'_>) -> Result<Outcome> {
    let dir = TempDir::new("load")?;
    let mut args = tool.command(&job, &dir)?;
    if let Some(cpu) = job.cpu {
        args.splice(0..0, ["taskset", "-c", &cpu.to_string()].map(OsString::from));
    }
    if let Some(cgroup) = job.cgroup {
        args.splice(0..0, child::into_cgroup(cgroup));
    }
    let mut command = tokio::process::Command::new(&args[0]);
    command.args(&args[1..]).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("start {}", args[0].display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let outcome = match tool {
        Tool::Wrk => text.lines().find_map(|line| serde_json::from_str(line.strip_prefix("outcome ")?).ok()),
        Tool::H2load => parse_h2load(&text),
        Tool::Own => serde_json::from_str(text.trim()).ok(),
    };
    outcome.with_context(|| {
        format!(
            "{tool:?} ended with {} and no figures: {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// h2load tells no percentiles.
fn parse_h2load(text: &str) -> Option<Outcome> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    let counts = |line: &str| -> Vec<(u64, String)> {
        let pairs = line.split(',').filter_map(|part| part.trim().split_once(' '));
        pairs.filter_map(|(count, what)| Some((count.parse().ok()?, what.to_owned()))).collect()
    };
    let pick = |counts: &[(u64, String)], name: &str| counts.iter().find(|(_, what)| what == name).map(|(n, _)| *n);
    let requests = counts(line("requests: ")?);
    let status = counts(line("status codes: ")?);
    let seconds = line("finished in ")?.split_once("s,")?.0;
    let seconds = match seconds.strip_suffix('m') {
        Some(millis) => millis.parse::<f64>().ok()? / 1e3,
        None => seconds.parse().ok()?,
    };
    let ok = pick(&status, "2xx")?;
    Some(Outcome {
        requests: ok,
        seconds,
        p50_us: None,
        p99_us: None,
        non_2xx: status.iter().map(|(count, _)| count).sum::<u64>() - ok,
        socket_errors: pick(&requests, "errored")? + pick(&requests, "timeout")?,
        ..Outcome::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2load_output_is_read() {
        let text = "finished in 2.00s, 25.00 req/s, 1.20MB/s\n\
                    requests: 60 total, 61 started, 60 done, 50 succeeded, 10 failed, 3 errored, 1 timeout\n\
                    status codes: 50 2xx, 0 3xx, 0 4xx, 6 5xx\n";
        let outcome = parse_h2load(text).unwrap();
        assert_eq!(outcome, Outcome { requests: 50, seconds: 2.0, non_2xx: 6, socket_errors: 4, ..Outcome::default() });
        assert_eq!(parse_h2load(&text.replace("2.00s,", "850.00ms,")).map(|o| o.seconds), Some(0.85));
    }
}
