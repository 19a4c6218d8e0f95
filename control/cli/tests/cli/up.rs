//! A whole node in one process: files, control plane, data plane.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{LIMIT, weft};

/// A server that says its name.
fn named(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut head = [0; 4096];
                while stream.read(&mut head).is_ok_and(|count| count > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// `weft up`; killed if the test fails.
struct Up {
    child: Child,
    listener: u16,
    admin: String,
    control: String,
    dir: tempfile::TempDir,
}

impl Up {
    fn start(files: &dyn Fn(u16) -> Vec<(&'static str, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = free_port();
        fs::create_dir(dir.path().join("conf")).unwrap();
        for (name, text) in files(listener) {
            fs::write(dir.path().join("conf").join(name), text).unwrap();
        }
        let (admin, control) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let child = spawn(dir.path(), &admin, &control);
        let up = Self { child, listener, admin, control, dir };
        until("it serves", || up.admin("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
        up
    }

    fn restart(&mut self) {
        assert_eq!(self.terminate(), 0);
        self.child = spawn(self.dir.path(), &self.admin, &self.control);
        until("it serves again", || self.admin("/ready").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")));
    }

    fn terminate(&mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut status = None;
        until("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }

    fn write(&self, name: &str, text: &str) {
        let new = self.dir.path().join("conf").join(format!(".{name}.new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, self.dir.path().join("conf").join(name)).unwrap();
    }

    fn admin(&self, path: &str) -> Option<String> {
        exchange(
            self.admin.parse().unwrap(),
            &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"),
        )
    }

    /// Who answers at a path.
    fn get(&self, path: &str) -> String {
        let address = SocketAddr::from(([127, 0, 0, 1], self.listener));
        let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"));
        answer.unwrap_or_default().rsplit("\r\n").next().unwrap_or_default().to_owned()
    }

    /// Asks its control plane.
    fn ask(&self, args: &[&str]) -> (i32, String, String) {
        weft(&[args, &["--control", &self.control]].concat())
    }

    fn names(&self, kind: &str) -> Vec<String> {
        let (code, stdout, stderr) = self.ask(&["get", kind, "-o", "json"]);
        assert_eq!(code, 0, "{stderr}");
        let list: Value = serde_json::from_str(&stdout).unwrap();
        let name = |item: &Value| item["metadata"]["name"].as_str().unwrap().to_owned();
        list["items"].as_array().unwrap().iter().map(name).collect()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, admin: &str, control: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(["up", "--workers", "1", "--no-pin", "--admin", admin, "--control-listen", control]);
    command.arg("--data-dir").arg(dir.join("data")).arg("-f").arg(dir.join("conf"));
    command.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn spawn(dir: &Path, admin: &str, control: &str) -> Child {
    let stderr = fs::File::options().create(true).append(true).open(dir.join("stderr")).unwrap();
    command(dir, admin, control).stderr(stderr).spawn().unwrap()
}

fn exchange(address: SocketAddr, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !check() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(30));
    }
}

fn gateway(port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge}}\nspec:\n  gatewayClassName: \
         weft\n  addresses: [{{value: 127.0.0.1}}]\n  listeners: [{{name: http, port: {port}, protocol: HTTP}}]\n"
    )
}

/// A service with a route of its own.
fn service(name: &str, endpoint: Option<SocketAddr>) -> String {
    let endpoint = endpoint.map(|at| format!("{{address: {}, port: {}}}", at.ip(), at.port())).unwrap_or_default();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: \
         [{{name: edge}}]\n  rules:\n  - matches: [{{path: {{value: /{name}}}}}]\n    backendRefs: [{{group: weft.dev, \
         kind: Service, name: {name}, port: 80}}]\n---\napiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: \
         {name}}}\nspec:\n  ports: [{{port: 80}}]\n  endpoints: [{endpoint}]\n"
    )
}

#[test]
fn files_and_what_others_apply_are_in_force_together() {
    let (one, two, three) = (named("one"), named("two"), named("three"));
    let mut up = Up::start(&|port| vec![("edge.yaml", gateway(port)), ("shop.yaml", service("shop", Some(one)))]);
    assert_eq!(up.get("/shop"), "one");

    // Somebody else applies, and an endpoint registers itself.
    let extra: PathBuf = up.dir.path().join("extra.yaml");
    fs::write(&extra, service("extra", None)).unwrap();
    let (code, _, stderr) = up.ask(&["apply", "-f", extra.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = up.ask(&["register", "extra", &two.to_string()]);
    assert_eq!(code, 0, "{stderr}");
    until("what others applied is in force", || up.get("/extra") == "two");

    up.write("shop.yaml", &service("shop", Some(three)));
    until("an edited file is in force", || up.get("/shop") == "three");
    up.write("shop.yaml", "kind: nonsense\n");
    until("a bad file is refused by name", || up.admin("/config_dump").is_some_and(|text| text.contains("shop.yaml")));
    assert_eq!(up.get("/shop"), "three");
    up.write("shop.yaml", &service("shop", Some(three)));
    until("a mended file is refused no longer", || {
        up.admin("/config_dump").is_some_and(|text| !text.contains("shop.yaml"))
    });
    up.write("shop.yaml", &service("store", Some(one)));
    until("what no file says any more is gone", || up.names("service") == ["extra", "store"]);
    until("the new service is in force", || up.get("/store") == "one");

    up.restart();
    until("what others applied outlives a restart", || up.get("/extra") == "two");
    assert_eq!((up.get("/store"), up.names("service")), ("one".into(), vec!["extra".into(), "store".into()]));

    // A second one with the same data.
    let second = command(up.dir.path(), &format!("127.0.0.1:{}", free_port()), &format!("127.0.0.1:{}", free_port()))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(second.status.code() == Some(1) && said.contains("another process uses it (--data-dir"), "{said}");
    assert_eq!(up.terminate(), 0);
}

#[test]
fn a_node_that_cannot_have_its_files_says_so_and_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for (text, exit, expected) in
        [(gateway(port), 1, "cannot listen on"), ("kind: nonsense\n".to_owned(), 4, "weft.yaml:1")]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf")).unwrap();
        fs::write(dir.path().join("conf/weft.yaml"), text).unwrap();
        let ended = command(dir.path(), &format!("127.0.0.1:{}", free_port()), &format!("127.0.0.1:{}", free_port()))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(exit) && said.contains(expected), "{:?} {said}", ended.status);
    }
}
