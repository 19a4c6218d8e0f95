//! The nodes of all members together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nodes::{NodeView, RejectionView, State};
use crate::status::Programmed;

/// What a member says about its nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberNodes {
    /// The member's id.
    pub id: String,
    /// Its name.
    pub member: String,
    /// The revision that it pushes.
    pub revision: u64,
    /// Its nodes.
    pub nodes: Vec<NodeView>,
}

/// All nodes, each once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Fleet {
    /// The latest revision that a member pushes.
    pub revision: u64,
    /// In the order of their names.
    pub nodes: Vec<NodeView>,
    /// Members that did not answer: their nodes are missing.
    pub unreachable: Vec<String>,
}

impl Fleet {
    /// Puts together what members say.
    pub fn merged(members: Vec<MemberNodes>, unreachable: Vec<String>) -> Self {
        let revision = members.iter().map(|member| member.revision).max().unwrap_or(0);
        let mut nodes: BTreeMap<(String, String), NodeView> = BTreeMap::new();
        for view in members.into_iter().flat_map(|member| member.nodes) {
            // Several clients may share a name, but for Weft's own: such a one has moved.
            let apart = if view.connected && !view.is_ours() {
                format!("{} {}", view.member, view.peer)
            } else {
                String::new()
            };
            let known = nodes.entry((view.node.clone(), apart)).or_insert_with(|| view.clone());
            if view.freshness() > known.freshness() {
                *known = view;
            }
        }
        let connected: Vec<NodeView> = nodes.values().filter(|view| view.connected).cloned().collect();
        let mut nodes: Vec<NodeView> = nodes.into_values().collect();
        nodes.retain(|view| view.connected || !connected.iter().any(|here| here.node == view.node));
        for node in &mut nodes {
            node.lag = revision.saturating_sub(node.acknowledged);
        }
        Self { revision, nodes, unreachable }
    }

    /// On how many of the connected nodes that ask for type `url` its resource `name` is in force, in the version that
    /// `revision` made.
    pub fn programmed(&self, url: &str, name: &str, revision: u64) -> Programmed {
        let mut programmed = Programmed::default();
        for node in self.nodes.iter().filter(|node| node.connected) {
            let Some(of_type) = node.types.iter().find(|known| known.url == url) else { continue };
            programmed.nodes += 1;
            let rejects = |view: &&RejectionView| {
                view.url == url && (&*view.rejection.name == name || &*view.rejection.name == "*")
            };
            let rejected = node.rejections.iter().find(rejects);
            if let Some(RejectionView { rejection, .. }) = rejected {
                let reason = || (node.node.clone(), rejection.reason.to_string());
                programmed.rejected.get_or_insert_with(reason);
            } else if of_type.answered >= revision && node.more_rejections == 0 {
                programmed.acknowledged += 1;
            }
        }
        programmed
    }
}

/// How many nodes are how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Have everything.
    pub synced: usize,
    /// Lack something.
    pub stale: usize,
    /// Do not take something.
    pub nacked: usize,
    /// Are not connected.
    pub disconnected: usize,
}

impl Counts {
    /// Counts nodes.
    pub fn of(nodes: &[NodeView]) -> Self {
        let mut counts = Self::default();
        for node in nodes {
            *match (node.connected, node.state) {
                (false, _) => &mut counts.disconnected,
                (true, State::Synced) => &mut counts.synced,
                (true, State::Stale) => &mut counts.stale,
                (true, State::Nacked) => &mut counts.nacked,
            } += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn node(name: &str, client: &str, member: &str, connected: bool, at: u64) -> NodeView {
        serde_json::from_value(json!({
            "node": name, "zone": "", "client": client, "version": "1", "peer": format!("10.0.0.1:{at}"),
            "member": member, "connected": connected, "connectedAt": at,
            "disconnectedAt": if connected { None } else { Some(at) }, "state": "SYNCED", "since": at,
            "acknowledged": 5, "lag": 0, "rejections": [], "moreRejections": 0,
            "types": [{"type": "t", "sent": 5, "acknowledged": 5, "answered": 5}],
        }))
        .unwrap()
    }

    fn member(name: &str, revision: u64, nodes: Vec<NodeView>) -> MemberNodes {
        MemberNodes { id: name.into(), member: name.into(), revision, nodes }
    }

    #[test]
    fn a_node_is_shown_once_where_it_is_now() {
        let cases = [
            // Here now, gone there.
            (node("n", "weft", "a", false, 9), node("n", "weft", "b", true, 5), "b"),
            // The other member has not noticed that it is gone.
            (node("n", "weft", "a", true, 4), node("n", "weft", "b", true, 5), "b"),
            (node("n", "weft", "a", false, 9), node("n", "weft", "b", false, 5), "a"),
        ];
        for (one, two, expected) in cases {
            let members = vec![member("a", 7, vec![one]), member("b", 6, vec![two])];
            let fleet = Fleet::merged(members, vec![]);
            assert_eq!(fleet.nodes.iter().map(|node| &*node.member).collect::<Vec<_>>(), [expected]);
            assert_eq!((fleet.revision, fleet.nodes[0].lag), (7, 2));
        }
    }

    #[test]
    fn other_clients_may_share_a_name() {
        let shared = vec![node("n", "envoy", "a", true, 1), node("n", "envoy", "a", true, 2)];
        let gone = vec![node("n", "envoy", "b", false, 9), node("m", "envoy", "b", false, 9)];
        let fleet = Fleet::merged(vec![member("a", 5, shared), member("b", 5, gone)], vec!["c".into()]);
        let shown: Vec<_> = fleet.nodes.iter().map(|node| (&*node.node, node.connected)).collect();
        assert_eq!(shown, [("m", false), ("n", true), ("n", true)]);
        assert_eq!(Counts::of(&fleet.nodes), Counts { synced: 2, disconnected: 1, ..Counts::default() });
    }

    #[test]
    fn a_version_is_programmed_where_it_was_taken() {
        let mut nodes: Vec<NodeView> = (0..6).map(|n| node(&n.to_string(), "weft", "a", true, n)).collect();
        let rejection = |name: &str| {
            serde_json::from_value(json!({"type": "t", "name": name, "version": "5", "reason": "why", "at": 1}))
                .unwrap()
        };
        nodes[1].types[0].answered = 4;
        nodes[2].rejections = vec![rejection("x"), rejection("y")];
        nodes[3].rejections = vec![rejection("y")];
        nodes[4].connected = false;
        nodes[5].types.clear();
        let fleet = Fleet { revision: 5, nodes, unreachable: vec![] };
        let programmed = |name: &str, revision| {
            let Programmed { nodes: of, acknowledged: nodes, rejected, .. } = fleet.programmed("t", name, revision);
            (nodes, of, rejected.map(|(node, _)| node))
        };
        assert_eq!(programmed("x", 5), (2, 4, Some("2".into())));
        assert_eq!(programmed("x", 4), (3, 4, Some("2".into())));
        assert_eq!(programmed("z", 5), (3, 4, None));
        assert_eq!(programmed("z", 6), (0, 4, None));
    }
}
