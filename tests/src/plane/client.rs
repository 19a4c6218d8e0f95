//! Clients of a control plane: they go on whatever happens, and remember what they saw.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    Client, client,
    history::{Done, History},
    upstream::full,
};

/// For one member's answer, before another is asked.
const ONE: Duration = Duration::from_secs(3);
/// Before a member that refused is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// How far back the latest write to a key can be among all of them to it: two at a time are acknowledged in any order.
const LATELY: usize = 8;

/// A connection to a member, made anew when it broke.
pub struct Line {
    to: SocketAddr,
    client: Option<Client>,
}

impl Line {
    pub fn new(to: SocketAddr) -> Self {
        Self { to, client: None }
    }

    pub async fn get(&mut self, path: &str, within: Duration) -> Result<(u16, Value), String> {
        self.ask("GET", path, &[], String::new(), within).await
    }

    /// Status and body; an error when there is no answer `within` this time.
    pub async fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&'static str, String)],
        body: String,
        within: Duration,
    ) -> Result<(u16, Value), String> {
        let mut client = self.client.take();
        let asking = async {
            let mut client = match client.take() {
                Some(client) if !client.is_closed() => client,
                _ => Client::h1(self.to).await?,
            };
            let mut request = client::request(method, "control", path, full(body));
            for (name, value) in headers {
                request.headers_mut().insert(*name, value.parse().unwrap());
            }
            let reply = client.send(request).await?;
            if let Some(error) = reply.error {
                return Err(error);
            }
            Ok((client, reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default()))
        };
        let (client, status, body) = timeout(within, asking).await.map_err(|_| format!("none within {within:?}"))??;
        self.client = Some(client);
        Ok((status, body))
    }
}

/// A write that was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub key: String,
    pub value: u64,
    pub revision: u64,
    /// When, in the history's time.
    pub at: i64,
}

/// What the clients of a [`Load`] saw.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was acknowledged, in the order of the revisions.
    pub written: Vec<Written>,
    pub history: History,
    /// Linearizable reads of something older than what had been acknowledged before they began.
    pub stale: usize,
    /// Writes that were refused for good.
    pub failed: Vec<String>,
}

impl Outcome {
    /// Fails the test when anybody saw what a store must not show.
    pub fn assert_good(&self) {
        assert!(self.failed.is_empty(), "{} writes failed: {:?}", self.failed.len(), self.failed.first());
        assert_eq!(self.stale, 0, "stale reads");
        self.history.assert_linearizable();
    }

    /// The last revision that was written.
    pub fn last(&self) -> u64 {
        self.written.last().map_or(0, |last| last.revision)
    }
}

/// What the clients of a [`Load`] share.
#[derive(Debug, Default)]
struct Shared {
    members: Mutex<Vec<SocketAddr>>,
    /// After each of a client's requests.
    pace: Duration,
    stop: AtomicBool,
    history: History,
    written: Mutex<Vec<Written>>,
    stale: AtomicUsize,
    failed: Mutex<Vec<String>>,
    values: AtomicU64,
}

/// Writers and readers of a few services, each of which is a register. Stopped when dropped.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Load {
    /// Clients that ask these members in turn. Two writers share a key.
    pub fn start(members: &[SocketAddr], writers: u32, readers: u32, pace: Duration) -> Self {
        let shared = Arc::new(Shared { pace, ..Shared::default() });
        *shared.members.lock().unwrap() = members.to_vec();
        let keys = (writers / 2).max(1);
        let mut clients = JoinSet::new();
        for id in 0..writers {
            clients.spawn(write_on(shared.clone(), id, format!("register-{}", id % keys)));
        }
        for id in 0..readers {
            clients.spawn(read_on(shared.clone(), writers + id, keys));
        }
        Self { shared, clients }
    }

    /// Ask these from now on.
    pub fn members(&self, members: &[SocketAddr]) {
        *self.shared.members.lock().unwrap() = members.to_vec();
    }

    /// How many writes were acknowledged so far.
    pub fn written(&self) -> usize {
        self.shared.written.lock().unwrap().len()
    }

    /// Now, in the history's time.
    pub fn now(&self) -> i64 {
        self.shared.history.now()
    }

    /// Waits until so many more writes were acknowledged.
    pub async fn goes_on(&self, more: usize) {
        let goal = self.written() + more;
        crate::eventually("writes are acknowledged", super::LONG, async || self.written() >= goal).await;
    }

    /// Lets every client finish what it is at.
    pub async fn stop(mut self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let mut written = self.shared.written.lock().unwrap().clone();
        written.sort_by_key(|written| written.revision);
        Outcome {
            written,
            history: self.shared.history.clone(),
            stale: self.shared.stale.load(Ordering::SeqCst),
            failed: self.shared.failed.lock().unwrap().clone(),
        }
    }
}

impl Shared {
    /// The revision of the last write to `key` that is known to be done.
    fn acknowledged(&self, key: &str) -> u64 {
        let written = self.written.lock().unwrap();
        written.iter().rev().filter(|one| one.key == key).take(LATELY).map(|one| one.revision).max().unwrap_or(0)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn pick(&self) -> SocketAddr {
        let members = self.members.lock().unwrap();
        members[fastrand::usize(..members.len())]
    }
}

/// The body of a service that holds a value.
pub fn service(key: &str, value: u64) -> String {
    let metadata = json!({"name": key, "namespace": "default", "annotations": {"value": value.to_string()}});
    let spec = json!({"ports": [{"port": 80}], "endpoints": [{"address": "127.0.0.1", "port": 8080}]});
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "Service", "metadata": metadata, "spec": spec}).to_string()
}

/// The value that a service holds.
pub fn value_of(service: &Value) -> Option<u64> {
    service["metadata"]["annotations"]["value"].as_str()?.parse().ok()
}

fn revision_of(service: &Value) -> u64 {
    service["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What makes a request that is repeated the same request.
pub fn identity(client: u128, sequence: u64) -> Vec<(&'static str, String)> {
    let issued = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    vec![
        ("weft-client", format!("{client:x}")),
        ("weft-sequence", sequence.to_string()),
        ("weft-issued", issued.to_string()),
    ]
}

/// Writes one value after the other; a write that is not answered is repeated, here and there, until it is.
async fn write_on(shared: Arc<Shared>, id: u32, key: String) {
    let client = fastrand::u128(..);
    let path = format!("/v1/objects/Service/default/{key}");
    let mut sequence = 0;
    let mut line = Line::new(shared.pick());
    while !shared.stopped() {
        let value = shared.values.fetch_add(1, Ordering::SeqCst);
        let call = shared.history.now();
        sequence += 1;
        let mut headers = identity(client, sequence);
        loop {
            let answer = line.ask("PUT", &path, &headers, service(&key, value), ONE).await;
            match answer {
                Ok((200, body)) => {
                    let at = shared.history.now();
                    shared.history.add(id, &key, Done::Write(value), (call, at));
                    let revision = body["revision"].as_u64().unwrap();
                    shared.written.lock().unwrap().push(Written { key: key.clone(), value, revision, at });
                    break;
                }
                // Nothing was done: what follows is another request.
                Ok((409, body)) if body["code"] == "contended" => {
                    sequence += 1;
                    headers = identity(client, sequence);
                }
                // Nobody was there, or it is not known what became of it.
                Ok((503 | 504, _)) | Err(_) => line = Line::new(shared.pick()),
                Ok((status, body)) => {
                    shared.failed.lock().unwrap().push(format!("{key}={value}: {status} {body}"));
                    break;
                }
            }
            sleep(PAUSE).await;
        }
        sleep(shared.pace).await;
    }
}

/// Reads, linearizably; what is not answered was not read.
async fn read_on(shared: Arc<Shared>, id: u32, keys: u32) {
    let mut line = Line::new(shared.pick());
    while !shared.stopped() {
        let key = format!("register-{}", fastrand::u32(..keys));
        let (call, least) = (shared.history.now(), shared.acknowledged(&key));
        let answer = line.get(&format!("/v1/objects/Service/default/{key}"), ONE).await;
        let seen = match answer {
            Ok((200, body)) => Some((value_of(&body), revision_of(&body))),
            Ok((404, _)) => Some((None, 0)),
            _ => None,
        };
        match seen {
            Some((seen, revision)) => {
                shared.history.add(id, &key, Done::Read(seen), (call, shared.history.now()));
                shared.stale.fetch_add(usize::from(revision < least), Ordering::SeqCst);
            }
            None => line = Line::new(shared.pick()),
        }
        sleep(PAUSE.max(shared.pace)).await;
    }
}
