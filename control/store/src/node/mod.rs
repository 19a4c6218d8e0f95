//! A member of the cluster: the handle through which everything else uses the store.
//!
//! ```text
//! ops.rs      write, read, watch, keep-alive
//! members.rs  bootstrap, add, promote, remove, transfer, status
//! keeper.rs   what the leader does by itself: end leases, trim history, finish a membership change
//! identity.rs whose data directory it is
//! ```

mod identity;
mod keeper;
mod members;
mod ops;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{Config, RaftMetrics, SnapshotPolicy};
use tokio::task::JoinHandle;

use crate::applier::Applier;
use crate::fatal::{Failure, Fatal};
use crate::lease::{Hold, Leases};
use crate::log::Log;
use crate::network::{Peers, Server, Transport};
use crate::raft::{LogId, Member, Types};
use crate::snapshot::{Disk, Snapshots, make_dir};
use crate::state::State;
pub(crate) use identity::Identity;

pub use members::{MemberStatus, Role, Status};
pub use ops::{Consistency, Error};

type Raft = openraft::Raft<Types, Applier>;

/// How a member is set up.
#[derive(Clone)]
pub struct Options {
    /// Its id, which must be unique in the cluster and never be given to another data directory. Without one, a random
    /// one is drawn when the directory is made, which is both.
    pub id: Option<u64>,
    /// What people call it.
    pub name: String,
    /// Where the others reach it.
    pub address: String,
    /// Where it keeps the log and the snapshots.
    pub data_dir: PathBuf,
    /// How often the leader is heard.
    pub heartbeat: Duration,
    /// After how much silence an election begins: a random time between these.
    pub election: (Duration, Duration),
    /// After how many log entries a snapshot is made.
    pub snapshot_every: u64,
    /// How long a write or a linearizable read may take.
    pub timeout: Duration,
    /// How long events are kept, unless there are too many.
    pub history: Duration,
    /// When the expiry of leases is held back.
    pub hold: Hold,
    /// The time in milliseconds since 1970, for the history.
    pub clock: fn() -> u64,
}

impl Options {
    /// The usual settings.
    pub fn new(name: &str, address: &str, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            id: None,
            name: name.into(),
            address: address.into(),
            data_dir: data_dir.into(),
            heartbeat: Duration::from_millis(100),
            // A follower waits for the longer of these, the leader's lease, and then for a random time between them:
            // at least ten heartbeats, as etcd does. Writes pause for about the sum of both and some 0.2 s.
            election: (Duration::from_millis(350), Duration::from_millis(700)),
            // A snapshot holds the history too, and so weighs tens of MiB under load; while it is written, writes wait.
            snapshot_every: 50_000,
            timeout: Duration::from_secs(5),
            history: Duration::from_secs(7 * 24 * 3600),
            hold: Hold::default(),
            clock: || {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                now.as_millis().try_into().unwrap_or(u64::MAX)
            },
        }
    }

    fn config(&self) -> Config {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Config {
            cluster_name: "weft".into(),
            heartbeat_interval: ms(self.heartbeat),
            election_timeout_min: ms(self.election.0),
            election_timeout_max: ms(self.election.1),
            // A leader without a quorum goes quiet, so that those who can reach each other may elect another.
            quorum_loss_probe_interval: Some(ms(self.election.1) * 5 / 2),
            // A member that comes back from a partition does not depose a healthy leader.
            enable_pre_vote: Some(true),
            // `committed` reaches the disk late, so a restarted leader may not know all that it had committed.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            // Back to the snapshot before the last, in case the last turns out to be damaged.
            max_in_snapshot_log_to_keep: self.snapshot_every * 2,
            install_snapshot_timeout: 30_000,
            ..Config::default()
        }
    }
}

/// A running member. Clones are handles to the same one.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    options: Options,
    id: u64,
    me: Member,
    raft: Raft,
    server: Server,
    peers: Peers,
    state: Arc<State>,
    log: Mutex<Option<Log>>,
    snapshots: Arc<Snapshots>,
    leases: Mutex<Leases>,
    failure: Failure,
    keeper: Mutex<Option<JoinHandle<()>>>,
    /// A membership change of this handle's is under way.
    changing: tokio::sync::Mutex<()>,
}

impl Store {
    /// Opens the data directory, or makes it, and joins in. A member of no cluster yet waits to be bootstrapped or added.
    pub async fn open(options: Options, transport: impl Transport) -> Result<Self, Fatal> {
        let failure = Failure::default();
        let opening = (options.clone(), failure.clone());
        let opened = tokio::task::spawn_blocking(move || open_files(&opening.0, &opening.1)).await;
        let (log, snapshots, identity) = opened.map_err(|error| Fatal::Raft(error.to_string()))??;
        Self::start(options, Arc::new(transport), log, snapshots, identity, failure).await
    }

    async fn start(
        options: Options,
        transport: Arc<dyn Transport>,
        log: Log,
        snapshots: Snapshots,
        Identity { id, incarnation }: Identity,
        failure: Failure,
    ) -> Result<Self, Fatal> {
        let me = Member { name: (&*options.name).into(), address: (&*options.address).into(), incarnation };
        let stopped = |error: String| failure.get().unwrap_or(Fatal::Raft(error));
        let config = options.config().validate().map_err(|error| Fatal::Raft(error.to_string()))?;
        let (state, snapshots) = (Arc::<State>::default(), Arc::new(snapshots));
        let applier = Applier::new(state.clone(), snapshots.clone(), failure.clone());
        let peers = Peers::new(id, transport);
        let raft = Raft::new(id, Arc::new(config), peers.clone(), log.clone(), applier).await;
        let raft = raft.map_err(|error| stopped(error.to_string()))?;

        let server = Server { id, incarnation, raft: raft.clone(), arriving: Arc::default() };
        let leases = Mutex::new(Leases::new(options.hold));
        let store = Self(Arc::new(Inner {
            options,
            id,
            me,
            raft,
            server,
            peers,
            state,
            log: Mutex::new(Some(log)),
            snapshots,
            leases,
            failure,
            keeper: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        }));
        let keeper = tokio::spawn(keeper::run(Arc::downgrade(&store.0)));
        *store.0.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Ok(store)
    }

    /// This member, as the others know it.
    pub fn member(&self) -> (u64, &Member) {
        (self.0.id, &self.0.me)
    }

    /// Answers a message of another member, as it came through its [`Transport`].
    pub async fn handle(&self, message: Bytes) -> Bytes {
        self.0.server.handle(&message).await
    }

    /// Waits for what this member cannot go on from. The process should then say so and exit.
    pub async fn failed(&self) -> Fatal {
        self.0.failure.wait().await
    }

    /// Stops. Returns when the data directory may be opened again.
    pub async fn shutdown(&self) {
        let keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop as it should");
        }
        self.0.state.close();
        let log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(log) = log {
            log.closed().await;
        }
    }

    /// What raft says of itself at the moment.
    fn metrics(&self) -> RaftMetrics<Types> {
        self.0.raft.metrics().borrow_watched().clone()
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({}, {:?})", self.0.id, self.0.me.name)
    }
}

/// Opens what is in the data directory, and checks that it belongs together and to this member.
fn open_files(options: &Options, failure: &Failure) -> Result<(Log, Snapshots, Identity), Fatal> {
    let dir = &options.data_dir;
    let mismatch = |path: PathBuf, what: String| Fatal::Mismatch { path, what };
    make_dir(dir).map_err(|error| Fatal::disk("make", dir, error))?;
    let (log_path, identity_path) = (dir.join("log.redb"), dir.join("member"));

    let identity = Identity::load(&identity_path)?;
    if let Some(found) = identity
        && let Some(id) = options.id
        && found.id != id
    {
        return Err(mismatch(identity_path, format!("the data is member {}'s, not member {id}'s", found.id)));
    }
    if identity.is_some() && !log_path.exists() {
        return Err(mismatch(log_path, "it is missing, and with it what this member has promised".into()));
    }
    let log = Log::open(&log_path, failure.clone())?;
    let snapshots = Snapshots::open(dir, Disk)?;
    let covered = snapshots.meta().and_then(|meta| meta.last_log_id);
    if identity.is_none() && (!log.is_empty() || covered.is_some()) {
        return Err(mismatch(identity_path, "it is missing: whose data this is cannot be told".into()));
    }
    if log.purged().map(|id: LogId| id.index) > covered.map(|id| id.index) {
        return Err(mismatch(dir.clone(), "the snapshot is missing to which the log was purged".into()));
    }
    // After the log: with an identity, a log is expected.
    let identity = match identity {
        Some(identity) => identity,
        None => {
            let drawn = Identity::drawn(options.id);
            drawn.save(&identity_path)?;
            drawn
        }
    };
    Ok((log, snapshots, identity))
}
