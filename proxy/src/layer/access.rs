//! AccessPolicies of a service: whose requests and connections it gets.
//!
//! The kernel has decided about connections to the service's own address before they are captured. What is asked here
//! are requests that a route leads from one service to another, and those of listeners.

use std::{fmt, net::IpAddr, sync::Arc};

use weft_model::config::{self, AccessAction, AccessSource, Key};

use crate::{
    accept::captured::Captured,
    error::{Reason, Refusal},
    options::contains,
    snapshot::Service,
};

/// Who asks, as far as it is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Source<'a> {
    /// As [`Key`] shows it.
    pub workload: Option<&'a str>,
    /// SPIFFE id.
    pub identity: Option<&'a str>,
    /// `None` for captured connections: they come from loopback, wherever their process is.
    pub address: Option<IpAddr>,
}

impl<'a> Source<'a> {
    /// The source of a connection.
    pub fn of(peer: IpAddr, captured: Option<&'a Captured>) -> Self {
        match captured {
            None => Self { address: Some(peer.to_canonical()), ..Self::default() },
            Some(captured) => {
                Self { workload: captured.workload.as_deref(), identity: captured.identity.as_deref(), address: None }
            }
        }
    }
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.workload, self.address) {
            (Some(workload), _) => write!(f, "workload {workload}"),
            (None, Some(address)) => write!(f, "{address}"),
            (None, None) => f.write_str("an unknown workload"),
        }
    }
}

/// The policies of one service.
#[derive(Debug)]
pub struct Access {
    allow: Vec<Policy>,
    deny: Vec<Policy>,
}

#[derive(Debug)]
struct Policy {
    name: Arc<str>,
    from: Vec<From>,
}

/// Everything that is not empty must match.
#[derive(Debug)]
struct From {
    workloads: Vec<Box<str>>,
    blocks: Vec<(IpAddr, u8)>,
    identities: Vec<Arc<str>>,
}

impl Access {
    /// The policies among `all` that protect `service`; `None` if there are none.
    pub fn of<'c>(service: &Key, all: impl IntoIterator<Item = &'c config::AccessPolicy>) -> Option<Self> {
        let mut access = Self { allow: Vec::new(), deny: Vec::new() };
        for written in all.into_iter().filter(|policy| policy.services.contains(service)) {
            let from = written.rules.iter().flat_map(|rule| &rule.from).map(|source| From::new(source, &written.key));
            let policy = Policy { name: written.key.to_string().into(), from: from.collect() };
            match written.action {
                AccessAction::Allow => access.allow.push(policy),
                AccessAction::Deny => access.deny.push(policy),
            }
        }
        (!access.allow.is_empty() || !access.deny.is_empty()).then_some(access)
    }

    /// Decides.
    ///
    /// # Errors
    /// Which policy refuses whom.
    pub fn check(&self, source: &Source<'_>) -> Result<(), String> {
        // What cannot be told must neither let in nor slip through.
        if let Some(policy) = self.deny.iter().find(|policy| policy.matches(source, true)) {
            return Err(format!("AccessPolicy {} refuses {source}", policy.name));
        }
        if self.allow.is_empty() || self.allow.iter().any(|policy| policy.matches(source, false)) {
            return Ok(());
        }
        let names: Vec<&str> = self.allow.iter().map(|policy| &*policy.name).collect();
        Err(match names.as_slice() {
            [only] => format!("AccessPolicy {only} does not let {source} in"),
            several => format!("none of the AccessPolicies {} lets {source} in", several.join(", ")),
        })
    }

    /// Whether the client's address counts.
    pub fn by_address(&self) -> bool {
        self.allow.iter().chain(&self.deny).flat_map(|policy| &policy.from).any(|from| !from.blocks.is_empty())
    }

    /// Names of the policies.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.allow.iter().chain(&self.deny).map(|policy| &*policy.name)
    }
}

impl Policy {
    fn matches(&self, source: &Source<'_>, unknown: bool) -> bool {
        self.from.iter().any(|from| from.matches(source, unknown))
    }
}

impl From {
    /// Names of workloads are those of the policy's namespace.
    fn new(written: &AccessSource, policy: &Key) -> Self {
        let workload = |name: &Arc<str>| Key { namespace: policy.namespace.clone(), name: name.clone() }.to_string();
        Self {
            workloads: written.workloads.iter().map(|name| workload(name).into()).collect(),
            blocks: written.ip_blocks.iter().map(|(ip, bits)| (ip.to_canonical(), *bits)).collect(),
            identities: written.identities.clone(),
        }
    }

    /// `unknown` is the answer where the address would have to be known.
    fn matches(&self, source: &Source<'_>, unknown: bool) -> bool {
        let block = |address| self.blocks.iter().any(|(prefix, bits)| contains(*prefix, *bits, address));
        let workload = |own: &str| self.workloads.iter().any(|name| **name == *own);
        let identity = |own: &str| self.identities.iter().any(|id| **id == *own);
        (self.workloads.is_empty() || source.workload.is_some_and(workload))
            && (self.identities.is_empty() || source.identity.is_some_and(identity))
            && (self.blocks.is_empty() || source.address.map_or(unknown, block))
    }
}

/// Refuses what the policies of `service` refuse.
///
/// # Errors
/// `access_denied`.
#[inline]
pub fn check(service: &Service, peer: IpAddr, captured: Option<&Captured>) -> Result<(), Refusal> {
    match &service.access {
        None => Ok(()),
        Some(access) => ask(access, service, peer, captured),
    }
}

#[cold]
fn ask(access: &Access, service: &Service, peer: IpAddr, captured: Option<&Captured>) -> Result<(), Refusal> {
    // The application asked for this very service: the kernel let it, and knew more about it.
    if captured.is_some_and(|captured| captured.service == service.key) {
        return Ok(());
    }
    access.check(&Source::of(peer, captured)).map_err(|detail| Refusal::with(Reason::AccessDenied, detail))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::snapshot::fixture::{config, ours};

    /// The policies of `cart`: name, action, entries of `from`.
    fn access(policies: &[(&str, &str, &str)]) -> Option<Access> {
        let mut text =
            ours("Service", "cart", "ports: [{port: 80}]") + &ours("Service", "other", "ports: [{port: 80}]");
        for name in ["web", "batch"] {
            text += &ours("Workload", name, &format!("selector: {{cgroup: {name}}}, serviceAccount: {name}"));
        }
        for (name, action, from) in policies {
            let target = "targetRefs: [{group: weft.dev, kind: Service, name: cart}]";
            let rules = if from.is_empty() { "[]".to_owned() } else { format!("[{{from: [{from}]}}]") };
            text += &ours("AccessPolicy", name, &format!("{target}, action: {action}, rules: {rules}"));
        }
        let config = config(&text);
        assert!(Access::of(&Key::new("default", "other"), &config.access_policies).is_none());
        Access::of(&Key::new("default", "cart"), &config.access_policies)
    }

    fn captured(workload: &'static str) -> Source<'static> {
        let identity = match workload {
            "web" => Some("spiffe://mesh.local/ns/default/sa/web"),
            _ => None,
        };
        Source { workload: (!workload.is_empty()).then_some(workload), identity, address: None }
    }

    fn client(address: &str) -> Source<'static> {
        Source { address: Some(address.parse().unwrap()), ..Source::default() }
    }

    #[test]
    fn policies_decide() {
        assert!(access(&[]).is_none());
        let web = "{workloads: [web]}";
        let ten = "{ipBlocks: [10.0.0.0/8]}";
        let id = "{identities: [spiffe://mesh.local/ns/default/sa/web]}";
        let both = "{workloads: [web], ipBlocks: [10.0.0.0/8]}";
        let no = |detail: &'static str| Some(detail);
        for (policies, source, refused) in [
            (&[("p", "Allow", web)][..], captured("web"), None),
            (&[("p", "Allow", web)], captured("batch"), no("AccessPolicy p does not let workload batch in")),
            (&[("p", "Allow", web)], captured(""), no("AccessPolicy p does not let an unknown workload in")),
            (&[("p", "Allow", web)], client("10.0.0.1"), no("AccessPolicy p does not let 10.0.0.1 in")),
            // A workload of that name in another namespace.
            (&[("p", "Allow", web)], captured("other/web"), no("AccessPolicy p does not let workload other/web in")),
            (&[("p", "Allow", id)], captured("web"), None),
            (&[("p", "Allow", id)], captured("batch"), no("AccessPolicy p does not let workload batch in")),
            (&[("p", "Allow", ten)], client("10.1.2.3"), None),
            (&[("p", "Allow", ten)], client("::ffff:10.1.2.3"), None),
            (&[("p", "Allow", ten)], client("11.1.2.3"), no("AccessPolicy p does not let 11.1.2.3 in")),
            // The address of a captured connection is not known: it neither lets in nor slips through.
            (&[("p", "Allow", ten)], captured("web"), no("AccessPolicy p does not let workload web in")),
            (&[("p", "Deny", ten)], captured("web"), no("AccessPolicy p refuses workload web")),
            (&[("p", "Allow", both)], captured("web"), no("AccessPolicy p does not let workload web in")),
            (&[("p", "Deny", both)], captured("web"), no("AccessPolicy p refuses workload web")),
            (&[("p", "Deny", both)], captured("batch"), None),
            (&[("p", "Deny", both)], client("10.0.0.1"), None),
            (&[("p", "Deny", web)], captured("batch"), None),
            (&[("p", "Deny", web)], captured("web"), no("AccessPolicy p refuses workload web")),
            (&[("p", "Deny", web)], client("10.0.0.1"), None),
            // Of several Allow policies one is enough; a Deny policy wins.
            (&[("p", "Allow", web), ("q", "Allow", ten)], client("10.0.0.1"), None),
            (
                &[("p", "Allow", web), ("q", "Allow", ten)],
                client("9.9.9.9"),
                no("none of the AccessPolicies p, q lets 9.9.9.9 in"),
            ),
            (&[("p", "Allow", web), ("q", "Deny", id)], captured("web"), no("AccessPolicy q refuses workload web")),
            (&[("p", "Allow", "")], captured("web"), no("AccessPolicy p does not let workload web in")),
            (&[("p", "Deny", "")], captured("web"), None),
        ] {
            let source = Source { address: source.address.map(|address| address.to_canonical()), ..source };
            let decided = access(policies).unwrap().check(&source);
            assert_eq!(decided.err().as_deref(), refused, "{policies:?} {source}");
        }
    }
}
