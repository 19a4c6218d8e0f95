//! The names behind the numbers that maps hold.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

/// Names of services, workloads and endpoints.
#[derive(Debug, Default, Clone)]
pub struct Names {
    /// By [`weft_ebpf_abi::id`].
    pub services: HashMap<u64, Arc<str>>,
    /// By [`weft_ebpf_abi::id`].
    pub workloads: HashMap<u64, Arc<str>>,
    /// By place and generation.
    pub endpoints: HashMap<(u32, u32), SocketAddr>,
}

impl Names {
    /// A service's port, as `name:port`.
    pub fn service(&self, id: u64) -> Option<&Arc<str>> {
        self.services.get(&id)
    }

    /// A workload.
    pub fn workload(&self, id: u64) -> Option<&Arc<str>> {
        self.workloads.get(&id)
    }

    /// An endpoint's address.
    pub fn endpoint(&self, place: u32, generation: u32) -> Option<SocketAddr> {
        self.endpoints.get(&(place, generation)).copied()
    }
}
