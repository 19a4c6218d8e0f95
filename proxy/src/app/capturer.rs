//! Captured connections in network namespaces other than the proxy's.

use std::{io, net::SocketAddr};

use tokio::sync::mpsc;

use super::bind;
use crate::worker::Command;

/// Listens for captured connections where the proxy itself is not: every network namespace has a loopback of its own.
#[derive(Debug, Clone)]
pub struct Capturer {
    addresses: Vec<SocketAddr>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
}

impl Capturer {
    /// For these workers.
    pub(super) const fn new(addresses: Vec<SocketAddr>, workers: Vec<mpsc::UnboundedSender<Command>>) -> Self {
        Self { addresses, workers }
    }

    /// Listens on the addresses of [`super::App::captured`] in the network namespace of the calling thread; `netns` names it.
    ///
    /// # Errors
    /// When an address is not to be had there.
    pub fn listen(&self, netns: u64) -> io::Result<()> {
        for (address, sockets) in bind::captured(&self.addresses, self.workers.len()).map_err(io::Error::other)? {
            for (worker, socket) in self.workers.iter().zip(sockets) {
                // A worker is gone only when the process is on its way out.
                let _ = worker.send(Command::Capture(netns, address, socket));
            }
        }
        Ok(())
    }

    /// Stops listening there.
    pub fn leave(&self, netns: u64) {
        for worker in &self.workers {
            let _ = worker.send(Command::Leave(netns));
        }
    }
}
