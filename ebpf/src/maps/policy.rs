//! AccessPolicies as lookups.
//!
//! Who a process is, is known when policies are compiled: it is one of the node's workloads, or none. What is left for the
//! kernel is one answer per service and workload, or a set of prefixes for the address.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use weft_ebpf_abi::{Addr, BlockKey, Policy, access, id};
use weft_model::config::{AccessAction, AccessPolicy, AccessSource, Config, Key};

use super::full_name;

/// Who may connect to a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// By workload. Last comes 0, everybody else; workloads that may what everybody else may are left out.
    pub policies: Vec<(u64, Policy)>,
}

/// An entry of BLOCKS, without its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block {
    /// Of the whole key: [`BlockKey::GROUP_BITS`] for everything, up to [`BlockKey::BITS`].
    pub prefix: u32,
    /// In host order; IPv4 as v4-mapped.
    pub addr: u128,
    /// Allow or deny, of [`access`].
    pub access: u32,
}

impl Block {
    /// The address as a key has it.
    pub fn key(&self, group: u64) -> BlockKey {
        BlockKey::new(group, Addr::from(IpAddr::V6(Ipv6Addr::from_bits(self.addr))))
    }

    /// An entry that was read.
    pub fn from_key(prefix: u32, key: &BlockKey, access: u32) -> Self {
        let word = |i: usize| u128::from(u32::from_be(key.addr.0[i]));
        Self { prefix, addr: word(0) << 96 | word(1) << 64 | word(2) << 32 | word(3), access }
    }
}

/// Address and length in bits, IPv4 as v4-mapped.
type Prefix = (u128, u32);

const ALL: Prefix = (0, 0);
const ALL_V4: Prefix = (0xffff_0000_0000, 96);

/// Finds the policies of a service, and workloads by name and identity.
pub(super) struct Compiler<'a> {
    policies: HashMap<&'a Key, Vec<&'a AccessPolicy>>,
    /// Workloads by SPIFFE id.
    identities: HashMap<String, Vec<u64>>,
}

/// What policies say of a source, before its address is looked at.
#[derive(Clone, Default)]
struct Facts {
    denied: bool,
    deny: Vec<Prefix>,
    allowed: bool,
    allow: Vec<Prefix>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(config: &'a Config) -> Self {
        let mut policies: HashMap<_, Vec<_>> = HashMap::new();
        for policy in &config.access_policies {
            for service in &policy.services {
                policies.entry(service).or_default().push(policy);
            }
        }
        let mut identities: HashMap<_, Vec<_>> = HashMap::new();
        for workload in &config.workloads {
            if let Some(identity) = workload.identity() {
                identities.entry(identity).or_default().push(id(&full_name(&workload.key)));
            }
        }
        Self { policies, identities }
    }

    /// Who may connect to the service; `None` if no policy says anything. Adds the contents of groups.
    pub(super) fn access(&self, service: &Key, groups: &mut HashMap<u64, Vec<Block>>) -> Option<Access> {
        let policies = self.policies.get(service)?;
        let exclusive = policies.iter().any(|policy| policy.action == AccessAction::Allow);
        let mut everybody = Facts::default();
        let mut named: BTreeMap<u64, Facts> = BTreeMap::new();
        for policy in policies {
            for source in policy.rules.iter().flat_map(|rule| &rule.from) {
                match self.workloads(&policy.key.namespace, source) {
                    None => everybody.add(policy.action, source),
                    Some(workloads) => {
                        for workload in workloads {
                            named.entry(workload).or_default().add(policy.action, source);
                        }
                    }
                }
            }
        }
        let others = everybody.compile(exclusive, groups);
        let mut compiled = Vec::new();
        for (workload, facts) in named {
            let policy = everybody.with(facts).compile(exclusive, groups);
            if policy != others {
                compiled.push((workload, policy));
            }
        }
        compiled.push((0, others));
        Some(Access { policies: compiled })
    }

    /// The workloads that a source means; `None`: it does not ask for one.
    fn workloads(&self, namespace: &str, source: &AccessSource) -> Option<BTreeSet<u64>> {
        let named = (!source.workloads.is_empty()).then(|| {
            let names = source.workloads.iter();
            names.map(|name| id(&format!("{namespace}/{name}"))).collect::<BTreeSet<u64>>()
        });
        let known = (!source.identities.is_empty()).then(|| {
            let identities = source.identities.iter();
            identities
                .filter_map(|identity| self.identities.get(&**identity))
                .flatten()
                .copied()
                .collect::<BTreeSet<u64>>()
        });
        match (named, known) {
            (Some(named), Some(known)) => Some(&named & &known),
            (named, known) => named.or(known),
        }
    }
}

impl Facts {
    /// Takes in a source that means this workload.
    fn add(&mut self, action: AccessAction, source: &AccessSource) {
        let (always, prefixes) = match action {
            AccessAction::Allow => (&mut self.allowed, &mut self.allow),
            AccessAction::Deny => (&mut self.denied, &mut self.deny),
        };
        *always |= source.ip_blocks.is_empty();
        prefixes.extend(source.ip_blocks.iter().map(|&(ip, bits)| prefix(ip, bits)));
    }

    fn with(&self, mut more: Self) -> Self {
        more.denied |= self.denied;
        more.deny.extend(&self.deny);
        more.allowed |= self.allowed;
        more.allow.extend(&self.allow);
        more
    }

    fn compile(&self, exclusive: bool, groups: &mut HashMap<u64, Vec<Block>>) -> Policy {
        let policy = |allow: bool| Policy { access: access_of(allow), ..Policy::default() };
        let allowed = !exclusive || self.allowed;
        if self.denied || (!allowed && self.allow.is_empty()) {
            return policy(false);
        }
        if allowed && self.deny.is_empty() {
            return policy(true);
        }
        let blocks = self.blocks(|allow, deny| (allowed || allow) && !deny);
        if let [all] = *blocks {
            return policy(all.access == access::ALLOW);
        }
        let group = content(&blocks);
        groups.entry(group).or_insert(blocks);
        // An address that is not known is in no block that lets it in and in every block that does not.
        let unknown = access_of(allowed && self.deny.is_empty());
        Policy { access: access::BY_ADDRESS, unknown, group }
    }

    /// What the trie has to say: the outcome for everything, then for each prefix where it changes.
    fn blocks(&self, outcome: impl Fn(bool, bool) -> bool) -> Vec<Block> {
        let mut marks: BTreeMap<Prefix, (bool, bool)> =
            BTreeMap::from([(ALL, (false, false)), (ALL_V4, (false, false))]);
        for prefix in &self.allow {
            marks.entry(*prefix).or_default().0 = true;
        }
        for prefix in &self.deny {
            marks.entry(*prefix).or_default().1 = true;
        }
        let mut blocks = Vec::new();
        // The prefixes around the present one: the order of the map is that of a walk from the root down.
        let mut around: Vec<(Prefix, bool, bool, bool)> = Vec::new();
        for (prefix, (mut allow, mut deny)) in marks {
            while around.pop_if(|(outer, ..)| !contains(*outer, prefix)).is_some() {}
            let outer = around.last();
            // IPv4 addresses are v4-mapped in the trie, but no block of IPv6 means them.
            if let Some((_, outer_allow, outer_deny, _)) = outer.filter(|_| prefix != ALL_V4) {
                allow |= outer_allow;
                deny |= outer_deny;
            }
            let let_in = outcome(allow, deny);
            if outer.is_none_or(|(.., outer)| *outer != let_in) {
                let prefix = (prefix.0, BlockKey::GROUP_BITS + prefix.1);
                blocks.push(Block { prefix: prefix.1, addr: prefix.0, access: access_of(let_in) });
            }
            around.push((prefix, allow, deny, let_in));
        }
        blocks.sort_unstable();
        blocks
    }
}

const fn access_of(allow: bool) -> u32 {
    if allow { access::ALLOW } else { access::DENY }
}

/// Names a group after what is in it: equal ones are shared, and one that changes is another one.
pub(crate) fn content(blocks: &[Block]) -> u64 {
    use std::fmt::Write;
    let mut text = String::with_capacity(blocks.len() * 40);
    for Block { prefix, addr, access } in blocks {
        // Writing to a String does not fail.
        let _ = write!(text, "{addr:x}/{prefix}={access} ");
    }
    id(&text)
}

fn prefix(ip: IpAddr, bits: u8) -> Prefix {
    let (addr, bits) = match ip {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), u32::from(bits.min(32)) + 96),
        IpAddr::V6(ip) => (ip.to_bits(), u32::from(bits.min(128))),
    };
    (addr & mask(bits), bits)
}

fn contains(outer: Prefix, inner: Prefix) -> bool {
    outer.1 <= inner.1 && inner.0 & mask(outer.1) == outer.0
}

fn mask(bits: u32) -> u128 {
    if bits == 0 { 0 } else { u128::MAX << (128 - bits) }
}
