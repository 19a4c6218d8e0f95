//! Endpoints that register themselves with a control plane of real processes.

use std::{
    io::Read,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::plane::{Member, ask, ended, status, until};

/// `weft register --keep-alive`, killed when the test ends.
struct Agent(Child);

impl Agent {
    fn start(members: &[&Member], args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command.args(["register", "--keep-alive"]).args(args).env("NO_COLOR", "1");
        command.args(members.iter().flat_map(|member| ["--control", &member.address]));
        Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Exit code, stdout, stderr after SIGTERM.
    fn terminate(&mut self) -> (i32, String, String) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.end()
    }

    fn end(&mut self) -> (i32, String, String) {
        let code = ended(&mut self.0);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.0.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (code, stdout, stderr)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Addresses and states of what is registered with `web`.
fn registered(members: &[&Member]) -> Option<Vec<(String, bool)>> {
    let (code, stdout, _) = ask(members, &["get", "endpoints", "--service", "web", "-o", "json"]);
    let list: Value = if code == 0 { serde_json::from_str(&stdout).unwrap() } else { return None };
    let name = |item: &Value| item["metadata"]["name"].as_str().unwrap().to_owned();
    let items = list["items"].as_array().unwrap().iter();
    Some(items.map(|item| (name(item), item["spec"]["draining"] == true)).collect())
}

fn one() -> Member {
    let member = Member::start("a", &[]);
    until("it leads", || status(&member).is_some_and(|status| status["leader"] == "a"));
    member
}

#[test]
fn endpoints_register_drain_and_deregister() {
    let one = one();
    let (code, stdout, stderr) =
        ask(&[&one], &["register", "web", "10.0.0.7:80", "[fd00::1]:80", "--weight", "2", "--zone", "a"]);
    assert!(
        code == 0 && stdout.contains("web/10.0.0.7:80 registered\n") && stdout.ends_with("revision 1\n"),
        "{stdout}{stderr}"
    );
    assert!(stderr.contains("no Service default/web") && stderr.contains("hint: "), "{stderr}");
    let (_, table, _) = ask(&[&one], &["get", "endpoints"]);
    assert!(table.starts_with("SERVICE") && table.contains("web      10.0.0.7:80   2       a     ready  -"), "{table}");
    // For a time, and by an agent of its own.
    let (code, _, stderr) = ask(&[&one], &["register", "web", "10.0.0.8:80", "--ttl", "1s"]);
    assert!(code == 0 && stderr.contains("it ends in 1s unless"), "{stderr}");
    until("it ends by itself", || registered(&[&one]).is_some_and(|list| list.len() == 2));

    let (code, stdout, _) = ask(&[&one], &["deregister", "web", "10.0.0.7:80", "--drain", "100ms"]);
    assert!(code == 0 && stdout.contains("draining") && stdout.contains("deregistered"), "{stdout}");
    assert_eq!(ask(&[&one], &["deregister", "web", "10.0.0.7:80"]).0, 1);
    let (code, stdout, _) = ask(&[&one], &["history", "endpoint", "web/10.0.0.7:80"]);
    assert!(code == 0 && stdout.contains("DELETED") && stdout.contains(" ago  20"), "{stdout}");

    let (code, _, stderr) = ask(&[&one], &["register", "web", "0.0.0.0:80"]);
    assert!(code == 4 && stderr.contains("hint: "), "{code} {stderr}");
    assert_eq!(ask(&[&one], &["register", "web", "10.0.0.7"]).0, 2);
    assert_eq!(ask(&[&one], &["register", "web", "10.0.0.7:80", "--agent", "x"]).0, 2);
}

#[test]
fn what_is_kept_alive_stays_until_it_is_told_to_end() {
    let one = one();
    let mut agent = Agent::start(&[&one], &["web", "10.0.0.7:80", "--ttl", "1s", "--drain-timeout", "1500ms"]);
    until("it is registered", || registered(&[&one]).is_some_and(|list| list.len() == 1));
    // Another agent does not get it without saying so.
    let (code, _, stderr) = ask(&[&one], &["register", "web", "10.0.0.7:80", "--ttl", "1s", "--agent", "other"]);
    assert!(code == 1 && stderr.contains("--take-over"), "{code} {stderr}");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(registered(&[&one]).unwrap().len(), 1, "longer than it would live by itself");
    let pid = rustix::process::Pid::from_child(&agent.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("it drains", || registered(&[&one]).is_some_and(|list| list == [("web/10.0.0.7:80".to_owned(), true)]));
    let (code, stdout, stderr) = agent.end();
    assert!(code == 0 && stdout.ends_with("deregistered\nrevision 3\n"), "{code} {stdout}{stderr}");
    assert!(registered(&[&one]).unwrap().is_empty());

    // Under the same name it is the same agent: what ran before ends, and takes nothing away.
    let mut first = Agent::start(&[&one], &["web", "10.0.0.9:80", "--ttl", "1s"]);
    until("it is registered", || registered(&[&one]).is_some_and(|list| list.len() == 1));
    let mut second = Agent::start(&[&one], &["web", "10.0.0.9:80", "--ttl", "1s"]);
    let (code, _, stderr) = first.end();
    assert!(code == 1 && stderr.contains("granted anew"), "{code} {stderr}");
    assert_eq!(registered(&[&one]).unwrap().len(), 1);
    assert_eq!(second.terminate().0, 0);
}

#[test]
fn it_stays_registered_when_the_leader_is_killed_and_registers_again_when_its_lease_is_gone() {
    let mut first = Member::start("a", &[]);
    let join = first.address.clone();
    let (second, third) = (Member::start("b", &[&join]), Member::start("c", &[&join]));
    until("three voters", || {
        status(&second).is_some_and(|status| {
            let members = status["members"].as_array().unwrap();
            members.len() == 3 && members.iter().all(|member| member["voter"] == true && member["term"].is_u64())
        })
    });
    let mut agent = Agent::start(&[&first, &second, &third], &["web", "10.0.0.7:80", "--ttl", "2s"]);
    until("it is registered", || registered(&[&first]).is_some_and(|list| list.len() == 1));
    let mut watch = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["watch", "endpoints", "--service", "web", "--from", "0", "--control", &second.address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    first.kill();
    until("another leads", || {
        status(&second).is_some_and(|status| status["leader"].is_string() && status["leader"] != "a")
    });
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(registered(&[&second]).unwrap().len(), 1, "twice as long as it would live by itself");

    // Its lease is taken away: it comes back by itself.
    let (code, stdout, _) = ask(&[&second], &["get", "endpoints", "-o", "json"]);
    assert_eq!(code, 0);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(list["items"][0]["status"]["agent"], "default/web/10.0.0.7:80");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = weft_control::Client::new(vec![second.address.clone()], crate::LIMIT);
        let target = "/v1/agents/default%2Fweb%2F10.0.0.7:80";
        let revoked = client.change(http::Method::DELETE, target, &[], "").await.unwrap();
        assert!(revoked.status.is_success(), "{}", revoked.body);
    });
    until("it is back", || registered(&[&second]).is_some_and(|list| list.len() == 1));
    let (code, _, stderr) = agent.terminate();
    assert!(code == 0 && stderr.contains("the lease was lost: registering again"), "{code} {stderr}");
    watch.kill().unwrap();
    watch.wait().unwrap();
    let mut seen = String::new();
    watch.stdout.take().unwrap().read_to_string(&mut seen).unwrap();
    let kinds: Vec<&str> = seen.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(kinds[..3], ["ADDED", "DELETED", "ADDED"], "nothing else happened to it: {seen}");
}
