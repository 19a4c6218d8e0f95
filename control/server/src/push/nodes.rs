//! Every connected node: who it is, and what it has in force.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use weft_wire::discovery::Node;

use super::{exchange::Rejection, log::Log, logs::Logs};

/// How long a node that left is shown, in milliseconds.
const GONE_MS: u64 = 10 * 60 * 1000;
/// How many nodes that left are shown.
const GONE_MAX: usize = 10_000;
/// Clients of this name have names of their own: a second one is the first one again. Of others, several may run under
/// one name.
const OURS: &str = "weft";

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// It has everything that there is for it.
    Synced,
    /// It lacks something, or is not connected.
    Stale,
    /// It does not take something.
    Nacked,
}

/// A node, as people see it. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub node: String,
    /// Its zone; empty when it is not known.
    pub zone: String,
    /// Which program it is.
    pub client: String,
    /// In which version.
    pub version: String,
    /// From where it connects.
    pub peer: String,
    /// The member that it is, or was, connected to.
    pub member: String,
    /// Is it?
    pub connected: bool,
    /// Since when.
    pub connected_at: u64,
    /// Since when not.
    pub disconnected_at: Option<u64>,
    /// How it is.
    pub state: State,
    /// Since when.
    pub since: u64,
    /// The revision that it has acknowledged: everything up to it is in force.
    pub acknowledged: u64,
    /// How many revisions it is behind.
    pub lag: u64,
    /// What it asks for.
    pub types: Vec<TypeView>,
    /// What it does not take.
    pub rejections: Vec<RejectionView>,
    /// How many more.
    pub more_rejections: usize,
}

impl NodeView {
    /// Is it one of Weft's own? Such a one has its name for itself.
    pub fn is_ours(&self) -> bool {
        self.client == OURS
    }

    /// Of two entries of a node, the larger one is how it is now.
    pub(super) fn freshness(&self) -> (bool, u64) {
        (self.connected, self.disconnected_at.unwrap_or(self.connected_at))
    }
}

/// A type that a node asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeView {
    /// Its URL.
    #[serde(rename = "type")]
    pub url: String,
    /// The revision that the last response leads to.
    pub sent: u64,
    /// Of the last response that was acknowledged.
    pub acknowledged: u64,
    /// Of the last response that was answered, be it with a NACK.
    pub answered: u64,
}

/// A resource that a node does not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectionView {
    /// The URL of its type.
    #[serde(rename = "type")]
    pub url: String,
    /// The rest.
    #[serde(flatten)]
    pub rejection: Rejection,
}

/// All nodes of a member.
#[derive(Debug)]
pub(super) struct Nodes {
    member: String,
    clock: fn() -> u64,
    logs: Arc<Logs>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    connected: BTreeMap<u64, Arc<Live>>,
    gone: VecDeque<NodeView>,
}

/// A connected node.
#[derive(Debug)]
struct Live {
    node: Node,
    peer: SocketAddr,
    connected_at: u64,
    replaced: Notify,
    types: Mutex<BTreeMap<usize, TypeState>>,
}

/// How far a type of a stream is, as the stream last saw it.
#[derive(Debug, Clone, Default)]
pub(super) struct TypeState {
    pub sent: u64,
    pub acknowledged: u64,
    pub answered: u64,
    /// The head of the log up to which everything was sent and answered.
    pub settled: Option<u64>,
    /// Since when it is so, or is not so.
    pub since: u64,
    pub rejections: Arc<[Rejection]>,
    pub more: usize,
}

/// A stream's entry; dropping it says that the node is gone.
#[derive(Debug)]
pub(super) struct Connection {
    nodes: Arc<Nodes>,
    number: u64,
    live: Arc<Live>,
}

impl Nodes {
    pub(super) fn new(member: &str, clock: fn() -> u64, logs: Arc<Logs>) -> Self {
        Self { member: member.into(), clock, logs, inner: Mutex::default() }
    }

    /// A node comes. If it is here already, under a name of its own, it comes back: the old stream is told.
    pub(super) fn connect(self: &Arc<Self>, node: Node, peer: SocketAddr) -> Connection {
        let mut inner = self.inner();
        inner.gone.retain(|gone| gone.node != node.id);
        if node.user_agent_name == OURS {
            let same = inner.connected.values().filter(|live| live.node.id == node.id);
            for old in same.filter(|live| live.node.user_agent_name == OURS) {
                tracing::info!(node = node.id, from = %old.peer, to = %peer, "a node connects again");
                old.replaced.notify_one();
            }
        }
        let live = Live { node, peer, connected_at: (self.clock)(), replaced: Notify::new(), types: Mutex::default() };
        let (number, live) = (inner.next, Arc::new(live));
        inner.next += 1;
        inner.connected.insert(number, live.clone());
        Connection { nodes: self.clone(), number, live }
    }

    /// The revision that is pushed.
    pub(super) fn revision(&self) -> u64 {
        let logs = self.logs.read();
        logs.iter().filter(|log| log.ready() && log.spec().revisions).map(Log::revision).max().unwrap_or(0)
    }

    /// Everything that is known, the nodes in the order of their names.
    pub(super) fn view(&self) -> Vec<NodeView> {
        let now = (self.clock)();
        let mut inner = self.inner();
        inner.forget(now);
        // Of a node that was replaced and is not gone yet, the new connection counts.
        let mut last = BTreeMap::new();
        for (number, live) in &inner.connected {
            let ours = live.node.user_agent_name == OURS;
            last.insert((&*live.node.id, if ours { 0 } else { *number }), live);
        }
        let mut views: Vec<NodeView> = last.into_values().map(|live| self.describe(live, now)).collect();
        views.extend(inner.gone.iter().cloned());
        views.sort_by(|a, b| (&a.node, a.connected_at).cmp(&(&b.node, b.connected_at)));
        views
    }

    /// How many streams there are, by client.
    pub(super) fn clients(&self) -> BTreeMap<String, usize> {
        let mut clients = BTreeMap::new();
        for live in self.inner().connected.values() {
            let name = &live.node.user_agent_name;
            *clients.entry(if name.is_empty() { "unknown".into() } else { name.clone() }).or_default() += 1;
        }
        clients
    }

    fn describe(&self, live: &Live, now: u64) -> NodeView {
        let types = live.types.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let logs = self.logs.read();
        let mut view = NodeView {
            node: live.node.id.clone(),
            zone: live.node.locality.as_ref().map(|locality| locality.zone.clone()).unwrap_or_default(),
            client: live.node.user_agent_name.clone(),
            version: live.node.user_agent_version.clone(),
            peer: live.peer.to_string(),
            member: self.member.clone(),
            connected: true,
            connected_at: live.connected_at,
            disconnected_at: None,
            state: State::Synced,
            since: live.connected_at,
            acknowledged: 0,
            lag: 0,
            types: Vec::new(),
            rejections: Vec::new(),
            more_rejections: 0,
        };
        let mut acknowledged = None;
        // When it last became what it is.
        let (mut synced, mut stale) = (live.connected_at, None::<u64>);
        for (at, state) in types {
            let (Some(log), Some(spec)) = (logs.get(at), self.logs.specs().get(at)) else { continue };
            // What nobody had to answer is as good as answered.
            let settled = state.settled == Some(log.head());
            let up_to = |revision: u64, whole: bool| if whole { log.revision().max(revision) } else { revision };
            let own = up_to(state.acknowledged, settled && state.rejections.is_empty());
            acknowledged = Some(acknowledged.map_or(own, |least: u64| least.min(own)));
            let answered = up_to(state.answered, settled);
            view.types.push(TypeView { url: spec.url.into(), sent: state.sent, acknowledged: own, answered });
            match (settled, state.settled) {
                (true, _) => synced = synced.max(state.since),
                // It has not noticed yet.
                (false, Some(_)) => stale = Some(stale.map_or(now, |least| least.min(now))),
                (false, None) => stale = Some(stale.map_or(state.since, |least| least.min(state.since))),
            }
            let rejection =
                |rejection: &Rejection| RejectionView { url: spec.url.into(), rejection: rejection.clone() };
            view.rejections.extend(state.rejections.iter().map(rejection));
            view.more_rejections += state.more;
        }
        view.acknowledged = acknowledged.unwrap_or(0);
        (view.state, view.since) = match (view.rejections.iter().map(|r| r.rejection.at).min(), stale) {
            (Some(at), _) => (State::Nacked, at),
            (None, Some(since)) => (State::Stale, since),
            (None, None) => (State::Synced, synced),
        };
        view
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, now: u64) {
        let old = |view: &NodeView| view.disconnected_at.is_none_or(|at| at + GONE_MS < now);
        while self.gone.front().is_some_and(old) || self.gone.len() > GONE_MAX {
            self.gone.pop_front();
        }
    }
}

impl Connection {
    /// Says how far a type is.
    pub(super) fn update(&self, at: usize, state: TypeState) {
        self.live.types.lock().unwrap_or_else(PoisonError::into_inner).insert(at, state);
    }

    /// Waits until the node has connected again.
    pub(super) async fn replaced(&self) {
        self.live.replaced.notified().await;
    }

    /// What the node is called.
    pub(super) fn node(&self) -> &str {
        &self.live.node.id
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let now = (self.nodes.clock)();
        let view = self.nodes.describe(&self.live, now);
        let mut inner = self.nodes.inner();
        inner.connected.remove(&self.number);
        let here = inner.connected.values().any(|live| live.node.id == view.node);
        if !here {
            inner.gone.retain(|gone| gone.node != view.node);
            let state = if view.state == State::Synced { State::Stale } else { view.state };
            inner.gone.push_back(NodeView { connected: false, disconnected_at: Some(now), state, since: now, ..view });
        }
        inner.forget(now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::push::testing::{SPEC, put};

    static NOW: AtomicU64 = AtomicU64::new(1_000);

    fn node(id: &str, client: &str) -> Node {
        Node { id: id.into(), user_agent_name: client.into(), ..Node::default() }
    }

    fn shown(nodes: &Nodes) -> Vec<(String, bool, State)> {
        nodes.view().into_iter().map(|view| (view.node, view.connected, view.state)).collect()
    }

    #[test]
    fn nodes_come_are_behind_and_go() {
        let logs = Arc::new(Logs::new(vec![SPEC]));
        let nodes = Arc::new(Nodes::new("a", || NOW.load(Ordering::Relaxed), logs.clone()));
        let peer = "10.0.0.1:5".parse().unwrap();
        let publish = |revision| {
            logs.publish(revision, std::time::Instant::now(), vec![(0, vec![put("a", revision)])]);
        };
        publish(1);
        let first = nodes.connect(node("n", OURS), peer);
        let settled = TypeState { settled: Some(1), acknowledged: 1, answered: 1, sent: 1, ..TypeState::default() };
        first.update(0, settled.clone());
        assert_eq!(shown(&nodes), [("n".into(), true, State::Synced)]);
        // Before the stream has noticed.
        publish(2);
        assert_eq!((shown(&nodes)[0].2, nodes.view()[0].acknowledged), (State::Stale, 1));
        first.update(0, TypeState { settled: Some(2), ..settled.clone() });
        assert_eq!((shown(&nodes)[0].2, nodes.view()[0].acknowledged), (State::Synced, 2));

        // It comes back before its old stream has ended.
        let second = nodes.connect(node("n", OURS), peer);
        second.update(0, settled.clone());
        assert_eq!(shown(&nodes), [("n".into(), true, State::Stale)]);
        drop(first);
        assert_eq!(shown(&nodes), [("n".into(), true, State::Stale)]);
        drop(second);
        assert_eq!(shown(&nodes), [("n".into(), false, State::Stale)]);
        // Others share names.
        let others = [nodes.connect(node("e", "envoy"), peer), nodes.connect(node("e", "envoy"), peer)];
        assert_eq!(nodes.clients(), BTreeMap::from([("envoy".to_owned(), 2)]));
        assert_eq!(shown(&nodes).len(), 3);
        drop(others);
        assert_eq!(shown(&nodes).len(), 2);
        drop(nodes.connect(node("n", OURS), peer));
        assert_eq!(shown(&nodes).len(), 2, "each once");
        NOW.fetch_add(GONE_MS + 1, Ordering::Relaxed);
        assert_eq!(shown(&nodes), []);
    }
}
