//! Looks at the programs: by way of the node, or at what the kernel has when no node answers.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};
use weft_ebpf::{
    cgroup::Cgroup,
    pins::Pins,
    programs::EbpfSetupError,
    status::{self, probe},
    store::Maps,
};

use crate::{
    exit::{Exit, Failure},
    query::{self, each},
};

/// What it means when a connection was not seen by the programs.
pub const NOT_CALLED: &str = "NOT called: links hang on a dead cgroup, or another program overrides them";

/// What was seen.
#[derive(Debug)]
pub struct Observed {
    /// Why it was the kernel that was asked; `None`: the node told.
    pub note: Option<String>,
    /// Per attach point what [`status::of`] tells; and `probe`, `probe_error`, `problems`.
    pub points: Vec<Value>,
}

/// What is to be seen.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The node.
    pub admin: SocketAddr,
    /// This attach point, whatever a node says.
    pub cgroup: Option<&'a Path>,
    /// Whether to connect somewhere, to see whether programs are called.
    pub probe: bool,
}

/// Looks.
///
/// # Errors
/// When nobody can be asked.
pub fn observe(wanted: Wanted<'_>) -> Result<Observed, Failure> {
    let (note, mut points) = match wanted.cgroup {
        Some(path) => {
            let found = pins_at(path)?.map(|pins| look(&pins));
            (Some(format!("{}: this is what the kernel has", path.display())), found.into_iter().collect())
        }
        None => node(wanted.admin)?,
    };
    for point in &mut points {
        let tried = match wanted.probe {
            false => Err("--no-probe".into()),
            true if note.is_none() && !wanted.admin.ip().is_loopback() => Err("the node is on another host".into()),
            true => try_out(point),
        };
        point["probe"] = match tried {
            Ok(true) => "called".into(),
            Ok(false) => "not_called".into(),
            Err(_) => "not_run".into(),
        };
        point["probe_error"] = tried.err().into();
        point["problems"] = problems(point).into();
    }
    Ok(Observed { note, points })
}

fn node(admin: SocketAddr) -> Result<(Option<String>, Vec<Value>), Failure> {
    let note = match query::get(admin, "/ebpf") {
        Ok(status) if status["enabled"] != false => return Ok((None, vec![status])),
        Ok(status) => {
            let why = status["reason"].as_str().map_or_else(String::new, |why| format!(" ({why})"));
            format!("the node at {admin} runs without kernel programs{why}")
        }
        Err(failure) if failure.exit() == Exit::Unreachable => format!("no node answers at {admin}"),
        Err(failure) => return Err(failure),
    };
    let points = pins()?.iter().map(look).collect();
    Ok((Some(format!("{note}: this is what the kernel has")), points))
}

/// Pins of every attach point of this host.
///
/// # Errors
/// When this process may not look.
pub fn pins() -> Result<Vec<Pins>, Failure> {
    Pins::all().map_err(|error| {
        let hint = if rustix::process::geteuid().is_root() { "" } else { " (needs root)" };
        Failure::new(Exit::Failed, format!("cannot look at what is pinned in the kernel: {error}{hint}"))
    })
}

/// Pins of the attach point at `path`, if there are any.
///
/// # Errors
/// When it is no attach point, or this process may not look.
pub fn pins_at(path: &Path) -> Result<Option<Pins>, Failure> {
    let attach = Cgroup::open(path).map_err(|error| Failure::new(Exit::Usage, format!("--cgroup: {error}")))?;
    Ok(pins()?.into_iter().find(|pins| pins.cgroup_id() == Some(attach.id)))
}

fn look(pins: &Pins) -> Value {
    let unknown = |cgroup: Option<&Path>, error: String| json!({ "cgroup": cgroup, "cgroup_id": pins.cgroup_id(), "pins": pins.path(), "error": error });
    match pins.cgroup() {
        Err(error) => unknown(None, error.to_string()),
        Ok(None) => unknown(None, "its cgroup is gone: `weft ebpf unload` removes what is left".into()),
        Ok(Some(attach)) if !pins.are_ours() => {
            unknown(Some(&attach.path), "another version of Weft made these maps: this one cannot read them".into())
        }
        Ok(Some(attach)) => match Maps::pinned(pins) {
            Ok(maps) => status::of(&attach, pins, &maps),
            Err(error) => unknown(Some(&attach.path), error.to_string()),
        },
    }
}

/// Whether programs are called; otherwise why nobody knows.
fn try_out(point: &Value) -> Result<bool, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".into());
    }
    let Some(path) = point["cgroup"].as_str().filter(|_| point["error"].is_null()) else {
        return Err("there is nothing to try".into());
    };
    let tried = || {
        let attach = Cgroup::open(Path::new(path))?;
        let pins = Pins::of(&attach, false).map_err(|source| EbpfSetupError::Pins { source })?;
        probe(&attach, &Maps::pinned(&pins)?)
    };
    tried().map_err(|error: EbpfSetupError| error.to_string())
}

/// What is wrong with an attach point.
fn problems(point: &Value) -> Vec<String> {
    let mut problems: Vec<String> = point["error"].as_str().map(Into::into).into_iter().collect();
    for program in each(&point["programs"]).filter(|program| program["attached"] != true) {
        let why = program["error"].as_str().unwrap_or("its link hangs on a cgroup that is gone");
        problems.push(format!("program {} is not attached: {why}", query::text(&program["program"])));
    }
    if point["probe"] == "not_called" {
        problems.push(format!("programs are {NOT_CALLED}"));
    }
    problems.extend(each(&point["unfit"]).map(query::text));
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said() {
        let well = json!({"programs": [{"program": "connect4", "attached": true}], "probe": "called", "unfit": []});
        assert!(problems(&well).is_empty());
        let ill = json!({
            "programs": [
                {"program": "connect4", "attached": false, "error": "no such file"},
                {"program": "connect6", "attached": false, "id": 7},
            ],
            "probe": "not_called",
            "unfit": ["too many workloads"],
        });
        assert_eq!(
            problems(&ill),
            [
                "program connect4 is not attached: no such file",
                "program connect6 is not attached: its link hangs on a cgroup that is gone",
                "programs are NOT called: links hang on a dead cgroup, or another program overrides them",
                "too many workloads",
            ]
        );
        assert_eq!(problems(&json!({"error": "gone"})), ["gone"]);
    }
}
