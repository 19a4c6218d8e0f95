//! What an apply did, and what it could not do.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::Arc,
};

use super::{Map, StoreError};
use crate::maps::Desired;

/// What an apply did.
#[derive(Debug, Default)]
pub struct Report {
    /// Endpoints that are gone. Connections to them can be ended.
    pub removed: Vec<Removed>,
    /// What did not fit, by map. Everything else is in force.
    pub unfit: Vec<Unfit>,
    /// There will be more room in the next apply of the same: some of what was replaced rests until then.
    pub again: bool,
}

/// An endpoint that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// Its place in ENDPOINTS.
    pub place: u32,
    /// With this generation.
    pub generation: u32,
    /// Where it was.
    pub address: SocketAddr,
    /// The service's port.
    pub service: u64,
}

/// What did not fit into a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Unfit {
    /// The map.
    pub map: Map,
    /// Services, in WORKLOADS workloads.
    pub names: Vec<Arc<str>>,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, fate) = match self.map {
            Map::Workloads => ("workload", "their processes count as everybody else"),
            _ => ("service", "what was in force for them stays in force"),
        };
        let plural = if self.names.len() == 1 { "" } else { "s" };
        write!(
            f,
            "{} has room for {} entries: {} {what}{plural} did not fit (",
            self.map,
            self.map.size(),
            self.names.len()
        )?;
        for (i, name) in self.names.iter().take(3).enumerate() {
            write!(f, "{}{name}", if i == 0 { "" } else { ", " })?;
        }
        let more = if self.names.len() > 3 { ", …" } else { "" };
        write!(f, "{more}); {fate}; {}", self.map.advice())
    }
}

/// Services that did not fit.
#[derive(Default)]
pub(super) struct Unfits {
    /// By their position, and the map.
    pub(super) services: HashMap<usize, Map>,
}

impl Unfits {
    pub(super) fn note(&mut self, service: usize, done: Result<(), StoreError>) -> Result<(), StoreError> {
        match done {
            Err(StoreError::Full(map)) => {
                self.services.insert(service, map);
                Ok(())
            }
            done => done,
        }
    }

    pub(super) fn named(self, desired: &Desired, workloads: Vec<u64>) -> Vec<Unfit> {
        let mut unfit: BTreeMap<Map, Vec<Arc<str>>> = BTreeMap::new();
        let mut add = |map: Map, id: u64| {
            let name = desired.names.get(&id).cloned().unwrap_or_else(|| format!("{id:016x}").into());
            unfit.entry(map).or_default().push(name);
        };
        self.services.iter().for_each(|(&i, &map)| add(map, desired.services[i].id));
        workloads.into_iter().for_each(|workload| add(Map::Workloads, workload));
        let sorted = unfit.into_iter().map(|(map, mut names)| {
            names.sort_unstable();
            Unfit { map, names }
        });
        sorted.collect()
    }
}
