//! The agent dies, others take over.

use serde_json::{Value, json};

use crate::{
    balance::progress,
    support::{
        Bed, Child, Closed, Endpoint, SOON, TestCgroup, eventually, now_ns,
        yaml::{access, service, service_with, workload},
    },
};

/// Starts an agent in a process of its own and has it take over.
fn take_over(bed: &Bed, text: &str, live: &Value) -> Child {
    let mut agent = Child::start("agent");
    // The one before was killed a moment ago.
    assert_eq!(agent.ask("start", &json!({ "cgroup": bed.cgroup.path })), json!({}));
    agent.ask("listen", &json!("127.0.0.1:0"));
    agent.ask("update", &json!({ "config": text, "live": live }));
    agent.ask("attach", &Value::Null);
    agent
}

/// Direct, through the proxy and open, through the proxy and closed, and protected.
fn text() -> String {
    [
        service("direct", &["10.96.0.20", "fd00:96::20"], 80, "Direct"),
        service_with("open", &["10.96.0.31"], 80, "Proxy", true),
        service("closed", &["10.96.0.30"], 80, "Proxy"),
        service("secret", &["10.96.0.40"], 80, "Direct"),
        access("secret", "Allow", "{workloads: [other]}"),
        workload("web"),
        workload("other"),
    ]
    .join("\n---\n")
}

fn endpoints(a: &Endpoint, b: &Endpoint) -> Value {
    let (a, b) = (a.address.to_string(), b.address.to_string());
    json!([["direct", 80, 1, a], ["direct", 80, 2, b], ["open", 80, 3, a], ["closed", 80, 4, a], ["secret", 80, 5, a]])
}

#[test]
fn direct_goes_on_through_death_and_take_over() {
    let Some(bed) = Bed::make("direct_goes_on_through_death_and_take_over") else { return };
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    let live = endpoints(&a, &b);
    let mut agent = take_over(&bed, &text(), &live);
    let (mut direct, mut open, mut web) = (bed.client("web"), bed.client("web"), bed.client("web"));
    let mut secret = bed.client("other");
    let storm = |to: &[&str]| json!({ "to": to, "threads": 2, "pause_us": 300 });
    direct.ask("storm", &storm(&["10.96.0.20:80", "[fd00:96::20]:80", "[::ffff:10.96.0.20]:80"]));
    open.ask("storm", &storm(&["10.96.0.31:80"]));
    secret.ask("storm", &storm(&["10.96.0.40:80"]));
    let mut deaths = Vec::new();
    for _ in 0..3 {
        assert_eq!(web.greeted("10.96.0.30:80"), "10.96.0.30:80 web");
        progress(&mut direct, 200);
        let begun = now_ns();
        agent.kill();
        deaths.push((begun, now_ns()));
        let (errno, millis) = web.refused("10.96.0.30:80");
        assert_eq!(errno, i64::from(libc::ECONNREFUSED));
        assert!(millis < 1000, "{millis} ms");
        assert_eq!(web.refused("10.96.0.40:80").0, i64::from(libc::ECONNREFUSED), "policies stay in force");
        progress(&mut direct, 200);
        progress(&mut open, 100);
        agent = take_over(&bed, &text(), &live);
        progress(&mut open, 100);
    }
    progress(&mut direct, 200);
    // Whoever is not captured finds no route, or nobody: no connect failed, so there was no gap.
    for client in [&mut direct, &mut secret] {
        let tally = client.ask("calm", &Value::Null);
        assert_eq!((&tally["failed"], &tally["unheard"]), (&json!([]), &json!([])));
    }
    let tally = open.ask("calm", &Value::Null);
    assert_eq!(tally["failed"], json!([]));
    let names: Vec<&str> =
        tally["names"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["10.96.0.31:80 web", "a"], "through the proxy, and past it");
    // What the kernel had accepted for a proxy that was dying is cut, and nothing else.
    for cut in tally["unheard"].as_array().unwrap() {
        let (start, end) = (cut["start_ns"].as_u64().unwrap(), cut["end_ns"].as_u64().unwrap());
        assert!(deaths.iter().any(|(begun, over)| start <= *over && end >= *begun), "{cut}, deaths: {deaths:?}");
    }
}

#[test]
fn an_endpoint_keeps_its_place_and_counters() {
    let Some(bed) = Bed::make("an_endpoint_keeps_its_place_and_counters") else { return };
    let mut servers = [Endpoint::start("a"), Endpoint::start("b")];
    servers.sort_by_key(|server| server.address);
    let [low, high] = servers.each_ref().map(|server| server.address.to_string());
    let direct = |id: u64, address: &str| json!(["direct", 80, id, address]);
    // Not the places that a first agent would give them.
    let mut agent = take_over(&bed, &text(), &json!([direct(1, &high)]));
    for live in [json!([direct(2, &low)]), json!([direct(2, &low), direct(3, &high)])] {
        agent.ask("update", &json!({ "config": text(), "live": live }));
    }
    let mut web = bed.client("web");
    // By endpoint.
    let mut held: [Vec<Value>; 2] = [Vec::new(), Vec::new()];
    let connect = |held: &mut [Vec<Value>; 2], web: &mut Child| {
        let shown = web.connect("10.96.0.20:80");
        let first = servers[0].name == shown["hello"].as_str().unwrap();
        held[usize::from(!first)].push(shown["socket"].clone());
    };
    (0..20).for_each(|_| connect(&mut held, &mut web));
    let shown = agent.ask("connections", &Value::Null);
    assert_eq!(shown.as_array().unwrap().len(), 20);
    agent.kill();
    // Counted while nobody looks.
    (0..20).for_each(|_| connect(&mut held, &mut web));
    let made = held.each_ref().map(|all| all.len() as u64);
    let closed = held.each_mut().map(|all| all.split_off(all.len() / 2));
    for socket in closed.iter().flatten() {
        web.ask("close", &json!({ "socket": socket }));
    }
    let closed = closed.map(|all| all.len() as u64);
    // Ids are the process's own: the new one has others.
    agent = take_over(&bed, &text(), &json!([direct(11, &low), direct(12, &high)]));
    let counts = |agent: &mut Child, what: &str| {
        let signals = agent.ask("signals", &Value::Null);
        ["11", "12"].map(|id| signals[id][what].as_u64().unwrap())
    };
    assert_eq!(counts(&mut agent, "attempts"), made);
    assert_eq!(counts(&mut agent, "established"), made);
    eventually("the ends are counted", SOON, || counts(&mut agent, "closed") == closed);
    for socket in held.iter().flatten() {
        web.ask("close", &json!({ "socket": socket }));
    }
    eventually("the ends are counted", SOON, || counts(&mut agent, "closed") == made);
    assert_eq!(agent.ask("connections", &Value::Null), json!([]));
}

#[test]
fn programs_are_replaced_and_never_doubled() {
    let Some(bed) = Bed::make("programs_are_replaced_and_never_doubled") else { return };
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    let live = endpoints(&a, &b);
    let mut agent = take_over(&bed, &text(), &live);
    let mut web = bed.client("web");
    let all = |status: &Value, what: &str| -> Vec<u64> {
        let programs = status["programs"].as_array().unwrap();
        programs.iter().map(|program| program[what].as_u64().unwrap()).collect()
    };
    let decided = |agent: &mut Child| -> u64 {
        let status = agent.ask("status", &Value::Null);
        status["verdicts"].as_array().unwrap().iter().map(|verdict| verdict["count"].as_u64().unwrap()).sum()
    };
    let mut before = agent.ask("status", &Value::Null);
    for round in 0..3 {
        assert!(before["programs"].as_array().unwrap().iter().all(|program| program["attached"] == true), "{before}");
        if round == 1 {
            agent.ask("stop", &Value::Null);
        }
        agent.kill();
        agent = take_over(&bed, &text(), &live);
        let after = agent.ask("status", &Value::Null);
        assert_eq!(all(&before, "link"), all(&after, "link"), "the links stay");
        let (old, new) = (all(&before, "id"), all(&after, "id"));
        assert!(new.iter().all(|id| !old.contains(id)), "the programs are new: {old:?} {new:?}");
        let count = decided(&mut agent);
        let greeted = web.greeted("10.96.0.20:80");
        assert!(greeted == "a" || greeted == "b");
        let answer = web.connect(&Closed::port().address.to_string());
        assert_eq!(answer["errno"], libc::ECONNREFUSED);
        assert_eq!(decided(&mut agent), count + 2, "each connect() meets one program");
        before = after;
    }
}

#[test]
fn an_older_layout_is_replaced_under_traffic() {
    let Some(bed) = Bed::make("an_older_layout_is_replaced_under_traffic") else { return };
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    let live = endpoints(&a, &b);
    let mut agent = take_over(&bed, &text(), &live);
    let (mut direct, mut web) = (bed.client("web"), bed.client("web"));
    let held = web.connect("10.96.0.20:80");
    direct.ask("storm", &json!({ "to": ["10.96.0.20:80", "[fd00:96::20]:80"], "threads": 2, "pause_us": 300 }));
    progress(&mut direct, 200);
    let links = |agent: &mut Child| -> Vec<Value> {
        let status = agent.ask("status", &Value::Null);
        let programs = status["programs"].as_array().unwrap();
        programs.iter().map(|program| program["link"].clone()).collect()
    };
    let before = links(&mut agent);
    agent.kill();
    // What a Weft whose maps look different would have left.
    let layouts = || -> Vec<_> { std::fs::read_dir(bed.cgroup.pins().path()).unwrap().flatten().collect() };
    let own = layouts().pop().unwrap().path();
    std::fs::rename(&own, own.with_file_name("abi-0-00000000")).unwrap();
    progress(&mut direct, 200);
    agent = take_over(&bed, &text(), &live);
    progress(&mut direct, 200);
    assert_eq!(links(&mut agent), before, "the links are the same, with new programs behind them");
    assert_eq!(layouts().iter().map(std::fs::DirEntry::path).collect::<Vec<_>>(), [own], "the old maps are gone");
    let tally = direct.ask("calm", &Value::Null);
    assert_eq!((&tally["failed"], &tally["unheard"]), (&json!([]), &json!([])));
    let said = web.ask("say", &json!({ "socket": held["socket"], "text": "still there" }));
    assert!(said["echo"].as_u64().is_some(), "{said}");
}

#[test]
fn pins_of_a_cgroup_that_is_gone_are_removed_by_the_next_agent() {
    let Some(bed) = Bed::make("pins_of_a_cgroup_that_is_gone_are_removed_by_the_next_agent") else { return };
    let short = TestCgroup::make("short").unwrap();
    let pins = short.pins();
    let mut agent = Child::start("agent");
    agent.ask("start", &json!({ "cgroup": short.path }));
    agent.ask("attach", &Value::Null);
    agent.kill();
    assert!(pins.exist());
    eventually("its cgroup is gone", SOON, || {
        short.children().iter().all(|child| std::fs::remove_dir(short.path.join(child)).is_ok())
            && std::fs::remove_dir(&short.path).is_ok()
    });
    // The kernel takes a link from a cgroup some time after the cgroup was removed.
    eventually("its links are dead", SOON, || pins.are_dead());
    let agent = bed.agent();
    assert!(!pins.exist());
    assert!(bed.cgroup.pins().exist());
    drop(agent);
}

#[test]
fn one_agent_for_each_cgroup() {
    let Some(bed) = Bed::make("one_agent_for_each_cgroup") else { return };
    let mut first = Child::start("agent");
    let start = json!({ "cgroup": bed.cgroup.path });
    assert_eq!(first.ask("start", &start), json!({}));
    first.ask("attach", &Value::Null);
    let mut second = Child::start("agent");
    let answer = second.ask("start", &start);
    let path = bed.cgroup.path.display();
    assert_eq!(answer["error"], format!("another Weft manages {path}: one agent for each attach point (--cgroup)"));
    assert!(first.ask("status", &Value::Null)["proxy"]["alive"] == true, "the first one is as it was");
    // Below it there is room for another one.
    let below = json!({ "cgroup": bed.cgroup.child("below") });
    assert_eq!(second.ask("start", &below), json!({}));
    second.ask("stop", &Value::Null);
    weft_ebpf::pins::Pins::of(&weft_ebpf::cgroup::Cgroup::open(&bed.cgroup.child("below")).unwrap(), false)
        .unwrap()
        .remove()
        .unwrap();
    first.kill();
    assert_eq!(second.ask("start", &start), json!({}), "its lock went with it");
}

#[test]
fn an_agent_that_stops_leaves_its_programs_and_no_cgroup() {
    let Some(bed) = Bed::make("an_agent_that_stops_leaves_its_programs_and_no_cgroup") else { return };
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    let mut agent = take_over(&bed, &text(), &endpoints(&a, &b));
    assert!(bed.cgroup.children().contains(&"weft-proxy".to_owned()));
    agent.ask("stop", &Value::Null);
    assert!(!bed.cgroup.children().contains(&"weft-proxy".to_owned()));
    let mut web = bed.client("web");
    assert!(["a", "b"].contains(&web.greeted("10.96.0.20:80").as_str()));
    assert_eq!(web.greeted("10.96.0.31:80"), "a", "open");
    assert_eq!(web.refused("10.96.0.30:80").0, i64::from(libc::ECONNREFUSED), "closed");
    // Without pins there is nothing left.
    bed.cgroup.pins().remove().unwrap();
    assert!(!bed.cgroup.pins().exist());
    // The kernel takes a link from its cgroup some time after it lost its pin.
    eventually("connections pass", SOON, || {
        let answer = web.ask("connect", &json!({ "to": "10.96.0.20:80", "limit_ms": 200 }));
        answer["hello"].is_null() && answer["errno"] != libc::ECONNREFUSED
    });
}

#[test]
fn an_agent_in_the_cgroup_of_a_workload_moves_out() {
    let Some(bed) = Bed::make("an_agent_in_the_cgroup_of_a_workload_moves_out") else { return };
    let (a, b) = (Endpoint::start("a"), Endpoint::start("b"));
    for place in ["web", "web/deeper"] {
        let mut agent = Child::start("agent").inside(&bed.cgroup.child(place));
        assert_eq!(agent.ask("start", &json!({ "cgroup": bed.cgroup.path })), json!({}));
        agent.ask("listen", &json!("127.0.0.1:0"));
        agent.ask("update", &json!({ "config": text(), "live": endpoints(&a, &b) }));
        agent.ask("attach", &Value::Null);
        let mut other = bed.client(place);
        assert_eq!(other.greeted("10.96.0.30:80"), "10.96.0.30:80 web", "it does not pass for the proxy");
        assert_eq!(other.refused("10.96.0.40:80").0, i64::from(libc::ECONNREFUSED), "policies mean it too");
        // The agent's own are still its own.
        let to = a.address.to_string();
        assert_eq!(agent.ask("own", &json!({ "id": 1, "to": to })), json!({}));
        assert_eq!(agent.ask("signals", &Value::Null)["1"]["attempts"].as_u64().map(|count| count > 0), Some(true));
    }
}
