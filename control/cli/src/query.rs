//! What the verbs that ask a running node share: the admin port, output formats, tables, watching.

mod table;
mod watch;

use std::{
    io::{IsTerminal, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::ValueEnum;
use serde_json::Value;
use weft_model::duration;

use crate::exit::{Done, Exit, Failure, print_line};

pub use table::{Cell, Table, Tone, clean};
pub use watch::run as again;

/// Longest wait for the admin port.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which node.
#[derive(Debug, Clone, clap::Args)]
pub struct AdminArgs {
    /// The node's admin address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
}

/// Arguments of listing verbs.
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    node: AdminArgs,
    /// How the list looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Ask again and again, until Ctrl-C: on a terminal in place, otherwise one list after the other.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "1s", value_parser = interval)]
    watch: Option<Duration>,
}

/// How often to ask again.
pub fn interval(text: &str) -> Result<Duration, String> {
    match duration::parse(text) {
        Ok(interval) if interval.is_zero() => Err("an interval is longer than nothing".into()),
        Ok(interval) => Ok(interval),
        Err(error) => Err(error.to_string()),
    }
}

/// How a list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// As the admin port gives it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// What text may contain.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    /// The columns of `-o wide`.
    pub wide: bool,
    /// Marks beyond ASCII.
    pub unicode: bool,
    /// Colours.
    pub color: bool,
}

impl Look {
    /// Fit for stdout: plain ASCII unless it is a terminal, colours unless `NO_COLOR` is set.
    pub fn of_stdout(wide: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let colorless = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { wide, unicode: terminal, color: terminal && !colorless }
    }

    /// `text` in the colour of its tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        match tone.code().filter(|_| self.color && !text.is_empty()) {
            Some(code) => format!("\x1b[{code}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }

    /// The mark of what is well, or is not.
    pub fn mark(self, well: bool) -> String {
        let tone = if well { Tone::Good } else { Tone::Bad };
        self.paint(tone, self.sign(tone))
    }

    /// The mark that goes with a tone.
    pub const fn sign(self, tone: Tone) -> &'static str {
        match (tone, self.unicode) {
            (Tone::Good, true) => "√",
            (Tone::Good, false) => "+",
            (Tone::Warn, _) => "!",
            (Tone::Bad, true) => "×",
            (Tone::Bad, false) => "-",
            (Tone::Plain | Tone::Bold, _) => " ",
        }
    }
}

/// Shows what the admin port has at `path`, once or until Ctrl-C.
pub fn list(args: &ListArgs, path: &'static str, table: fn(&Value, Look) -> String) -> Done {
    let (admin, output) = (args.node.admin, args.output);
    let look = Look::of_stdout(output == Output::Wide);
    match args.watch {
        None => print_line(&show(&get(admin, path)?, output, false, |value| table(value, look))?),
        Some(interval) => {
            let terminal = std::io::stdout().is_terminal();
            let frame = move || show(&get(admin, path)?, output, !terminal, |value| table(value, look));
            watch::run(interval, format!("the node at {admin}"), terminal, frame)?;
        }
    }
    Ok(())
}

/// A value as text. `stream`: one of many, so JSON takes one line, and YAML documents are told apart.
pub fn show(value: &Value, output: Output, stream: bool, table: impl Fn(&Value) -> String) -> Result<String, Failure> {
    Ok(match output {
        Output::Table | Output::Wide => table(value),
        Output::Json if stream => value.to_string(),
        Output::Json => format!("{value:#}"),
        Output::Yaml => {
            let text = serde_saphyr::to_string(value).map_err(anyhow::Error::from)?;
            format!("{}{}", if stream { "---\n" } else { "" }, text.trim_end())
        }
    })
}

/// JSON from the admin port.
pub fn get(admin: SocketAddr, path: &str) -> Result<Value, Failure> {
    let text = ask(admin, "GET", path)?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new(Exit::Failed, format!("what answers at {admin} is not a weft node: {error}")))
}

/// One request to the admin port, and the body of its answer.
pub fn ask(admin: SocketAddr, method: &str, path: &str) -> Result<String, Failure> {
    let (status, body) = exchange(admin, method, path)?;
    match status {
        200..300 => Ok(body),
        400 => Err(Failure::new(Exit::Usage, body.trim_end())),
        404 => {
            let page = path.split('?').next().unwrap_or(path);
            let what = format!("the node at {admin} has no {page}: it may be older than this weft");
            Err(Failure::new(Exit::Failed, what))
        }
        _ => Err(Failure::new(Exit::Failed, format!("the node at {admin} answered {status}: {}", body.trim_end()))),
    }
}

/// One request to the admin port; status and body of its answer, whatever they are.
pub fn exchange(admin: SocketAddr, method: &str, path: &str) -> Result<(u16, String), Failure> {
    let unreachable = |error: std::io::Error| {
        Failure::new(Exit::Unreachable, format!("no node answers at {admin}: {error} (is weft running? see --admin)"))
    };
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT).map_err(unreachable)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n").map_err(unreachable)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            let timeout = duration::format(TIMEOUT);
            Failure::new(Exit::TimedOut, format!("the node at {admin} does not answer within {timeout}"))
        }
        _ => unreachable(error),
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    match status {
        Some(status) => Ok((status, body.to_owned())),
        None => Err(Failure::new(Exit::Failed, format!("what answers at {admin} does not speak HTTP"))),
    }
}

/// The elements of a list; none for anything else.
pub fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A value in a cell: `-` for what is not there.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        // 90, not 90.0
        Value::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        other => other.to_string(),
    }
}

/// Milliseconds as `1m30s` or `2.25ms`; `-` for what is not there.
pub fn time(ms: &Value) -> String {
    match ms.as_f64() {
        None => "-".into(),
        Some(ms) if ms.fract() == 0.0 || ms >= 100.0 => duration::format(Duration::from_millis(ms.round() as u64)),
        Some(ms) => format!("{}ms", (ms * 100.0).round() / 100.0),
    }
}

/// A time that passes, in milliseconds, as exactly as a person reads it: `320ms`, `4.7s`, `1m12s`.
pub fn about(ms: &Value) -> String {
    match ms.as_f64() {
        None => "-".into(),
        Some(ms) if ms < 1_000.0 => format!("{}ms", ms.ceil()),
        Some(ms) if ms < 10_000.0 => format!("{:.1}s", ms / 1e3),
        Some(ms) => duration::format(Duration::from_secs((ms / 1e3).round() as u64)),
    }
}

/// `cart:80`
pub fn service(value: &Value) -> String {
    match &value["port"] {
        Value::Null => text(&value["service"]),
        port => format!("{}:{port}", text(&value["service"])),
    }
}

/// A breaker's state with its colour.
pub fn state(value: &Value) -> Cell {
    let tone = match value.as_str() {
        Some("closed" | "healthy") => Tone::Good,
        Some("half_open") => Tone::Warn,
        Some("open" | "unhealthy") => Tone::Bad,
        _ => Tone::Plain,
    };
    Cell::toned(tone, text(value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_short() {
        for (ms, expected) in [
            (json!(0), "0s"),
            (json!(250), "250ms"),
            (json!(90_000), "1m30s"),
            (json!(1.239), "1.24ms"),
            (json!(0.004), "0ms"),
            (json!(150.7), "151ms"),
            (json!(null), "-"),
        ] {
            assert_eq!(time(&ms), expected, "{ms}");
        }
    }

    #[test]
    fn a_time_that_passes_is_told_roughly() {
        for (ms, expected) in [
            (json!(0.2), "1ms"),
            (json!(319.5), "320ms"),
            (json!(4_721), "4.7s"),
            (json!(12_345), "12s"),
            (json!(71_900), "1m12s"),
            (json!(null), "-"),
        ] {
            assert_eq!(about(&ms), expected, "{ms}");
        }
    }

    #[test]
    fn formats() {
        let value = json!([{"a": 1, "b": ["x: y"], "c": null, "d": "yes"}]);
        let table = |_: &Value| "T".to_owned();
        let shown = |output, stream| show(&value, output, stream, table).unwrap();
        assert_eq!(shown(Output::Table, false), "T");
        assert_eq!(shown(Output::Json, true), "[{\"a\":1,\"b\":[\"x: y\"],\"c\":null,\"d\":\"yes\"}]");
        let yaml = shown(Output::Yaml, false);
        assert_eq!(yaml, "- a: 1\n  b:\n  - \"x: y\"\n  c: null\n  d: \"yes\"");
        assert_eq!(shown(Output::Yaml, true), format!("---\n{yaml}"));
    }
}
