//! The names behind the numbers that maps hold.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

/// Names of services, workloads and endpoints.
#[derive(Debug, Default, Clone)]
pub struct Names {
    /// Of services (`name`), their ports (`name:port`) and workloads, by [`weft_ebpf_abi::id`].
    pub names: HashMap<u64, Arc<str>>,
    /// Addresses, by place and generation.
    pub endpoints: HashMap<(u32, u32), SocketAddr>,
}

impl Names {
    /// What a service, its port or a workload is called.
    pub fn name(&self, id: u64) -> Option<&Arc<str>> {
        self.names.get(&id)
    }

    /// An endpoint's address.
    pub fn endpoint(&self, place: u32, generation: u32) -> Option<SocketAddr> {
        self.endpoints.get(&(place, generation)).copied()
    }
}
