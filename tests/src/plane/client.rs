//! Clients of a control plane: they go on whatever happens, and remember what they saw.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
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

/// What the clients of a [`Load`] share.
#[derive(Debug, Default)]
struct Shared {
    members: Mutex<Vec<SocketAddr>>,
    stop: AtomicBool,
    history: History,
    written: Mutex<Vec<Written>>,
    failed: Mutex<Vec<String>>,
    values: AtomicU64,
}

/// Writers and readers of a few services, each of which is a register. Stopped when dropped.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

impl Load {
    /// Clients that ask these members in turn. Several writers share a key.
    pub fn start(members: &[SocketAddr], writers: u32, readers: u32) -> Self {
        let shared = Arc::new(Shared::default());
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

    /// Lets every client finish what it is at. Returns what was acknowledged, in the order of the revisions.
    pub async fn stop(mut self) -> (Vec<Written>, History) {
        self.shared.stop.store(true, Ordering::SeqCst);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        let failed = self.shared.failed.lock().unwrap();
        assert!(failed.is_empty(), "{} writes failed: {:?}", failed.len(), &failed[..failed.len().min(5)]);
        let mut written = self.shared.written.lock().unwrap().clone();
        written.sort_by_key(|written| written.revision);
        (written, self.shared.history.clone())
    }
}

impl Shared {
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
    }
}

/// Reads, linearizably; what is not answered was not read.
async fn read_on(shared: Arc<Shared>, id: u32, keys: u32) {
    let mut line = Line::new(shared.pick());
    while !shared.stopped() {
        let key = format!("register-{}", fastrand::u32(..keys));
        let call = shared.history.now();
        let answer = line.get(&format!("/v1/objects/Service/default/{key}"), ONE).await;
        let seen = match answer {
            Ok((200, body)) => Some(value_of(&body)),
            Ok((404, _)) => Some(None),
            _ => None,
        };
        match seen {
            Some(seen) => shared.history.add(id, &key, Done::Read(seen), (call, shared.history.now())),
            None => line = Line::new(shared.pick()),
        }
        sleep(PAUSE).await;
    }
}
