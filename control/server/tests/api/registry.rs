//! Endpoints that register themselves.

use std::time::Duration;

use crate::common::{LIMIT, Running, applied, member, service, three, until};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use weft_control::{Client, client::Answer};

/// What `POST` of a body is answered.
async fn post(client: &mut Client, target: &str, body: Value) -> Answer {
    client.change(Method::POST, target, &[], body.to_string()).await.unwrap()
}

/// A new lease's generation.
async fn granted(client: &mut Client, agent: &str, ttl_ms: u64) -> u64 {
    let body = json!({"ttlMs": ttl_ms}).to_string();
    let answer = client.change(Method::PUT, &format!("/v1/agents/{agent}"), &[], body).await.unwrap();
    assert_eq!((answer.status, &answer.body["ttlMs"]), (StatusCode::OK, &ttl_ms.into()), "{}", answer.body);
    answer.body["generation"].as_u64().unwrap()
}

async fn keep_alive(client: &mut Client, agent: &str, generation: u64) -> Answer {
    post(client, &format!("/v1/agents/{agent}/keep-alive"), json!({"generation": generation})).await
}

fn of_web(agent: Option<(&str, u64)>, ports: &[u16]) -> Value {
    let endpoints: Vec<Value> = ports.iter().map(|port| json!({"address": "10.0.0.7", "port": port})).collect();
    let mut body = json!({"service": "web", "endpoints": endpoints});
    if let Some((agent, generation)) = agent {
        body["agent"] = agent.into();
        body["generation"] = generation.into();
    }
    body
}

/// Ports and agents of what is registered with `web`.
async fn registered(client: &Client) -> Vec<(u64, String)> {
    let list = client.get("/v1/objects/endpoints?service=web").await.unwrap();
    assert_eq!(list.status, StatusCode::OK, "{}", list.body);
    let item = |item: &Value| {
        (item["spec"]["port"].as_u64().unwrap(), item["status"]["agent"].as_str().unwrap_or_default().to_owned())
    };
    list.body["items"].as_array().unwrap().iter().map(item).collect()
}

async fn revision(client: &Client) -> u64 {
    client.get("/v1/revision").await.unwrap().body["revision"].as_u64().unwrap()
}

#[tokio::test]
async fn an_operator_registers_drains_and_deregisters() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let body = json!({"service": "web", "endpoints": [
        {"address": "10.0.0.7", "port": 80, "weight": 2, "zone": "a"}, {"address": "fd00::1", "port": 80}]});
    let first = post(&mut client, "/v1/register", body.clone()).await;
    assert_eq!((&first.body["revision"], &first.body["changed"]), (&1.into(), &2.into()), "{}", first.body);
    let warning = first.body["warnings"][0]["message"].as_str().unwrap();
    assert!(warning.contains("no Service default/web"), "{warning}");
    assert_eq!(first.body["objects"][1]["name"], "web/[fd00::1]:80");

    // Once more changes nothing; and with the service there, there is nothing to warn of.
    applied(&mut client, &service("web", 80)).await;
    let again = post(&mut client, "/v1/register", body).await;
    assert_eq!((&again.body["revision"], &again.body["changed"]), (&2.into(), &0.into()), "{}", again.body);
    assert_eq!(again.body["warnings"], json!([]));

    let drained = post(&mut client, "/v1/drain", of_web(None, &[80])).await;
    assert_eq!(drained.body["objects"][0]["action"], "draining", "{}", drained.body);
    let shown = client.get("/v1/objects/Endpoint/default/web%2F10.0.0.7:80").await.unwrap().body;
    assert_eq!((&shown["spec"]["draining"], &shown["spec"]["weight"]), (&true.into(), &2.into()), "{shown}");
    let history = client.get("/v1/history/endpoint/default/web%2F10.0.0.7:80").await.unwrap().body;
    assert_eq!(history["items"].as_array().unwrap().len(), 2, "{history}");
    let mut back = of_web(None, &[80]);
    back["draining"] = false.into();
    assert_eq!(post(&mut client, "/v1/drain", back).await.body["objects"][0]["action"], "ready");
    assert_eq!(post(&mut client, "/v1/drain", of_web(None, &[80, 81])).await.status, StatusCode::NOT_FOUND);

    let gone = post(&mut client, "/v1/deregister", of_web(None, &[80, 81])).await;
    let actions = |answer: &Answer| {
        let objects = answer.body["objects"].as_array().unwrap().clone();
        objects.iter().map(|object| object["action"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(actions(&gone), ["deregistered", "absent"], "{}", gone.body);
    assert_eq!(registered(&client).await.len(), 1);

    // They are no part of the configuration: neither listed with it nor checked or deleted with it.
    let all = client.get("/v1/objects").await.unwrap().body;
    assert_eq!(all["items"].as_array().unwrap().len(), 1, "{all}");
    let target = "/v1/objects/Endpoint/default/web%2F%5Bfd00::1%5D:80";
    let deleted = client.change(Method::DELETE, target, &[], "").await.unwrap();
    assert_eq!(deleted.status, StatusCode::BAD_REQUEST, "{}", deleted.body);
    let deleted = client.change(Method::DELETE, "/v1/objects/Service/default/web", &[], "").await.unwrap();
    assert_eq!(deleted.status, StatusCode::OK, "{}", deleted.body);
    one.member.stop().await;
}

#[tokio::test]
async fn what_is_not_kept_alive_ends_and_comes_back_when_it_registers_again() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let kept = granted(&mut client, "kept", 2_000).await;
    let silent = granted(&mut client, "silent", 500).await;
    post(&mut client, "/v1/register", of_web(Some(("kept", kept)), &[1])).await;
    let both = post(&mut client, "/v1/register", of_web(Some(("silent", silent)), &[2])).await;
    assert_eq!(both.body["changed"], 1, "{}", both.body);
    let shown = client.get("/v1/objects/endpoints").await.unwrap().body;
    let left = shown["items"][0]["status"]["expiresInMs"].as_u64().unwrap();
    assert!((1..=2_000).contains(&left), "{shown}");
    let agents = client.get("/v1/agents").await.unwrap().body;
    assert_eq!((&agents["items"][0]["agent"], &agents["items"][0]["endpoints"]), (&"kept".into(), &1.into()));

    let renewed = tokio::sync::Mutex::new(one.client());
    until("the silent one is gone", async || {
        assert_eq!(keep_alive(&mut *renewed.lock().await, "kept", kept).await.status, StatusCode::OK);
        registered(&client).await == [(1, "kept".to_owned())]
    })
    .await;
    let lost = keep_alive(&mut client, "silent", silent).await;
    assert_eq!(
        (lost.status, &lost.body["code"], &lost.body["reason"]),
        (StatusCode::CONFLICT, &"lost".into(), &"gone".into())
    );
    let late = post(&mut client, "/v1/register", of_web(Some(("silent", silent)), &[2])).await;
    assert_eq!(late.body["reason"], "gone", "{}", late.body);

    let silent = granted(&mut client, "silent", 60_000).await;
    post(&mut client, "/v1/register", of_web(Some(("silent", silent)), &[2])).await;
    assert_eq!(registered(&client).await.len(), 2);
    // All of an agent's at once.
    let target = format!("/v1/agents/silent?generation={silent}");
    let revoked = client.change(Method::DELETE, &target, &[], "").await.unwrap();
    assert_eq!((revoked.status, &revoked.body["changed"]), (StatusCode::OK, &1.into()), "{}", revoked.body);
    assert!(registered(&client).await.iter().all(|(port, _)| *port == 1));
    one.member.stop().await;
}

#[tokio::test]
async fn an_agent_keeps_what_is_its_own() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    let first = granted(&mut client, "x", 60_000).await;
    post(&mut client, "/v1/register", of_web(Some(("x", first)), &[1, 2])).await;

    // It restarts: same name, same endpoints, and what ran before has no say any more.
    let second = granted(&mut client, "x", 60_000).await;
    assert_eq!(registered(&client).await.len(), 2);
    for (target, body) in [
        ("/v1/agents/x/keep-alive", json!({"generation": first})),
        ("/v1/register", of_web(Some(("x", first)), &[3])),
        ("/v1/deregister", of_web(Some(("x", first)), &[1])),
    ] {
        let refused = post(&mut client, target, body).await;
        assert_eq!((refused.status, &refused.body["reason"]), (StatusCode::CONFLICT, &"superseded".into()), "{target}");
    }
    let target = format!("/v1/agents/x?generation={first}");
    assert_eq!(client.change(Method::DELETE, &target, &[], "").await.unwrap().body["reason"], "superseded");
    let same = post(&mut client, "/v1/register", of_web(Some(("x", second)), &[1, 2])).await;
    assert_eq!(same.body["changed"], 0, "{}", same.body);

    // Another agent gets it only when it says so, and then the first cannot take it away.
    let other = granted(&mut client, "y", 60_000).await;
    let mut taking = of_web(Some(("y", other)), &[2, 3]);
    let before = revision(&client).await;
    let refused = post(&mut client, "/v1/register", taking.clone()).await;
    assert_eq!((refused.status, &refused.body["owner"]), (StatusCode::CONFLICT, &"x".into()), "{}", refused.body);
    assert_eq!(revision(&client).await, before, "all or nothing");
    assert_eq!(post(&mut client, "/v1/register", of_web(None, &[2])).await.body["code"], "owned");
    taking["takeOver"] = true.into();
    assert_eq!(post(&mut client, "/v1/register", taking).await.body["changed"], 2);
    let owners = [(1, "x"), (2, "y"), (3, "y")].map(|(port, agent)| (port, agent.to_owned()));
    assert_eq!(registered(&client).await, owners);
    let refused = post(&mut client, "/v1/deregister", of_web(Some(("x", second)), &[1, 2])).await;
    assert_eq!(refused.body["owner"], "y", "{}", refused.body);
    assert_eq!(post(&mut client, "/v1/deregister", of_web(None, &[1, 2, 3])).await.body["changed"], 3);
    one.member.stop().await;
}

#[tokio::test]
async fn what_cannot_be_an_endpoint_is_refused_with_what_to_do() {
    let one = member("a", &[]).await;
    let mut client = one.client();
    for (body, code) in [
        (
            json!({"service": "web", "endpoints": [{"address": "10.0.0.7", "port": 1}, {"address": "0.0.0.0", "port": 1}]}),
            "invalid",
        ),
        (json!({"service": "web", "endpoints": [{"address": "10.0.0.7", "port": 70_000}]}), "invalid"),
        (json!({"service": "We b", "endpoints": [{"address": "10.0.0.7", "port": 1}]}), "invalid"),
        (json!({"service": "web", "endpoints": []}), "bad_request"),
        (json!({"service": "web", "endpoints": [{"address": "10.0.0.7", "port": 1, "wieght": 2}]}), "bad_request"),
        (of_web(None, &[1, 1]), "bad_request"),
        (json!({"service": "web", "agent": "x", "endpoints": [{"address": "10.0.0.7", "port": 1}]}), "bad_request"),
    ] {
        let refused = post(&mut client, "/v1/register", body.clone()).await;
        assert_eq!(refused.body["code"], code, "{body}: {}", refused.body);
    }
    let refused =
        post(&mut client, "/v1/register", json!({"service": "web", "endpoints": [{"address": "::", "port": 1}]})).await;
    assert!(
        refused.body["hint"].is_string() && refused.body["message"].as_str().unwrap().starts_with("endpoints[0]: ")
    );
    let short = client.change(Method::PUT, "/v1/agents/x", &[], r#"{"ttlMs": 1}"#).await.unwrap();
    assert_eq!(short.status, StatusCode::BAD_REQUEST, "{}", short.body);
    assert_eq!(client.get("/v1/objects/services?service=web").await.unwrap().body["code"], "bad_request");
    assert_eq!(revision(&client).await, 0);
    one.member.stop().await;
}

#[tokio::test]
async fn a_registration_that_is_retried_is_applied_once() {
    let one = member("a", &[]).await;
    let mut other = one.client();
    // Who repeats its requests itself does not wait for a leader.
    applied(&mut other, &service("shop", 1)).await;
    let issued = (weft_store::Options::new("", "", "").clock)().to_string();
    let id = [("weft-client", "abc"), ("weft-sequence", "7"), ("weft-issued", &*issued)];
    let raw = async |body: Value| {
        let request =
            id.iter().fold(http::Request::post("/v1/register"), |request, (name, value)| request.header(*name, *value));
        let request = request.body(http_body_util::Full::from(body.to_string())).unwrap();
        let answer = weft_control::Pool::default().send(&one.address(), request, LIMIT).await.unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    let first = raw(of_web(None, &[1])).await;
    assert_eq!((&first["revision"], &first["changed"]), (&2.into(), &1.into()), "{first}");
    post(&mut other, "/v1/deregister", of_web(None, &[1])).await;
    let again = raw(of_web(None, &[1])).await;
    assert_eq!((&again["revision"], &again["changed"]), (&2.into(), &1.into()), "{again}");
    assert!(registered(&other).await.is_empty(), "it is not registered a second time");
    one.member.stop().await;
}

#[tokio::test]
async fn nothing_expires_because_the_leader_dies() {
    let mut members: Vec<Running> = three().await;
    let addresses: Vec<String> = members.iter().map(Running::address).collect();
    const TTL_MS: u64 = 2_500;
    // So few may all expire at once.
    let mut agents = Vec::new();
    for at in 0..3u16 {
        let mut client = Client::new(addresses.clone(), LIMIT).patience(Duration::from_millis(400));
        let agent = format!("agent-{at}");
        let generation = granted(&mut client, &agent, TTL_MS).await;
        let body = of_web(Some((&agent, generation)), &[8000 + at]);
        assert_eq!(post(&mut client, "/v1/register", body).await.status, StatusCode::OK);
        agents.push((client, agent, generation));
    }
    let (stop, _) = tokio::sync::watch::channel(false);
    let keeping: Vec<_> = agents
        .into_iter()
        .map(|(mut client, agent, generation)| {
            let stopped = stop.subscribe();
            tokio::spawn(async move {
                while !*stopped.borrow() {
                    let kept = keep_alive(&mut client, &agent, generation).await;
                    assert_eq!(kept.status, StatusCode::OK, "{agent}: {}", kept.body);
                    tokio::time::sleep(Duration::from_millis(TTL_MS / 5)).await;
                }
            })
        })
        .collect();
    let survivors = Client::new(addresses[1..].to_vec(), LIMIT);
    let before = revision(&survivors).await;
    // Without handing over.
    let first = members.remove(0);
    first.member.store().shutdown().await;
    until("another leads", async || {
        let status = survivors.get("/v1/raft").await.unwrap().body;
        status["leader"].is_string() && status["leader"] != "a"
    })
    .await;
    // Longer than the new leader lets a silent agent live.
    tokio::time::sleep(Duration::from_millis(TTL_MS * 2)).await;
    assert_eq!(registered(&survivors).await.len(), 3);
    assert_eq!(revision(&survivors).await, before, "nothing came or went");
    stop.send_replace(true);
    for agent in keeping {
        agent.await.unwrap();
    }
    // And the new leader does expire what is silent.
    until("all are gone", async || registered(&survivors).await.is_empty()).await;
    for member in members {
        member.member.stop().await;
    }
}
