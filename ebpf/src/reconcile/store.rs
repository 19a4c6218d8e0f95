//! The maps as the reconciler writes them.

use std::{fmt, io};

use weft_ebpf_abi::{
    BlockKey, Endpoint, MAX_BLOCKS, MAX_ENDPOINTS, MAX_POLICIES, MAX_SLOTS, MAX_VIPS, MAX_WORKLOADS, Policy, PolicyKey,
    Vip, VipKey,
};

/// A map that the reconciler keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// VIPS
    Vips,
    /// SLOTS
    Slots,
    /// ENDPOINTS
    Endpoints,
    /// WORKLOADS
    Workloads,
    /// POLICY
    Policy,
    /// BLOCKS
    Blocks,
}

impl Map {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vips => "VIPS",
            Self::Slots => "SLOTS",
            Self::Endpoints => "ENDPOINTS",
            Self::Workloads => "WORKLOADS",
            Self::Policy => "POLICY",
            Self::Blocks => "BLOCKS",
        }
    }

    /// How many entries it can have.
    pub const fn size(self) -> u32 {
        match self {
            Self::Vips => MAX_VIPS,
            Self::Slots => MAX_SLOTS,
            Self::Endpoints => MAX_ENDPOINTS,
            Self::Workloads => MAX_WORKLOADS,
            Self::Policy => MAX_POLICIES,
            Self::Blocks => MAX_BLOCKS,
        }
    }

    /// What makes room in it.
    pub(super) const fn advice(self) -> &'static str {
        match self {
            Self::Vips => "give this node only the services that it calls, or services fewer clusterIPs",
            Self::Slots => "give endpoints weights with a small common ratio, 3:1 rather than 3001:1000",
            Self::Endpoints => "give this node only the services that it calls",
            Self::Workloads => "remove Workloads that this node does not run",
            Self::Policy => "name fewer workloads in AccessPolicies",
            Self::Blocks => "write fewer ipBlocks, or shorter prefixes; equal lists are kept once",
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A map cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room for another entry.
    #[error("map {0} is full: it has room for {size} entries", size = .0.size())]
    Full(Map),
    /// Anything else.
    #[error("map {map}: {source}")]
    Io {
        /// Which map.
        map: Map,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The maps. Each write takes effect at once and as a whole, except that of several slots.
pub trait Store {
    /// All entries of VIPS.
    fn vips(&self) -> Result<Vec<(VipKey, Vip)>, StoreError>;
    /// Sets an entry of VIPS.
    fn set_vip(&mut self, key: &VipKey, vip: &Vip) -> Result<(), StoreError>;
    /// Removes an entry of VIPS.
    fn remove_vip(&mut self, key: &VipKey) -> Result<(), StoreError>;

    /// This many places of SLOTS, from `at` on.
    fn slots(&self, at: u32, count: u32) -> Result<Vec<u32>, StoreError>;
    /// Sets places of SLOTS from `at` on, in any order.
    fn set_slots(&mut self, at: u32, places: &[u32]) -> Result<(), StoreError>;

    /// Places of ENDPOINTS that were ever used: those with a generation, the free ones among them too.
    fn endpoints(&self) -> Result<Vec<(u32, Endpoint)>, StoreError>;
    /// Sets a place of ENDPOINTS.
    fn set_endpoint(&mut self, at: u32, endpoint: &Endpoint) -> Result<(), StoreError>;
    /// Sets a place of HOLD to 0.
    fn clear_hold(&mut self, at: u32) -> Result<(), StoreError>;
    /// Sets a place of STATS to 0 on all cores.
    fn zero_stats(&mut self, at: u32) -> Result<(), StoreError>;

    /// All entries of WORKLOADS: cgroup and workload.
    fn workloads(&self) -> Result<Vec<(u64, u64)>, StoreError>;
    /// Sets an entry of WORKLOADS.
    fn set_workload(&mut self, cgroup: u64, workload: u64) -> Result<(), StoreError>;
    /// Removes an entry of WORKLOADS.
    fn remove_workload(&mut self, cgroup: u64) -> Result<(), StoreError>;

    /// All entries of POLICY.
    fn policies(&self) -> Result<Vec<(PolicyKey, Policy)>, StoreError>;
    /// Sets an entry of POLICY.
    fn set_policy(&mut self, key: &PolicyKey, policy: &Policy) -> Result<(), StoreError>;
    /// Removes an entry of POLICY.
    fn remove_policy(&mut self, key: &PolicyKey) -> Result<(), StoreError>;

    /// All entries of BLOCKS: length of the prefix in bits of the key, key, value.
    fn blocks(&self) -> Result<Vec<(u32, BlockKey, u32)>, StoreError>;
    /// Sets an entry of BLOCKS.
    fn set_block(&mut self, prefix: u32, key: &BlockKey, access: u32) -> Result<(), StoreError>;
    /// Removes an entry of BLOCKS.
    fn remove_block(&mut self, prefix: u32, key: &BlockKey) -> Result<(), StoreError>;
}
