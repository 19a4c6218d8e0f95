//! A control plane of real processes, and the verbs that ask it.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{LIMIT, file, valid, weft};

/// `weft control`, killed when the test ends.
pub(crate) struct Member {
    name: String,
    child: Child,
    pub(crate) address: String,
    pub(crate) dir: tempfile::TempDir,
}

impl Member {
    pub(crate) fn start(name: &str, join: &[&str]) -> Self {
        let address = free();
        let dir = tempfile::tempdir().unwrap();
        let child = spawn(name, dir.path(), &address, join);
        Self { name: name.into(), child, address, dir }
    }

    /// With these arguments, and a directory that exists.
    pub(crate) fn start_in(name: &str, dir: tempfile::TempDir, args: &[&str]) -> Self {
        let address = free();
        let mut all = vec!["control", "--name", name, "--listen", &address];
        all.extend(args);
        let child = run(&all, dir.path());
        Self { name: name.into(), child, address, dir }
    }

    fn restart(&mut self) {
        self.child = spawn(&self.name, self.dir.path(), &self.address, &[]);
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Exit code after SIGTERM, and what it said.
    pub(crate) fn terminate(&mut self) -> (i32, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = ended(&mut self.child);
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Free a moment ago: the best that can be had for a port that has to be known.
fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn spawn(name: &str, dir: &Path, address: &str, join: &[&str]) -> Child {
    let mut args = vec!["control", "--name", name, "--listen", address];
    args.extend(join.iter().flat_map(|other| ["--join", other]));
    run(&args, dir)
}

fn run(args: &[&str], dir: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(args).arg("--data-dir").arg(dir);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) fn ended(child: &mut Child) -> i32 {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks these members, in this order.
pub(crate) fn ask(members: &[&Member], args: &[&str]) -> (i32, String, String) {
    let mut all = args.to_vec();
    for member in members {
        all.extend(["--control", &member.address]);
    }
    weft(&all)
}

pub(crate) fn status(member: &Member) -> Option<Value> {
    let (code, stdout, _) = ask(&[member], &["raft", "status", "-o", "json"]);
    (code == 0).then(|| serde_json::from_str(&stdout).unwrap())
}

pub(crate) fn until(what: &str, check: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !check() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn one_member_keeps_what_is_applied() {
    let mut one = Member::start("a", &[]);
    until("it leads", || status(&one).is_some_and(|status| status["leader"] == "a"));
    let (_dir, path) = file(&valid(8080));
    let path = path.to_str().unwrap();
    let (code, stdout, stderr) = ask(&[&one], &["apply", "--dry-run", "-f", path]);
    assert!(code == 0 && stdout.contains("HTTPRoute/all created (dry run)"), "{stdout}{stderr}");
    let (code, stdout, stderr) = ask(&[&one], &["apply", "-f", path]);
    assert!(code == 0 && stdout.ends_with("revision 1\n"), "{stdout}{stderr}");
    let (code, stdout, _) = ask(&[&one], &["get", "services", "-o", "json"]);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &list["items"][0]["metadata"]["name"]), (0, &"hello".into()));

    // As `weft validate` says it, with the line; and nothing is stored.
    let (_bad_dir, bad) = file(&valid(8080).replace("name: hello, port", "name: helo, port"));
    let (code, _, stderr) = ask(&[&one], &["apply", "-f", bad.to_str().unwrap()]);
    assert!(code == 4 && stderr.contains("name: helo, port") && stderr.contains("weft.yaml:15:58"), "{stderr}");
    let (code, _, stderr) = ask(&[&one], &["delete", "service", "hello"]);
    assert!(code == 4 && stderr.contains("HTTPRoute/default/all (stored)"), "{stderr}");

    // Another process cannot have the same directory.
    let dir = one.dir.path().to_str().unwrap();
    let (code, _, stderr) = weft(&["control", "--name", "b", "--data-dir", dir, "--listen", "127.0.0.1:0"]);
    assert!(code == 1 && stderr.lines().last().unwrap().starts_with("weft: the store cannot go on: "), "{stderr}");

    let (code, said) = one.terminate();
    assert_eq!(code, 0, "{said}");
    assert_eq!(ask(&[&one], &["get", "services"]).0, 3);
    one.restart();
    until("it leads again", || status(&one).is_some_and(|status| status["leader"] == "a"));
    let (code, stdout, _) = ask(&[&one], &["get", "HTTPRoute", "all", "-o", "yaml"]);
    assert!(code == 0 && stdout.contains("resourceVersion: \"1\""), "{stdout}");
    let (code, stdout, _) = ask(&[&one], &["history", "service", "hello"]);
    assert!(code == 0 && stdout.contains("ADDED"), "{stdout}");
    assert_eq!(ask(&[&one], &["wait", "--revision", "1"]).0, 0);
    assert_eq!(ask(&[&one], &["wait", "--revision", "9", "--timeout", "300ms"]).0, 5);
    let (code, stdout, stderr) = ask(&[&one], &["delete", "-f", path]);
    assert!(code == 0 && stdout.contains("Service/hello deleted"), "{stdout}{stderr}");
    assert_eq!(ask(&[&one], &["delete", "service", "hello"]).0, 1);
    assert_eq!(ask(&[&one], &["get", "servces"]).0, 1);
}

#[test]
fn three_members_survive_the_death_of_their_leader() {
    let mut first = Member::start("a", &[]);
    let join = first.address.clone();
    let (second, third) = (Member::start("b", &[&join]), Member::start("c", &[&join]));
    until("three voters", || {
        status(&second).is_some_and(|status| {
            let members = status["members"].as_array().unwrap();
            members.len() == 3 && members.iter().all(|member| member["voter"] == true && member["term"].is_u64())
        })
    });
    let (_dir, path) = file(&valid(8080));
    let (code, stdout, stderr) = ask(&[&second], &["apply", "-f", path.to_str().unwrap()]);
    assert!(code == 0 && stdout.ends_with("revision 1\n"), "{stdout}{stderr}");

    let mut watch = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["watch", "gateway", "--from", "0", "--json", "--control", &first.address, "--control", &second.address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let mut seen = || serde_json::from_str::<Value>(&lines.next().unwrap()).unwrap()["revision"].clone();
    assert_eq!(seen(), 1);

    first.kill();
    let (_dir, path) = file(&valid(8081));
    let (code, stdout, stderr) = ask(&[&first, &second, &third], &["apply", "-f", path.to_str().unwrap()]);
    assert!(code == 0 && stdout.ends_with("revision 2\n"), "{stdout}{stderr}");
    let (_, stdout, _) = ask(&[&third], &["get", "gateway", "edge", "-o", "json"]);
    let gateway: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(gateway["spec"]["listeners"][0]["port"], 8081);
    let leader = status(&third).unwrap()["leader"].clone();
    assert!(leader == "b" || leader == "c", "{leader}");

    // The watch goes on with another member.
    assert_eq!(seen(), 2);
    watch.kill().unwrap();
    watch.wait().unwrap();

    first.restart();
    until("the first is back", || {
        let (code, stdout, _) = ask(&[&first], &["get", "gateway", "edge", "--stale", "-o", "json"]);
        code == 0 && stdout.contains("8081")
    });
    let (code, stdout, stderr) = ask(&[&second], &["raft", "transfer", "a"]);
    assert!(code == 0 && stdout == "a leads\n", "{stdout}{stderr}");
    let (code, stdout, _) = ask(&[&third], &["raft", "status"]);
    assert!(code == 0 && stdout.contains("a       leader"), "{stdout}");
    // A leader that is told to stop hands over first.
    let (code, said) = first.terminate();
    assert!(code == 0 && said.contains("handed over leadership"), "{said}");
}
