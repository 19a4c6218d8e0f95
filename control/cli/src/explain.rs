//! `weft explain`: what would happen to a request, and why.

mod text;

use std::net::IpAddr;

use clap::ValueEnum;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{
    exit::{Done, Exit, Failure, print_line},
    query::{self, AdminArgs, Look, Output},
};

/// Arguments of `weft explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// GET, POST, and so on.
    method: String,
    /// As a client would ask for it: `http://shop.local:8080/cart?page=2`. Without a port every listener is asked.
    url: String,
    /// A header of the request; may be repeated. `host: NAME` replaces the URL's host.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// The client's address, where hashing or limits go by it.
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    #[command(flatten)]
    node: AdminArgs,
    /// How the answer looks.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// How the answer looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// Everything, as the admin port gives it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Asks the node; exit code 1 when no rule serves the request.
pub fn run(args: &Args) -> Done {
    let answer = query::get(args.node.admin, &path(args))?;
    let output = match args.output {
        Format::Text => Output::Table,
        Format::Json => Output::Json,
        Format::Yaml => Output::Yaml,
    };
    let look = Look::of_stdout(false);
    print_line(&query::show(&answer, output, false, |answer| text::render(answer, look))?);
    if answer["matched"] == true { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

/// What stays as it is in a query string.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn path(args: &Args) -> String {
    let mut path = format!("/explain?method={}", utf8_percent_encode(&method(&args.method), PLAIN));
    let headers = args.headers.iter().map(|header| ("header", header.clone()));
    let client = args.client.map(|client| ("client", client.to_string()));
    for (name, value) in [("url", args.url.clone())].into_iter().chain(headers).chain(client) {
        path.push_str(&format!("&{name}={}", utf8_percent_encode(&value, PLAIN)));
    }
    path
}

/// Methods are case-sensitive, and nobody means `get`.
fn method(written: &str) -> String {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
    let known = KNOWN.iter().find(|known| known.eq_ignore_ascii_case(written));
    known.map_or_else(|| written.to_owned(), |known| (*known).to_owned())
}
