//! `weft status`: the nodes of a control plane, what each has in force, and what it does not take.

use std::{
    io::IsTerminal,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use crate::{
    exit::{Done, Exit, Failure, print_line},
    plane::{PlaneArgs, WITHIN, block_on, done},
    query::{Cell, Look, Output, Table, Tone, about, again, clean, each, interval, show, text},
};

/// Arguments of `weft status`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// How it looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Ask again and again, until Ctrl-C: on a terminal in place, otherwise one list after the other.
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "1s", value_parser = interval)]
    watch: Option<Duration>,
    #[command(flatten)]
    plane: PlaneArgs,
}

/// Shows the nodes. Ends with 1 when a connected one lacks something.
pub fn run(args: &Args) -> Done {
    let look = Look::of_stdout(args.output == Output::Wide);
    if let Some(interval) = args.watch {
        let (args, terminal) = (args.clone(), std::io::stdout().is_terminal());
        let frame = move || show(&ask(&args.plane)?, args.output, !terminal, |found| page(found, now(), look));
        return again(interval, "the control plane".into(), terminal, frame);
    }
    let found = ask(&args.plane)?;
    print_line(&show(&found, args.output, false, |found| page(found, now(), look))?);
    let well = each(&found["nodes"]).all(|node| node["connected"] != true || node["state"] == "SYNCED");
    if well { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

fn ask(plane: &PlaneArgs) -> Result<Value, Failure> {
    block_on(async { done(plane.client(WITHIN).get("/v1/nodes").await) })
}

/// In milliseconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A table, and below it what is not well.
fn page(found: &Value, now: u64, look: Look) -> String {
    let mut headings = vec!["NODE", "ZONE", "MEMBER", "STATE", "REVISION", "LAG", "SINCE"];
    if look.wide {
        headings.extend(["CLIENT", "VERSION", "ADDRESS"]);
    }
    let mut table = Table::new(headings);
    let mut lines = Vec::new();
    for node in each(&found["nodes"]) {
        let cell = |name: &str| Cell::from(text(&node[name]));
        let since = node["since"].as_u64().map(|since| now.saturating_sub(since));
        let since = about(&since.into());
        let mut row = vec![cell("node"), cell("zone"), cell("member"), state(node), cell("acknowledged"), cell("lag")];
        row.push(since.into());
        if look.wide {
            row.extend(["client", "version", "peer"].map(cell));
        }
        table.row(row);
        lines.extend(complaints(node, look));
    }
    for member in each(&found["unreachable"]) {
        let name = clean(&text(member));
        lines.push(format!("{} member {name} does not answer: its nodes are not shown", look.mark(false)));
    }
    if each(&found["nodes"]).next().is_none() {
        lines.insert(0, "no node is connected; one connects with: weft proxy --control HOST:PORT".into());
        return lines.join("\n");
    }
    let mut page = table.render(look);
    if !lines.is_empty() {
        page.push_str("\n\n");
        page.push_str(&lines.join("\n"));
    }
    page
}

fn state(node: &Value) -> Cell {
    let tone = match node["state"].as_str() {
        _ if node["connected"] != true => return Cell::toned(Tone::Bad, format!("{} (gone)", text(&node["state"]))),
        Some("SYNCED") => Tone::Good,
        Some("STALE") => Tone::Warn,
        _ => Tone::Bad,
    };
    Cell::toned(tone, text(&node["state"]))
}

/// What a node does not take, and what to do about it.
fn complaints(node: &Value, look: Look) -> Vec<String> {
    let (mark, name) = (look.mark(false), clean(&text(&node["node"])));
    let mut lines = Vec::new();
    for rejection in each(&node["rejections"]) {
        let part = |name: &str| clean(&text(&rejection[name]));
        let what = match part("name").as_str() {
            "*" => "what came last".to_owned(),
            resource => format!("{resource} in version {}", part("version")),
        };
        let reason = part("reason");
        lines.push(format!(
            "{mark} {name} does not take {what}: {reason}; what it had stays in force: correct it and apply it again, or \
             clear what stands in its way on the node"
        ));
    }
    if let Some(more @ 1..) = node["moreRejections"].as_u64() {
        lines.push(format!("{mark} {name} does not take {more} more"));
    }
    if node["connected"] != true {
        lines.push(format!(
            "{mark} {name} is not connected: see whether it runs, and reaches a member; it serves what it had"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, state: &str) -> Value {
        json!({"node": name, "zone": "a", "client": "weft", "version": "0.1.0", "peer": "10.0.0.1:5", "member": "b",
            "connected": true, "connectedAt": 1, "disconnectedAt": null, "state": state, "since": 5_000,
            "acknowledged": 12, "lag": 0, "types": [], "rejections": [], "moreRejections": 0})
    }

    #[test]
    fn nodes_and_what_they_do_not_take() {
        let mut refuses = node("n2", "NACKED");
        refuses["lag"] = 3.into();
        refuses["moreRejections"] = 2.into();
        refuses["rejections"] = json!([{"type": "t", "name": "Gateway/default/web", "version": "14", "reason": "port 80 is taken", "at": 1}]);
        let mut gone = node("n3", "STALE");
        gone["connected"] = false.into();
        let found = json!({"revision": 15, "nodes": [node("n1", "SYNCED"), refuses, gone], "unreachable": ["c"]});
        assert_eq!(
            page(&found, 9_700, Look::default()),
            "\
NODE  ZONE  MEMBER  STATE         REVISION  LAG  SINCE
n1    a     b       SYNCED        12        0    4.7s
n2    a     b       NACKED        12        3    4.7s
n3    a     b       STALE (gone)  12        0    4.7s

- n2 does not take Gateway/default/web in version 14: port 80 is taken; what it had stays in force: correct it and \
apply it again, or clear what stands in its way on the node
- n2 does not take 2 more
- n3 is not connected: see whether it runs, and reaches a member; it serves what it had
- member c does not answer: its nodes are not shown"
        );
        let wide = page(&found, 9_700, Look { wide: true, ..Look::default() });
        assert!(wide.lines().nth(1).is_some_and(|line| line.ends_with("weft    0.1.0    10.0.0.1:5")), "{wide}");
    }

    #[test]
    fn without_a_node_it_says_how_one_connects() {
        let found = json!({"revision": 0, "nodes": [], "unreachable": []});
        let expected = "no node is connected; one connects with: weft proxy --control HOST:PORT";
        assert_eq!(page(&found, 0, Look::default()), expected);
    }

    #[test]
    fn what_nodes_say_does_not_reach_the_terminal_raw() {
        let mut node = node("n\x1b[2J", "NACKED");
        node["rejections"] = json!([{"name": "a\x07", "version": "1", "reason": "\x1b]0;x", "at": 1}]);
        let page = page(&json!({"nodes": [node]}), 0, Look::default());
        assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page:?}");
    }
}
