//! Network namespaces: which one this is, and a look into others.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use weft_ebpf_abi::{Addr, Namespace};

use crate::sys;

/// The cookie of the namespace of the calling thread.
///
/// # Errors
/// On kernels that have none, or without descriptors.
pub fn cookie() -> io::Result<u64> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
    sys::netns_cookie(socket.as_fd())
}

/// Does `work` in the network namespace of a process, on a thread of its own: a thread that has gone there is not used
/// for anything else.
///
/// # Errors
/// When the process is gone, or this one may not.
pub fn inside<T: Send>(pid: u32, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let there = File::open(format!("/proc/{pid}/ns/net"))?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the other namespace panicked")))
    })
}

/// The address from which the calling thread's namespace reaches `to`, as its routes say. Sends nothing.
pub fn source(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // The port does not matter: connecting a UDP socket only looks a route up.
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    socket.local_addr().ok().map(|local| local.ip())
}

/// What the programs have to know of the calling thread's namespace: its cookie, and from where it connects by default.
///
/// # Errors
/// As [`cookie`].
pub fn describe() -> io::Result<(u64, Namespace)> {
    // Addresses for documentation (RFC 5737, RFC 3849): the default route leads there, and nothing is sent.
    let default = |to: IpAddr| source(to).map_or(Addr::NONE, Addr::from);
    let source4 = default(Ipv4Addr::new(192, 0, 2, 1).into());
    let source6 = default(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    Ok((cookie()?, Namespace { source4, source6, ..Namespace::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        assert_eq!(source(Ipv4Addr::new(127, 0, 0, 9).into()), Some(Ipv4Addr::LOCALHOST.into()));
    }
}
