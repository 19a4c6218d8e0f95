//! The maps, and the view of them that the decision takes.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6},
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage,
        lpm_trie::Key,
    },
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns,
        generated::{
            bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_sk_lookup_tcp, bpf_sk_release, bpf_sk_storage_delete, bpf_sk_storage_get,
        },
    },
    macros::btf_map,
};
use weft_ebpf_abi as abi;
use weft_ebpf_abi::{
    Addr, BlockKey, Connection, Decision, Endpoint, Event, Maps, Meta, Namespace, Policy, PolicyKey, Settings, Stats,
    Tuple, Vip, VipKey,
};

const GROWING: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map]
pub static HEARTBEAT: Array<u64, 1> = Array::new();
#[btf_map]
pub static VIPS: HashMap<VipKey, Vip, { abi::MAX_VIPS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub static SLOTS: Array<u32, { abi::MAX_SLOTS as usize }> = Array::new();
#[btf_map]
pub static ENDPOINTS: Array<Endpoint, { abi::MAX_ENDPOINTS as usize }> = Array::new();
/// When an endpoint last refused a connection; written here, cleared by the agent.
#[btf_map]
pub static HOLD: Array<u64, { abi::MAX_ENDPOINTS as usize }> = Array::new();
#[btf_map]
pub static STATS: PerCpuArray<Stats, { abi::MAX_ENDPOINTS as usize }> = PerCpuArray::new();
#[btf_map]
pub static WORKLOADS: HashMap<u64, u64, { abi::MAX_WORKLOADS as usize }, GROWING> = HashMap::new();
#[btf_map]
pub static POLICY: HashMap<PolicyKey, Policy, { abi::MAX_POLICIES as usize }, GROWING> = HashMap::new();
#[btf_map]
pub static BLOCKS: LpmTrie<BlockKey, u32, { abi::MAX_BLOCKS as usize }> = LpmTrie::new();
#[btf_map]
pub static NAMESPACES: HashMap<u64, Namespace, { abi::MAX_NAMESPACES as usize }, GROWING> = HashMap::new();
/// What is known of a socket. Lives and dies with it.
#[btf_map]
pub static META: SkStorage<Meta> = SkStorage::new();
/// From the connecting side of a captured connection to the accepting one.
#[btf_map]
pub static HANDOFF: LruHashMap<Tuple, Meta, 16_384> = LruHashMap::new();
#[btf_map]
pub static CONNECTIONS: LruHashMap<u64, Connection, { abi::MAX_CONNECTIONS as usize }> = LruHashMap::new();
#[btf_map]
pub static VERDICTS: PerCpuArray<u64, { abi::VERDICT_COUNTERS as usize }> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { abi::EVENT_BYTES as usize }> = RingBuf::new();
/// Events of this second: when the last one was, how many, and how many were lost since ever.
#[btf_map]
pub static EVENT_RATE: PerCpuArray<[u64; 3], 1> = PerCpuArray::new();

/// The maps as [`abi::classify`] sees them, for a hook with this context.
pub struct Kernel {
    pub ctx: *mut c_void,
}

// Lookups hand out references into maps: entries may change while they are looked at, which costs one wrong verdict at
// worst, and are not freed before the program has ended (RCU).
impl Maps for Kernel {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn vip(&self, key: &VipKey) -> Option<&Vip> {
        unsafe { VIPS.get(key) }
    }

    #[inline(always)]
    fn slot(&self, at: u32) -> Option<u32> {
        SLOTS.get(at).copied()
    }

    #[inline(always)]
    fn endpoint(&self, at: u32) -> Option<&Endpoint> {
        ENDPOINTS.get(at)
    }

    #[inline(always)]
    fn held_since(&self, at: u32) -> u64 {
        HOLD.get(at).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn workload(&self, cgroup: u64) -> Option<u64> {
        unsafe { WORKLOADS.get(&cgroup) }.copied()
    }

    #[inline(always)]
    fn policy(&self, key: &PolicyKey) -> Option<&Policy> {
        unsafe { POLICY.get(key) }
    }

    #[inline(always)]
    fn block(&self, key: &BlockKey) -> Option<u32> {
        BLOCKS.get(&Key::new(BlockKey::BITS, *key)).copied()
    }

    #[inline(always)]
    fn namespace(&self, netns: u64) -> Option<&Namespace> {
        unsafe { NAMESPACES.get(&netns) }
    }

    #[inline(always)]
    fn heartbeat(&self) -> u64 {
        HEARTBEAT.get(0).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn cgroup(&self) -> u64 {
        unsafe { bpf_get_current_cgroup_id() }
    }

    #[inline(always)]
    fn ancestor(&self, level: u32) -> u64 {
        unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        unsafe { bpf_get_netns_cookie(self.ctx) }
    }

    #[inline(always)]
    fn listening(&self, addr: &Addr, port: u32) -> bool {
        const CURRENT_NETNS: u64 = u64::MAX;
        // The connecting side does not matter: no connection has port 0.
        let port = (port as u16).to_be();
        let (mut tuple, size) = if addr.is_v4() {
            let ipv4 = Tuple4 { saddr: addr.0[3], daddr: addr.0[3], sport: 0, dport: port };
            (bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } }, size_of::<Tuple4>())
        } else {
            let ipv6 = Tuple6 { saddr: addr.0, daddr: addr.0, sport: 0, dport: port };
            (bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv6 } }, size_of::<Tuple6>())
        };
        let socket = unsafe { bpf_sk_lookup_tcp(self.ctx, &mut tuple, size as u32, CURRENT_NETNS, 0) };
        if socket.is_null() {
            return false;
        }
        unsafe { bpf_sk_release(socket.cast()) };
        true
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        unsafe { bpf_get_prandom_u32() }
    }
}

/// aya-ebpf's methods for socket storage know only one kind of context.
#[inline(always)]
fn meta_map() -> *mut c_void {
    core::ptr::from_ref(&META).cast_mut().cast()
}

/// What is known of this socket.
#[inline(always)]
pub fn meta(sk: *mut bpf_sock) -> Option<&'static mut Meta> {
    let stored = unsafe { bpf_sk_storage_get(meta_map(), sk.cast(), core::ptr::null_mut(), 0) };
    if stored.is_null() { None } else { Some(unsafe { &mut *stored.cast() }) }
}

/// Room for it; `None` when memory is short: the connection works, but nobody can tell what it was meant for.
#[inline(always)]
pub fn new_meta(sk: *mut bpf_sock) -> Option<&'static mut Meta> {
    let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    let stored = unsafe { bpf_sk_storage_get(meta_map(), sk.cast(), core::ptr::null_mut(), create) };
    if stored.is_null() { None } else { Some(unsafe { &mut *stored.cast() }) }
}

/// Nothing is known of this socket any more.
#[inline(always)]
pub fn forget(sk: *mut bpf_sock) {
    unsafe { bpf_sk_storage_delete(meta_map(), sk.cast()) };
}

/// Counts a verdict.
#[inline(always)]
pub fn count(decision: &Decision) {
    if let Some(counter) = VERDICTS.get_ptr_mut(abi::counter(decision.verdict, decision.reason)) {
        unsafe { *counter += 1 };
    }
}

/// Counts one more event of this core. `None`: there were too many in this second. Otherwise how to report it: the first
/// one in a while wakes the agent, the others wait for it. To wake somebody takes many times as long as to decide.
#[inline(always)]
pub fn may_report(now: u64) -> Option<u64> {
    let rate = EVENT_RATE.get_ptr_mut(0)?;
    let [last, count, lost] = unsafe { &mut *rate };
    // A sixteenth of a second; a second.
    let (short, long) = (now >> 26, now >> 30);
    let first = *last != short;
    if *last >> 4 != long {
        *count = 0;
    }
    *last = short;
    *count += 1;
    if *count > abi::MAX_EVENTS_PER_SECOND as u64 {
        *lost += 1;
        return None;
    }
    Some(u64::from(if first { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }))
}

/// Reports a verdict, or trouble with an endpoint.
#[inline(always)]
pub fn report(event: &Event, wakeup: u64) {
    let _ = EVENTS.output(event, wakeup);
}

/// Reports a verdict of the current process.
#[inline(always)]
pub fn report_verdict(decision: &Decision, dest: &Addr, port: u32) {
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(wakeup) = may_report(now) else { return };
    let event = Event {
        at_ns: now,
        service: decision.service,
        workload: decision.workload,
        dest: *dest,
        dest_port: port,
        endpoint: decision.endpoint,
        generation: decision.generation,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        kind: decision.verdict as u8,
        reason: decision.reason as u8,
        pad: 0,
        comm: bpf_get_current_comm().unwrap_or_default(),
        pad2: 0,
    };
    report(&event, wakeup);
}

/// The counters of an endpoint, if it is still the one that `meta` means.
#[inline(always)]
pub fn stats(meta: &Meta) -> Option<&'static mut Stats> {
    let endpoint = ENDPOINTS.get(meta.endpoint)?;
    if endpoint.generation != meta.generation {
        return None;
    }
    let stats = STATS.get_ptr_mut(meta.endpoint)?;
    Some(unsafe { &mut *stats })
}
