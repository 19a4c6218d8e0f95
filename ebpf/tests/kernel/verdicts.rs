//! Each verdict, in each address family.

use std::{
    net::{SocketAddr, UdpSocket},
    os::unix::net::UnixListener,
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use weft_ebpf::maps::Live;

use crate::support::{
    Bed, Capture, Child, Closed, Endpoint, SOON, TestAgent, config, eventually, live,
    netns::Netns,
    yaml::{service, service_with, workload},
};

const ECONNREFUSED: i64 = libc::ECONNREFUSED as i64;

/// The same service, asked for by IPv4, IPv6, and by IPv4 as an IPv6 socket does.
fn families(last: u8, port: u16) -> [String; 3] {
    [format!("10.96.0.{last}:{port}"), format!("[fd00:96::{last}]:{port}"), format!("[::ffff:10.96.0.{last}]:{port}")]
}

fn vips(last: u8) -> [String; 2] {
    [format!("10.96.0.{last}"), format!("fd00:96::{last}")]
}

fn with_vips(last: u8, make: impl Fn(&[&str]) -> String) -> String {
    let vips = vips(last);
    make(&[&vips[0], &vips[1]])
}

/// Services 20: direct, 30: through the proxy, 31: the same, but open when it fails, 40: direct, without an endpoint.
struct Stage {
    agent: Arc<TestAgent>,
    direct: Endpoint,
    _open: Endpoint,
    bed: Bed,
}

impl Stage {
    fn set(test: &str) -> Option<Self> {
        let bed = Bed::make(test)?;
        let agent = Arc::new(bed.agent());
        let (direct, open) = (Endpoint::start("direct"), Endpoint::start("open"));
        let config = config(&[
            with_vips(20, |vips| service("direct", vips, 6379, "Direct")),
            with_vips(30, |vips| service("closed", vips, 80, "Proxy")),
            with_vips(31, |vips| service_with("open", vips, 80, "Proxy", true)),
            with_vips(40, |vips| service("empty", vips, 80, "Direct")),
            workload("web"),
        ]);
        let all: Vec<Live> = vec![
            live("direct", 6379, 1, direct.address),
            live("open", 80, 2, open.address),
            live("closed", 80, 3, open.address),
        ];
        agent.put(&config, all);
        Some(Self { agent, direct, _open: open, bed })
    }
}

#[test]
fn what_is_no_service_passes() {
    let Some(stage) = Stage::set("what_is_no_service_passes") else { return };
    stage.agent.attach();
    let mut web = stage.bed.client("web");
    let v6 = Endpoint::at("six", "[::1]:0".parse().unwrap());
    let mapped = format!("[::ffff:127.0.0.1]:{}", stage.direct.address.port());
    for (to, name) in
        [(stage.direct.address.to_string(), "direct"), (v6.address.to_string(), "six"), (mapped, "direct")]
    {
        let before = stage.agent.count("pass not_a_service");
        let answer = web.connect(&to);
        assert_eq!((&answer["hello"], &answer["peer"]), (&json!(name), &json!(to)));
        assert_eq!(stage.agent.count("pass not_a_service"), before + 1, "{to}");
    }
    assert_eq!(web.refused(&Closed::port().address.to_string()).0, ECONNREFUSED);
    assert!(stage.agent.refusals().is_empty());
}

#[test]
fn direct_goes_to_an_endpoint() {
    let Some(stage) = Stage::set("direct_goes_to_an_endpoint") else { return };
    stage.agent.attach();
    for place in ["web", "stranger", "web/deeper"] {
        let mut client = stage.bed.client(place);
        for to in families(20, 6379) {
            let before = stage.agent.count("direct service");
            assert_eq!(client.greeted(&to), "direct", "{to} from {place}");
            assert_eq!(stage.agent.count("direct service"), before + 1, "{to} from {place}");
        }
    }
}

#[test]
fn an_endpoint_of_ipv6_is_for_sockets_of_ipv6() {
    let Some(bed) = Bed::make("an_endpoint_of_ipv6_is_for_sockets_of_ipv6") else { return };
    let agent = bed.agent();
    let six = Endpoint::at("six", "[::1]:0".parse().unwrap());
    let config = config(&[with_vips(20, |vips| service("direct", vips, 6379, "Direct")), workload("web")]);
    agent.put(&config, vec![live("direct", 6379, 1, six.address)]);
    agent.attach();
    let mut web = bed.client("web");
    let [v4, v6, mapped] = families(20, 6379);
    assert_eq!(web.greeted(&v6), "six");
    for to in [v4, mapped] {
        assert_eq!(web.refused(&to).0, ECONNREFUSED, "{to}");
    }
    eventually("both are events", SOON, || {
        agent.refusals().iter().filter(|flow| flow["reason"] == "no_endpoint").count() == 2
    });
}

#[test]
fn the_proxy_is_told_where_a_connection_was_to_go() {
    let Some(stage) = Stage::set("the_proxy_is_told_where_a_connection_was_to_go") else { return };
    let _capture = Capture::start(&stage.agent);
    stage.agent.attach();
    for (place, name) in [("web", "web"), ("web/deeper", "web"), ("stranger", "-"), ("", "-")] {
        let mut client = stage.bed.client(place);
        for service in [30, 31] {
            let [v4, v6, mapped] = families(service, 80);
            for (to, told) in [(&v4, &v4), (&v6, &v6), (&mapped, &v4)] {
                let before = stage.agent.count("proxy service");
                assert_eq!(client.greeted(to), format!("{told} {name}"), "{to} from {place}");
                assert_eq!(stage.agent.count("proxy service"), before + 1);
            }
        }
    }
}

/// Without a proxy: refused at once, or straight to an endpoint, as the service says.
fn down(stage: &Stage, web: &mut Child, why: &str) {
    for to in families(30, 80) {
        let before = stage.agent.count("deny proxy_down");
        let (errno, millis) = web.refused(&to);
        assert_eq!(errno, ECONNREFUSED, "{to}: {why}");
        assert!(millis < 1000, "{to} after {millis} ms: {why}");
        assert_eq!(stage.agent.count("deny proxy_down"), before + 1, "{to}: {why}");
    }
    for to in families(31, 80) {
        let before = stage.agent.count("direct fail_open");
        assert_eq!(web.greeted(&to), "open", "{to}: {why}");
        assert_eq!(stage.agent.count("direct fail_open"), before + 1, "{to}: {why}");
    }
    for to in families(20, 6379) {
        assert_eq!(web.greeted(&to), "direct", "{to}: {why}");
    }
}

#[test]
fn without_the_proxy_a_service_fails_as_it_says() {
    let Some(stage) = Stage::set("without_the_proxy_a_service_fails_as_it_says") else { return };
    stage.agent.attach();
    let mut web = stage.bed.client("web");
    down(&stage, &mut web, "it never said where it listens");
    let capture = Capture::start(&stage.agent);
    assert_eq!(web.greeted("10.96.0.30:80"), "10.96.0.30:80 web");
    drop(capture);
    down(&stage, &mut web, "nobody listens any more");
    let _capture = Capture::start(&stage.agent);
    assert_eq!(web.greeted("10.96.0.30:80"), "10.96.0.30:80 web");
    stage.agent.suspend();
    down(&stage, &mut web, "it said good-bye");
    let flows = stage.agent.flows(0);
    assert!(flows["flows"].as_array().is_some());
}

#[test]
fn a_proxy_that_hangs_is_noticed() {
    let Some(bed) = Bed::make("a_proxy_that_hangs_is_noticed") else { return };
    let mut agent = Child::start("agent");
    let text = service("closed", &["10.96.0.30"], 80, "Proxy");
    agent.ask("start", &json!({ "cgroup": bed.cgroup.path }));
    agent.ask("listen", &json!("127.0.0.1:0"));
    agent.ask("update", &json!({ "config": text, "live": [] }));
    agent.ask("attach", &Value::Null);
    let mut web = bed.client("web");
    assert_eq!(web.greeted("10.96.0.30:80"), "10.96.0.30:80 -");
    let pid = Pid::from_raw(agent.id().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // Its backlog takes connections until it is full, or until the programs take it for dead.
    eventually("connections are refused", SOON, || {
        let answer = web.ask("connect", &json!({ "to": "10.96.0.30:80", "silent": true }));
        answer["errno"] == ECONNREFUSED
    });
    kill_process(pid, Signal::CONT).unwrap();
    eventually("it is taken for alive again", SOON, || web.connect("10.96.0.30:80")["hello"] == "10.96.0.30:80 -");
}

#[test]
fn refusals_have_a_reason_and_are_events() {
    let Some(stage) = Stage::set("refusals_have_a_reason_and_are_events") else { return };
    stage.agent.attach();
    let mut web = stage.bed.client("web");
    let mut expected = Vec::new();
    for (last, port, reason) in
        [(20, 1, "no_port"), (20, 65_535, "no_port"), (40, 80, "no_endpoint"), (30, 80, "proxy_down")]
    {
        let [v4, v6, mapped] = families(last, port);
        for (to, shown) in [(&v4, &v4), (&v6, &v6), (&mapped, &v4)] {
            let before = stage.agent.count(&format!("deny {reason}"));
            let (errno, millis) = web.refused(to);
            assert_eq!(errno, ECONNREFUSED, "{to}");
            assert!(millis < 1000, "{to}: {millis} ms");
            assert_eq!(stage.agent.count(&format!("deny {reason}")), before + 1, "{to}");
            expected.push((json!(shown), json!(reason)));
        }
    }
    eventually("all are events", SOON, || stage.agent.refusals().len() >= expected.len());
    let events = stage.agent.refusals();
    let seen: Vec<(Value, Value)> =
        events.iter().map(|event| (event["destination"].clone(), event["reason"].clone())).collect();
    assert_eq!(seen, expected, "one each, in order");
    for event in &events {
        assert_eq!(event["workload"], "web");
        assert_eq!(event["pid"], web.id());
        assert!(event["command"].as_str().is_some_and(|command| !command.is_empty()));
    }
    assert_eq!(stage.agent.flows(0)["lost"], 0);
}

#[test]
fn only_tcp_is_captured() {
    let Some(stage) = Stage::set("only_tcp_is_captured") else { return };
    stage.agent.attach();
    let mut web = stage.bed.client("web");
    let verdicts = stage.agent.verdicts();

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = udp.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        let (length, from) = udp.recv_from(&mut buffer).unwrap();
        udp.send_to(&buffer[..length], from).unwrap();
    });
    let answer = web.ask("udp", &json!({ "to": to.to_string() }));
    assert_eq!((&answer["reply"], &answer["peer"]), (&json!("hi"), &json!(to.to_string())));
    // The address of a service means nothing to UDP: its peer stays what it was, and nothing comes back.
    let answer = web.ask("udp", &json!({ "to": "10.96.0.20:6379", "limit_ms": 200 }));
    assert!(answer["reply"].is_null(), "{answer}");
    assert!(answer["peer"].is_null() || answer["peer"] == "10.96.0.20:6379", "{answer}");

    let path = std::env::temp_dir().join(format!("weft-kernel-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let unix = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || std::io::Write::write_all(&mut unix.accept().unwrap().0, b"unix\n").unwrap());
    let answer = web.ask("unix", &json!({ "path": path }));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(answer["hello"], "unix");
    assert_eq!(stage.agent.verdicts(), verdicts, "nothing was decided");
}

#[test]
fn a_workload_in_a_namespace_without_the_proxy_is_refused() {
    let test = "a_workload_in_a_namespace_without_the_proxy_is_refused";
    let Some(stage) = Stage::set(test) else { return };
    let Some(netns) = Netns::make(test, "a") else { return };
    let _capture = Capture::start(&stage.agent);
    stage.agent.attach();
    let mut there = Child::start_in(&netns, "client").inside(&stage.bed.cgroup.child("web"));
    for to in families(30, 80) {
        assert_eq!(there.refused(&to).0, ECONNREFUSED, "{to}");
    }
    assert_eq!(stage.agent.count("deny other_namespace"), 3);
    // Straight to an endpoint: that namespace's loopback, where nobody listens.
    for to in families(31, 80) {
        assert_eq!(there.refused(&to).0, ECONNREFUSED, "{to}");
    }
    assert_eq!(stage.agent.count("direct fail_open"), 3);
}

#[test]
fn the_proxy_listens_where_its_workloads_are() {
    let test = "the_proxy_listens_where_its_workloads_are";
    let Some(stage) = Stage::set(test) else { return };
    let (Some(one), Some(two)) = (Netns::make(test, "one"), Netns::make(test, "two")) else { return };
    let capture = Capture::start(&stage.agent);
    stage.agent.attach_with(capture.elsewhere.clone());
    let web = stage.bed.cgroup.child("web");
    let mut clients = [&one, &two].map(|netns| Child::start_in(netns, "client").inside(&web));
    for client in &mut clients {
        eventually("the proxy listens there", SOON, || client.connect("10.96.0.30:80")["errno"].is_null());
        for service in [30, 31] {
            let [v4, v6, mapped] = families(service, 80);
            for (to, told) in [(&v4, &v4), (&v6, &v6), (&mapped, &v4)] {
                assert_eq!(client.greeted(to), format!("{told} web"), "{to}");
            }
        }
    }
    assert_eq!(capture.elsewhere.there.lock().unwrap().len(), 2);
    // Loopback is the same everywhere: the same addresses and ports at the same time, to other destinations. The SYN of
    // one is lost until the other has connected.
    let port = capture.addresses[0].port();
    if !one.lose(test, &format!("tcp dport {port}")) {
        return;
    }
    let with = |to: &str| json!({ "to": to, "bind": "127.0.0.1:45678", "reset": true });
    let [first, second] = &mut clients;
    first.tell("connect", &with("10.96.0.30:80"));
    eventually("it waits", SOON, || one.run("ss -Htn state syn-sent").contains("45678"));
    assert_eq!(second.ask("connect", &with("10.96.0.31:80"))["hello"], "10.96.0.31:80 web");
    one.heal();
    assert_eq!(first.answer()["hello"], "10.96.0.30:80 web");
    drop(clients);
    eventually("it leaves when they do", SOON, || capture.elsewhere.there.lock().unwrap().is_empty());
}

#[test]
fn the_proxy_is_reached_from_other_namespaces_by_an_address_that_they_have() {
    let test = "the_proxy_is_reached_from_other_namespaces_by_an_address_that_they_have";
    let Some(bed) = Bed::make(test) else { return };
    let (Some(node), Some(pod)) = (Netns::make(test, "node"), Netns::make(test, "pod")) else { return };
    node.cable(&pod, "cable", "10.99.0.1/24", "10.99.0.2/24");
    let mut agent = Child::start_in(&node, "agent");
    agent.ask("start", &json!({ "cgroup": bed.cgroup.path }));
    let listens: SocketAddr = agent.ask("listen", &json!("10.99.0.1:0"))["address"].as_str().unwrap().parse().unwrap();
    assert_eq!(listens.ip().to_string(), "10.99.0.1");
    let text = [service("closed", &["10.96.0.30", "10.96.0.32"], 80, "Proxy"), workload("web")].join("\n---\n");
    agent.ask("update", &json!({ "config": text, "live": [] }));
    agent.ask("attach", &Value::Null);
    for netns in [&pod, &node] {
        let mut web = Child::start_in(netns, "client").inside(&bed.cgroup.child("web"));
        for to in ["10.96.0.30:80", "10.96.0.32:80"] {
            assert_eq!(web.greeted(to), format!("{to} web"));
        }
    }
}

#[test]
fn a_workload_that_begins_later_is_known_at_once() {
    let Some(stage) = Stage::set("a_workload_that_begins_later_is_known_at_once") else { return };
    let _capture = Capture::start(&stage.agent);
    let remove = || std::fs::remove_dir(stage.bed.cgroup.path.join("web")).is_ok();
    assert!(remove());
    stage.agent.attach();
    for _ in 0..3 {
        let mut web = stage.bed.client("web");
        // It takes the agent a moment, which is much less than between two of its rounds.
        eventually("it is known", Duration::from_secs(5), || web.greeted("10.96.0.30:80") == "10.96.0.30:80 web");
        drop(web);
        eventually("the cgroup is gone", SOON, remove);
    }
}
