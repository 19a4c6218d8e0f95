//! TCP ports for processes that have to be told their port before they start.
//!
//! Test processes run side by side, so a port that the kernel named a moment ago may be taken when the child binds it.
//! Ports therefore come from below the ephemeral range, and each is leased: the UDP port of the same number stays
//! bound for as long as this process lives. The kernel returns the lease, however the process ends.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::Mutex,
};

static LEASES: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

/// A TCP port on 127.0.0.1 that nothing uses and no other test process will choose.
pub fn free() -> u16 {
    let end = ephemeral_start().min(32_000);
    for _ in 0..10_000 {
        let port = fastrand::u16(10_500..end);
        let Ok(lease) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            LEASES.lock().unwrap().push(lease);
            return port;
        }
    }
    panic!("no free TCP port below {end}");
}

/// An address at which nothing listens.
pub fn refusing() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free()))
}

fn ephemeral_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|start| *start > 12_000)
        .unwrap_or(32_000)
}
