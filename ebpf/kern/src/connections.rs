//! sock_ops: the life of a connection that a hook or the proxy has marked.

use aya_ebpf::{
    bindings::{
        BPF_RB_FORCE_WAKEUP, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTO_CB, BPF_SOCK_OPS_RTO_CB_FLAG,
        BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT, bpf_sock,
    },
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_ns,
        generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    },
    programs::SockOpsContext,
};
use weft_ebpf_abi::{Addr, Connection, Event, Meta, SILENCE_NS, Trouble, Tuple, Verdict};

use crate::maps::{self, CONNECTIONS, HANDOFF, HOLD, forget, may_report, new_meta, report, stats};

const AF_INET: u32 = 2;
/// One of so many connections is asked for its round-trip time all the time, the others when they begin and end.
const RTT_SAMPLE: u32 = 16;

#[inline(always)]
pub fn observe(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => begun(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        BPF_SOCK_OPS_STATE_CB => changed(ctx),
        BPF_SOCK_OPS_RTO_CB => timed_out(ctx),
        BPF_SOCK_OPS_RETRANS_CB => sent_again(ctx),
        BPF_SOCK_OPS_RTT_CB => measured(ctx),
        _ => {}
    }
}

/// Before the SYN; the local address and port are known.
#[inline(always)]
fn begun(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(meta) = maps::meta(sk) else { return };
    let tuple = tuple(ctx);
    if meta.backend != tuple.remote || meta.backend_port != tuple.remote_port {
        // Left from an earlier connection of this socket.
        forget(sk);
        return;
    }
    let sampled = unsafe { bpf_get_prandom_u32() } % RTT_SAMPLE == 0;
    let rtt = if sampled { BPF_SOCK_OPS_RTT_CB_FLAG } else { 0 };
    let flags = BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RTO_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG | rtt;
    let _ = ctx.set_cb_flags(flags as i32);
    meta.since_ns = unsafe { bpf_ktime_get_ns() };
    let meta = &*meta;
    if let Some(stats) = stats(meta) {
        stats.attempts += 1;
    }
    if meta.verdict == Verdict::Pass as u32 {
        return;
    }
    if meta.verdict == Verdict::Proxy as u32 {
        let _ = HANDOFF.insert(&tuple, &*meta, 0);
    }
    let connection = Connection {
        meta: *meta,
        local: tuple.local,
        netns: unsafe { bpf_get_netns_cookie(ctx.ops.cast()) },
        local_port: tuple.local_port,
        pad: 0,
    };
    let _ = CONNECTIONS.insert(&cookie(ctx), &connection, 0);
}

#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let Some(stats) = meta(ctx).and_then(|meta| stats(meta)) else { return };
    stats.established += 1;
    round_trip(ctx, stats);
}

/// The accepting side of a captured connection learns where it was to go.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let own = tuple(ctx);
    let key = Tuple {
        netns: own.netns,
        local: own.remote,
        remote: own.local,
        local_port: own.remote_port,
        remote_port: own.local_port,
    };
    let Some(handed) = (unsafe { HANDOFF.get(&key) }) else { return };
    let Some(sk) = socket(ctx) else { return };
    if let Some(meta) = new_meta(sk) {
        *meta = *handed;
    }
    let _ = HANDOFF.remove(&key);
}

#[inline(always)]
fn changed(ctx: &SockOpsContext) {
    let (from, to) = (ctx.arg(0), ctx.arg(1));
    if to != BPF_TCP_CLOSE {
        return;
    }
    let Some(meta) = meta(ctx) else { return };
    if meta.verdict != Verdict::Pass as u32 {
        let _ = CONNECTIONS.remove(&cookie(ctx));
    }
    let Some(stats) = stats(meta) else { return };
    if from != BPF_TCP_SYN_SENT {
        stats.closed += 1;
        round_trip(ctx, stats);
        return;
    }
    // Something came back, and it was no: a reset. Otherwise the socket gave up, or the application did.
    let (segments, again) = unsafe { ((*ctx.ops).segs_in, (*ctx.ops).total_retrans) };
    let silence = unsafe { bpf_ktime_get_ns() }.wrapping_sub(meta.since_ns);
    if segments > 0 {
        stats.refused += 1;
        hold(meta, Trouble::Refused);
    } else if again > 0 || silence >= SILENCE_NS {
        stats.timed_out += 1;
        hold(meta, Trouble::TimedOut);
    } else {
        stats.aborted += 1;
    }
}

/// From now on others are taken; the agent is told.
#[inline(always)]
fn hold(meta: &Meta, trouble: Trouble) {
    let now = unsafe { bpf_ktime_get_ns() };
    if let Some(held) = HOLD.get_ptr_mut(meta.endpoint) {
        unsafe { *held = now };
    }
    if may_report(now).is_none() {
        return;
    }
    let event = Event {
        at_ns: now,
        service: meta.service,
        workload: meta.workload,
        dest: meta.dest,
        dest_port: meta.dest_port,
        endpoint: meta.endpoint,
        generation: meta.generation,
        pid: meta.pid,
        kind: Event::TROUBLE,
        reason: trouble as u8,
        pad: 0,
        comm: [0; 16],
        pad2: 0,
    };
    // The agent has to look at the endpoint.
    report(&event, u64::from(BPF_RB_FORCE_WAKEUP));
}

#[inline(always)]
fn timed_out(ctx: &SockOpsContext) {
    let Some(meta) = meta(ctx) else { return };
    if let Some(stats) = stats(meta) {
        stats.rto += 1;
    }
}

#[inline(always)]
fn sent_again(ctx: &SockOpsContext) {
    let Some(meta) = meta(ctx) else { return };
    if let Some(stats) = stats(meta) {
        stats.retransmits += u64::from(ctx.arg(1));
    }
    // A first SYN that was lost is chance; a second one makes the endpoint suspect before the socket gives up, which
    // takes minutes. `args` of this call: sequence number, segments, error.
    let (state, again) = unsafe { ((*ctx.ops).state, (*ctx.ops).total_retrans) };
    if state == BPF_TCP_SYN_SENT && again >= 1 {
        hold(meta, Trouble::TimedOut);
    }
}

#[inline(always)]
fn measured(ctx: &SockOpsContext) {
    if let Some(stats) = meta(ctx).and_then(|meta| stats(meta)) {
        round_trip(ctx, stats);
    }
}

/// The kernel's own smoothed time (in eighths of a microsecond), smoothed over connections.
#[inline(always)]
fn round_trip(ctx: &SockOpsContext, stats: &mut weft_ebpf_abi::Stats) {
    let srtt = unsafe { (*ctx.ops).srtt_us } >> 3;
    if srtt == 0 {
        return;
    }
    let before = stats.srtt_us;
    stats.srtt_us = if before == 0 { srtt } else { before - (before >> 3) + (srtt >> 3).max(1) };
}

#[inline(always)]
fn meta(ctx: &SockOpsContext) -> Option<&'static Meta> {
    maps::meta(socket(ctx)?).map(|meta| &*meta)
}

/// Read once: the verifier takes each reading for another socket, and wants it checked.
#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    (!sk.is_null()).then_some(sk)
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    unsafe { bpf_get_socket_cookie(ctx.ops.cast()) }
}

/// Reads a field of the context on its own. Left to itself the compiler chooses between two fields by their addresses,
/// which the verifier takes for a manipulated context.
macro_rules! field {
    ($ops:expr, $($field:tt)+) => {
        unsafe { core::ptr::read_volatile(&raw const (*$ops).$($field)+) }
    };
}

/// The connection as this side sees it.
#[inline(always)]
fn tuple(ctx: &SockOpsContext) -> Tuple {
    let ops = ctx.ops;
    let remote6 = Addr([
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ]);
    // A v4-mapped connection has its IPv6 addresses filled in too late.
    let (local, remote) = if ctx.family() == AF_INET || remote6.is_v4() {
        (Addr::v4(field!(ops, local_ip4)), Addr::v4(field!(ops, remote_ip4)))
    } else {
        let local = Addr([
            field!(ops, local_ip6[0]),
            field!(ops, local_ip6[1]),
            field!(ops, local_ip6[2]),
            field!(ops, local_ip6[3]),
        ]);
        (local, remote6)
    };
    let netns = if remote.is_loopback() { unsafe { bpf_get_netns_cookie(ops.cast()) } } else { 0 };
    Tuple { netns, local, remote, local_port: ctx.local_port(), remote_port: u32::from_be(ctx.remote_port()) }
}
