//! What the binary prints, and how it ends.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

#[path = "cli/configuration.rs"]
mod configuration;
#[path = "cli/ebpf.rs"]
mod ebpf;
#[path = "cli/node.rs"]
mod node;
#[path = "cli/plane.rs"]
mod plane;
#[path = "cli/registry.rs"]
mod registry;
#[path = "cli/status.rs"]
mod status;
#[path = "cli/up.rs"]
mod up;

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Longest wait for a verb that ends by itself.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs `weft` to its end; exit code, stdout, stderr. What hangs is killed, and fails.
fn weft(args: &[&str]) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .env_remove("RUST_LOG")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Read while it runs: a page of schema fills a pipe.
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let read = |from: &mut dyn std::io::Read| {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        text
    };
    std::thread::scope(|threads| {
        let out = threads.spawn(move || read(&mut stdout));
        let err = threads.spawn(move || read(&mut stderr));
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > end {
                child.kill().unwrap();
                panic!("weft {args:?} does not end: {}", err.join().unwrap());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        (status.code().unwrap(), out.join().unwrap(), err.join().unwrap())
    })
}

/// A file in a directory of its own.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("weft.yaml");
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

fn valid(port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: weft
  addresses: [{{value: 127.0.0.1}}]
  listeners: [{{name: http, port: {port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: all}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{group: weft.dev, kind: Service, name: hello, port: 80}}]
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {{name: hello}}
spec:
  ports: [{{name: http, port: 80}}]
  endpoints: [{{address: 127.0.0.1, port: 9000}}]
"
    )
}

/// Three mistakes: a field, a reference, a value.
fn mistakes() -> String {
    let text = valid(8080).replace("addresses:", "adresses:").replace("{name: edge}]", "{name: egde}]");
    text.replace("port: 9000", "port: 90000")
}

#[test]
fn validate_sums_up_what_is_valid() {
    let (_directory, path) = file(&valid(8080));
    let (code, stdout, stderr) = weft(&["validate", path.to_str().unwrap()]);
    assert_eq!(stdout, "valid: 1 gateway, 1 route, 1 service (1 endpoint), 0 warnings\n");
    assert_eq!((code, &*stderr), (0, ""));
}

#[test]
fn validate_shows_every_mistake_at_its_place() {
    let (_directory, path) = file(&mistakes());
    let path = path.to_str().unwrap();
    let (code, stdout, stderr) = weft(&["validate", path]);
    assert_eq!((code, &*stdout), (4, ""), "{stderr}");
    for (place, message, hint) in [
        ("6:3", "unknown field \"adresses\"", "did you mean \"addresses\"?"),
        ("13:23", "there is no Gateway \"egde\"", "did you mean \"edge\"?"),
        ("22:42", "\"port\" is out of range: 90000", "between 1 and 65535"),
    ] {
        for part in [format!("{path}:{place}"), message.into(), hint.into()] {
            assert!(unwrapped(&stderr).contains(&unwrapped(&part)), "{part} is missing in\n{stderr}");
        }
    }
    let last = stderr.lines().last();
    assert_eq!(last, Some("weft: the configuration is not valid: 3 mistakes"), "{stderr}");
}

/// Without what the report draws and breaks to fit a terminal.
fn unwrapped(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && !"│╭─╰┬·×▶".contains(*c)).collect()
}

#[test]
fn validate_speaks_json() {
    let (_directory, path) = file(&mistakes());
    let (code, stdout, stderr) = weft(&["validate", "-o", "json", path.to_str().unwrap()]);
    assert_eq!((code, &*stderr), (4, ""));
    let answer: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(answer["valid"], false);
    let places: Vec<_> = answer["errors"].as_array().unwrap().iter().map(|e| (&e["line"], &e["column"])).collect();
    assert_eq!(places, [(&6.into(), &3.into()), (&13.into(), &23.into()), (&22.into(), &42.into())]);
    assert_eq!(answer["errors"][1]["file"], path.to_str().unwrap());

    let (_directory, path) = file(&valid(8080));
    let (code, stdout, _) = weft(&["validate", "-o", "json", path.to_str().unwrap()]);
    assert_eq!((code, &*stdout), (0, "{\"errors\":[],\"valid\":true,\"warnings\":[]}\n"));
}

#[test]
fn a_missing_file_is_a_mistake() {
    let (code, stdout, stderr) = weft(&["validate", "/nowhere/weft.yaml"]);
    assert_eq!((code, &*stdout), (4, ""));
    assert!(stderr.contains("there is no such file or directory") && stderr.contains("/nowhere/weft.yaml"), "{stderr}");
    let (code, _, stderr) = weft(&["proxy", "--config", "/nowhere/weft.yaml"]);
    assert_eq!(code, 4, "{stderr}");
}

#[test]
fn generated_texts() {
    let (code, stdout, stderr) = weft(&["schema"]);
    assert_eq!((code, &*stderr), (0, ""));
    let schema: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert!(schema["$schema"].is_string() && stdout.contains("HTTPRoute") && stdout.contains("TrafficPolicy"));

    let (code, stdout, _) = weft(&["completions", "bash"]);
    assert!(code == 0 && stdout.contains("complete -F _weft") && stdout.contains("validate"), "{stdout}");
    for shell in ["zsh", "fish"] {
        assert_eq!(weft(&["completions", shell]).0, 0, "{shell}");
    }

    let (code, stdout, _) = weft(&["man"]);
    assert!(code == 0 && stdout.contains(".TH weft 1") && stdout.contains("validate"), "{stdout}");
}

/// One line on stderr that names the address, and exit code 1.
fn refused(address: &str, (code, stdout, stderr): (i32, String, String)) {
    assert_eq!((code, &*stdout), (1, ""), "{stderr}");
    let complaints: Vec<_> = stderr.lines().filter(|line| line.starts_with("weft: ")).collect();
    assert_eq!(complaints.len(), 1, "{stderr}");
    assert!(complaints[0].contains(address) && complaints[0].contains("in use"), "{stderr}");
    assert_eq!(stderr.lines().last(), Some(complaints[0]));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (_directory, path) = file(&valid(address.port()));
    let path = path.to_str().unwrap();
    refused(&address.to_string(), weft(&["proxy", "--config", path, "--admin", "127.0.0.1:0"]));

    let (_directory, path) = file(&valid(free_port()));
    let path = path.to_str().unwrap();
    refused(&address.to_string(), weft(&["proxy", "--config", path, "--admin", &address.to_string()]));
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn wrong_usage_exits_with_2() {
    for (args, complaint) in [
        (&["proxy", "--confg", "x"][..], "unexpected argument '--confg'"),
        (&["vaildate", "x"], "unrecognized subcommand 'vaildate'"),
        (&["validate"], "required arguments were not provided"),
        (&["proxy", "--config", "x", "--workers", "0"], "--workers"),
        (&["proxy", "--config", "x", "--trust-forwarded", "10.0.0.0/33"], "from 0 to 32"),
        (&["proxy", "--config", "x", "--drain-timeout", "5"], "a duration needs a unit"),
        (&["proxy", "--config", "x", "--ebpf", "require"], "--ebpf require needs --cgroup PATH"),
        (&["proxy", "--config", "x", "--captured", "127.0.0.1:0"], "a fixed port"),
        (&["up"], "--file"),
        (&["up", "--file", "x", "-f", "y", "--workers", "0"], "--workers"),
        (&["ebpf"], "Usage: weft ebpf"),
        (&["ebpf", "unload", "--cgroup", "/nowhere"], "--cgroup: /nowhere: "),
        (&["ebpf", "unload", "--cgroup", "/nowhere", "--all"], "cannot be used with"),
        (&["ebpf", "flows", "--verdict", "allow"], "[possible values: pass, direct, proxy, deny, trouble]"),
        (&[], "Usage: weft"),
    ] {
        let (code, stdout, stderr) = weft(args);
        assert_eq!((code, &*stdout), (2, ""), "{args:?}");
        assert!(stderr.contains(complaint), "{args:?}: {stderr}");
    }
    assert_eq!(weft(&["--version"]), (0, concat!("weft ", env!("CARGO_PKG_VERSION"), "\n").into(), String::new()));
    let help = weft(&["--help"]);
    assert!(help.0 == 0 && help.1.contains("validate") && help.2.is_empty());
}

#[test]
fn a_node_that_does_not_answer_is_unreachable() {
    let address = format!("127.0.0.1:{}", free_port());
    for verb in ["endpoints", "breakers", "limits", "routes", "drain"] {
        let (code, stdout, stderr) = weft(&[verb, "--admin", &address]);
        assert_eq!((code, &*stdout), (3, ""), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.starts_with(&format!("weft: no node answers at {address}: ")), "{stderr}");
    }
    assert_eq!(weft(&["ebpf", "flows", "--admin", &address]).0, 3);
}
