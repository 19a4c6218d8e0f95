//! What a child process does: it reads one command a line, and answers each with a line.

mod agent;
mod client;
pub mod server;

use std::io::{BufRead, Write};

use serde_json::{Value, json};

/// Names the role of a child process.
pub const ROLE: &str = "WEFT_TEST_ROLE";
/// The test below.
pub const TEST: &str = "support::role::of_a_child_process";
/// Before an answer: the test harness writes lines too.
pub const MARK: &str = "@answer ";

/// Does what a command asks for, and says what came of it.
pub type Acts = Box<dyn FnMut(&str, &Value) -> Value>;

/// Does nothing in the test process itself.
#[test]
fn of_a_child_process() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let mut act: Acts = match role.to_str().unwrap() {
        "client" => client::new(),
        "server" => server::new(),
        "agent" => agent::new(),
        other => panic!("no role {other}"),
    };
    answer(&json!({ "ready": true }));
    // Ends with the test process, whose end of the pipe is closed then.
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let command: Value = serde_json::from_str(&line).unwrap();
        answer(&act(command["do"].as_str().unwrap(), &command["with"]));
    }
    std::process::exit(0);
}

fn answer(value: &Value) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{value}").unwrap();
    out.flush().unwrap();
}
