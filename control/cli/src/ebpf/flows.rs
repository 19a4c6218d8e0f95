//! `weft ebpf flows`: connections as they are decided.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use clap::ValueEnum;
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};

use crate::{
    exit::{Done, Exit, Failure, eprint_line, print_line},
    query::{self, AdminArgs, Cell, Look, Output, Table, Tone, each, show, text},
};

/// Between two questions with `-f`.
const INTERVAL: Duration = Duration::from_millis(200);
/// How many of those before are shown first with `-f`.
const BEFORE: usize = 20;
/// Columns of `-f` are at least this wide: nobody knows what comes. Those of [`Shown::row`].
const WIDTHS: [usize; 6] = [12, 12, 21, 7, 21, 0];

/// Arguments of `weft ebpf flows`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: AdminArgs,
    /// Go on with those that come, until Ctrl-C.
    #[arg(short, long)]
    follow: bool,
    /// How they look; JSON with -f is one object a line.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    only: Only,
    /// The last N of those there are [default: all, with -f 20].
    #[arg(long, value_name = "N")]
    last: Option<usize>,
}

/// Which.
#[derive(Debug, Clone, clap::Args)]
struct Only {
    /// Only these verdicts: `--verdict deny,direct`.
    #[arg(long, value_enum, value_delimiter = ',')]
    verdict: Vec<Verdict>,
    /// Only those of this workload.
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Only those to this service: `cart`, `cart:80`, `shop/cart`.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
}

/// As the node writes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Verdict {
    Pass,
    Direct,
    Proxy,
    Deny,
    /// A DIRECT connection that the endpoint refused, or did not answer.
    Trouble,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Direct => "direct",
            Self::Proxy => "proxy",
            Self::Deny => "deny",
            Self::Trouble => "trouble",
        }
    }
}

/// Shows them.
pub fn run(args: &Args) -> Done {
    let admin = args.node.admin;
    let shown = Shown {
        only: args.only.clone(),
        output: args.output,
        look: Look::of_stdout(args.output == Output::Wide),
        zone: TimeZone::system(),
    };
    if args.follow {
        let last = args.last.unwrap_or(BEFORE);
        let follow = Mutex::new(Follow::default());
        return query::again(INTERVAL, format!("the node at {admin}"), false, move || {
            let mut follow = follow.lock().unwrap_or_else(PoisonError::into_inner);
            follow.next(last, &shown, |after| ask(admin, after))
        });
    }
    let mut answer = ask(admin, 0)?;
    let flows = last(shown.wanted(&answer), args.last.unwrap_or(usize::MAX));
    let none = flows.is_empty();
    answer["flows"] = flows.into();
    if none && matches!(args.output, Output::Table | Output::Wide) {
        eprint_line("no such connections; only refusals are kept while nobody follows (-f)");
        return Ok(());
    }
    print_line(&show(&answer, args.output, false, |answer| {
        let mut table = Table::new(shown.headings());
        each(&answer["flows"]).for_each(|flow| table.row(shown.row(flow)));
        let mut lines = table.lines(shown.look);
        lines.extend(answer["lost"].as_u64().filter(|lost| *lost > 0).map(|lost| shown.lost(lost)));
        lines.join("\n")
    })?);
    Ok(())
}

fn ask(admin: SocketAddr, after: u64) -> Result<Value, Failure> {
    let answer = query::get(admin, &format!("/flows?after={after}"))?;
    if answer["flows"].is_array() {
        return Ok(answer);
    }
    Err(Failure::new(
        Exit::Unreachable,
        format!("the node at {admin} runs without kernel programs: nothing is captured (`weft check` tells why)"),
    ))
}

fn last(mut flows: Vec<Value>, count: usize) -> Vec<Value> {
    flows.split_off(flows.len().saturating_sub(count))
}

/// Where `-f` is.
#[derive(Debug, Default)]
struct Follow {
    /// Number of the last one seen, and of events lost until then.
    seen: Option<(u64, u64)>,
}

impl Follow {
    /// What is new, as text; nothing when nothing is.
    fn next(
        &mut self,
        before: usize,
        shown: &Shown,
        ask: impl Fn(u64) -> Result<Value, Failure>,
    ) -> Result<String, Failure> {
        let number = |answer: &Value, field: &str| answer[field].as_u64().unwrap_or(0);
        let after = self.seen.map_or(0, |(after, _)| after);
        let mut answer = ask(after)?;
        if number(&answer, "next") < after {
            // Another process, which counts from 1.
            self.seen = Some((0, number(&answer, "lost")));
            answer = ask(0)?;
        }
        let mut flows = shown.wanted(&answer);
        let mut lost = 0;
        match self.seen {
            None => flows = last(flows, before),
            Some((after, before)) => {
                // What the kernel had no room for, and what the node had no room for.
                let first = each(&answer["flows"]).next().map_or(after + 1, |flow| number(flow, "number"));
                lost = number(&answer, "lost").saturating_sub(before) + first.saturating_sub(after + 1);
            }
        }
        let heading = self.seen.is_none();
        self.seen = Some((number(&answer, "next"), number(&answer, "lost")));
        shown.more(heading, &flows, lost)
    }
}

/// How flows are shown.
#[derive(Debug)]
struct Shown {
    only: Only,
    output: Output,
    look: Look,
    zone: TimeZone,
}

impl Shown {
    /// Those that were asked for.
    fn wanted(&self, answer: &Value) -> Vec<Value> {
        each(&answer["flows"]).filter(|flow| self.only.admits(flow)).cloned().collect()
    }

    /// Some more of them.
    fn more(&self, heading: bool, flows: &[Value], lost: u64) -> Result<String, Failure> {
        let mut lines = Vec::new();
        if matches!(self.output, Output::Table | Output::Wide) {
            let mut table = if heading { Table::new(self.headings()) } else { Table::bare() }.at_least(&WIDTHS);
            flows.iter().for_each(|flow| table.row(self.row(flow)));
            lines.extend((lost > 0).then(|| self.lost(lost)));
            lines.extend(table.lines(self.look));
        } else {
            let lost = (lost > 0).then(|| json!({ "lost": lost }));
            for value in lost.iter().chain(flows) {
                lines.push(show(value, self.output, true, |_| String::new())?);
            }
        }
        Ok(lines.join("\n"))
    }

    fn lost(&self, lost: u64) -> String {
        self.look.paint(Tone::Warn, &format!("... {lost} more were lost: too many at once"))
    }

    fn headings(&self) -> Vec<&'static str> {
        let mut headings = vec!["TIME", "WORKLOAD", "DESTINATION", "VERDICT", "ENDPOINT", "REASON"];
        if self.look.wide {
            headings.splice(2..2, ["PROCESS"]);
            headings.splice(4..4, ["SERVICE"]);
        }
        headings
    }

    fn row(&self, flow: &Value) -> Vec<Cell> {
        let process = match flow["command"].as_str().unwrap_or_default() {
            // Where an endpoint is in trouble, the kernel knows who began the connection, not what it was called.
            "" => format!("pid {}", text(&flow["pid"])),
            command => format!("{}[{}]", escaped(command), text(&flow["pid"])),
        };
        let workload = flow["workload"].as_str().map(Into::into);
        let mut row: Vec<Cell> = vec![
            self.time(flow).into(),
            workload.unwrap_or_else(|| if self.look.wide { "-".into() } else { process.clone() }).into(),
            text(&flow["destination"]).into(),
            verdict(flow),
            text(&flow["endpoint"]).into(),
            reason(flow).into(),
        ];
        if self.look.wide {
            row.splice(2..2, [process.into()]);
            row.splice(4..4, [text(&flow["service"]).into()]);
        }
        row
    }

    fn time(&self, flow: &Value) -> String {
        let at = flow["at_ms"].as_i64().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let format = if self.look.wide { "%Y-%m-%d %H:%M:%S%.3f" } else { "%H:%M:%S%.3f" };
        at.map_or_else(|| "-".into(), |at| at.to_zoned(self.zone.clone()).strftime(format).to_string())
    }
}

impl Only {
    fn admits(&self, flow: &Value) -> bool {
        let text = |field: &str| flow[field].as_str();
        let named = |wanted: &Option<String>, field: &str| {
            wanted.as_deref().is_none_or(|wanted| text(field).is_some_and(|name| is_called(name, wanted)))
        };
        let verdict = self.verdict.is_empty() || self.verdict.iter().any(|one| Some(one.name()) == text("verdict"));
        verdict && named(&self.workload, "workload") && named(&self.service, "service")
    }
}

/// Whether `shop/cart:80` is meant by `wanted`, which may leave out what is before the slash, and after the colon.
fn is_called(name: &str, wanted: &str) -> bool {
    let short = name.rsplit_once('/').map_or(name, |(_, short)| short);
    [name, short].iter().any(|name| *name == wanted || name.rsplit_once(':').is_some_and(|(name, _)| name == wanted))
}

/// A command's name is what its process says it is.
fn escaped(command: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\'' => c.to_string(),
        c => c.escape_debug().to_string(),
    };
    command.chars().map(escape).collect()
}

/// A verdict with its colour.
pub fn verdict(of: &Value) -> Cell {
    let tone = match of["verdict"].as_str() {
        Some("deny") => Tone::Bad,
        Some("trouble") => Tone::Warn,
        Some("direct" | "proxy") => Tone::Good,
        _ => Tone::Plain,
    };
    Cell::toned(tone, text(&of["verdict"]))
}

/// Why, in words.
pub fn reason(of: &Value) -> String {
    let text = match (of["reason"].as_str(), of["verdict"].as_str()) {
        (Some("not_a_service"), _) => "no service has this address",
        (Some("own_connection"), _) => "the proxy's own connection",
        (Some("service"), Some("direct")) => "the service needs no proxy",
        (Some("service"), Some("proxy")) => "the service needs the proxy",
        (Some("fail_open"), _) => "the proxy is down, the service fails open",
        (Some("access_denied"), _) => "an AccessPolicy refuses it",
        (Some("proxy_down"), _) => "the proxy is down, the service fails closed",
        (Some("other_namespace"), _) => "the proxy does not listen in this network namespace",
        (Some("no_port"), _) => "the service has no such port",
        (Some("no_endpoint"), _) => "no endpoint of this address family",
        (Some("refused"), _) => "the endpoint refused it",
        (Some("timed_out"), _) => "the endpoint did not answer",
        _ => return query::text(&of["reason"]),
    };
    text.into()
}

#[cfg(test)]
mod tests;
