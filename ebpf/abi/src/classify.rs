//! The decision inside `connect()`. No state, no clock, no randomness of its own: everything comes through [`Maps`].

use crate::{
    Action, Addr, BlockKey, Endpoint, HEARTBEAT_NS, HOLD_NS, Meta, Namespace, Policy, PolicyKey, Settings, Vip, VipKey,
    access, flag,
};

/// Levels of cgroups that are searched for a workload.
pub const MAX_DEPTH: u32 = 8;
/// Endpoints that are looked at when those drawn at random are out of use.
pub const MAX_SCAN: u32 = 64;
/// Endpoints that are drawn at random.
const DRAWS: u32 = 4;

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Verdict {
    /// Nothing.
    #[default]
    Pass = 0,
    /// To an endpoint.
    Direct = 1,
    /// To the proxy.
    Proxy = 2,
    /// Refused.
    Deny = 3,
}

/// Why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Reason {
    /// PASS: not the address of a service.
    #[default]
    NotAService = 0,
    /// PASS: a connection of the proxy's own.
    OwnConnection = 1,
    /// DIRECT, PROXY: what the service asks for.
    Service = 2,
    /// DIRECT: the proxy is down, and the service is `failOpen`.
    FailOpen = 3,
    /// DENY: an AccessPolicy.
    AccessDenied = 4,
    /// DENY: the proxy is down.
    ProxyDown = 5,
    /// DENY: the proxy does not listen in this network namespace.
    OtherNamespace = 6,
    /// DENY: the service has no such port.
    NoPort = 7,
    /// DENY: the service has no endpoint of this address family.
    NoEndpoint = 8,
}

/// A connection that somebody asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// Where to; IPv4 also when it was asked for as v4-mapped.
    pub dest: Addr,
    /// In host order.
    pub port: u32,
    /// The address that the socket is bound to, or NONE.
    pub bound: Addr,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// What.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// DIRECT, PROXY: the address to connect to instead.
    pub addr: Addr,
    /// Its port in host order.
    pub port: u32,
    /// The service's port, or 0.
    pub service: u64,
    /// The workload, or 0.
    pub workload: u64,
    /// DIRECT: the place in ENDPOINTS; otherwise [`Meta::NO_ENDPOINT`].
    pub endpoint: u32,
    /// Its generation.
    pub generation: u32,
}

impl Decision {
    /// Nothing happens.
    pub const PASS: Self = Self {
        verdict: Verdict::Pass,
        reason: Reason::NotAService,
        addr: Addr::NONE,
        port: 0,
        service: 0,
        workload: 0,
        endpoint: Meta::NO_ENDPOINT,
        generation: 0,
    };
}

/// Maps and helpers, as the kernel or a test has them.
pub trait Maps {
    /// SETTINGS.
    fn settings(&self) -> Option<&Settings>;
    /// VIPS.
    fn vip(&self, key: &VipKey) -> Option<&Vip>;
    /// SLOTS.
    fn slot(&self, at: u32) -> Option<u32>;
    /// ENDPOINTS.
    fn endpoint(&self, at: u32) -> Option<&Endpoint>;
    /// HOLD: when the endpoint last refused a connection.
    fn held_since(&self, at: u32) -> u64;
    /// WORKLOADS.
    fn workload(&self, cgroup: u64) -> Option<u64>;
    /// POLICY.
    fn policy(&self, key: &PolicyKey) -> Option<&Policy>;
    /// BLOCKS: the longest prefix.
    fn block(&self, key: &BlockKey) -> Option<u32>;
    /// NAMESPACES.
    fn namespace(&self, netns: u64) -> Option<&Namespace>;
    /// HEARTBEAT.
    fn heartbeat(&self) -> u64;
    /// cgroup of the connecting process.
    fn cgroup(&self) -> u64;
    /// The cgroup above it, or itself, at this level; 0 if it is not so deep.
    fn ancestor(&self, level: u32) -> u64;
    /// Network namespace of the socket.
    fn netns(&self) -> u64;
    /// Whether somebody listens on this address, in the namespace of the socket.
    fn listening(&self, addr: &Addr, port: u32) -> bool;
    /// Nanoseconds of CLOCK_MONOTONIC.
    fn now(&self) -> u64;
    /// Any number.
    fn random(&self) -> u32;
}

/// Decides. `decision` is [`Decision::PASS`] when called; a result in place of a returned value keeps the kernel's small
/// stack free of copies.
///
/// Deciding twice changes nothing: the address of an endpoint or of the proxy is not that of a service.
#[inline(always)]
pub fn classify<M: Maps>(maps: &M, request: &Request, decision: &mut Decision) {
    let Some(settings) = maps.settings() else { return };
    if maps.cgroup() == settings.proxy_cgroup {
        decision.reason = Reason::OwnConnection;
        return;
    }
    let mut key = VipKey { addr: request.dest, port: request.port };
    let vip = match maps.vip(&key) {
        Some(vip) => vip,
        None => {
            key.port = 0;
            match maps.vip(&key) {
                Some(vip) => vip,
                None => return,
            }
        }
    };
    decision.service = vip.service;
    decision.workload = workload(maps, settings);
    if vip.action == Action::Refuse as u8 {
        return deny(decision, Reason::NoPort);
    }
    // Also for the proxy, which picks its own: it tells from where a connection would come.
    let endpoint = pick(maps, vip);
    if vip.flags & flag::POLICY != 0 && !allowed(maps, settings, request, vip, decision.workload, endpoint) {
        return deny(decision, Reason::AccessDenied);
    }
    let mut reason = Reason::Service;
    if vip.action == Action::Proxy as u8 {
        let down = proxy_down(maps, settings, request, decision);
        if down == Reason::Service {
            decision.verdict = Verdict::Proxy;
            decision.reason = Reason::Service;
            return;
        }
        if vip.flags & flag::FAIL_OPEN == 0 {
            return deny(decision, down);
        }
        reason = Reason::FailOpen;
    }
    let Some(found) = maps.endpoint(endpoint).filter(|_| endpoint != Meta::NO_ENDPOINT) else {
        return deny(decision, Reason::NoEndpoint);
    };
    decision.verdict = Verdict::Direct;
    decision.reason = reason;
    decision.addr = found.addr;
    decision.port = found.port;
    decision.endpoint = endpoint;
    decision.generation = found.generation;
}

#[inline(always)]
fn deny(decision: &mut Decision, reason: Reason) {
    decision.verdict = Verdict::Deny;
    decision.reason = reason;
}

/// The workload whose cgroup is the closest one above the process.
#[inline(always)]
fn workload<M: Maps>(maps: &M, settings: &Settings) -> u64 {
    let mut found = 0;
    let mut below = 1;
    while below <= MAX_DEPTH {
        if below > settings.depth {
            break;
        }
        let cgroup = maps.ancestor(settings.level + below);
        if cgroup == 0 {
            break;
        }
        if let Some(workload) = maps.workload(cgroup) {
            found = workload;
        }
        below += 1;
    }
    found
}

/// Draws an endpoint in proportion to the weights, passing over those that are out of use. If all are, the first one
/// drawn: a service is not made unreachable by a suspicion.
#[inline(always)]
fn pick<M: Maps>(maps: &M, vip: &Vip) -> u32 {
    if vip.slots == 0 {
        return Meta::NO_ENDPOINT;
    }
    let now = maps.now();
    let mut first = Meta::NO_ENDPOINT;
    let mut draw = 0;
    while draw < DRAWS {
        // Multiplied instead of divided: as even, and what the verifier can bound.
        let at = ((maps.random() as u64 * vip.slots as u64) >> 32) as u32;
        if let Some(endpoint) = maps.slot(vip.base.wrapping_add(at)) {
            if first == Meta::NO_ENDPOINT {
                first = endpoint;
            }
            if in_use(maps, vip, endpoint, now) {
                return endpoint;
            }
        }
        draw += 1;
    }
    let start = maps.random();
    let mut step = 0;
    while step < MAX_SCAN {
        if step >= vip.listed {
            break;
        }
        let at = start.wrapping_add(step) % vip.listed;
        if let Some(endpoint) = maps.slot(vip.list.wrapping_add(at))
            && in_use(maps, vip, endpoint, now)
        {
            return endpoint;
        }
        step += 1;
    }
    first
}

#[inline(always)]
fn in_use<M: Maps>(maps: &M, vip: &Vip, endpoint: u32, now: u64) -> bool {
    let Some(found) = maps.endpoint(endpoint) else { return false };
    if found.service != vip.service || found.masked != 0 {
        return false;
    }
    let since = maps.held_since(endpoint);
    since == 0 || now.wrapping_sub(since) >= HOLD_NS
}

/// Whether the policies of the service let the source in.
#[inline(always)]
fn allowed<M: Maps>(maps: &M, settings: &Settings, request: &Request, vip: &Vip, workload: u64, endpoint: u32) -> bool {
    let mut key = PolicyKey { service: vip.service, workload };
    let policy = match maps.policy(&key) {
        Some(policy) => policy,
        None => {
            key.workload = 0;
            match maps.policy(&key) {
                Some(policy) => policy,
                // The agent writes policies before it says that there are any.
                None => return false,
            }
        }
    };
    if policy.access != access::BY_ADDRESS {
        return policy.access == access::ALLOW;
    }
    let source = source(maps, settings, request, endpoint);
    if source.is_unspecified() {
        return policy.unknown == access::ALLOW;
    }
    maps.block(&BlockKey::new(policy.group, source)) == Some(access::ALLOW)
}

/// The address from which the connection comes, or would come if it went straight to the endpoint. The kernel chooses it
/// only after this hook; what it will choose has been found out beforehand.
#[inline(always)]
fn source<M: Maps>(maps: &M, settings: &Settings, request: &Request, endpoint: u32) -> Addr {
    if !request.bound.is_unspecified() {
        return request.bound;
    }
    let netns = maps.netns();
    if netns == settings.proxy_netns {
        return maps.endpoint(endpoint).map_or(Addr::NONE, |endpoint| endpoint.source);
    }
    match maps.namespace(netns) {
        Some(namespace) if request.dest.is_v4() => namespace.source4,
        Some(namespace) => namespace.source6,
        None => Addr::NONE,
    }
}

/// Sets the address of the proxy and returns [`Reason::Service`], or says why the proxy cannot take the connection. A
/// listener that is gone is noticed at once, a process that hangs by its heartbeat.
#[inline(always)]
fn proxy_down<M: Maps>(maps: &M, settings: &Settings, request: &Request, decision: &mut Decision) -> Reason {
    let addr = if request.dest.is_v4() { settings.capture4 } else { settings.capture6 };
    if addr.is_unspecified() || maps.now().wrapping_sub(maps.heartbeat()) > HEARTBEAT_NS {
        return Reason::ProxyDown;
    }
    let netns = maps.netns();
    let own = netns == settings.proxy_netns;
    // Every namespace has a loopback of its own.
    if !own && addr.is_loopback() && maps.namespace(netns).is_none_or(|namespace| namespace.captured == 0) {
        return Reason::OtherNamespace;
    }
    // An address of this host that others reach over the network cannot be looked up from where they are.
    if (own || addr.is_loopback()) && !maps.listening(&addr, settings.capture_port) {
        return Reason::ProxyDown;
    }
    decision.addr = addr;
    decision.port = settings.capture_port;
    Reason::Service
}
