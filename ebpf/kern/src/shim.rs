//! PROG_TEST_RUN is not there for cgroup hooks: this program makes the same decision for a packet of a test, which
//! carries a [`Request`]. It is loaded by tests and measurements only.

use aya_ebpf::{EbpfContext, programs::TcContext};
use weft_ebpf_abi::{Addr, Decision, Request};

use crate::maps::Kernel;

/// Behind an Ethernet header: 16 bytes of address, four of the port in host order. Returns the verdict, and leaves the
/// address and port that were decided in place of those.
#[inline(always)]
pub fn classify(ctx: &TcContext) -> i32 {
    const AT: usize = 14;
    let (Ok(dest), Ok(port)) = (ctx.load::<[u32; 4]>(AT), ctx.load::<u32>(AT + 16)) else { return -1 };
    let request = Request { dest: Addr(dest), port, bound: Addr::NONE };
    let mut decision = Decision::PASS;
    weft_ebpf_abi::classify(&Kernel { ctx: ctx.as_ptr() }, &request, &mut decision);
    let _ = ctx.store(AT, &decision.addr.0, 0);
    let _ = ctx.store(AT + 16, &decision.port, 0);
    decision.verdict as i32
}
