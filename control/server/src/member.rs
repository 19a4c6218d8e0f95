//! A member of a control plane, from its start to its end.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use http::{Method, StatusCode};
use serde_json::json;
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::sleep};
use weft_store::{Fatal, Options, Role, Store};

use crate::{client::Client, pool::Pool, server::Server};

/// Between tries to join.
const AGAIN: Duration = Duration::from_millis(300);
/// For one try.
const TRY: Duration = Duration::from_secs(10);

/// How a member is started.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What people call it; unique in the cluster.
    pub name: String,
    /// Where it keeps everything.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the others reach it, if that is another address than the one it listens on.
    pub advertise: Option<String>,
    /// Members of the cluster to join. Only its own address: it waits until it is added.
    pub join: Vec<String>,
}

/// Why a member does not start, or ends.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The port cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The others could not reach it.
    #[error("the other members cannot reach {0}: say where they reach this one with --advertise HOST:PORT")]
    NoAddress(SocketAddr),
    /// The store cannot go on.
    #[error("the store cannot go on: {0}")]
    Fatal(#[from] Fatal),
    /// The store refused.
    #[error("{0}")]
    Store(#[from] weft_store::Error),
    /// The cluster does not take it.
    #[error("the cluster does not take this member: {0}")]
    Refused(String),
}

/// A running member.
#[derive(Debug)]
pub struct RunningMember {
    store: Store,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
    joining: Option<JoinHandle<Result<(), Ended>>>,
}

/// Starts a member. Alone on an empty directory it begins a cluster.
///
/// # Errors
/// When the port or the data directory cannot be had.
pub async fn start(setup: Setup) -> Result<RunningMember, Ended> {
    let refused = |source| Ended::Listen { address: setup.listen, source };
    let listener = TcpListener::bind(setup.listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    if setup.advertise.is_none() && address.ip().is_unspecified() {
        return Err(Ended::NoAddress(address));
    }
    let reached = setup.advertise.unwrap_or_else(|| address.to_string());
    let pool = Pool::default();
    let options = Options::new(&setup.name, &reached, &setup.data_dir);
    let clock = options.clock;
    let store = Store::open(options, pool.clone()).await?;
    if setup.join.is_empty() && !store.is_member().await? && store.bootstrap().await? {
        tracing::info!(name = setup.name, "a new cluster of one member");
    }
    let (stop, stopped) = oneshot::channel();
    let server = Server::new(listener, store.clone(), pool, clock);
    let serving = tokio::spawn(server.run(async {
        // Whoever drops the sender has stopped as well.
        let _ = stopped.await;
    }));
    let others: Vec<String> = setup.join.into_iter().filter(|other| *other != reached).collect();
    let joining = if others.is_empty() {
        is_elsewhere(&store).then(|| tokio::spawn(announce(store.clone())))
    } else {
        Some(tokio::spawn(join(store.clone(), others)))
    };
    Ok(RunningMember { store, address, stop, serving, joining })
}

impl RunningMember {
    /// Its store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for what it cannot go on from.
    pub async fn failed(&mut self) -> Ended {
        let joining = async {
            if let Some(joining) = &mut self.joining {
                match joining.await {
                    Ok(Err(ended)) => return ended,
                    Ok(Ok(())) => {}
                    Err(error) => tracing::error!(%error, "a defect in Weft: joining failed"),
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            fatal = self.store.failed() => fatal.into(),
            ended = joining => ended,
        }
    }

    /// Hands over leadership, finishes what is in flight, and stops.
    pub async fn stop(self) {
        if let Some(joining) = &self.joining {
            joining.abort();
        }
        hand_over(&self.store).await;
        // The server is gone already if nobody receives.
        let _ = self.stop.send(());
        if let Err(error) = self.serving.await {
            tracing::error!(%error, "a defect in Weft: the server failed");
        }
        self.store.shutdown().await;
    }
}

/// Makes the voter that lacks least the leader, if this member is it.
async fn hand_over(store: &Store) {
    let status = store.status();
    if status.role != Role::Leader {
        return;
    }
    let others = status.members.iter().filter(|member| member.id != status.id && member.voter);
    let Some(next) = others.min_by_key(|member| (member.lag.unwrap_or(u64::MAX), member.silent)) else { return };
    match store.transfer(next.id).await {
        Ok(()) => tracing::info!(to = &*next.member.name, "handed over leadership"),
        Err(error) => tracing::warn!(%error, "leadership is not handed over: the others elect a leader"),
    }
}

/// Do the others know this member by another address or name?
fn is_elsewhere(store: &Store) -> bool {
    let (id, member) = store.member();
    store.status().members.iter().any(|known| known.id == id && known.member != *member)
}

/// Tells the others where this member is now; again and again, until it is known. They cannot reach it before.
async fn announce(store: Store) -> Result<(), Ended> {
    let (id, member) = store.member();
    let known = store.status().members;
    // By itself it tells itself.
    let addresses = known.iter().map(|known| if known.id == id { &member.address } else { &known.member.address });
    let mut client = Client::new(addresses.map(|address| address.to_string()).collect(), TRY);
    let mut last = String::new();
    while is_elsewhere(&store) {
        let told = client.change(Method::POST, "/v1/raft/members", &[], introduction(&store)).await;
        let why = match told {
            Ok(answer) if answer.status.is_success() => String::new(),
            Ok(answer) => answer.body["message"].as_str().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        };
        if !why.is_empty() && why != last {
            tracing::warn!(why, address = &*member.address, "the others do not know yet where this member is");
            last = why;
        }
        sleep(AGAIN).await;
    }
    tracing::info!(address = &*member.address, "the others know where this member is");
    Ok(())
}

/// What a member says about itself to be known by the others.
fn introduction(store: &Store) -> String {
    let (id, member) = store.member();
    let body = json!({
        "id": id.to_string(),
        "name": &*member.name,
        "address": &*member.address,
        "incarnation": member.incarnation.to_string(),
    });
    body.to_string()
}

/// Adds this member to the cluster, first without and then with a vote; again and again, until it has one.
async fn join(store: Store, others: Vec<String>) -> Result<(), Ended> {
    let (id, member) = store.member();
    let mut client = Client::new(others, TRY);
    let mut last = String::new();
    loop {
        let known = store.status().members;
        if known.iter().any(|known| known.id == id && known.voter && known.member == *member) {
            tracing::info!(name = &*member.name, "a member with a vote");
            return Ok(());
        }
        let mut tried = client.change(Method::POST, "/v1/raft/members", &[], introduction(&store)).await;
        if tried.as_ref().is_ok_and(|answer| answer.status.is_success()) {
            tried = client.change(Method::POST, &format!("/v1/raft/promote/{id}"), &[], "").await;
        }
        let why = match tried {
            Ok(answer) if answer.status.is_success() => String::new(),
            Ok(answer) if answer.status == StatusCode::CONFLICT && answer.body["code"] == "name_taken" => {
                let text = |name: &str| answer.body[name].as_str().unwrap_or_default().to_owned();
                return Err(Ended::Refused(format!("{} ({})", text("message"), text("hint"))));
            }
            Ok(answer) => answer.body["message"].as_str().unwrap_or_default().to_owned(),
            Err(error) => error.to_string(),
        };
        if !why.is_empty() && why != last {
            tracing::info!(why, "not joined yet");
            last = why;
        }
        sleep(AGAIN).await;
    }
}
