//! Ends sockets of others: SOCK_DESTROY of sock_diag(7), by cookie, so that never the wrong one is hit.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use weft_ebpf_abi::Addr;

const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const SOCK_DESTROY: u16 = 21;
const IPPROTO_TCP: u8 = 6;
const NLMSG_ERROR: u16 = 2;
/// Header, and inet_diag_req_v2.
const LENGTH: usize = 16 + 56;

/// Ends the TCP socket with these addresses and this cookie in the namespace of the calling thread: its owner sees
/// ECONNABORTED, its peer a reset.
///
/// # Errors
/// `NotFound` when it has ended by itself; what the kernel says otherwise (needs CAP_NET_ADMIN).
pub fn tcp(local: (Addr, u32), remote: (Addr, u32), cookie: u64) -> io::Result<()> {
    // A v4-mapped connection is an IPv6 socket; tried in turn, because the addresses do not tell.
    let families: &[u8] =
        if local.0.is_v4() { &[libc::AF_INET as u8, libc::AF_INET6 as u8] } else { &[libc::AF_INET6 as u8] };
    let mut done = Err(io::ErrorKind::NotFound.into());
    for family in families {
        done = one(*family, local, remote, cookie);
        if !matches!(&done, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    done
}

fn one(family: u8, local: (Addr, u32), remote: (Addr, u32), cookie: u64) -> io::Result<()> {
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    send(&socket, &request(family, local, remote, cookie), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
    let field = |at: usize| answer.get(at..at + 4).filter(|_| at + 4 <= length).and_then(|bytes| bytes.try_into().ok());
    let (Some(kind), Some(error)) = (answer.get(4..6), field(16)) else {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a short answer from sock_diag"));
    };
    match (kind, i32::from_ne_bytes(error)) {
        (kind, 0) if kind == NLMSG_ERROR.to_ne_bytes() => Ok(()),
        (_, error) => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// nlmsghdr; inet_diag_req_v2 { family, protocol, ext, pad, states, id { sport, dport, src, dst, if, cookie } }.
fn request(family: u8, local: (Addr, u32), remote: (Addr, u32), cookie: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend((LENGTH as u32).to_ne_bytes());
    bytes.extend(SOCK_DESTROY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    for (_, port) in [local, remote] {
        bytes.extend((port as u16).to_be_bytes());
    }
    for (addr, _) in [local, remote] {
        let words = if family == libc::AF_INET as u8 { [addr.0[3], 0, 0, 0] } else { addr.0 };
        words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    }
    bytes.extend([0; 4]);
    bytes.extend((cookie as u32).to_ne_bytes());
    bytes.extend(((cookie >> 32) as u32).to_ne_bytes());
    bytes
}

/// Ends a connection of this process with itself, to see whether it can be done. A kernel without sock_diag says
/// `NotFound`, as it does of a socket that is not there: asking for one that does not exist would not tell.
///
/// # Errors
/// When it cannot.
pub fn on_trial() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    tcp_between(stream.local_addr()?, stream.peer_addr()?, rustix::net::sockopt::socket_cookie(&stream)?)
}

/// As [`tcp`], with the addresses as everybody else writes them.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_between(local: SocketAddr, remote: SocketAddr, cookie: u64) -> io::Result<()> {
    let of = |address: SocketAddr| (Addr::from(address.ip()), u32::from(address.port()));
    tcp(of(local), of(remote), cookie)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_says() {
        let addr = (Addr::v4(0x0100_007f), 80);
        assert_eq!(request(2, addr, addr, 7).len(), LENGTH);
    }

    #[test]
    fn a_socket_that_is_not_there_is_not_found() {
        let nobody = "127.0.0.1:1".parse().unwrap();
        let error = tcp_between(nobody, nobody, 1).unwrap_err();
        // Without the privilege the kernel does not even look.
        assert!(matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied), "{error}");
    }
}
