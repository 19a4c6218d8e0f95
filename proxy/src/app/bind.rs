//! Listening sockets: one per worker on the same port, so that the kernel spreads connections.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;

/// Connections that the kernel keeps until they are accepted; cut to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Opens `count` sockets on `address`.
///
/// # Errors
/// What the kernel says. A port that another process has is an error even if that process shares it: two proxies on one
/// port, each with half of the connections, is never what somebody wanted. `own` are the ports that this process has or
/// is about to have: an overlap with one of those is no conflict.
pub fn sockets(address: SocketAddr, count: usize, own: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    if address.port() != 0 && !own.iter().any(|own| own.port() == address.port()) {
        drop(socket(address, false)?);
    }
    let first = socket(address, true)?;
    let address = if address.port() == 0 { first.local_addr()? } else { address };
    let others = (1..count).map(|_| socket(address, true));
    std::iter::once(Ok(first)).chain(others).collect()
}

/// A port, and a socket on it for each worker.
pub type Bound = (SocketAddr, Vec<TcpListener>);

/// Opens `count` sockets on each of the addresses for captured connections. IPv6 is left out on a host that has none.
///
/// # Errors
/// What the kernel says about which address.
pub fn captured(addresses: &[SocketAddr], count: usize) -> Result<Vec<Bound>, StartError> {
    let mut bound: Vec<Bound> = Vec::with_capacity(addresses.len());
    for address in addresses {
        let own: Vec<SocketAddr> = bound.iter().map(|(address, _)| *address).collect();
        match sockets(*address, count, &own) {
            Ok(sockets) => {
                // Port 0 has become a port by now.
                let address = sockets.first().and_then(|socket| socket.local_addr().ok()).unwrap_or(*address);
                bound.push((address, sockets));
            }
            Err(error) if address.is_ipv6() && is_no_ipv6(&error) => {
                tracing::debug!(%address, %error, "no IPv6 here: captured connections come over IPv4 only");
            }
            Err(source) => return Err(StartError::Bind { address: *address, source }),
        }
    }
    Ok(bound)
}

/// The host has no IPv6, or not this address of it.
fn is_no_ipv6(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
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
    fn captured_connections_do_without_ipv6() {
        let addresses = ["127.0.0.1:0", "[2001:db8::1]:0"].map(|address| address.parse().unwrap());
        let bound = captured(&addresses, 2).unwrap();
        assert_eq!(bound.len(), 1);
        assert!(bound[0].0.is_ipv4() && bound[0].0.port() != 0, "{}", bound[0].0);
        assert!(captured(&["203.0.113.1:0".parse().unwrap()], 1).is_err(), "IPv4 has to be there");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = captured(&[taken.local_addr().unwrap()], 1).unwrap_err().to_string();
        assert!(error.contains("another process has this port"), "{error}");
    }

    #[test]
    fn workers_share_a_port_and_others_do_not_get_it() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(sockets(address, 2, &[]).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(taken);
        let first = sockets(address, 2, &[]).unwrap();
        assert_eq!(first.len(), 2);
        assert!(sockets(address, 1, &[address]).is_ok(), "our own sockets are no conflict");
        let workers = sockets("127.0.0.1:0".parse().unwrap(), 2, &[]).unwrap();
        let ports: Vec<u16> = workers.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports[0], ports[1], "port 0 is one port for all");
        let error = sockets(address, 1, &[]).unwrap_err();
        assert!(hint(&error).contains("ss -ltnp"), "{error}");
    }
}
