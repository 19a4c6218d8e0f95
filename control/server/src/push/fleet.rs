//! The nodes of all members together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nodes::{NodeView, RejectionView, State};

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

/// On which nodes a version of a resource is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programmed {
    /// On how many.
    pub nodes: usize,
    /// Of how many that are connected and ask for its type.
    pub of: usize,
    /// A node that does not take it, and why.
    pub rejected: Option<(String, String)>,
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

    /// On which nodes the resource `name` of type `url` is in force, in the version that `revision` made.
    pub fn programmed(&self, url: &str, name: &str, revision: u64) -> Programmed {
        let mut programmed = Programmed { nodes: 0, of: 0, rejected: None };
        for node in self.nodes.iter().filter(|node| node.connected) {
            let Some(of_type) = node.types.iter().find(|known| known.url == url) else { continue };
            programmed.of += 1;
            let rejects = |view: &&RejectionView| {
                view.url == url && (&*view.rejection.name == name || &*view.rejection.name == "*")
            };
            let rejected = node.rejections.iter().find(rejects);
            if let Some(RejectionView { rejection, .. }) = rejected {
                let reason = || (node.node.clone(), rejection.reason.to_string());
                programmed.rejected.get_or_insert_with(reason);
            } else if of_type.answered >= revision && node.more_rejections == 0 {
                programmed.nodes += 1;
            }
        }
        programmed
    }

    /// How many connected nodes are in each state, and how many are not connected.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for node in &self.nodes {
            match (node.connected, node.state) {
                (false, _) => counts.disconnected += 1,
                (true, State::Synced) => counts.synced += 1,
                (true, State::Stale) => counts.stale += 1,
                (true, State::Nacked) => counts.nacked += 1,
            }
        }
        counts
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
