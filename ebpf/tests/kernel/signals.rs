//! What the kernel sees of endpoints.

use std::{net::SocketAddr, os::fd::AsFd, time::Duration};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::{
    Bed, Child, Closed, Endpoint, SOON, TestAgent, config, eventually, live, netns::Netns, yaml::service,
};

/// A connection of the proxy's own to its endpoint `id`.
fn own(agent: &TestAgent, id: u64, to: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    agent.attribute(socket.as_fd(), id);
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).map(|()| socket)
}

#[test]
fn the_proxys_own_connections_are_counted() {
    let Some(bed) = Bed::make("the_proxys_own_connections_are_counted") else { return };
    let agent = bed.agent();
    let endpoint = Endpoint::start("a");
    let six = Endpoint::at("six", "[::1]:0".parse().unwrap());
    let closed = Closed::port();
    let config = config(&[service("s", &["10.96.0.30"], 80, "Proxy")]);
    let all = [(1, endpoint.address), (2, closed.address), (3, six.address)];
    agent.put(&config, all.map(|(id, address)| live("s", 80, id, address)).into());
    agent.attach();
    for _ in 0..5 {
        own(&agent, 1, endpoint.address).unwrap();
        own(&agent, 2, closed.address).unwrap_err();
    }
    let held: Vec<Socket> = (0..3).map(|_| own(&agent, 1, endpoint.address).unwrap()).collect();
    let _six = own(&agent, 3, six.address).unwrap();
    // Not said to be for an endpoint: not counted, and neither is one that goes elsewhere than it was said.
    std::net::TcpStream::connect(endpoint.address).unwrap();
    let elsewhere = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    agent.attribute(elsewhere.as_fd(), 2);
    elsewhere.connect(&endpoint.address.into()).unwrap();
    eventually("the ends are counted", SOON, || agent.signals()[&1].closed == 5);
    let signals = agent.signals();
    let seen = |id: u64| {
        let stats = signals[&id];
        [stats.attempts, stats.established, stats.refused, stats.timed_out, stats.aborted, stats.closed]
    };
    assert_eq!(seen(1), [8, 8, 0, 0, 0, 5]);
    assert_eq!(seen(2), [5, 0, 5, 0, 0, 0]);
    assert_eq!(seen(3), [1, 1, 0, 0, 0, 0]);
    assert!(signals[&1].srtt_us > 0 && signals[&1].srtt_us < 10_000_000, "{:?}", signals[&1]);
    drop(held);
    eventually("the ends are counted", SOON, || agent.signals()[&1].closed == 8);
    assert_eq!(agent.connections(), json!([]), "those are nobody's captured connections");
}

#[test]
fn direct_connections_are_counted_and_shown() {
    let Some(bed) = Bed::make("direct_connections_are_counted_and_shown") else { return };
    let agent = bed.agent();
    let endpoint = Endpoint::start("a");
    let config = config(&[service("s", &["10.96.0.20"], 80, "Direct")]);
    agent.put(&config, vec![live("s", 80, 1, endpoint.address)]);
    agent.attach();
    let mut web = bed.client("web");
    let first = web.connect("10.96.0.20:80");
    assert_eq!(web.connect("10.96.0.20:80")["hello"], "a");
    web.ask("say", &json!({ "socket": first["socket"], "text": "hello", "count": 50 }));
    let shown = agent.connections();
    assert_eq!(shown.as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(
        (&shown[0]["verdict"], &shown[0]["destination"], &shown[0]["source"], &shown[0]["pid"]),
        (&json!("direct"), &json!("10.96.0.20:80"), &first["local"], &json!(web.id()))
    );
    assert_eq!((&shown[0]["service"], &shown[0]["endpoint"]), (&json!("s:80"), &json!(endpoint.address.to_string())));
    web.ask("close", &json!({ "socket": first["socket"] }));
    eventually("it is gone", SOON, || agent.connections().as_array().unwrap().len() == 1);
    let stats = agent.signals()[&1];
    assert_eq!((stats.attempts, stats.established, stats.closed), (2, 2, 1), "{stats:?}");
    assert!(stats.srtt_us > 0);
}

/// An agent in a network namespace where packets get lost.
fn in_netns(bed: &Bed, netns: &Netns, text: &str, to: &[(u64, &str)]) -> Child {
    let mut agent = Child::start_in(netns, "agent");
    assert_eq!(agent.ask("start", &json!({ "cgroup": bed.cgroup.path })), json!({}));
    let all: Vec<Value> = to.iter().map(|(id, address)| json!(["s", 80, id, address])).collect();
    agent.ask("update", &json!({ "config": text, "live": all }));
    agent.ask("attach", &Value::Null);
    agent
}

fn signal(agent: &mut Child, id: u64, what: &str) -> u64 {
    let signals = agent.ask("signals", &Value::Null);
    signals[id.to_string()][what].as_u64().unwrap_or_else(|| panic!("{signals}"))
}

#[test]
fn an_endpoint_that_says_nothing_is_passed_over() {
    let test = "an_endpoint_that_says_nothing_is_passed_over";
    let Some(bed) = Bed::make(test) else { return };
    let Some(netns) = Netns::make(test, "a") else { return };
    let mut server = Child::start_in(&netns, "server");
    let good = server.ask("listen", &json!({ "name": "good", "at": "127.0.0.1:0" }))["address"].clone();
    server.ask("listen", &json!({ "name": "silent", "at": "127.0.0.2:9002" }));
    // Two SYNs instead of seven: seconds instead of minutes.
    netns.run("echo 1 > /proc/sys/net/ipv4/tcp_syn_retries");
    if !netns.lose(test, "ip daddr 127.0.0.2 tcp dport 9002") {
        return;
    }
    let text = service("s", &["10.96.0.20"], 80, "Direct");
    let endpoints = [(1, good.as_str().unwrap()), (2, "127.0.0.2:9002")];
    let mut agent = in_netns(&bed, &netns, &text, &endpoints);

    // The proxy's own.
    let answer = agent.ask("own", &json!({ "id": 2, "to": "127.0.0.2:9002" }));
    assert_eq!(answer["errno"], libc::ETIMEDOUT, "{answer}");
    eventually("the socket gives up", Duration::from_secs(20), || signal(&mut agent, 2, "timed_out") == 1);
    assert_eq!(signal(&mut agent, 2, "attempts"), 1);
    assert_eq!(signal(&mut agent, 2, "established"), 0);
    assert!(signal(&mut agent, 2, "rto") > 0);

    // From now on the others are taken.
    let mut web = Child::start_in(&netns, "client").inside(&bed.cgroup.child("web"));
    web.ask("storm", &json!({ "to": ["10.96.0.20:80"], "threads": 2, "times": 50 }));
    let tally = web.ask("calm", &Value::Null);
    assert_eq!((&tally["failed"], tally["names"].as_array().unwrap().len()), (&json!([]), 1), "{tally}");
    assert_eq!(signal(&mut agent, 2, "attempts"), 1);

    // An application that gives up first says nothing about the endpoint.
    agent.ask("recovered", &json!({ "id": 2 }));
    let answer = agent.ask("own", &json!({ "id": 2, "to": "127.0.0.2:9002", "limit_ms": 100 }));
    assert_eq!(answer["errno"], libc::ETIMEDOUT, "{answer}");
    eventually("it is counted", SOON, || signal(&mut agent, 2, "aborted") == 1);
    assert_eq!(signal(&mut agent, 2, "timed_out"), 1);
}

#[test]
fn segments_that_are_sent_again_are_counted() {
    let test = "segments_that_are_sent_again_are_counted";
    let Some(bed) = Bed::make(test) else { return };
    let Some(netns) = Netns::make(test, "a") else { return };
    let mut server = Child::start_in(&netns, "server");
    let lossy = server.ask("listen", &json!({ "name": "lossy", "at": "127.0.0.2:9002" }))["address"].clone();
    let well = server.ask("listen", &json!({ "name": "well", "at": "127.0.0.3:9003" }))["address"].clone();
    let text =
        [service("s", &["10.96.0.20"], 80, "Direct"), service("w", &["10.96.0.21"], 80, "Direct")].join("\n---\n");
    let mut agent = Child::start_in(&netns, "agent");
    agent.ask("start", &json!({ "cgroup": bed.cgroup.path }));
    agent.ask("update", &json!({ "config": text, "live": [["s", 80, 1, lossy], ["w", 80, 2, well]] }));
    agent.ask("attach", &Value::Null);
    let mut web = Child::start_in(&netns, "client").inside(&bed.cgroup.child("web"));
    let sockets = ["10.96.0.20:80", "10.96.0.21:80"].map(|to| web.connect(to)["socket"].clone());
    // What the client sends to one of them gets lost now and then; never two of the same segment for long.
    if !netns.lose(test, "ip daddr 127.0.0.2 tcp dport 9002 numgen random mod 100 < 10") {
        return;
    }
    eventually("segments are sent again", Duration::from_secs(60), || {
        for socket in &sockets {
            let answer = web.ask("say", &json!({ "socket": socket, "text": "x".repeat(200), "count": 20 }));
            assert_eq!(answer["echo"], 4000, "TCP makes up for it: {answer}");
        }
        signal(&mut agent, 1, "retransmits") > 3
    });
    assert_eq!(signal(&mut agent, 2, "retransmits"), 0, "nothing was lost there");
    assert!(signal(&mut agent, 1, "srtt_us") > 0);
}
