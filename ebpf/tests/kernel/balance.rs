//! Which endpoint connect() takes.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use weft_ebpf::maps::Live;

use crate::support::{
    Bed, Child, Endpoint, SOON, config, eventually, live, now_ns,
    yaml::{service, workload},
};

const TO: &str = "10.96.0.20:6379";

/// Connections that a storm made to an endpoint, and when the first and the last of them began.
fn of<'a>(tally: &'a Value, name: &str) -> Option<&'a Value> {
    tally["names"].as_array().unwrap().iter().find(|entry| entry["name"] == name)
}

fn count(tally: &Value, name: &str) -> u64 {
    of(tally, name).map_or(0, |entry| entry["count"].as_u64().unwrap())
}

/// Waits until a storm has made so many connections more.
pub fn progress(client: &mut Child, more: u64) {
    let far = |client: &mut Child| client.ask("tally", &Value::Null)["far"].as_u64().unwrap();
    let goal = far(client) + more;
    eventually("the storm goes on", Duration::from_secs(30), || far(client) >= goal);
}

fn fine(tally: &Value) {
    assert_eq!((&tally["failed"], &tally["unheard"]), (&json!([]), &json!([])));
}

#[test]
fn in_proportion_to_the_weights() {
    let Some(bed) = Bed::make("in_proportion_to_the_weights") else { return };
    let agent = bed.agent();
    let (a, b, none) = (Endpoint::start("a"), Endpoint::start("b"), Endpoint::start("none"));
    let config = config(&[service("direct", &["10.96.0.20", "fd00:96::20"], 6379, "Direct")]);
    let weighted = |id, endpoint: &Endpoint, weight| Live { weight, ..live("direct", 6379, id, endpoint.address) };
    agent.put(&config, vec![weighted(1, &a, 3), weighted(2, &b, 1), weighted(3, &none, 0)]);
    agent.attach();
    let mut client = bed.client("web");
    for to in [TO, "[fd00:96::20]:6379", "[::ffff:10.96.0.20]:6379"] {
        client.tell("storm", &json!({ "to": [to], "threads": 2, "times": 1000 }));
        client.answer();
        let tally = client.ask("calm", &Value::Null);
        fine(&tally);
        let (a, b) = (count(&tally, "a"), count(&tally, "b"));
        // Five standard deviations.
        assert!(a + b == 2000 && a.abs_diff(1500) <= 97, "3:1 of 2000 to {to}: {a}, {b}");
    }
}

#[test]
fn a_masked_endpoint_is_taken_by_nobody() {
    let Some(bed) = Bed::make("a_masked_endpoint_is_taken_by_nobody") else { return };
    let agent = bed.agent();
    let endpoints = ["a", "b", "c"].map(Endpoint::start);
    let config = config(&[service("direct", &["10.96.0.20"], 6379, "Direct")]);
    let all = endpoints.iter().zip(1..).map(|(endpoint, id)| live("direct", 6379, id, endpoint.address));
    agent.put(&config, all.collect());
    agent.attach();
    let mut client = bed.client("web");
    for _ in 0..5 {
        client.ask("storm", &json!({ "to": [TO], "threads": 2 }));
        progress(&mut client, 100);
        agent.mask(2, true).unwrap();
        let since = now_ns();
        progress(&mut client, 500);
        let tally = client.ask("calm", &Value::Null);
        fine(&tally);
        let last = of(&tally, "b").expect("b was taken before")["last_ns"].as_u64().unwrap();
        assert!(last <= since, "a connect() took it that began {} ns after the call", last - since);
        assert!(count(&tally, "a") > 100 && count(&tally, "c") > 100);
        agent.mask(2, false).unwrap();
        client.ask("storm", &json!({ "to": [TO], "threads": 1, "times": 100 }));
        assert!(count(&client.ask("calm", &Value::Null), "b") > 0, "it is back");
    }
    // If all are masked, any is better than none.
    for id in 1..=3 {
        agent.mask(id, true).unwrap();
    }
    client.ask("storm", &json!({ "to": [TO], "threads": 1, "times": 100 }));
    let tally = client.ask("calm", &Value::Null);
    fine(&tally);
    assert!(["a", "b", "c"].iter().all(|name| count(&tally, name) > 0), "{tally}");
}

#[test]
fn the_endpoint_that_is_left_is_found_among_many_masked_ones() {
    let Some(bed) = Bed::make("the_endpoint_that_is_left_is_found_among_many_masked_ones") else { return };
    let agent = bed.agent();
    let left = Endpoint::start("left");
    let config = config(&[service("direct", &["10.96.0.20"], 6379, "Direct")]);
    let dead = |id: u64| live("direct", 6379, id, ([127, 1, 1, id as u8], 1).into());
    agent.put(&config, (1..=60).map(dead).chain([live("direct", 6379, 99, left.address)]).collect());
    agent.attach();
    (1..=60).for_each(|id| agent.mask(id, true).unwrap());
    let mut client = bed.client("web");
    client.ask("storm", &json!({ "to": [TO], "threads": 2, "times": 250 }));
    let tally = client.ask("calm", &Value::Null);
    fine(&tally);
    assert_eq!(count(&tally, "left"), 500);
}

#[test]
fn a_table_is_switched_in_one_step() {
    let Some(bed) = Bed::make("a_table_is_switched_in_one_step") else { return };
    let agent = bed.agent();
    let sets = [["a1", "a2", "a3"], ["b1", "b2", "b3"]].map(|names| names.map(|name| (name, Endpoint::start(name))));
    let fixed = Endpoint::start("fixed");
    let config = config(&[
        service("moving", &["10.96.0.20", "fd00:96::20"], 6379, "Direct"),
        service("fixed", &["10.96.0.21"], 6379, "Direct"),
        workload("web"),
    ]);
    let put = |which: usize| {
        let set = sets[which].iter().zip(1_u64..);
        let mut all: Vec<Live> =
            set.map(|((_, endpoint), id)| live("moving", 6379, which as u64 * 10 + id, endpoint.address)).collect();
        all.push(live("fixed", 6379, 99, fixed.address));
        agent.put(&config, all);
    };
    put(0);
    agent.attach();
    let mut clients = [bed.client("web"), bed.client("web")];
    for client in &mut clients {
        client.ask("storm", &json!({ "to": [TO, "10.96.0.21:6379", "[fd00:96::20]:6379"], "threads": 2 }));
    }
    for round in 1..=60 {
        progress(&mut clients[round % 2], 40);
        put(round % 2);
    }
    // 60 is even: from now on only the first set.
    let since = now_ns();
    progress(&mut clients[0], 200);
    for client in &mut clients {
        let tally = client.ask("calm", &Value::Null);
        fine(&tally);
        let mut names = BTreeSet::new();
        for entry in tally["names"].as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            assert_eq!(entry["to"] == "10.96.0.21:6379", name == "fixed", "{entry}");
            if name.starts_with('b') {
                assert!(entry["last_ns"].as_u64().unwrap() <= since, "a set that is no longer in force: {entry}");
            }
            names.insert(name.to_owned());
        }
        assert_eq!(names.len(), 7, "{names:?}");
    }
}

#[test]
fn after_the_first_refusal_others_are_taken() {
    let Some(bed) = Bed::make("after_the_first_refusal_others_are_taken") else { return };
    let agent = bed.agent();
    let others = [Endpoint::start("a"), Endpoint::start("b")];
    let mut dying = Child::start("server");
    let address = dying.ask("listen", &json!({ "name": "dying" }))["address"].as_str().unwrap().to_owned();
    let config = config(&[service("direct", &["10.96.0.20"], 6379, "Direct")]);
    let mut all: Vec<Live> =
        others.iter().zip(1..).map(|(endpoint, id)| live("direct", 6379, id, endpoint.address)).collect();
    all.push(live("direct", 6379, 9, address.parse().unwrap()));
    agent.put(&config, all);
    agent.attach();
    let mut client = bed.client("web");
    client.ask("storm", &json!({ "to": [TO], "threads": 4, "pause_us": 200 }));
    progress(&mut client, 300);
    dying.kill();
    progress(&mut client, 1500);
    let tally = client.ask("calm", &Value::Null);
    assert!(count(&tally, "dying") > 0 && count(&tally, "a") > 0 && count(&tally, "b") > 0);
    let failed = tally["failed"].as_array().unwrap();
    assert!(!failed.is_empty(), "nobody met the dead endpoint: {tally}");
    let first = failed.iter().map(|refusal| refusal["end_ns"].as_u64().unwrap()).min().unwrap();
    for refusal in failed {
        assert_eq!(refusal["errno"], libc::ECONNREFUSED, "{refusal}");
        let after = refusal["start_ns"].as_u64().unwrap().saturating_sub(first);
        // The programs look again after HOLD_NS.
        assert!(after == 0 || after > weft_ebpf_abi::HOLD_NS / 2, "began {after} ns after the first refusal: {tally}");
    }
    let stats = agent.signals()[&9];
    assert_eq!((stats.refused, stats.timed_out), (failed.len() as u64, 0), "{stats:?}");
    eventually("the agent is told", SOON, || {
        let flows = agent.flows(0);
        flows["flows"].as_array().unwrap().iter().any(|flow| {
            (&flow["verdict"], &flow["reason"]) == (&json!("trouble"), &json!("refused")) && flow["endpoint"] == address
        })
    });

    let mut back = Child::start("server");
    assert_eq!(back.ask("listen", &json!({ "name": "back", "at": address }))["address"], address);
    client.ask("storm", &json!({ "to": [TO], "threads": 2, "times": 100 }));
    let tally = client.ask("calm", &Value::Null);
    fine(&tally);
    assert_eq!(count(&tally, "back"), 0, "nobody has said that it is back");
    agent.recovered(9);
    client.ask("storm", &json!({ "to": [TO], "threads": 2, "times": 100 }));
    let tally = client.ask("calm", &Value::Null);
    fine(&tally);
    assert!(count(&tally, "back") > 0, "it is taken again: {tally}");
}
