//! Nodes that follow a control plane: what is applied is served, endpoints come and go, members die one after the other,
//! and the node goes on.

use std::{net::SocketAddr, path::Path, time::Duration};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use weft_tests::{
    Options, Upstream, Weft, client, eventually,
    plane::{LONG, Plane},
    ports, weft, yaml,
};

use crate::local;

/// A node that keeps what it accepted in `cache`.
fn options(members: &[SocketAddr], cache: &Path, name: &str) -> Options {
    let args = ["--cache", cache.to_str().unwrap(), "--node", name, "--ebpf", "off", "--zone", "here"];
    Options { control: members.to_vec(), args: args.map(str::to_owned).into(), ..Options::default() }
}

fn members(plane: &Plane) -> Vec<SocketAddr> {
    plane.members.iter().map(|member| member.direct).collect()
}

/// Runs a verb that asks any of these members.
async fn verb(members: &[SocketAddr], args: &[&str]) -> (i32, String) {
    let members: Vec<String> = members.iter().flat_map(|member| ["--control".into(), member.to_string()]).collect();
    let all: Vec<&str> = args.iter().copied().chain(members.iter().map(String::as_str)).collect();
    let output = weft::run(&all).await;
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

async fn apply(members: &[SocketAddr], config: &str) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("weft.yaml");
    std::fs::write(&file, config).unwrap();
    let (code, said) = verb(members, &["apply", "-f", file.to_str().unwrap()]).await;
    assert_eq!(code, 0, "{said}");
}

/// Who answers at a port; the status when it is nobody.
async fn answers(port: u16, path: &str) -> String {
    match client::get_once(local(port), "shop", path).await {
        Ok(reply) if reply.status == 200 => reply.upstream(),
        Ok(reply) => reply.status.to_string(),
        Err(error) => error,
    }
}

async fn until_answered(port: u16, path: &str, by: &str) {
    eventually(&format!("{by} answers at {path}"), LONG, async || answers(port, path).await == by).await;
}

async fn source(node: &Weft) -> Value {
    node.admin_json("/config_dump").await["source"].clone()
}

/// What the control plane knows of a node.
async fn known(plane: &Plane, name: &str) -> Option<Value> {
    for member in &plane.members {
        let Some(nodes) = member.ask("/v1/nodes").await else { continue };
        let found = nodes["nodes"].as_array()?.iter().find(|node| node["node"] == name).cloned();
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The endpoint's address, as arguments have it.
fn at(upstream: &Upstream) -> String {
    upstream.addr.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_whatever_becomes_of_the_control_plane() {
    let (one, two) = (Upstream::h1("one").await, Upstream::h1("two").await);
    let mut plane = Plane::start(3).await;
    let all = members(&plane);
    let cache = TempDir::new().unwrap();
    let node = Weft::start_with("", options(&all, cache.path(), "n1")).await;
    let port = ports::free();
    apply(&all, &yaml::simple(port, "http", one.addr)).await;
    until_answered(port, "/", "one").await;

    // Endpoints come and go; the documents stay as they are.
    let (code, said) = verb(&all, &["register", "app", &at(&two)]).await;
    assert_eq!(code, 0, "{said}");
    until_answered(port, "/", "two").await;
    let (code, said) = verb(&all, &["deregister", "app", &at(&two)]).await;
    assert_eq!(code, 0, "{said}");
    eventually("the endpoint is gone", LONG, async || {
        node.service("app").await["endpoints"].as_array().unwrap().len() == 1
    })
    .await;
    assert_eq!(answers(port, "/").await, "one");

    // Its member dies.
    let member = source(&node).await["member"].as_str().unwrap().to_owned();
    let killed = plane.members.iter().position(|other| other.name == member).unwrap();
    plane.members[killed].kill();
    eventually("it goes to another member", LONG, async || {
        let now = source(&node).await;
        now["connected"] == true && now["member"] != member.as_str()
    })
    .await;
    assert_eq!(answers(port, "/").await, "one");
    let (code, said) = verb(&all, &["register", "app", &at(&two)]).await;
    assert_eq!(code, 0, "{said}");
    until_answered(port, "/", "two").await;
    assert!(node.metrics().await.sum("weft_control_reconnects_total", &[]) >= 1.0);

    // All of them die.
    plane.members.iter_mut().for_each(|member| member.kill());
    eventually("it notices", LONG, async || source(&node).await["connected"] == false).await;
    assert_eq!(node.admin("/ready").await.status, 200);
    assert_eq!(node.metrics().await.sum("weft_control_connected", &[]), 0.0);
    until_answered(port, "/", "one").await;
    until_answered(port, "/", "two").await;

    // So does the node, with no time to say farewell.
    eventually("what was accepted is on disk", LONG, async || {
        let held = std::fs::read(cache.path().join("accepted")).unwrap_or_default();
        held.windows(at(&two).len()).any(|part| part == at(&two).as_bytes())
    })
    .await;
    drop(node);
    let node = Weft::start_with("", options(&all, cache.path(), "n1")).await;
    assert!(source(&node).await["member"].is_null());
    until_answered(port, "/", "one").await;
    until_answered(port, "/", "two").await;

    // They are back, and say what is new.
    for index in 0..3 {
        plane.restart(index, &[]);
    }
    plane.leader().await;
    let (code, said) = verb(&all, &["deregister", "app", &at(&two)]).await;
    assert_eq!(code, 0, "{said}");
    eventually("the endpoint is gone", LONG, async || {
        node.service("app").await["endpoints"].as_array().unwrap().len() == 1
    })
    .await;
    apply(&all, &yaml::simple(port, "http", two.addr)).await;
    until_answered(port, "/", "two").await;
    eventually("the control plane knows", LONG, async || {
        known(&plane, "n1").await.is_some_and(|node| node["state"] == "SYNCED" && node["lag"] == 0)
    })
    .await;
    node.signal(Signal::TERM);
    assert_eq!(node.wait_exit(LONG).await.code(), Some(0));
}

#[tokio::test]
async fn what_a_node_cannot_have_is_shown_until_it_can() {
    let upstream = Upstream::h1("app").await;
    let plane = Plane::start(1).await;
    let all = members(&plane);
    let cache = TempDir::new().unwrap();
    let node = Weft::start_with("", options(&all, cache.path(), "n1")).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    apply(&all, &yaml::simple(port, "http", upstream.addr)).await;
    let mut shown = Value::Null;
    eventually("the control plane knows", LONG, async || {
        shown = known(&plane, "n1").await.unwrap_or_default();
        shown["state"] == "NACKED"
    })
    .await;
    let rejections = shown["rejections"].as_array().unwrap();
    let gateway = rejections.iter().find(|one| one["name"].as_str().unwrap().starts_with("Gateway/default/")).unwrap();
    assert!(gateway["reason"].as_str().unwrap().contains("another process has this port"), "{shown}");
    // The service does not depend on it.
    eventually("the service is there", LONG, async || {
        node.admin_json("/endpoints").await.as_array().unwrap().iter().any(|service| service["service"] == "app")
    })
    .await;
    assert!(node.metrics().await.sum("weft_control_rejected", &[]) >= 1.0);
    assert!(node.stderr().contains("is not in force as the control plane has it"), "{}", node.stderr());
    drop(taken);
    eventually("it is tried again", LONG, async || {
        known(&plane, "n1").await.is_some_and(|node| node["state"] == "SYNCED")
    })
    .await;
    until_answered(port, "/", "app").await;
    assert_eq!(source(&node).await["rejected"], serde_json::json!([]));
}

#[tokio::test]
async fn a_node_with_nothing_says_what_it_waits_for() {
    let (one, other) = (ports::refusing(), ports::refusing());
    let cache = TempDir::new().unwrap();
    let node = Weft::spawn("", options(&[one, other], cache.path(), "n1"));
    eventually("it is not ready, and says why", LONG, async || {
        let Ok(reply) = node.try_admin("/ready").await else { return false };
        let text = reply.text();
        reply.status == 503 && text.contains("no configuration yet") && text.contains("connection refused")
    })
    .await;
    for member in [one, other] {
        eventually("each is named in the log", LONG, async || {
            node.stderr()
                .contains(&format!("{member} cannot be reached: connection refused; there is no configuration yet"))
        })
        .await;
    }
    // Not with every attempt.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(node.stderr().matches("connection refused").count(), 2, "{}", node.stderr());
    node.signal(Signal::TERM);
    assert_eq!(node.wait_exit(LONG).await.code(), Some(0));
}

#[tokio::test]
async fn a_control_plane_that_was_rebuilt_does_not_take_away_what_is_in_force() {
    let upstream = Upstream::h1("app").await;
    let mut plane = Plane::start(1).await;
    let all = members(&plane);
    let cache = TempDir::new().unwrap();
    let node = Weft::start_with("", options(&all, cache.path(), "n1")).await;
    let port = ports::free();
    apply(&all, &yaml::simple(port, "http", upstream.addr)).await;
    until_answered(port, "/", "app").await;
    plane.members[0].kill();
    std::fs::remove_dir_all(&plane.members[0].data).unwrap();
    plane.restart(0, &[]);
    plane.leader().await;
    let hint = format!("stop this node, remove {}, and start it again", cache.path().display());
    eventually("it says what to do", LONG, async || node.stderr().contains(&hint)).await;
    assert_eq!(answers(port, "/").await, "app");
    assert_eq!(source(&node).await["connected"], false);
    drop(node);
    std::fs::remove_dir_all(cache.path()).unwrap();
    let node = Weft::start_with("", options(&all, cache.path(), "n1")).await;
    assert_eq!(source(&node).await["member"], "a");
}
