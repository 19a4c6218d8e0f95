//! The original destination, when accept() returns.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::{Value, json};

use crate::support::{
    Bed, Capture, config,
    yaml::{service, workload},
};

#[test]
fn every_accepted_connection_knows_where_it_was_to_go() {
    let Some(bed) = Bed::make("every_accepted_connection_knows_where_it_was_to_go") else { return };
    let agent = Arc::new(bed.agent());
    let mut parts = vec![workload("web"), workload("batch")];
    let mut to = Vec::new();
    for number in 0..48 {
        let (v4, v6, port) = (format!("10.96.7.{number}"), format!("fd00:96::7:{number}"), 1000 + number);
        parts.push(service(&format!("s{number}"), &[&v4, &v6], port, "Proxy"));
        to.extend([format!("{v4}:{port}"), format!("[{v6}]:{port}"), format!("[::ffff:{v4}]:{port}")]);
    }
    for name in ["web", "batch", "other"] {
        bed.cgroup.child(name);
    }
    agent.put(&config(&parts), Vec::new());
    let _capture = Capture::start(&agent);
    agent.attach();
    let mut clients = Vec::new();
    for workload in ["web", "batch", "web", "other"] {
        let mut client = bed.client(workload);
        client.ask("storm", &json!({ "to": to, "threads": 8, "times": 160 }));
        clients.push((client, if workload == "other" { "-" } else { workload }));
    }
    let mut all = 0;
    let mut asked = BTreeSet::new();
    for (client, workload) in &mut clients {
        let tally = client.ask("calm", &Value::Null);
        assert_eq!((&tally["failed"], &tally["unheard"]), (&json!([]), &json!([])));
        for entry in tally["names"].as_array().unwrap() {
            let to = entry["to"].as_str().unwrap();
            // A v4-mapped destination is the IPv4 address.
            let meant = to.replace("[::ffff:", "").replace(if to.contains("ffff") { "]" } else { "-" }, "");
            assert_eq!(entry["name"], format!("{meant} {workload}"), "{entry}");
            all += entry["count"].as_u64().unwrap();
            asked.insert(to.to_owned());
        }
    }
    assert_eq!((all, asked.len()), (5120, to.len()));
    assert_eq!(agent.count("proxy service"), 5120);
}

#[test]
fn a_connection_that_was_not_captured_has_no_origin() {
    let Some(bed) = Bed::make("a_connection_that_was_not_captured_has_no_origin") else { return };
    let agent = Arc::new(bed.agent());
    agent.put(&config(&[service("s", &["10.96.0.30"], 80, "Proxy")]), Vec::new());
    let capture = Capture::start(&agent);
    agent.attach();
    let mut web = bed.client("web");
    for address in capture.addresses {
        assert_eq!(web.greeted(&address.to_string()), "unknown");
    }
    // Neither has one that uses the socket of a captured one again.
    let captured = web.connect("10.96.0.30:80");
    assert_eq!(captured["hello"], "10.96.0.30:80 -");
    let again = json!({ "socket": captured["socket"], "to": capture.addresses[0].to_string() });
    assert_eq!(web.ask("again", &again)["hello"], "unknown");
    // Nor the agent's own process when it connects to the address of a service.
    let passed: BTreeMap<_, _> = [("own", agent.count("pass own_connection"))].into();
    let to = "10.96.0.30:80".parse().unwrap();
    let _ = std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(50));
    assert_eq!(agent.count("pass own_connection"), passed["own"] + 1);
}
