//! getpeername(): the application sees the address that it asked for.

use aya_ebpf::programs::SockAddrContext;
use weft_ebpf_abi::{Addr, Meta, Verdict};

use crate::{
    connect::{host_port, net_port, socket},
    maps::meta,
};

/// These hooks cannot refuse.
const ALLOW: i32 = 1;

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    let peer = ctx.sock_addr;
    let (ip, port) = unsafe { ((*peer).user_ip4, (*peer).user_port) };
    if let Some(meta) = asked(ctx, &Addr::v4(ip), host_port(port)) {
        unsafe {
            (*peer).user_ip4 = meta.dest.0[3];
            (*peer).user_port = net_port(meta.dest_port);
        }
    }
    ALLOW
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    let peer = ctx.sock_addr;
    let port = unsafe { (*peer).user_port };
    let addr =
        unsafe { Addr([(*peer).user_ip6[0], (*peer).user_ip6[1], (*peer).user_ip6[2], (*peer).user_ip6[3]]) };
    if let Some(meta) = asked(ctx, &addr, host_port(port)) {
        unsafe {
            (*peer).user_ip6[0] = meta.dest.0[0];
            (*peer).user_ip6[1] = meta.dest.0[1];
            (*peer).user_ip6[2] = meta.dest.0[2];
            (*peer).user_ip6[3] = meta.dest.0[3];
            (*peer).user_port = net_port(meta.dest_port);
        }
    }
    ALLOW
}

/// What the socket asked for, if it still has the peer that it got for it: `connect(AF_UNSPEC)` runs no hook.
#[inline(always)]
fn asked(ctx: &SockAddrContext, addr: &Addr, port: u32) -> Option<&'static Meta> {
    let sk = socket(ctx)?;
    let meta = meta(sk)?;
    let rewritten = meta.verdict == Verdict::Direct as u32 || meta.verdict == Verdict::Proxy as u32;
    let same = meta.backend.0[3] == addr.0[3] && meta.backend.0[2] == addr.0[2] && meta.backend_port == port;
    (rewritten && same).then_some(meta)
}
