//! Members in one process, over links that can be cut.

mod cluster;
mod faults;
mod leases;
mod members;
mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::*;
use crate::machine::Filter;
use crate::network::Memory;
use crate::types::{ClientId, Command, ObjectKey, Op, Outcome, Put, RequestId, Revision};

/// How long to wait for what has to happen.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    network: Memory,
    dirs: BTreeMap<u64, TempDir>,
    stores: BTreeMap<u64, Store>,
    adjust: fn(&mut Options),
}

impl Cluster {
    /// Voters 1 to `n`.
    async fn new(n: u64) -> Self {
        Self::with(n, |_| {}).await
    }

    async fn with(n: u64, adjust: fn(&mut Options)) -> Self {
        let (network, dirs, stores) = (Memory::default(), BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { network, dirs, stores, adjust };
        cluster.start(1).await;
        assert!(cluster.stores[&1].bootstrap().await.unwrap());
        for id in 2..=n {
            cluster.add(id).await;
        }
        cluster
    }

    /// Starts member `id` on its directory.
    async fn start(&mut self, id: u64) -> Store {
        let dir = self.dirs.entry(id).or_insert_with(|| TempDir::new().unwrap());
        let mut options = Options::new(&format!("m{id}"), &address(id), dir.path());
        options.id = Some(id);
        options.heartbeat = Duration::from_millis(60);
        options.election = (Duration::from_millis(300), Duration::from_millis(600));
        options.timeout = Duration::from_secs(3);
        // The commands of the tests say that it is always 1 s past.
        options.clock = || 1000;
        (self.adjust)(&mut options);
        let store = Store::open(options, self.network.port(&address(id))).await.unwrap();
        self.network.join(&address(id), store.clone());
        self.stores.insert(id, store.clone());
        store
    }

    /// Starts member `id` and makes it a voter.
    async fn add(&mut self, id: u64) {
        let store = self.start(id).await;
        let leader = self.leader().await;
        leader.add_learner(id, store.member().1.clone()).await.unwrap();
        eventually("the learner catches up", async || self.leader().await.promote(id).await.is_ok()).await;
    }

    async fn stop(&mut self, id: u64) {
        self.network.leave(&address(id));
        self.stores.remove(&id).unwrap().shutdown().await;
    }

    async fn restart(&mut self, id: u64) -> Store {
        self.stop(id).await;
        self.start(id).await
    }

    /// A member that leads, and knows it from a quorum.
    async fn leader(&self) -> Store {
        self.leader_among(&self.stores.keys().copied().collect::<Vec<_>>()).await
    }

    async fn leader_among(&self, ids: &[u64]) -> Store {
        let until = Instant::now() + PATIENCE;
        loop {
            for id in ids {
                let store = &self.stores[id];
                let leads = store.status().role == Role::Leader;
                if leads && store.read(Consistency::Linearizable, |_| ()).await.is_ok() {
                    return store.clone();
                }
            }
            assert!(Instant::now() < until, "no leader among {ids:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Writes through whoever leads among `ids`, and retries as a client does.
    async fn write_among(&self, ids: &[u64], command: Command) -> Outcome {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.leader_among(ids).await.write(command.clone()).await {
                Ok(outcome) => return outcome,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        }
    }

    async fn write(&self, command: Command) -> Outcome {
        self.write_among(&self.stores.keys().copied().collect::<Vec<_>>(), command).await
    }

    /// Every member has applied the same.
    async fn agree(&self) {
        eventually("every member has the same state", async || {
            let all = self.stores.values().map(|store| (store.0.state.read().clone(), store.status().applied));
            let all: Vec<_> = all.collect();
            all.windows(2).all(|two| two[0] == two[1])
        })
        .await;
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn address(id: u64) -> String {
    format!("m{id}:15010")
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("Service", "default", name)
}

fn put(name: &str, body: u64) -> Command {
    Command::new("test", 1, Op::put(Put::spec(key(name), body.to_string())))
}

fn request(sequence: u64) -> RequestId {
    RequestId { client: ClientId(7), sequence, settled: sequence.saturating_sub(1), issued: 1000 + sequence }
}

fn body(machine: &crate::machine::Machine, name: &str) -> Option<u64> {
    let object = machine.get(&key(name))?;
    std::str::from_utf8(&object.spec).unwrap().parse().ok()
}

async fn read(store: &Store, consistency: Consistency, name: &str) -> Result<Option<u64>, Error> {
    store.read(consistency, |machine| body(machine, name)).await
}
