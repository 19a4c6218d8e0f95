//! Keys and values of the maps. Padding is explicit and sizes are asserted: both sides of a map have to agree, and the
//! kernel compares keys byte by byte.

use crate::{Addr, Verdict};

/// Most endpoints of all services together. A place costs 0.6 KiB, its counters included, on a machine with eight cores.
pub const MAX_ENDPOINTS: u32 = 32_768;
/// Most addresses of services, times their ports.
pub const MAX_VIPS: u32 = 262_144;
/// Places in the tables that picks are made from.
pub const MAX_SLOTS: u32 = 1 << 20;
/// Most workloads of a node.
pub const MAX_WORKLOADS: u32 = 16_384;
/// Most pairs of a protected service and a workload.
pub const MAX_POLICIES: u32 = 131_072;
/// Most prefixes in all access policies.
pub const MAX_BLOCKS: u32 = 65_536;
/// Most network namespaces.
pub const MAX_NAMESPACES: u32 = 4096;
/// Most connections that are shown and can be ended; the oldest fall out.
pub const MAX_CONNECTIONS: u32 = 65_536;
/// Bytes of the ring of events.
pub const EVENT_BYTES: u32 = 1 << 20;
/// Events per second and core; those beyond are counted as lost.
pub const MAX_EVENTS_PER_SECOND: u32 = 4096;
/// A proxy that has not shown itself for this long is taken for dead, in nanoseconds.
pub const HEARTBEAT_NS: u64 = 3_000_000_000;
/// A connection attempt that is given up after this time, without any answer, counts as not answered, in nanoseconds.
/// The first retransmission, which would say so too, comes after a second.
pub const SILENCE_NS: u64 = 500_000_000;
/// An endpoint that refused a connection is passed over for this long if there are others, in nanoseconds. The agent,
/// while there is one, looks for itself: it ends the time, or renews it.
pub const HOLD_NS: u64 = 10_000_000_000;

/// Key of VIPS: an address of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct VipKey {
    /// Address.
    pub addr: Addr,
    /// Port in host order; 0 stands for all ports that have no entry.
    pub port: u32,
}

/// What happens to connections to a service's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Action {
    /// The service has no such port.
    #[default]
    Refuse = 0,
    /// To an endpoint.
    Direct = 1,
    /// To the proxy.
    Proxy = 2,
}

/// Value of VIPS. Replaced as a whole, which switches a service from one table of endpoints to the next in one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Vip {
    /// [`crate::id`] of the service's port.
    pub service: u64,
    /// An [`Action`].
    pub action: u8,
    /// [`flag`].
    pub flags: u8,
    /// Zero.
    pub pad: u16,
    /// Where its table begins in SLOTS: each endpoint as often as its weight says.
    pub base: u32,
    /// Length of the table.
    pub slots: u32,
    /// Where the list of its endpoints begins in SLOTS, each once.
    pub list: u32,
    /// Length of the list.
    pub listed: u32,
    /// Zero.
    pub pad2: u32,
}

/// Flags of a [`Vip`].
pub mod flag {
    /// While the proxy is down connections go straight to an endpoint; otherwise they are refused.
    pub const FAIL_OPEN: u8 = 1;
    /// An AccessPolicy protects the service.
    pub const POLICY: u8 = 2;
}

/// Value of ENDPOINTS, an array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Endpoint {
    /// [`crate::id`] of the service's port; 0: the place is free.
    pub service: u64,
    /// Address.
    pub addr: Addr,
    /// The address from which this host connects to it.
    pub source: Addr,
    /// Port in host order.
    pub port: u32,
    /// +1 with each new owner of the place.
    pub generation: u32,
    /// Not 0: passed over if there are others.
    pub masked: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of STATS, an array per core; place by place that of ENDPOINTS. All counters but the last only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Stats {
    /// Connections begun.
    pub attempts: u64,
    /// Connections established.
    pub established: u64,
    /// The endpoint said no.
    pub refused: u64,
    /// The endpoint said nothing.
    pub timed_out: u64,
    /// The application gave up first, or the network said no.
    pub aborted: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Retransmission time-outs.
    pub rto: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Smoothed round-trip time in microseconds, averaged over connections; 0: not known.
    pub srtt_us: u32,
    /// Zero.
    pub pad: u32,
}

/// Key of POLICY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct PolicyKey {
    /// [`crate::id`] of the service's port.
    pub service: u64,
    /// [`crate::id`] of the workload; 0: everybody who has no entry.
    pub workload: u64,
}

/// Value of POLICY and of BLOCKS: what a source may.
pub mod access {
    /// Connect.
    pub const ALLOW: u32 = 0;
    /// Not connect.
    pub const DENY: u32 = 1;
    /// Depends on its address: see BLOCKS.
    pub const BY_ADDRESS: u32 = 2;
}

/// Value of POLICY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Policy {
    /// Of [`access`].
    pub access: u32,
    /// With [`access::BY_ADDRESS`]: what a source may whose address is not known.
    pub unknown: u32,
    /// With [`access::BY_ADDRESS`]: which entries of BLOCKS count.
    pub group: u64,
}

/// Key of BLOCKS, a trie of longest prefixes: 64 bits of the group, then the address. What stands for a whole group has a
/// prefix of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct BlockKey {
    /// See [`Policy::group`]; in two halves, so that the key has no padding behind the prefix's length.
    pub group: [u32; 2],
    /// Address.
    pub addr: Addr,
}

impl BlockKey {
    /// Bits of the group: the least prefix.
    pub const GROUP_BITS: u32 = 64;
    /// All bits.
    pub const BITS: u32 = 192;

    /// The key of an address in a group.
    #[inline(always)]
    pub const fn new(group: u64, addr: Addr) -> Self {
        Self { group: [group as u32, (group >> 32) as u32], addr }
    }
}

/// Value of SETTINGS, an array of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Settings {
    /// The proxy's own cgroup: never captured.
    pub proxy_cgroup: u64,
    /// The network namespace in which the proxy listens (its cookie).
    pub proxy_netns: u64,
    /// Where it listens for captured IPv4 connections; NONE: nowhere.
    pub capture4: Addr,
    /// Where it listens for captured IPv6 connections; NONE: nowhere.
    pub capture6: Addr,
    /// The port of both, in host order.
    pub capture_port: u32,
    /// Level of the cgroup to which the programs are attached; the root has 0.
    pub level: u32,
    /// How many levels below it workloads are, at most.
    pub depth: u32,
    /// Not 0: somebody looks at the verdicts, all of them are events.
    pub follow: u32,
}

impl Settings {
    /// Whether the proxy listens on loopback addresses only, which other network namespaces do not reach.
    pub const fn capture_is_loopback(&self) -> bool {
        self.capture4.is_loopback() || self.capture6.is_loopback()
    }
}

/// Value of NAMESPACES: what is known of a network namespace other than the proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Namespace {
    /// From where it connects over IPv4.
    pub source4: Addr,
    /// From where it connects over IPv6.
    pub source6: Addr,
    /// Not 0: the proxy listens on its loopback too.
    pub captured: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of META, the storage of a socket. Left by the connect hook, or by the proxy for its own connections; copied to
/// the accepted side of a captured connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Meta {
    /// The address that the application asked for.
    pub dest: Addr,
    /// The address that it got.
    pub backend: Addr,
    /// [`crate::id`] of the service's port.
    pub service: u64,
    /// [`crate::id`] of the workload, or 0.
    pub workload: u64,
    /// Port of `dest` in host order.
    pub dest_port: u32,
    /// Port of `backend` in host order.
    pub backend_port: u32,
    /// Place in ENDPOINTS, or [`Meta::NO_ENDPOINT`].
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
    /// A [`Verdict`]; [`Verdict::Pass`] on the proxy's own connections.
    pub verdict: u32,
    /// The connecting process.
    pub pid: u32,
    /// When the connection was begun, as CLOCK_MONOTONIC has it.
    pub since_ns: u64,
}

impl Meta {
    /// There is no endpoint: the proxy picks one.
    pub const NO_ENDPOINT: u32 = u32::MAX;
}

/// Key of HANDOFF: a connection as its connecting side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(C)]
pub struct Tuple {
    /// Cookie of the network namespace if the addresses are loopback, which every namespace has; otherwise 0.
    pub netns: u64,
    /// Connecting side.
    pub local: Addr,
    /// Accepting side.
    pub remote: Addr,
    /// In host order.
    pub local_port: u32,
    /// In host order.
    pub remote_port: u32,
}

/// Value of CONNECTIONS, by socket cookie: what is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Connection {
    /// What its socket says of it.
    pub meta: Meta,
    /// Connecting side.
    pub local: Addr,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// In host order.
    pub local_port: u32,
    /// Zero.
    pub pad: u32,
}

/// What EVENTS carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Event {
    /// As CLOCK_MONOTONIC has it.
    pub at_ns: u64,
    /// [`crate::id`] of the service's port, or 0.
    pub service: u64,
    /// [`crate::id`] of the workload, or 0.
    pub workload: u64,
    /// The address that was asked for.
    pub dest: Addr,
    /// Its port in host order.
    pub dest_port: u32,
    /// Place in ENDPOINTS, or [`Meta::NO_ENDPOINT`].
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
    /// The process.
    pub pid: u32,
    /// A [`Verdict`], or [`Event::TROUBLE`].
    pub kind: u8,
    /// A [`crate::Reason`]; with TROUBLE a [`Trouble`].
    pub reason: u8,
    /// Zero.
    pub pad: u16,
    /// The command's name, as the kernel has it.
    pub comm: [u8; 16],
    /// Zero.
    pub pad2: u32,
}

impl Event {
    /// Not a verdict: an endpoint did not take a connection.
    pub const TROUBLE: u8 = 0xff;
}

/// How a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Trouble {
    /// Refused.
    Refused = 0,
    /// Nothing came back.
    TimedOut = 1,
}

/// Places of VERDICTS, an array per core: verdict × 16 + reason.
pub const VERDICT_COUNTERS: u32 = 64;

/// The counter of a verdict and its reason.
#[inline(always)]
pub const fn counter(verdict: Verdict, reason: crate::Reason) -> u32 {
    (verdict as u32 * 16 + reason as u32) % VERDICT_COUNTERS
}

const _: () = {
    assert!(size_of::<VipKey>() == 20);
    assert!(size_of::<Vip>() == 32);
    assert!(size_of::<Endpoint>() == 56);
    assert!(size_of::<Stats>() == 72);
    assert!(size_of::<PolicyKey>() == 16);
    assert!(size_of::<Policy>() == 16);
    assert!(size_of::<BlockKey>() == 24);
    assert!(size_of::<Settings>() == 64);
    assert!(size_of::<Namespace>() == 40);
    assert!(size_of::<Meta>() == 80);
    assert!(size_of::<Tuple>() == 48);
    assert!(size_of::<Connection>() == 112);
    assert!(size_of::<Event>() == 80);
};

#[cfg(feature = "user")]
#[allow(unsafe_code, reason = "aya asks for it")]
mod user {
    use super::*;

    // Sound: repr(C) of integers without implicit padding, as the sizes above prove field by field; any bits are a value.
    unsafe impl aya::Pod for VipKey {}
    unsafe impl aya::Pod for Vip {}
    unsafe impl aya::Pod for Endpoint {}
    unsafe impl aya::Pod for Stats {}
    unsafe impl aya::Pod for PolicyKey {}
    unsafe impl aya::Pod for Policy {}
    unsafe impl aya::Pod for BlockKey {}
    unsafe impl aya::Pod for Settings {}
    unsafe impl aya::Pod for Namespace {}
    unsafe impl aya::Pod for Meta {}
    unsafe impl aya::Pod for Tuple {}
    unsafe impl aya::Pod for Connection {}
    unsafe impl aya::Pod for Event {}
}
