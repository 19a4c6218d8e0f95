//! PROG_TEST_RUN is not there for cgroup hooks: this program makes the same decision for a packet of a test, which
//! carries a [`Request`]. It is loaded by tests and measurements only.

use aya_ebpf::{EbpfContext, helpers::bpf_get_prandom_u32, programs::TcContext};
use weft_ebpf_abi::{Addr, Decision, Request};

use crate::maps::Kernel;

/// Behind an Ethernet header: 16 bytes of address, four of the port and four of a mask in host order. Bits of the mask
/// are set at random in the address, so that repeated runs ask for many services. Behind that 20 bytes are left with the
/// address and port that were decided: what is asked stays, or the next run would ask for the answer of this one.
///
/// Returns the verdict. An unspecified address is not decided about, which shows what this program costs by itself.
#[inline(always)]
pub fn classify(ctx: &TcContext) -> i32 {
    const ASKED: usize = 14;
    const DECIDED: usize = ASKED + 24;
    let Ok([a, b, c, mut d, port, spread]) = ctx.load::<[u32; 6]>(ASKED) else { return -1 };
    if spread != 0 {
        d |= (unsafe { bpf_get_prandom_u32() } & spread).to_be();
    }
    let request = Request { dest: Addr([a, b, c, d]), port, bound: Addr::NONE };
    let mut decision = Decision::PASS;
    if !request.dest.is_unspecified() {
        weft_ebpf_abi::classify(&Kernel { ctx: ctx.as_ptr() }, &request, &mut decision);
    }
    let [a, b, c, d] = decision.addr.0;
    let _ = ctx.store(DECIDED, &[a, b, c, d, decision.port], 0);
    decision.verdict as i32
}
