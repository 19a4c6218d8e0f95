//! Configuration from a control plane: a stream of changes, what was accepted of them on disk, and the answers.
//!
//! | file | |
//! |---|---|
//! | `mod.rs` | the source: goes from member to member, and hands on what should be in force |
//! | `stream.rs` | one stream to one member: requests, responses, answers |
//! | `state.rs`, `objects.rs`, `endpoints.rs` | what is wanted, accepted, rejected; no I/O |
//! | `blame.rs` | which documents this host cannot have |
//! | `addresses.rs` | which member next, and when |
//! | `cache.rs` | the last accepted state on disk |
//! | `status.rs` | for `/ready`, `/config_dump` and `/metrics` |

mod addresses;
mod blame;
mod cache;
mod endpoints;
mod objects;
pub mod state;
mod status;
mod stream;
#[cfg(test)]
mod tests;

pub use blame::refusal;
pub use status::Status;

use std::{
    collections::HashMap,
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use tokio::sync::{Notify, mpsc, oneshot};
use weft_wire::discovery::{DeltaResponse, Locality, Node};

use self::{
    addresses::Addresses,
    cache::Cache,
    state::{Kind, Proposal, Refusal, Rejected, State},
    stream::{Answers, Ended, Stream},
};
use super::Reloader;

/// Between two attempts at what this host could not have.
const RETRY: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };
/// How long a node that has nothing waits for endpoints once it has documents: services without them answer 503.
const TOGETHER: Duration = Duration::from_millis(300);
/// What a member says in whose past this node has been: perhaps it is another control plane.
const REBUILT: &str = "rebuilt on purpose";
/// So many rejections are told one by one.
const TOLD: usize = 10;
/// So many endpoints are looked at at once.
const FEW: usize = 64;

/// What somebody who follows a control plane says.
#[derive(Debug, Clone)]
pub struct Options {
    /// Members, `HOST:PORT`; at least one.
    pub addresses: Vec<String>,
    /// Name of this node.
    pub node: String,
    /// Zone of this node.
    pub zone: Option<String>,
    /// Where what was accepted is kept; nowhere, if the control plane cannot be away.
    pub cache: Option<PathBuf>,
}

/// What should be in force next.
#[derive(Debug)]
pub struct Change {
    /// All of it.
    pub proposal: Proposal,
    /// To be told what became of it. The next change comes after that.
    pub outcome: oneshot::Sender<Result<(), Refusal>>,
}

/// Follows a control plane.
#[derive(Debug)]
pub struct ControlSource {
    node: Node,
    addresses: Addresses,
    state: State,
    cache: Option<Cache>,
    cache_dir: Option<PathBuf>,
    status: Arc<Status>,
    force: Arc<Notify>,
    /// When what this host could not have is tried again.
    retry_at: Instant,
    /// What was said of each member since one was connected.
    said: HashMap<String, String>,
    rng: Rng,
}

/// Why something does not go on.
#[derive(Debug)]
enum Stop {
    /// Nobody wants changes any more.
    Unwanted,
    /// The stream is over; there will be another one.
    Ended(Ended),
}

impl From<Ended> for Stop {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl ControlSource {
    /// Follows these members. Reads what is cached.
    pub async fn new(options: Options) -> Self {
        let Options { addresses, node, zone, cache: dir } = options;
        let node = Node {
            id: node,
            cluster: String::new(),
            locality: zone.map(|zone| Locality { zone, ..Locality::default() }),
            user_agent_name: "weft".into(),
            user_agent_version: env!("CARGO_PKG_VERSION").into(),
        };
        let mut rng = Rng::new();
        let mut state = State::default();
        let status = Status::new();
        let cache_dir = dir.clone();
        let cache = match dir {
            Some(dir) => cached(dir, &mut state, &status).await,
            None => None,
        };
        Self {
            node,
            addresses: Addresses::new(addresses, &mut rng),
            state,
            cache,
            cache_dir,
            status,
            force: Arc::default(),
            retry_at: Instant::now(),
            said: HashMap::new(),
            rng,
        }
    }

    /// How the node stands with its control plane.
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }

    /// Connects anew, and gives what was rejected another chance: for SIGHUP.
    pub fn reloader(&self) -> Reloader {
        Reloader::new(self.force.clone())
    }

    /// Hands on changes until nobody wants them any more. Then everything accepted is on disk.
    pub async fn run(mut self, changes: mpsc::Sender<Change>) {
        self.follow(&changes).await;
        if let Some(cache) = self.cache.take() {
            let _ = tokio::task::spawn_blocking(move || cache.close()).await;
        }
    }

    async fn follow(&mut self, changes: &mpsc::Sender<Change>) {
        tracing::info!(members = self.addresses.all().join(", "), "following a control plane");
        loop {
            let address = self.addresses.next();
            let begun = Instant::now();
            let stop = tokio::select! {
                Err(stop) = self.session(&address, changes) => stop,
                () = changes.closed() => return,
            };
            match stop {
                Stop::Unwanted => return,
                Stop::Ended(Ended::Forced) => {}
                Stop::Ended(ended) => self.lost(&address, &ended),
            }
            let wait = self.addresses.lost(begun.elapsed(), &mut self.rng);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.force.notified() => self.state.retry(),
                () = changes.closed() => return,
            }
        }
    }

    /// Says why there is no connection: once for each member, until one is there again.
    fn lost(&mut self, address: &str, ended: &Ended) {
        let mut problem = ended.explained(address);
        if let (Ended::Refused(_, reason), Some(dir)) = (ended, &self.cache_dir)
            && reason.contains(REBUILT)
        {
            problem.push_str(&format!(": stop this node, remove {}, and start it again", dir.display()));
        }
        self.status.lost(&problem);
        if self.said.insert(address.to_owned(), problem.clone()).as_ref() == Some(&problem) {
            tracing::debug!(problem, "no control plane");
        } else if self.state.is_configured() {
            tracing::warn!("{problem}; what is in force stays");
        } else {
            tracing::warn!("{problem}; there is no configuration yet");
        }
    }

    /// One stream to one member, until it ends.
    async fn session(&mut self, address: &str, changes: &mpsc::Sender<Change>) -> Result<Infallible, Stop> {
        // What was accepted before a restart, or is to be tried again, does not wait for anybody.
        self.retry(changes).await?;
        let first = Kind::ALL.map(|kind| stream::subscribe(&self.node, kind, self.state.versions(kind)));
        let mut stream = Stream::open(address, first).await?;
        let mut answers = Answers::default();
        loop {
            tokio::select! {
                response = stream.next() => self.hear(response?, address, &mut answers, &stream).await?,
                () = tokio::time::sleep_until(self.retry_at.into()), if self.state.has_refused() => {
                    self.retry(changes).await?;
                    self.answer(&mut answers, &stream).await?;
                    continue;
                }
                () = self.force.notified() => {
                    self.state.retry();
                    return Err(Ended::Forced.into());
                }
            }
            // Both types lead to one configuration, if both have news.
            let configured = self.state.is_configured();
            while answers.awaits_more(configured) {
                let limit = match (configured, answers.heard(Kind::Object)) {
                    (true, _) => Duration::ZERO,
                    (false, true) => TOGETHER,
                    // Endpoints alone are no configuration.
                    (false, false) => Duration::MAX,
                };
                match tokio::time::timeout(limit, stream.next()).await {
                    Ok(response) => self.hear(response?, address, &mut answers, &stream).await?,
                    Err(_) => break,
                }
            }
            self.round(changes).await?;
            self.answer(&mut answers, &stream).await?;
        }
    }

    /// Takes a response; what it means comes later.
    async fn hear(
        &mut self,
        response: DeltaResponse,
        address: &str,
        answers: &mut Answers,
        stream: &Stream,
    ) -> Result<(), Ended> {
        let Some(kind) = Kind::of(&response.type_url) else {
            tracing::warn!(kind = response.type_url, "the control plane sent something that nobody asked for");
            return stream.send(stream::unknown(&response)).await;
        };
        answers.owe(kind, &response);
        // A member that is behind answers for types of which nothing is here yet, and then gives up.
        if !self.status.is_connected() && Kind::ALL.into_iter().all(|kind| answers.heard(kind)) {
            let member =
                response.control_plane.as_ref().map(|member| &*member.identifier).filter(|name| !name.is_empty());
            self.status.connected(member.unwrap_or(address));
            self.said.clear();
            tracing::info!(member, address, "connected to the control plane");
        }
        let many = kind == Kind::Object || response.resources.len() > FEW;
        self.think(many, move |state| state.receive(kind, &response)).await
    }

    /// Puts in force what can be.
    async fn round(&mut self, changes: &mpsc::Sender<Change>) -> Result<(), Stop> {
        let mut more = true;
        while more {
            let parses = self.state.is_due();
            let Some(proposal) = self.think(parses, State::propose).await? else { break };
            let (sender, outcome) = oneshot::channel();
            changes.send(Change { proposal, outcome: sender }).await.map_err(|_| Stop::Unwanted)?;
            let outcome = outcome.await.map_err(|_| Stop::Unwanted)?;
            more = self.think(outcome.is_err(), move |state| state.settle(outcome)).await?;
        }
        self.retry_at = Instant::now() + RETRY;
        let accepted = self.state.take_accepted();
        if let Some(cache) = &self.cache {
            cache.note(accepted);
        }
        let rejected = Kind::ALL.into_iter().flat_map(|kind| self.state.rejected(kind)).collect();
        let new = self.status.reject(rejected);
        for Rejected { name, reason } in new.iter().take(TOLD) {
            tracing::warn!("{name} is not in force as the control plane has it: {reason}");
        }
        if new.len() > TOLD {
            tracing::warn!("{} more are not in force: /config_dump lists them", new.len() - TOLD);
        }
        Ok(())
    }

    /// Tries again what this host could not have, when it is time.
    async fn retry(&mut self, changes: &mpsc::Sender<Change>) -> Result<(), Stop> {
        if self.state.has_refused() && Instant::now() >= self.retry_at {
            self.state.retry();
        }
        if self.state.is_due() { self.round(changes).await } else { Ok(()) }
    }

    /// Answers what is owed, and corrects what is not right any more.
    async fn answer(&self, answers: &mut Answers, stream: &Stream) -> Result<(), Ended> {
        for kind in Kind::ALL {
            let rejected = self.state.rejected(kind);
            if let Some((request, revision)) = answers.give(kind, rejected) {
                self.status.leads_to(revision);
                stream.send(request).await?;
            }
        }
        Ok(())
    }

    /// Lets the state work, on a thread of its own if that may take long. A defect there costs what it knew, and the stream:
    /// the next member sends everything again.
    async fn think<T: Send + 'static>(
        &mut self,
        long: bool,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        if !long {
            return Ok(work(&mut self.state));
        }
        let mut state = std::mem::take(&mut self.state);
        let done = tokio::task::spawn_blocking(move || {
            let result = work(&mut state);
            (state, result)
        });
        match done.await {
            Ok((state, result)) => {
                self.state = state;
                Ok(result)
            }
            Err(error) => Err(Ended::Defect(error.to_string())),
        }
    }
}

/// Begins with what is in the cache.
async fn cached(dir: PathBuf, state: &mut State, status: &Status) -> Option<Cache> {
    let shown = dir.display().to_string();
    let opened = tokio::task::spawn_blocking(move || Cache::open(&dir)).await;
    match opened.map_err(std::io::Error::other).and_then(|opened| opened) {
        Ok((cache, saved)) => {
            if !saved.is_empty() {
                tracing::info!(cache = shown, resources = saved.len(), "beginning with what was accepted last");
            }
            let versions = saved.iter().filter_map(|saved| saved.resource.as_ref()?.0.parse().ok());
            status.leads_to(versions.max().unwrap_or(0));
            state.restore(saved);
            Some(cache)
        }
        Err(error) => {
            tracing::warn!(
                cache = shown, %error,
                "the configuration is not cached: this node cannot start without a control plane (see --cache)"
            );
            None
        }
    }
}
