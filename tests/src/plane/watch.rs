//! A follower of all changes: it resumes where it was, with another member when there are several, and counts what does
//! not follow on what it saw.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::client::{Written, value_of};
use crate::{Client, client::get};

/// A member sends a heartbeat every five seconds; a longer silence is somebody else's.
const SILENCE: Duration = Duration::from_secs(8);

/// What was seen so far.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Revision, key and value, as they came.
    pub changes: Vec<(u64, String, u64)>,
    /// Up to where everything was seen.
    pub last: u64,
    /// Revisions that came without the one before them.
    pub gaps: u64,
    /// Revisions that came again, or after a later one.
    pub again: u64,
    /// How often it began anew where it was.
    pub resumed: u64,
    /// Ends that a member gave a reason for.
    pub ended: Vec<String>,
}

/// Follows until it is dropped.
pub struct Follower {
    members: Vec<SocketAddr>,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Follows everything from the first revision on.
    pub fn start(members: Vec<SocketAddr>) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let task = tokio::spawn(follow(members.clone(), seen.clone()));
        Self { members, seen, task }
    }

    /// The member that it asks first.
    pub fn member(&self) -> SocketAddr {
        self.members[0]
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until it has seen this revision.
    pub async fn reached(&self, revision: u64) -> Seen {
        crate::eventually(&format!("the watch reaches revision {revision}"), super::LONG, async || {
            self.seen.lock().unwrap().last >= revision
        })
        .await;
        self.seen()
    }

    /// Fails the test unless it sees exactly what was written: every revision once, in order.
    pub async fn assert_saw(&self, written: &[Written]) {
        let seen = self.reached(written.last().map_or(0, |last| last.revision)).await;
        assert_eq!((seen.gaps, seen.again, &*seen.ended), (0, 0, &[][..]));
        let all: Vec<_> = written.iter().map(|one| (one.revision, one.key.clone(), one.value)).collect();
        let different = seen.changes.iter().zip(&all).position(|(seen, written)| seen != written);
        assert_eq!(different.map(|at| (&seen.changes[at], &all[at])), None, "seen and written");
        assert_eq!(seen.changes.len(), all.len(), "after {} resumptions", seen.resumed);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(members: Vec<SocketAddr>, seen: Arc<Mutex<Seen>>) {
    for turn in 0.. {
        // What broke it does not matter: it goes on where it was.
        let _ = listen(members[turn % members.len()], &seen).await;
        seen.lock().unwrap().resumed += 1;
        sleep(Duration::from_millis(20)).await;
    }
}

async fn listen(member: SocketAddr, seen: &Mutex<Seen>) -> Result<(), String> {
    let from = seen.lock().unwrap().last;
    let opening = async {
        let mut client = Client::h1(member).await?;
        let answer = client.open(get("control", &format!("/v1/watch?from={from}"))).await?;
        Ok::<_, String>((client, answer))
    };
    let (_client, answer) = timeout(SILENCE, opening).await.map_err(|_| "no answer")??;
    if answer.status() != 200 {
        let (status, body) = (answer.status(), answer.into_body().collect().await.map_err(|error| error.to_string())?);
        if status != 503 {
            let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            seen.lock().unwrap().ended.push(format!("{status}: {text}"));
        }
        return Ok(());
    }
    let mut body = answer.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(|_| "silence")? {
        rest.extend_from_slice(frame.map_err(|error| error.to_string())?.data_ref().ok_or("no data")?);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            take(&serde_json::from_slice(&line).map_err(|error| error.to_string())?, &mut seen.lock().unwrap());
        }
    }
    Ok(())
}

fn take(line: &Value, seen: &mut Seen) {
    if !line["error"].is_null() {
        seen.ended.push(line["error"].to_string());
        return;
    }
    let revision = line["revision"].as_u64().unwrap_or(0);
    let changes = line["changes"].as_array().map(Vec::as_slice).unwrap_or_default();
    // A heartbeat: nothing happened up to there.
    if changes.is_empty() {
        seen.gaps += u64::from(revision > seen.last);
        return;
    }
    match revision.checked_sub(seen.last) {
        Some(1) => {}
        Some(0) | None => seen.again += 1,
        Some(_) => seen.gaps += 1,
    }
    seen.last = seen.last.max(revision);
    for change in changes {
        let key = change["object"]["metadata"]["name"].as_str().unwrap_or_default();
        seen.changes.push((revision, key.to_owned(), value_of(&change["object"]).unwrap_or(u64::MAX)));
    }
}
