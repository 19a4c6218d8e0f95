//! Packets get lost on the way to one endpoint.

use std::{
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use weft_tests::{
    eventually,
    mesh::{Bed, Netns},
    yaml::policy,
};

use super::{direct, docs, vip};

/// Three servers that repeat lines.
const SERVERS: &str = r#"
import socketserver, sys, threading
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads, request_queue_size = True, True, 128
for port in (9001, 9002, 9003):
    threading.Thread(target=Server((sys.argv[1], port), Echo).serve_forever, daemon=True).start()
print("up", flush=True)
sys.stdin.read()
"#;

/// Connections that say something all the time, until the input ends.
const CLIENTS: &str = r#"
import os, socket, sys, threading, time
host, port = sys.argv[1], int(sys.argv[2])
def run():
    while True:
        try:
            s = socket.create_connection((host, port), 5)
            s.settimeout(20)
            heard = s.makefile("rb")
            for _ in range(200):
                s.sendall(b"x" * 100 + b"\n")
                heard.readline()
                time.sleep(0.005)
            s.close()
        except OSError:
            time.sleep(0.05)
for _ in range(24):
    threading.Thread(target=run, daemon=True).start()
sys.stdin.read()
os._exit(0)
"#;

/// Ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(command: &mut Command) -> Process {
    Process(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
}

/// A cable between this namespace and another. It goes with the other one's end.
fn cable(netns: &Netns, own: &str, other: &str) {
    let device = format!("wl{}", std::process::id());
    let sh = |script: String| {
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    };
    sh(format!(
        "ip link add {device} type veth peer name far netns {} && ip address add {own}/30 dev {device} && \
         ip link set {device} up",
        netns.name
    ));
    netns.run(&format!("ip address add {other}/30 dev far && ip link set far up"));
}

#[tokio::test]
async fn an_endpoint_that_loses_packets_gets_less_and_then_nothing() {
    let test = "an_endpoint_that_loses_packets_gets_less_and_then_nothing";
    let Some(bed) = Bed::make(test) else { return };
    let Some(netns) = Netns::make(test, "loss") else { return };
    // A network that nobody else has: for benchmarks between networks (RFC 2544).
    let (own, other) = ("198.19.250.1", "198.19.250.2");
    cable(&netns, own, other);
    let _servers = spawn(netns.enter().args(["python3", "-c", SERVERS, other]));
    if !netns.lose(test, "tcp dport 9001 numgen random mod 100 < 25") {
        return;
    }
    let [lossy, second, third] = [9001, 9002, 9003].map(|port| SocketAddr::new(other.parse().unwrap(), port));
    let breaker = policy("store", "circuitBreaker: {kernelSignals: true, baseEjectionTime: 60s}");
    let weft = bed.weft(&docs(&[direct("store", 20, &[lossy, second, third]), breaker])).await;
    let through = bed.inside("web");
    let to = vip(20, 6379);
    let mut clients = Command::new(&through[0]);
    clients.args(&through[1..]).args(["python3", "-c", CLIENTS, &to.ip().to_string(), &to.port().to_string()]);
    let _clients = spawn(&mut clients);

    let limit = Duration::from_secs(60);
    eventually("part of its weight counts", limit, async || weft.endpoint(lossy).await["weight_percent"] != 100).await;
    eventually("it is ejected", limit, async || weft.endpoint(lossy).await["breaker"] == "open").await;
    let shown = weft.endpoint(lossy).await;
    let evidence = shown["evidence"].as_str().unwrap();
    assert!(evidence.starts_with("kernel: ") && evidence.contains("median of peers"), "{shown}");
    for peer in [second, third] {
        let shown = weft.endpoint(peer).await;
        assert_eq!((&shown["breaker"], &shown["weight_percent"]), (&"closed".into(), &100.into()), "{shown}");
    }
    // No connection begins there any more; those that stand go on.
    let attempts = async |addr: SocketAddr| weft.endpoint(addr).await["kernel"]["attempts"].as_u64().unwrap();
    let (before, others) = (attempts(lossy).await, attempts(second).await);
    eventually("the others are used", limit, async || attempts(second).await > others + 20).await;
    assert!(attempts(lossy).await <= before + 1, "what had begun when it was ejected");
}
