//! The maps as the reconciler writes them.

use std::io;

use aya::maps::{MapError, PerCpuValues, lpm_trie::Key};
use weft_ebpf_abi::{BlockKey, Endpoint, MAX_ENDPOINTS, Policy, PolicyKey, Stats, Vip, VipKey};

use super::Maps;
use crate::reconcile::{Map, Store, StoreError};

/// `BPF_ANY`
const ANY: u64 = 0;

/// An error of a map: full, or something that the kernel says.
fn failed(map: Map) -> impl Fn(MapError) -> StoreError {
    move |error| {
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            error => io::Error::other(error),
        };
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => StoreError::Full(map),
            _ => StoreError::Io { map, source },
        }
    }
}

/// Removing what is not there is fine.
fn removed(map: Map, done: Result<(), MapError>) -> Result<(), StoreError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        done => done.map_err(failed(map)),
    }
}

impl Store for Maps {
    fn vips(&self) -> Result<Vec<(VipKey, Vip)>, StoreError> {
        self.vips.iter().collect::<Result<_, _>>().map_err(failed(Map::Vips))
    }

    fn set_vip(&mut self, key: &VipKey, vip: &Vip) -> Result<(), StoreError> {
        self.vips.insert(key, vip, ANY).map_err(failed(Map::Vips))
    }

    fn remove_vip(&mut self, key: &VipKey) -> Result<(), StoreError> {
        removed(Map::Vips, self.vips.remove(key))
    }

    fn slots(&self, at: u32, count: u32) -> Result<Vec<u32>, StoreError> {
        let places = at..at.saturating_add(count);
        places.map(|at| self.slots.get(&at, 0)).collect::<Result<_, _>>().map_err(failed(Map::Slots))
    }

    fn set_slots(&mut self, at: u32, places: &[u32]) -> Result<(), StoreError> {
        let mut slots = (at..).zip(places);
        slots.try_for_each(|(at, place)| self.slots.set(at, place, ANY)).map_err(failed(Map::Slots))
    }

    fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, StoreError> {
        let mut used = Vec::new();
        for at in 0..MAX_ENDPOINTS {
            let endpoint = self.endpoints.get(&at, 0).map_err(failed(Map::Endpoints))?;
            if endpoint.generation != 0 {
                used.push((at, endpoint));
            }
        }
        Ok(used)
    }

    fn set_endpoint(&mut self, at: u32, endpoint: &Endpoint) -> Result<(), StoreError> {
        self.endpoints.set(at, endpoint, ANY).map_err(failed(Map::Endpoints))
    }

    fn clear_hold(&mut self, at: u32) -> Result<(), StoreError> {
        self.hold.set(at, 0, ANY).map_err(failed(Map::Endpoints))
    }

    fn zero_stats(&mut self, at: u32) -> Result<(), StoreError> {
        let cores = aya::util::nr_cpus().map_err(|(_, source)| StoreError::Io { map: Map::Endpoints, source })?;
        let zero = PerCpuValues::try_from(vec![Stats::default(); cores])
            .map_err(|source| StoreError::Io { map: Map::Endpoints, source })?;
        self.stats.set(at, zero, ANY).map_err(failed(Map::Endpoints))
    }

    fn workloads(&self) -> Result<Vec<(u64, u64)>, StoreError> {
        self.workloads.iter().collect::<Result<_, _>>().map_err(failed(Map::Workloads))
    }

    fn set_workload(&mut self, cgroup: u64, workload: u64) -> Result<(), StoreError> {
        self.workloads.insert(cgroup, workload, ANY).map_err(failed(Map::Workloads))
    }

    fn remove_workload(&mut self, cgroup: u64) -> Result<(), StoreError> {
        removed(Map::Workloads, self.workloads.remove(&cgroup))
    }

    fn policies(&self) -> Result<Vec<(PolicyKey, Policy)>, StoreError> {
        self.policy.iter().collect::<Result<_, _>>().map_err(failed(Map::Policy))
    }

    fn set_policy(&mut self, key: &PolicyKey, policy: &Policy) -> Result<(), StoreError> {
        self.policy.insert(key, policy, ANY).map_err(failed(Map::Policy))
    }

    fn remove_policy(&mut self, key: &PolicyKey) -> Result<(), StoreError> {
        removed(Map::Policy, self.policy.remove(key))
    }

    fn blocks(&self) -> Result<Vec<(u32, BlockKey, u32)>, StoreError> {
        let blocks = self.blocks.iter().map(|entry| entry.map(|(key, value)| (key.prefix_len(), key.data(), value)));
        blocks.collect::<Result<_, _>>().map_err(failed(Map::Blocks))
    }

    fn set_block(&mut self, prefix: u32, key: &BlockKey, access: u32) -> Result<(), StoreError> {
        self.blocks.insert(&Key::new(prefix, *key), access, ANY).map_err(failed(Map::Blocks))
    }

    fn remove_block(&mut self, prefix: u32, key: &BlockKey) -> Result<(), StoreError> {
        removed(Map::Blocks, self.blocks.remove(&Key::new(prefix, *key)))
    }
}
