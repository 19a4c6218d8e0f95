//! `weft ebpf status`: what programs are attached to, whether they are called, what they have decided.

use std::path::PathBuf;

use serde_json::{Value, json};
use weft_ebpf::features::{self, Finding};

use super::{
    flows,
    observe::{NOT_CALLED, Wanted, observe},
};
use crate::{
    exit::{Done, Exit, Failure, eprint_line, print_line},
    query::{AdminArgs, Cell, Look, Output, Table, Tone, about, each, show, text},
};

/// Arguments of `weft ebpf status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    node: AdminArgs,
    /// Look at what the kernel has at this attach point, whatever a node says.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Make no connection to see whether programs are called.
    #[arg(long)]
    no_probe: bool,
    /// How it looks.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Shows it.
pub fn run(args: &Args) -> Done {
    let admin = args.node.admin;
    let observed = observe(Wanted { admin, cgroup: args.cgroup.as_deref(), probe: !args.no_probe })?;
    if let Some(note) = &observed.note {
        eprint_line(note);
    }
    let nothing = observed.points.is_empty();
    // What this host offers says nothing about another one.
    let here = observed.note.is_some() || admin.ip().is_loopback();
    let features = if here { features::all(nothing) } else { Vec::new() };
    let status = json!({
        "source": if observed.note.is_some() { "kernel" } else { "node" },
        "attach_points": observed.points,
        "features": features.iter().map(Finding::json).collect::<Vec<_>>(),
    });
    if !nothing || matches!(args.output, Output::Json | Output::Yaml) {
        let look = Look::of_stdout(args.output == Output::Wide);
        print_line(&show(&status, args.output, false, |status| table(status, look))?);
    }
    if nothing {
        let text = "no kernel programs of Weft are here (`weft check` tells whether they could be)";
        return Err(Failure::new(Exit::Unreachable, text));
    }
    let well = observed.points.iter().all(|point| each(&point["problems"]).next().is_none());
    if well { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

fn table(status: &Value, look: Look) -> String {
    let mut parts = Vec::new();
    for point in each(&status["attach_points"]) {
        parts.push(summary(point, &status["features"], look));
        if point["error"].is_null() {
            parts.extend([programs(point, look), maps(point, look), verdicts(point, look)]);
        }
    }
    parts.join("\n\n")
}

fn summary(point: &Value, findings: &Value, look: Look) -> String {
    let mut table = Table::bare();
    let mut row = |name: &str, tone: Tone, text: String| {
        // A sign is enough for what is well.
        let loud = if tone == Tone::Good { Tone::Plain } else { tone };
        table.row([name.into(), Cell::toned(tone, look.sign(tone).trim()), Cell::toned(loud, text)]);
    };
    row("Attach point", Tone::Plain, text(&point["cgroup"]));
    if look.wide {
        row("Id", Tone::Plain, text(&point["cgroup_id"]));
        row("Pins", Tone::Plain, format!("{}, ABI {}", text(&point["pins"]), text(&point["abi"])));
    }
    if point["error"].is_null() {
        let all = each(&point["programs"]).count();
        let attached = each(&point["programs"]).filter(|program| program["attached"] == true).count();
        let tone = if attached == all { Tone::Good } else { Tone::Bad };
        row("Programs", tone, format!("{attached} of {all} attached"));
        let (tone, called) = match point["probe"].as_str() {
            Some("called") => (Tone::Good, "called".into()),
            Some("not_called") => (Tone::Bad, NOT_CALLED.into()),
            _ => (Tone::Plain, format!("not run: {}", text(&point["probe_error"]))),
        };
        row("Self-connect", tone, called);
        let (tone, alive) = proxy(&point["proxy"]);
        row("Proxy", tone, alive);
        let at: Vec<String> = each(&point["capture"]).map(text).collect();
        row("Captures at", Tone::Plain, if at.is_empty() { "-".into() } else { at.join(", ") });
        let lost = if point["lost_events"] == 0 { Tone::Plain } else { Tone::Warn };
        row("Lost events", lost, text(&point["lost_events"]));
    }
    for problem in each(&point["problems"]) {
        row("Problem", Tone::Bad, text(problem));
    }
    for finding in each(findings).filter(|finding| look.wide || finding["level"] != "ok") {
        let tone = match finding["level"].as_str() {
            Some("ok") => Tone::Good,
            Some("warning") => Tone::Warn,
            _ => Tone::Bad,
        };
        row("Kernel", tone, format!("{}: {}", text(&finding["check"]), text(&finding["found"])));
    }
    table.render(look)
}

fn proxy(proxy: &Value) -> (Tone, String) {
    const DOWN: &str = "DIRECT goes on, PROXY fails open or closed";
    let age = &proxy["heartbeat_age_ms"];
    match (proxy["alive"] == true, age.is_null()) {
        (true, _) => (Tone::Good, format!("alive, heartbeat {} ago", about(age))),
        (false, true) => (Tone::Warn, format!("not running: {DOWN}")),
        (false, false) => (Tone::Warn, format!("no heartbeat for {}: {DOWN}", about(age))),
    }
}

fn programs(point: &Value, look: Look) -> String {
    let mut headings = vec!["PROGRAM", "ATTACHED", "ID"];
    headings.extend(look.wide.then_some("LINK"));
    let mut table = Table::new(headings);
    for program in each(&point["programs"]) {
        let (tone, attached) = if program["attached"] == true { (Tone::Good, "yes") } else { (Tone::Bad, "no") };
        let mut row = vec![text(&program["program"]).into(), Cell::toned(tone, attached), text(&program["id"]).into()];
        row.extend(look.wide.then(|| text(&program["link"]).into()));
        table.row(row);
    }
    table.render(look)
}

fn maps(point: &Value, look: Look) -> String {
    let mut table = Table::new(["MAP", "USED", "SIZE", "FILL"]);
    for map in each(&point["maps"]) {
        let number = |field: &str| map[field].as_u64().unwrap_or(0);
        let percent = (number("used") * 100).div_ceil(number("size").max(1));
        let tone = match percent {
            0..80 => Tone::Plain,
            80..95 => Tone::Warn,
            _ => Tone::Bad,
        };
        let cell = |field: &str| Cell::from(text(&map[field]));
        table.row([cell("map"), cell("used"), cell("size"), Cell::toned(tone, format!("{percent} %"))]);
    }
    table.render(look)
}

fn verdicts(point: &Value, look: Look) -> String {
    if each(&point["verdicts"]).next().is_none() {
        return "no connection has been decided yet".into();
    }
    let mut table = Table::new(["VERDICT", "COUNT", "REASON"]);
    for one in each(&point["verdicts"]) {
        table.row([flows::verdict(one), text(&one["count"]).into(), flows::reason(one).into()]);
    }
    table.render(look)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Value {
        json!({
            "source": "node",
            "features": [
                {"check": "kernel", "level": "ok", "found": "6.18"},
                {"check": "SOCK_DESTROY", "level": "warning", "found": "not allowed"},
            ],
            "attach_points": [{
                "cgroup": "/sys/fs/cgroup/mesh", "cgroup_id": 42, "pins": "/sys/fs/bpf/weft/42", "abi": 1,
                "programs": [{"program": "connect4", "id": 7, "link": 3, "attached": true}],
                "proxy": {"alive": true, "heartbeat_age_ms": 120, "cgroup_id": 43},
                "capture": ["127.0.0.1:15001", "[::1]:15001"],
                "maps": [{"map": "VIPS", "used": 3, "size": 262_144}, {"map": "WORKLOADS", "used": 9, "size": 10}],
                "verdicts": [{"verdict": "deny", "reason": "no_port", "count": 5}],
                "lost_events": 0, "probe": "called", "problems": [],
            }],
        })
    }

    #[test]
    fn all_on_one_screen() {
        assert_eq!(
            table(&well(), Look::default()),
            "\
Attach point     /sys/fs/cgroup/mesh
Programs      +  1 of 1 attached
Self-connect  +  called
Proxy         +  alive, heartbeat 120ms ago
Captures at      127.0.0.1:15001, [::1]:15001
Lost events      0
Kernel        !  SOCK_DESTROY: not allowed

PROGRAM   ATTACHED  ID
connect4  yes       7

MAP        USED  SIZE    FILL
VIPS       3     262144  1 %
WORKLOADS  9     10      90 %

VERDICT  COUNT  REASON
deny     5      the service has no such port"
        );
        let wide = table(&well(), Look { wide: true, ..Look::default() });
        assert!(wide.contains("/sys/fs/bpf/weft/42, ABI 1") && wide.contains("kernel: 6.18"), "{wide}");
        assert!(wide.contains("PROGRAM   ATTACHED  ID  LINK"), "{wide}");
    }

    #[test]
    fn what_is_wrong_is_shown() {
        let mut status = well();
        let point = &mut status["attach_points"][0];
        point["probe"] = "not_called".into();
        point["programs"][0]["attached"] = false.into();
        point["proxy"] = json!({"alive": false, "heartbeat_age_ms": 72_000});
        point["problems"] = json!(["program connect4 is not attached: gone"]);
        point["lost_events"] = 3.into();
        let shown = table(&status, Look::default());
        for line in [
            "Programs      -  0 of 1 attached",
            "Self-connect  -  NOT called: links hang on a dead cgroup, or another program overrides them",
            "Proxy         !  no heartbeat for 1m12s: DIRECT goes on, PROXY fails open or closed",
            "Lost events   !  3",
            "Problem       -  program connect4 is not attached: gone",
            "connect4  no        7",
        ] {
            assert!(shown.contains(line), "{line} is missing in\n{shown}");
        }
    }

    #[test]
    fn pins_that_cannot_be_read_are_shown() {
        let status = json!({"attach_points": [{"cgroup": null, "error": "gone", "problems": ["gone"]}]});
        assert_eq!(table(&status, Look::default()), "Attach point     -\nProblem       -  gone");
    }
}
