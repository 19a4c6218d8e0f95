//! Verbs that ask a running node, against a server that answers as one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{LIMIT, weft};

/// Answers requests for a while, each with the same status and body, and remembers what was asked.
pub struct Node {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// A node that is gone after `answers` requests.
    pub fn start(status: &'static str, body: &'static str, answers: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(answers) {
                answer(stream.unwrap(), status, body, &seen);
            }
        });
        Self { address, asked }
    }

    pub fn ask(&self, args: &[&str]) -> (i32, String, String) {
        let address = self.address.to_string();
        weft(&[args, &["--admin", &address]].concat())
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, status: &str, body: &str, seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    seen.lock().unwrap().push(lines.next().unwrap().unwrap());
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    let mut stream = stream;
    write!(stream, "HTTP/1.0 {status}\r\ncontent-type: application/json\r\n\r\n{body}").unwrap();
}

const SERVED: &str = r#"{"matched": true, "request": {"method": "GET", "scheme": "http", "host": "shop.local", "path": "/"},
"listeners": [{"gateway": "edge", "listener": "http", "address": "127.0.0.1:80", "protocol": "HTTP",
"rule": {"kind": "HTTPRoute", "route": "shop", "rule": "all", "match": "/*"}}]}"#;

#[test]
fn a_question_reaches_the_node_as_it_was_asked() {
    let node = Node::start("200 OK", SERVED, 1);
    let (code, stdout, stderr) = node.ask(&[
        "explain",
        "get",
        "http://shop.local/?a=b&c=+",
        "-H",
        "x-user: ü&1",
        "-H",
        "y:2",
        "--client",
        "::1",
    ]);
    assert_eq!((code, &*stderr), (0, ""));
    assert_eq!(
        node.asked(),
        ["GET /explain?method=GET&url=http%3A%2F%2Fshop.local%2F%3Fa%3Db%26c%3D%2B&header=x-user%3A%20%C3%BC%261\
          &header=y%3A2&client=%3A%3A1 HTTP/1.0"]
    );
    assert_eq!(
        stdout,
        "GET http://shop.local/\n\nListener edge/http on 127.0.0.1:80 (HTTP)\n  + HTTPRoute shop, rule all  serves it: /*\n"
    );
}

#[test]
fn explain_fails_when_no_rule_serves_the_request() {
    let node = Node::start("200 OK", r#"{"matched": false, "listeners": [], "skipped": []}"#, 2);
    let (code, stdout, stderr) = node.ask(&["explain", "GET", "http://a/"]);
    assert_eq!((code, &*stderr), (1, ""));
    assert!(stdout.ends_with("\n- no listener takes this request\n"), "{stdout}");
    let (code, stdout, _) = node.ask(&["explain", "GET", "http://a/", "-o", "json"]);
    assert_eq!(code, 1);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&stdout).unwrap()["matched"], false);
}

#[test]
fn what_the_node_cannot_read_is_wrong_usage() {
    let node = Node::start("400 Bad Request", "`a` is not a URL of a request\n", 1);
    assert_eq!(node.ask(&["explain", "GET", "a"]), (2, String::new(), "weft: `a` is not a URL of a request\n".into()));
}

#[test]
fn an_older_node_is_named() {
    let node = Node::start("404 Not Found", "no such path", 1);
    let (code, _, stderr) = node.ask(&["routes"]);
    let expected = format!("weft: the node at {} has no /routes: it may be older than this weft\n", node.address);
    assert_eq!((code, stderr), (1, expected));
}

#[test]
fn empty_lists_say_so() {
    for (verb, expected) in [
        ("routes", "no routes are configured\n"),
        ("endpoints", "no services are configured\n"),
        ("breakers", "no circuit breakers are configured\n"),
        ("limits", "no rate limits are configured\n"),
    ] {
        assert_eq!(Node::start("200 OK", "[]", 1).ask(&[verb]), (0, expected.into(), String::new()), "{verb}");
        assert_eq!(Node::start("200 OK", "[]", 1).ask(&[verb, "-o", "json"]).1, "[]\n");
        assert_eq!(Node::start("200 OK", "[]", 1).ask(&[verb, "-o", "yaml"]).1, "[]\n");
    }
    let (code, _, stderr) = weft(&["limits", "--watch=0s"]);
    assert!(code == 2 && stderr.contains("longer than nothing"), "{stderr}");
}

#[test]
fn what_is_no_node_is_said() {
    let (code, _, stderr) = Node::start("200 OK", "<html>", 1).ask(&["limits"]);
    assert!(code == 1 && stderr.contains("is not a weft node"), "{stderr}");
}

#[test]
fn a_node_that_hangs_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, stdout, stderr) = weft(&["limits", "--admin", &silent.local_addr().unwrap().to_string()]);
    assert_eq!((code, &*stdout), (5, ""));
    assert!(stderr.contains("does not answer within 5s"), "{stderr}");
}

#[test]
fn a_watched_node_that_goes_away_is_said_so() {
    let node = Node::start("200 OK", "[]", 3);
    let (code, stdout, stderr) = node.ask(&["endpoints", "--watch=50ms", "-o", "json"]);
    assert_eq!((code, &*stdout), (3, "[]\n[]\n[]\n"));
    assert_eq!(stderr, format!("weft: the node at {} has gone away\n", node.address));
    let nobody = crate::free_port();
    let (code, _, stderr) = weft(&["endpoints", "--watch", "--admin", &format!("127.0.0.1:{nobody}")]);
    assert!(code == 3 && stderr.contains("no node answers at"), "{stderr}");
}

/// `weft limits --watch` that has shown its first frame.
fn watching(node: &Node) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["limits", "--watch=20ms", "--admin", &node.address.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "no rate limits are configured\n");
    (child, stdout)
}

fn ended(mut child: Child) -> (Option<i32>, String) {
    let end = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            child.kill().unwrap();
            panic!("weft does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    (child.wait().unwrap().code(), stderr)
}

#[test]
fn ctrl_c_ends_a_watch_cleanly() {
    let node = Node::start("200 OK", "[]", usize::MAX);
    let (child, _stdout) = watching(&node);
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(ended(child), (Some(0), String::new()));
}

#[test]
fn a_watch_ends_when_nobody_reads() {
    let node = Node::start("200 OK", "[]", usize::MAX);
    let (child, stdout) = watching(&node);
    drop(stdout);
    assert_eq!(ended(child), (Some(0), String::new()));
}
