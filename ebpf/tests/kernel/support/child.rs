//! Processes of a test: this binary again, in another role.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use serde_json::{Value, json};

use super::role;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Killed, by its own id, when dropped.
pub struct Child {
    process: std::process::Child,
    lines: Receiver<String>,
    role: &'static str,
}

impl Child {
    pub fn start(role: &'static str) -> Self {
        Self::run(role, Command::new(std::env::current_exe().unwrap()))
    }

    /// In a network namespace.
    pub fn start_in(netns: &super::netns::Netns, role: &'static str) -> Self {
        let mut command = netns.enter();
        command.arg(std::env::current_exe().unwrap());
        Self::run(role, command)
    }

    fn run(role: &'static str, mut command: Command) -> Self {
        let mut process = command
            .args(["--exact", role::TEST, "--nocapture", "--test-threads=1"])
            .env(role::ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, lines) = mpsc::channel();
        let out = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            // The test harness writes lines too.
            for line in out.lines().map_while(Result::ok) {
                if let Some(at) = line.find(role::MARK)
                    && send.send(line[at + role::MARK.len()..].to_owned()).is_err()
                {
                    return;
                }
            }
        });
        let child = Self { process, lines, role };
        child.answer();
        child
    }

    /// Moves it to a cgroup: sockets that it makes from now on belong there.
    pub fn inside(self, cgroup: &Path) -> Self {
        self.enter(cgroup);
        self
    }

    pub fn enter(&self, cgroup: &Path) {
        std::fs::write(cgroup.join("cgroup.procs"), self.id().to_string()).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Has it do something, and waits for the answer.
    pub fn ask(&mut self, what: &str, with: &Value) -> Value {
        self.tell(what, with);
        self.answer()
    }

    /// Has it do something; [`Self::answer`] is to be called later.
    pub fn tell(&mut self, what: &str, with: &Value) {
        let line = json!({ "do": what, "with": with });
        let into = self.process.stdin.as_mut().unwrap();
        writeln!(into, "{line}").unwrap_or_else(|error| panic!("the {} does not listen: {error}", self.role));
    }

    pub fn answer(&self) -> Value {
        match self.lines.recv_timeout(ANSWER) {
            Ok(line) => serde_json::from_str(&line).unwrap(),
            Err(error) => panic!("the {} does not answer: {error}", self.role),
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    // What clients do.

    /// `connect` of a client: see there.
    pub fn connect(&mut self, to: &str) -> Value {
        self.ask("connect", &json!({ "to": to }))
    }

    /// The error of a connect() that must fail, and in how many milliseconds.
    pub fn refused(&mut self, to: &str) -> (i64, u64) {
        let answer = self.connect(to);
        let errno = answer["errno"].as_i64().unwrap_or_else(|| panic!("{to}: {answer}"));
        (errno, answer["millis"].as_u64().unwrap())
    }

    /// The name that an endpoint says.
    pub fn greeted(&mut self, to: &str) -> String {
        let answer = self.connect(to);
        answer["hello"].as_str().unwrap_or_else(|| panic!("{to}: {answer}")).to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
