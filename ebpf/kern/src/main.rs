//! The kernel programs. Each hook gathers what it is asked, lets [`weft_ebpf_abi::classify`] decide, and does it.
//!
//! | program | when | what |
//! |---|---|---|
//! | `connect4`, `connect6` | an application calls connect() | classifies; rewrites the address or sets the errno |
//! | `getpeername4`, `getpeername6` | it asks to whom it is connected | answers what it asked for |
//! | `sock_ops` | a connection begins, stands, suffers, ends | hands the original destination over; counts, per endpoint |
//! | `shim` | a test asks | classifies what a packet says, so that PROG_TEST_RUN can time it |
#![no_std]
#![no_main]

mod connect;
mod connections;
mod maps;
mod peer;
mod shim;

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, sock_ops},
    programs::{SockAddrContext, SockOpsContext, TcContext},
};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    peer::v4(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    peer::v6(&ctx)
}

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    connections::observe(&ctx);
    1
}

#[classifier]
pub fn shim(ctx: TcContext) -> i32 {
    shim::classify(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing here panics: the verifier would refuse the program.
    loop {}
}

/// bpf_sk_lookup_tcp and others are open to programs under this license only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
