//! Connections to endpoints that are gone.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Bed, Child, Endpoint, SOON, config, eventually, live, netns::Netns, yaml::service};

const TO: &str = "10.96.0.20:80";

/// The error that ends a connection; until then it works.
fn ended(client: &mut Child, socket: &Value) -> Value {
    let mut end = Value::Null;
    eventually("the connection is ended", SOON, || {
        end = client.ask("say", &json!({ "socket": socket, "text": "still there?" }));
        end["echo"].is_null()
    });
    end
}

fn works(client: &mut Child, socket: &Value) {
    let answer = client.ask("say", &json!({ "socket": socket, "text": "hi" }));
    assert_eq!(answer["echo"], 2, "{answer}");
}

#[test]
fn are_ended_by_generation() {
    let Some(bed) = Bed::make("are_ended_by_generation") else { return };
    let agent = bed.agent_with(Some(Duration::from_millis(500)));
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    let config = config(&[service("s", &["10.96.0.20"], 80, "Direct"), service("t", &["10.96.0.21"], 80, "Direct")]);
    let only_b = vec![live("s", 80, 2, b.address), live("t", 80, 4, a.address)];
    let only_a = vec![live("s", 80, 3, a.address), live("t", 80, 4, a.address)];
    agent.put(&config, vec![live("s", 80, 1, a.address), live("t", 80, 4, a.address)]);
    agent.attach();
    let mut web = bed.client("web");
    let connect = |web: &mut Child, to: &str, name: &str| {
        let answer = web.connect(to);
        assert_eq!(answer["hello"], name, "{answer}");
        answer["socket"].clone()
    };
    let stale = connect(&mut web, TO, "a");
    let mapped = connect(&mut web, "[::ffff:10.96.0.20]:80", "a");
    let other = connect(&mut web, "10.96.0.21:80", "a");
    agent.put(&config, only_b);
    let to_b = connect(&mut web, TO, "b");
    // Back at once, at the same address: another endpoint.
    agent.put(&config, only_a);
    let fresh = connect(&mut web, TO, "a");
    works(&mut web, &stale);
    for socket in [&stale, &mapped, &to_b] {
        let end = ended(&mut web, socket);
        assert!([libc::ECONNABORTED, libc::ECONNRESET].iter().any(|errno| end["errno"] == *errno), "{end}");
    }
    // What was decided about the old ones has had its time.
    eventually("nothing else is to be ended", SOON, || agent.connections().as_array().unwrap().len() == 2);
    for socket in [&fresh, &other] {
        works(&mut web, socket);
    }
}

#[test]
fn are_left_alone_unless_asked_for() {
    let Some(bed) = Bed::make("are_left_alone_unless_asked_for") else { return };
    let agent = bed.agent();
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    let config = config(&[service("s", &["10.96.0.20"], 80, "Direct")]);
    agent.put(&config, vec![live("s", 80, 1, a.address)]);
    agent.attach();
    let mut web = bed.client("web");
    let old = web.connect(TO)["socket"].clone();
    agent.put(&config, vec![live("s", 80, 2, b.address)]);
    assert_eq!(web.greeted(TO), "b");
    // Two heartbeats: the agent has looked after what is due.
    let age = || agent.status()["proxy"]["heartbeat_age_ms"].as_u64().unwrap();
    for _ in 0..2 {
        eventually("its last heartbeat is some time ago", SOON, || age() > 200);
        eventually("it beats", SOON, || age() <= 200);
    }
    works(&mut web, &old);
}

#[test]
fn are_ended_in_other_namespaces_too() {
    let test = "are_ended_in_other_namespaces_too";
    let Some(bed) = Bed::make(test) else { return };
    let Some(netns) = Netns::make(test, "a") else { return };
    let mut server = Child::start_in(&netns, "server");
    let a = server.ask("listen", &json!({ "name": "a" }))["address"].as_str().unwrap().parse().unwrap();
    let agent = bed.agent_with(Some(Duration::from_millis(100)));
    let config = config(&[service("s", &["10.96.0.20"], 80, "Direct")]);
    agent.put(&config, vec![live("s", 80, 1, a)]);
    agent.attach();
    let mut there = Child::start_in(&netns, "client").inside(&bed.cgroup.child("web"));
    let socket = there.connect(TO)["socket"].clone();
    works(&mut there, &socket);
    agent.put(&config, Vec::new());
    assert!(ended(&mut there, &socket)["errno"].is_number());
}
