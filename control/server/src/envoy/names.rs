//! What resources are called.

use std::net::SocketAddr;

use weft_model::config::{Gateway, Key, Listener};

/// A service port's cluster, and its load assignment: what must be sent together has one name.
pub(super) fn cluster(service: &Key, port: u16) -> String {
    format!("{}/{}:{port}", service.namespace, service.name)
}

/// The listener, and the routes, of an address and port. `gateway/` cannot begin a target of gRPC's client, whose
/// listeners are called what a program writes.
pub(super) fn listener(address: SocketAddr) -> String {
    format!("gateway/{address}")
}

/// The routes of one listener of several that share a port.
pub(super) fn own_routes(address: SocketAddr, gateway: &Gateway, listener: &Listener) -> String {
    let Key { namespace, name } = &gateway.key;
    format!("gateway/{address}/{namespace}/{name}/{}", listener.name)
}

/// The routes of a service port for gRPC's client.
pub(super) fn service_routes(service: &Key, port: u16) -> String {
    format!("service/{}", cluster(service, port))
}
