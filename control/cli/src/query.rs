//! Verbs that ask a running node through its admin port.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use clap::ValueEnum;
use serde_json::Value;

use crate::exit::{Done, Exit, Failure, print_line};

/// Longest wait for the admin port.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Which node.
#[derive(Debug, clap::Args)]
pub struct AdminArgs {
    /// The node's admin address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
}

/// Arguments of listing verbs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: AdminArgs,
    /// How the list looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// How a list looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Columns.
    Table,
    /// As the admin port gives it.
    Json,
}

/// `weft endpoints`
pub fn endpoints(args: &Args) -> Done {
    let (status, text) = ask(args.node.admin, "GET", "/endpoints")?;
    expect(status, &text)?;
    if args.output == Output::Json {
        print_line(text.trim_end());
        return Ok(());
    }
    let services: Value = serde_json::from_str(&text).map_err(anyhow::Error::from)?;
    let mut rows = vec![["SERVICE", "ADDRESS", "HEALTH", "BREAKER", "WEIGHT", "IN FLIGHT", "EWMA MS", "REQUESTS", "FAILURES"]
        .map(str::to_owned)
        .to_vec()];
    for service in services.as_array().into_iter().flatten() {
        for endpoint in service["endpoints"].as_array().into_iter().flatten() {
            let mut row = vec![cell(&service["service"])];
            let fields = ["address", "health", "breaker", "weight", "in_flight", "ewma_ms", "requests", "failures"];
            row.extend(fields.iter().map(|field| cell(&endpoint[field])));
            rows.push(row);
        }
    }
    print_line(&table(&rows));
    Ok(())
}

/// `weft drain`
pub fn drain(args: &AdminArgs) -> Done {
    let (status, text) = ask(args.admin, "POST", "/drain")?;
    expect(status, &text)?;
    print_line(text.trim_end());
    Ok(())
}

fn expect(status: u16, text: &str) -> Done {
    if (200..300).contains(&status) {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, format!("the node answered {status}: {}", text.trim_end())))
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// One request to the admin port: status and body.
fn ask(admin: SocketAddr, method: &str, path: &str) -> Result<(u16, String), Failure> {
    let unreachable = |error: std::io::Error| {
        Failure::new(Exit::Unreachable, format!("no node answers at {admin}: {error} (is weft running? see --admin)"))
    };
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT).map_err(unreachable)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: {admin}\r\ncontent-length: 0\r\n\r\n").map_err(unreachable)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => Failure::new(Exit::TimedOut, format!("{admin} does not answer")),
        _ => unreachable(error),
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), "x".into()]];
        assert_eq!(table(&rows), "A     B\nlong  x");
    }
}
