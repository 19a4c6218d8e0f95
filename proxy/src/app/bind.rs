//! Listening sockets: one per worker on the same port, so that the kernel spreads connections.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel keeps until they are accepted; cut to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens `count` sockets on `address`.
///
/// # Errors
/// What the kernel says. A port that another process has is an error even if that process shares it: two proxies on one
/// port, each with half of the connections, is never what somebody wanted. `own` are the ports that this process has or
/// is about to have: an overlap with one of those is no conflict.
pub fn sockets(address: SocketAddr, count: usize, own: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    if !own.iter().any(|own| own.port() == address.port()) {
        drop(socket(address, false)?);
    }
    (0..count).map(|_| socket(address, true)).collect()
}

fn socket(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 too, as v4-mapped addresses.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    socket.bind(&address.into())?;
    if share {
        socket.listen(BACKLOG)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What to do about an error of `sockets`.
pub fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (another process has this port: `ss -ltnp` shows which)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need root or CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => " (this host has no such address: `ip address` shows which it has)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn workers_share_a_port_and_others_do_not_get_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(sockets(address, 2, &[]).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        let first = sockets(address, 2, &[]).unwrap();
        assert_eq!(first.len(), 2);
        assert!(sockets(address, 1, &[address]).is_ok(), "our own sockets are no conflict");
        let error = sockets(address, 1, &[]).unwrap_err();
        assert!(hint(&error).contains("ss -ltnp"), "{error}");
    }
}
