//! Members in one process, over links that a test can cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Transport, Unreached};
use crate::node::Store;
use crate::raft::Member;

/// A network in memory.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    members: BTreeMap<Arc<str>, Store>,
    /// From where to where nothing goes.
    cut: BTreeSet<(Arc<str>, Arc<str>)>,
    delay: Duration,
}

/// One address of the network.
#[derive(Debug)]
pub struct Port {
    network: Memory,
    address: Arc<str>,
}

impl Memory {
    /// The transport of whoever is at `address`.
    pub fn port(&self, address: &str) -> Port {
        Port { network: self.clone(), address: address.into() }
    }

    /// Puts a member at `address`.
    pub fn join(&self, address: &str, store: Store) {
        self.inner().members.insert(address.into(), store);
    }

    /// Nobody is at `address` any more.
    pub fn leave(&self, address: &str) {
        self.inner().members.remove(address);
    }

    /// Cuts the links between these and all others, both ways.
    pub fn isolate(&self, addresses: &[&str]) {
        let mut inner = self.inner();
        let all: Vec<Arc<str>> = inner.members.keys().cloned().collect();
        for one in &all {
            for other in &all {
                if addresses.contains(&&**one) != addresses.contains(&&**other) {
                    inner.cut.insert((one.clone(), other.clone()));
                }
            }
        }
    }

    /// Cuts what goes from one to another; what comes back on its own calls still arrives.
    pub fn cut(&self, from: &str, to: &str) {
        self.inner().cut.insert((from.into(), to.into()));
    }

    /// Mends every link.
    pub fn heal(&self) {
        self.inner().cut.clear();
    }

    /// How long every message takes.
    pub fn delay(&self, delay: Duration) {
        self.inner().delay = delay;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_cut(&self, from: &Arc<str>, to: &Arc<str>) -> bool {
        self.inner().cut.contains(&(from.clone(), to.clone()))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Transport for Port {
    fn call(&self, to: &Member, message: Bytes, within: Duration) -> BoxFuture<'static, Result<Bytes, Unreached>> {
        let (network, from, to) = (self.network.clone(), self.address.clone(), to.address.clone());
        async move {
            let call = async {
                let (store, delay) = {
                    let inner = network.inner();
                    (inner.members.get(&to).cloned(), inner.delay)
                };
                tokio::time::sleep(delay).await;
                if network.is_cut(&from, &to) {
                    // As on a real network, nobody says so.
                    return std::future::pending().await;
                }
                let store = store.ok_or_else(|| Unreached(format!("nobody is at {to}")))?;
                let answer = store.handle(message).await;
                tokio::time::sleep(delay).await;
                if network.is_cut(&to, &from) { std::future::pending().await } else { Ok(answer) }
            };
            let timed = tokio::time::timeout(within, call).await;
            timed.unwrap_or_else(|_| Err(Unreached(format!("{to} took longer than {within:?}"))))
        }
        .boxed()
    }
}
