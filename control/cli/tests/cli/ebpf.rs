//! What `weft ebpf` and `weft check` say: of a node that is made up, and of programs in this kernel.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use weft_ebpf::{
    cgroup::{self, Cgroup},
    features::{self, Level},
    pins::Pins,
};

use crate::{LIMIT, file, free_port, node::Node, weft};

const STATUS: &str = r#"{"cgroup": "/nowhere", "cgroup_id": 42, "pins": "/sys/fs/bpf/weft/42", "abi": 1,
"programs": [{"program": "connect4", "id": 7, "link": 3, "attached": true}],
"proxy": {"alive": true, "heartbeat_age_ms": 3}, "capture": ["127.0.0.1:15001"],
"maps": [{"map": "VIPS", "used": 3, "size": 10}], "verdicts": [], "lost_events": 0, "unfit": []}"#;

#[test]
fn a_node_tells_of_its_programs() {
    let node = Node::start("200 OK", STATUS, 2);
    let (code, stdout, stderr) = node.ask(&["ebpf", "status", "--no-probe"]);
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    for part in ["/nowhere", "1 of 1 attached", "not run: --no-probe", "alive, heartbeat 3ms ago", "30 %"] {
        assert!(stdout.contains(part), "{part} is missing in\n{stdout}");
    }
    let (code, stdout, _) = node.ask(&["ebpf", "status", "--no-probe", "-o", "json"]);
    let status: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &status["source"]), (0, &"node".into()));
    assert_eq!(status["attach_points"][0]["probe"], "not_run");
    assert_eq!(node.asked(), ["GET /ebpf HTTP/1.0", "GET /ebpf HTTP/1.0"]);
}

#[test]
fn programs_that_are_not_attached_fail() {
    let body = r#"{"cgroup": "/nowhere", "programs": [{"program": "connect4", "attached": false}], "proxy": {}}"#;
    let (code, stdout, _) = Node::start("200 OK", body, 1).ask(&["ebpf", "status", "--no-probe"]);
    assert_eq!(code, 1);
    assert!(stdout.contains("program connect4 is not attached: its link hangs on a cgroup that is gone"), "{stdout}");
}

#[test]
fn a_node_without_programs_says_so() {
    let body = r#"{"enabled": false, "reason": "--ebpf off"}"#;
    let (_, _, stderr) = Node::start("200 OK", body, 1).ask(&["ebpf", "status", "--no-probe"]);
    assert!(stderr.contains("runs without kernel programs (--ebpf off)"), "{stderr}");
    for body in [body, "[]"] {
        let (code, stdout, stderr) = Node::start("200 OK", body, 1).ask(&["ebpf", "flows"]);
        assert_eq!((code, &*stdout), (3, ""));
        assert!(stderr.contains("runs without kernel programs"), "{stderr}");
    }
}

const FLOWS: &str = r#"{"next": 2, "lost": 7, "flows": [
{"number": 1, "at_ms": 1700000000007, "verdict": "deny", "reason": "access_denied", "workload": null, "pid": 42,
 "command": "e\u001b[2J", "destination": "10.96.0.20:6379", "service": "redis:6379", "endpoint": null},
{"number": 2, "at_ms": 1700000000008, "verdict": "direct", "reason": "service", "workload": "web", "pid": 43,
 "command": "curl", "destination": "10.96.0.20:6379", "service": "redis:6379", "endpoint": "127.0.0.1:9006"}]}"#;

#[test]
fn flows_are_shown_and_chosen() {
    let node = Node::start("200 OK", FLOWS, 4);
    let (code, stdout, stderr) = node.ask(&["ebpf", "flows"]);
    assert_eq!((code, &*stderr), (0, ""));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].starts_with("TIME") && lines.len() == 4, "{stdout}");
    assert!(lines[1].contains(r"e\u{1b}[2J[42]") && lines[1].ends_with("an AccessPolicy refuses it"), "{stdout}");
    assert!(lines[2].contains("web") && lines[2].contains("127.0.0.1:9006"), "{stdout}");
    assert_eq!(lines[3], "... 7 more were lost: too many at once");

    let (_, stdout, _) = node.ask(&["ebpf", "flows", "--verdict", "proxy,direct", "-o", "json"]);
    let answer: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["flows"].as_array().unwrap().len(), 1);
    let (_, stdout, _) = node.ask(&["ebpf", "flows", "--service", "redis", "--last", "1"]);
    assert_eq!(stdout.lines().count(), 3, "{stdout}");
    let (code, stdout, stderr) = node.ask(&["ebpf", "flows", "--workload", "batch"]);
    assert_eq!((code, &*stdout), (0, ""));
    assert!(stderr.contains("no such connections"), "{stderr}");
    assert_eq!(node.asked()[0], "GET /flows?after=0 HTTP/1.0");
}

#[test]
fn following_prints_an_object_a_line() {
    let node = Node::start("200 OK", FLOWS, 1);
    let (code, stdout, stderr) = node.ask(&["ebpf", "flows", "-f", "-o", "json"]);
    assert_eq!(code, 3, "{stderr}");
    let numbers: Vec<u64> =
        stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2]);
    assert!(stderr.contains("has gone away"), "{stderr}");
}

#[test]
fn check_before_a_start_needs_ports_only() {
    let admin = format!("127.0.0.1:{}", free_port());
    let (code, stdout, stderr) = weft(&["check", "--pre", "--admin", &admin]);
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
    let last = stdout.lines().last().unwrap();
    assert!(last.contains("explicit proxy (Gateway listeners)"), "{stdout}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = taken.local_addr().unwrap().to_string();
    let (code, stdout, _) = weft(&["check", "--pre", "--admin", &admin, "-o", "json"]);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &report["ok"]), (1, &false.into()));
    let port = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == "admin port").unwrap();
    assert!(port["level"] == "missing" && port["found"].as_str().unwrap().contains("in use"), "{port}");
}

#[test]
fn check_wants_a_node_that_is_ready() {
    let (code, stdout, _) = weft(&["check", "--admin", &format!("127.0.0.1:{}", free_port())]);
    assert!(code == 1 && stdout.contains("no node answers at") && stdout.contains("weft check --pre"), "{stdout}");
    let node = Node::start("503 Service Unavailable", "no listener\n", 2);
    let (code, stdout, _) = node.ask(&["check"]);
    assert!(code == 1 && stdout.contains("not ready: no listener"), "{stdout}");
}

/// A cgroup of its own with one workload, `web`.
struct Group(PathBuf);

impl Group {
    /// `None`, and a line that says so, where programs cannot be loaded.
    fn new() -> Option<Self> {
        if let Some(lacks) = features::all(true).into_iter().find(|finding| finding.level == Level::Missing) {
            eprintln!("SKIPPED: {}: {}", lacks.check, lacks.found);
            return None;
        }
        let path = cgroup::mount().unwrap().join(format!("weft-cli-{}", std::process::id()));
        fs::create_dir_all(path.join("web")).unwrap();
        Some(Self(path))
    }

    fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Runs `weft` as a workload.
    fn web(&self, args: &str) -> i32 {
        let script = format!("echo $$ > {}/web/cgroup.procs; exec {} {args}", self.name(), env!("CARGO_BIN_EXE_weft"));
        let status = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap();
        status.code().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(attach) = Cgroup::open(&self.0)
            && let Ok(pins) = Pins::of(&attach, false)
        {
            let _ = pins.unload(true);
        }
        let _ = fs::remove_dir(self.0.join("web"));
        let _ = fs::remove_dir(&self.0);
    }
}

const MESH: &str = "apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {name: redis}
spec:
  clusterIPs: [10.96.0.20]
  ports: [{name: redis, port: 6379, appProtocol: tcp}]
  endpoints: [{address: 127.0.0.1, port: 9006}]
---
apiVersion: weft.dev/v1alpha1
kind: Workload
metadata: {name: web}
spec: {selector: {cgroup: web}}
";

/// A node that captures; it is killed if the test fails.
struct Up(Child);

impl Up {
    fn start(config: &str, group: &Group, admin: &str) -> Self {
        let captured = format!("127.0.0.1:{}", free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["up", "-f", config, "--ebpf", "require", "--cgroup", group.name(), "--admin", admin])
            .args(["--control-listen", &format!("127.0.0.1:{}", free_port()), "--data-dir"])
            .arg(Path::new(config).with_extension("data"))
            .args(["--captured", &captured, "--workers", "1"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address: SocketAddr = admin.parse().unwrap();
        until("the node serves", || TcpStream::connect(address).is_ok());
        Self(child)
    }

    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        until("the node stops", || self.0.try_wait().unwrap().is_some());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {LIMIT:?}");
        sleep(Duration::from_millis(20));
    }
}

/// Status of the only attach point, as JSON.
fn status(args: &[&str]) -> (i32, Value) {
    let (code, stdout, stderr) = weft(&[&["ebpf", "status", "-o", "json"], args].concat());
    let status: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
    (code, status)
}

#[test]
fn programs_of_a_node_from_start_to_unload() {
    let Some(group) = Group::new() else { return };
    let admin = format!("127.0.0.1:{}", free_port());
    let nobody = format!("127.0.0.1:{}", free_port());
    let (_directory, config) = file(MESH);
    let here = ["--cgroup", group.name(), "--admin", &nobody];

    let (code, none) = status(&here);
    assert_eq!((code, &none["attach_points"]), (3, &serde_json::json!([])));

    let mut node = Up::start(config.to_str().unwrap(), &group, &admin);
    let mut told = Value::Null;
    until("programs are attached", || {
        told = status(&["--admin", &admin]).1;
        // Loaded first, and attached once there is a configuration.
        let point = &told["attach_points"][0];
        point["programs"].is_array() && point["proxy"]["alive"] == true
    });
    let (code, seen) = status(&here);
    for (code, status, source) in [(0, &told, "node"), (code, &seen, "kernel")] {
        let point = &status["attach_points"][0];
        assert_eq!((code, &status["source"]), (0, &source.into()), "{status:#}");
        assert_eq!((&point["cgroup"], &point["probe"]), (&group.name().into(), &"called".into()), "{status:#}");
        assert_eq!(point["proxy"]["alive"], true, "{status:#}");
        assert!(point["programs"].as_array().unwrap().iter().all(|program| program["attached"] == true));
    }
    let (code, stdout, _) = weft(&["check", "--require-ebpf", "--cgroup", group.name(), "--admin", &admin]);
    assert_eq!(code, 0, "{stdout}");

    // The service has no port 1: refused inside connect().
    assert_eq!(group.web("limits --admin 10.96.0.20:1"), 3);
    until("the refusal is shown", || {
        let args = ["ebpf", "flows", "--admin", &admin, "--workload", "web", "--verdict", "deny", "-o", "wide"];
        let (code, stdout, _) = weft(&args);
        let line = stdout.lines().nth(1).unwrap_or_default();
        let shown = ["web", "weft[", "10.96.0.20:1", "redis", "the service has no such port"];
        code == 0 && shown.iter().all(|part| line.contains(part))
    });

    let (code, stdout, stderr) = weft(&["ebpf", "unload", "--cgroup", group.name()]);
    assert_eq!((code, &*stdout), (1, ""));
    assert!(stderr.contains("a Weft that runs manages it: stop it first, or --force"), "{stderr}");
    assert_eq!(status(&here).0, 0);

    node.stop();
    let (code, down) = status(&here);
    assert_eq!((code, &down["attach_points"][0]["proxy"]["alive"]), (0, &false.into()), "{down:#}");
    assert_eq!(down["attach_points"][0]["probe"], "called");

    let pins = Pins::of(&Cgroup::open(&group.0).unwrap(), false).unwrap();
    assert!(pins.exist());
    let (code, stdout, stderr) = weft(&["ebpf", "unload", "--cgroup", group.name()]);
    assert_eq!((code, &*stdout, &*stderr), (0, &*format!("unloaded: {}\n", group.name()), ""));
    assert!(!pins.exist() && !group.0.join(cgroup::OWN).exists());
    assert_eq!(status(&here).0, 3);
    let (code, _, stderr) = weft(&["ebpf", "unload", "--cgroup", group.name()]);
    assert!(code == 0 && stderr.contains("nothing to unload"), "{stderr}");
}
