//! Members on loopback ports.

use std::{path::Path, time::Duration};

use http::{Method, StatusCode};
use serde_json::Value;
use weft_control::{
    Client,
    client::Answer,
    member::{RunningMember, Setup, start},
};

/// Longest wait for anything.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A member that runs.
pub struct Running {
    pub member: RunningMember,
    _dir: tempfile::TempDir,
}

impl Running {
    pub fn address(&self) -> String {
        self.member.address().to_string()
    }

    pub fn client(&self) -> Client {
        Client::new(vec![self.address()], LIMIT)
    }
}

pub fn setup(name: &str, dir: &Path, join: &[String]) -> Setup {
    Setup {
        name: name.into(),
        data_dir: dir.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        join: join.to_vec(),
    }
}

pub async fn member(name: &str, join: &[String]) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let member = start(setup(name, dir.path(), join)).await.unwrap();
    Running { member, _dir: dir }
}

/// Three members with a vote.
pub async fn three() -> Vec<Running> {
    let first = member("a", &[]).await;
    let join = [first.address()];
    let (second, third) = (member("b", &join).await, member("c", &join).await);
    let members = vec![first, second, third];
    until("three voters", async || {
        let status = members[0].client().get("/v1/raft").await.unwrap().body;
        let list = status["members"].as_array().unwrap();
        list.len() == 3 && list.iter().all(|member| member["voter"] == true && member["role"] != "unreachable")
    })
    .await;
    members
}

pub async fn until(what: &str, check: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + LIMIT;
    while !check().await {
        assert!(tokio::time::Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  ports: [{{port: 80}}]\n  \
         endpoints: [{{address: 127.0.0.1, port: {port}}}]\n"
    )
}

pub async fn apply(client: &mut Client, yaml: &str) -> Answer {
    client.change(Method::POST, "/v1/apply?name=test.yaml", &[], yaml.to_owned()).await.unwrap()
}

/// Applies what is valid; the revision.
pub async fn applied(client: &mut Client, yaml: &str) -> u64 {
    let answer = apply(client, yaml).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.body["revision"].as_u64().unwrap()
}

/// The port of a service's endpoint.
pub fn port(service: &Value) -> u64 {
    service["spec"]["endpoints"][0]["port"].as_u64().unwrap_or_else(|| panic!("{service}"))
}
