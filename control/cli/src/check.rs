//! `weft check`: what this host offers, what it lacks, what to do about it, and what works nevertheless.

mod host;

use std::path::PathBuf;

use serde_json::{Value, json};
use weft_ebpf::features::{self, Finding, Level};

use crate::{
    ebpf::observe::{Observed, Wanted, observe},
    exit::{Done, Exit, Failure, print_line},
    query::{self, AdminArgs, Cell, Look, Output, Table, Tone, each, show, text},
};

/// Arguments of `weft check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Before a node is started: whether its ports are free, instead of how it is.
    #[arg(long)]
    pre: bool,
    /// What programs are, or will be, attached to.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// What only a transparent mesh needs counts as needed, as for `weft proxy --ebpf require`. Otherwise it is a warning:
    /// without it Weft still runs as an explicit proxy (Gateway listeners).
    #[arg(long)]
    require_ebpf: bool,
    #[command(flatten)]
    node: AdminArgs,
    /// How it looks; wide also explains what is well.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Checks; ends with 1 when something that is needed is missing.
pub fn run(args: &Args) -> Done {
    let mut mesh = features::all(true);
    mesh.extend(args.cgroup.as_deref().map(features::attach_point));
    let mut rest = host::limits();
    if args.pre {
        mesh.push(host::captured_port());
        rest.push(host::admin_port(args.node.admin));
    } else {
        rest.push(node(args));
        let wanted = Wanted { admin: args.node.admin, cgroup: args.cgroup.as_deref(), probe: true };
        let (finding, broken) = running(observe(wanted));
        // A mesh that there is, and that does not work, is worse than none.
        if broken { &mut rest } else { &mut mesh }.push(finding);
    }
    let report = report(&mesh, &rest, args.require_ebpf);
    let look = Look::of_stdout(args.output == Output::Wide);
    print_line(&show(&report, args.output, false, |report| table(report, look))?);
    if report["ok"] == true { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

/// Whether the node is ready.
fn node(args: &Args) -> Finding {
    let admin = args.node.admin;
    let finding = |found: String| Finding::ok("node", "it serves", found);
    match query::exchange(admin, "GET", "/ready") {
        Ok((200, _)) => finding(format!("ready, at {admin}")),
        Ok((_, body)) => finding(format!("not ready: {}", body.split_whitespace().collect::<Vec<_>>().join(" "))).but(
            Level::Missing,
            "see the node's log; `weft endpoints` and `weft routes` show its state",
            "what it had in force before",
        ),
        Err(failure) => finding(failure.message().into()).but(
            Level::Missing,
            "start it: weft proxy --config FILE; to check before that: weft check --pre",
            "DIRECT services, if programs are attached",
        ),
    }
}

/// How the programs of a running node are; and whether there are some that do not work.
fn running(observed: Result<Observed, Failure>) -> (Finding, bool) {
    let finding = |found: String| Finding::ok("attached", "programs are attached, and they are called", found);
    let observed = match observed {
        Ok(observed) => observed,
        Err(failure) => {
            let found = finding(failure.message().into());
            return (found.but(Level::Missing, "run as root, beside the node", EXPLICIT), false);
        }
    };
    if observed.points.is_empty() {
        let found = finding("no programs are attached".into());
        return (found.but(Level::Missing, "weft proxy --cgroup PATH names what is captured", EXPLICIT), false);
    }
    let problems: Vec<String> = observed.points.iter().flat_map(|point| each(&point["problems"]).map(text)).collect();
    if !problems.is_empty() {
        let found = finding(problems.join("; "));
        let remedy = "`weft ebpf status` tells more; restarting the node attaches programs again";
        return (found.but(Level::Missing, remedy, EXPLICIT), true);
    }
    let of = |point: &Value| match point["probe"].as_str() {
        Some("called") => format!("{}, and called", text(&point["cgroup"])),
        _ => format!("{} (not tried out: {})", text(&point["cgroup"]), text(&point["probe_error"])),
    };
    (finding(observed.points.iter().map(of).collect::<Vec<_>>().join(", ")), false)
}

const EXPLICIT: &str = "Gateway listeners";

/// What was found, and what it comes to. What only a mesh needs is a warning unless it is `required`.
fn report(mesh: &[Finding], rest: &[Finding], required: bool) -> Value {
    let missing = |findings: &[Finding]| -> Vec<&'static str> {
        findings.iter().filter(|finding| finding.level == Level::Missing).map(|finding| finding.check).collect()
    };
    let (no_mesh, no_node) = (missing(mesh), missing(rest));
    let mildly = |finding: &Finding| {
        let level = if required { finding.level } else { finding.level.min(Level::Warning) };
        Finding { level, ..finding.clone() }.json()
    };
    let checks: Vec<Value> = mesh.iter().map(mildly).chain(rest.iter().map(Finding::json)).collect();
    let needed: Vec<&str> = if required { [&no_mesh[..], &no_node].concat() } else { no_node };
    let summary = match (needed.is_empty(), no_mesh.is_empty()) {
        (false, _) => format!("Something that is needed is missing: {}.", needed.join(", ")),
        (true, true) => "All is there: for an explicit proxy (Gateway listeners) and for a transparent mesh.".into(),
        (true, false) => format!(
            "Weft still runs as an explicit proxy (Gateway listeners). A transparent mesh lacks: {}.",
            no_mesh.join(", ")
        ),
    };
    json!({ "ok": needed.is_empty(), "mesh": no_mesh.is_empty(), "summary": summary, "checks": checks })
}

fn table(report: &Value, look: Look) -> String {
    let mut table = Table::bare();
    for check in each(&report["checks"]) {
        let (tone, well) = match check["level"].as_str() {
            Some("ok") => (Tone::Good, true),
            Some("warning") => (Tone::Warn, false),
            _ => (Tone::Bad, false),
        };
        let sign = Cell::toned(tone, look.sign(tone));
        let level = Cell::toned(tone, text(&check["level"]));
        table.row([sign, text(&check["check"]).into(), level, text(&check["found"]).into()]);
        for (name, field) in [("what for", "means"), ("to do", "remedy"), ("without it", "without")] {
            if (look.wide || !well) && check[field].is_string() {
                table.row(["".into(), "".into(), name.into(), text(&check[field]).into()]);
            }
        }
    }
    format!("{}\n\n{}", table.render(look), text(&report["summary"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> (Vec<Finding>, Vec<Finding>) {
        let mesh = vec![
            Finding::ok("kernel", "programs", "6.18"),
            Finding::ok("privileges", "loading", "without CAP_BPF").but(Level::Missing, "run as root", "Gateways"),
        ];
        (mesh, vec![Finding::ok("node", "it serves", "ready")])
    }

    #[test]
    fn what_only_a_mesh_needs_is_a_warning() {
        let (mesh, rest) = findings();
        let report = report(&mesh, &rest, false);
        assert_eq!((&report["ok"], &report["mesh"]), (&true.into(), &false.into()));
        assert_eq!(
            table(&report, Look::default()),
            "\
+  kernel      ok          6.18
!  privileges  warning     without CAP_BPF
               what for    loading
               to do       run as root
               without it  Gateways
+  node        ok          ready

Weft still runs as an explicit proxy (Gateway listeners). A transparent mesh lacks: privileges."
        );
    }

    #[test]
    fn unless_it_is_required() {
        let (mesh, rest) = findings();
        let report = report(&mesh, &rest, true);
        assert_eq!((&report["ok"], &report["checks"][1]["level"]), (&false.into(), &"missing".into()));
        assert_eq!(report["summary"], "Something that is needed is missing: privileges.");
    }

    #[test]
    fn a_node_is_needed() {
        let (_, rest) = findings();
        let well = report(&[], &rest, true);
        assert_eq!((&well["ok"], &well["mesh"]), (&true.into(), &true.into()));
        let rest = vec![rest[0].clone().but(Level::Missing, "start it", "nothing")];
        assert_eq!(report(&[], &rest, false)["ok"], false);
    }

    #[test]
    fn programs_that_are_not_called_are_no_mere_warning() {
        let of = |points: Vec<Value>| running(Ok(Observed { note: None, points }));
        let (finding, broken) = of(vec![json!({"cgroup": "/c", "probe": "called", "problems": []})]);
        assert_eq!((finding.level, broken, &*finding.found), (Level::Ok, false, "/c, and called"));
        let (finding, broken) = of(vec![json!({"cgroup": "/c", "probe": "not_called", "problems": ["NOT called"]})]);
        assert_eq!((finding.level, broken, &*finding.found), (Level::Missing, true, "NOT called"));
        assert_eq!(of(Vec::new()).0.level, Level::Missing);
        let (finding, broken) = running(Err(Failure::new(Exit::Failed, "cannot look")));
        assert_eq!((&*finding.found, broken), ("cannot look", false));
    }
}
