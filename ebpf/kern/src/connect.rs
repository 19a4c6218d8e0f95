//! connect(): the decision, and what comes of it.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_get_current_pid_tgid, generated::bpf_set_retval},
    programs::SockAddrContext,
};
use weft_ebpf_abi::{Addr, Decision, Reason, Request, Verdict, classify};

use crate::maps::{Kernel, SETTINGS, count, forget, new_meta, report_verdict};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;
const TCP: u32 = 6;
const ECONNREFUSED: i32 = 111;

#[inline(always)]
pub fn v4(ctx: &SockAddrContext) -> i32 {
    let asked = ctx.sock_addr;
    let (protocol, ip, port) = unsafe { ((*asked).protocol, (*asked).user_ip4, (*asked).user_port) };
    if protocol != TCP {
        return ALLOW;
    }
    let Some(sk) = socket(ctx) else { return ALLOW };
    let bound = Addr::v4(unsafe { (*sk).src_ip4 });
    let request = Request { dest: Addr::v4(ip), port: host_port(port), bound };
    let decision = decide(ctx, sk, &request);
    match decision.verdict {
        Verdict::Pass => return ALLOW,
        Verdict::Deny => return refuse(),
        Verdict::Direct | Verdict::Proxy => {}
    }
    unsafe {
        (*asked).user_ip4 = decision.addr.0[3];
        (*asked).user_port = net_port(decision.port);
    }
    ALLOW
}

#[inline(always)]
pub fn v6(ctx: &SockAddrContext) -> i32 {
    let asked = ctx.sock_addr;
    let (protocol, port) = unsafe { ((*asked).protocol, (*asked).user_port) };
    if protocol != TCP {
        return ALLOW;
    }
    let Some(sk) = socket(ctx) else { return ALLOW };
    // Word by word: the verifier does not allow it in any other way.
    let dest = unsafe {
        Addr([(*asked).user_ip6[0], (*asked).user_ip6[1], (*asked).user_ip6[2], (*asked).user_ip6[3]])
    };
    let bound = unsafe { Addr([(*sk).src_ip6[0], (*sk).src_ip6[1], (*sk).src_ip6[2], (*sk).src_ip6[3]]) };
    let request = Request { dest, port: host_port(port), bound };
    let decision = decide(ctx, sk, &request);
    match decision.verdict {
        Verdict::Pass => return ALLOW,
        Verdict::Deny => return refuse(),
        Verdict::Direct | Verdict::Proxy => {}
    }
    unsafe {
        (*asked).user_ip6[0] = decision.addr.0[0];
        (*asked).user_ip6[1] = decision.addr.0[1];
        (*asked).user_ip6[2] = decision.addr.0[2];
        (*asked).user_ip6[3] = decision.addr.0[3];
        (*asked).user_port = net_port(decision.port);
    }
    ALLOW
}

/// Decides, counts, reports, and leaves with the socket what the other hooks have to know.
#[inline(always)]
fn decide(ctx: &SockAddrContext, sk: *mut bpf_sock, request: &Request) -> Decision {
    let mut decision = Decision::PASS;
    classify(&Kernel { ctx: ctx.sock_addr.cast() }, request, &mut decision);
    count(&decision);
    let followed = SETTINGS.get(0).is_some_and(|settings| settings.follow != 0);
    if followed || decision.verdict as u8 == Verdict::Deny as u8 {
        report_verdict(&decision, &request.dest, request.port);
    }
    match decision.verdict {
        Verdict::Direct | Verdict::Proxy => remember(sk, request, &decision),
        // The proxy has said itself what its connection is for.
        Verdict::Pass if decision.reason as u8 == Reason::OwnConnection as u8 => {}
        // A socket may be used again after a connect that failed.
        Verdict::Pass | Verdict::Deny => {
            forget(sk);
        }
    }
    decision
}

#[inline(always)]
fn remember(sk: *mut bpf_sock, request: &Request, decision: &Decision) {
    let Some(meta) = new_meta(sk) else { return };
    meta.dest = request.dest;
    meta.dest_port = request.port;
    meta.backend = decision.addr;
    meta.backend_port = decision.port;
    meta.service = decision.service;
    meta.workload = decision.workload;
    meta.endpoint = decision.endpoint;
    meta.generation = decision.generation;
    meta.verdict = decision.verdict as u32;
    meta.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
}

#[inline(always)]
fn refuse() -> i32 {
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REFUSE
}

#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> Option<*mut bpf_sock> {
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    (!sk.is_null()).then_some(sk)
}

/// Ports are in network order, in the lower half.
#[inline(always)]
pub fn host_port(port: u32) -> u32 {
    u16::from_be(port as u16) as u32
}

#[inline(always)]
pub fn net_port(port: u32) -> u32 {
    (port as u16).to_be() as u32
}
