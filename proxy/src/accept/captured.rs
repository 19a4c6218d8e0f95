//! Connections that the kernel led here: an application connected to a service's virtual address, and is served as if
//! Weft listened there.

use std::{net::SocketAddr, os::fd::AsFd, sync::Arc};

use tokio::net::TcpStream;
use weft_model::config::Key;

use crate::worker::Worker;

/// What is known of a captured connection. Asked of the kernel once, at accept.
#[derive(Debug, Clone)]
pub struct Captured {
    /// The address that the application connected to.
    pub destination: SocketAddr,
    /// The service that has it.
    pub service: Key,
    /// Whose process it was; `None` for one that no Workload names.
    pub workload: Option<Arc<str>>,
    /// SPIFFE id of the workload, if it has a service account.
    pub identity: Option<Arc<str>>,
}

impl Captured {
    /// Asks the kernel about a connection that was accepted on one of the captured listeners.
    ///
    /// # Errors
    /// Why the connection cannot be served, for the person who made it.
    pub fn of(worker: &Worker, stream: &TcpStream) -> Result<Self, String> {
        let kernel = worker.shared.kernel.as_ref().ok_or("no kernel program captures connections")?;
        let origin = kernel.origin(stream.as_fd()).ok_or(
            "it was made to this port itself, which serves captured connections only: connect to the service's address",
        )?;
        let snapshot = worker.snapshot();
        let Some(port) = snapshot.virtual_port(origin.destination) else {
            return Err(format!(
                "no service that needs the proxy has the address {} any more: connect again",
                origin.destination
            ));
        };
        let identity = origin.workload.as_deref().and_then(|workload| snapshot.identities.get(workload)).cloned();
        Ok(Self { destination: origin.destination, service: port.service.clone(), workload: origin.workload, identity })
    }
}
