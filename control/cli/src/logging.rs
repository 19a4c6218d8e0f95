//! Log lines on stderr: `RUST_LOG` chooses, text or JSON.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Without `RUST_LOG`. notify reports races with files that vanish, which Weft expects; openraft reports each heartbeat
/// that an absent member does not answer.
const DEFAULT: &str = "info,notify=off,openraft=error";

/// Starts logging for this process.
pub fn start(format: Format) {
    let (filter, bad) = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(DEFAULT), Some(error.to_string())),
        },
        _ => (EnvFilter::new(DEFAULT), None),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        Format::Text => {
            let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(color).init();
        }
        Format::Json => lines.json().flatten_event(true).init(),
    }
    if let Some(error) = bad {
        tracing::warn!(
            error,
            "RUST_LOG is not understood and was ignored; an example is RUST_LOG=info,weft_proxy=debug"
        );
    }
}
