//! Which certificate a client gets.
//!
//! Listeners of one port differ by hostname, and Gateway API lets the SNI choose the listener first: the most specific
//! hostname that matches. Among the certificates of that listener an exact DNS name wins over a wildcard, and the first
//! certificate serves everything else. A name that no listener has gets the first certificate of the least specific
//! listener: the client's own "this is for X, not Y" explains more than a bare alert would.
//!
//! All workers share one [`ServerConfig`] for as long as the port exists. Only the table behind the resolver is
//! swapped, so a new certificate reaches new handshakes at once and open connections do not notice.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use foldhash::{HashMap, HashMapExt};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use weft_model::config::{Hostname, Key};

use super::{ALPN_H2, ALPN_HTTP1, IdentityError, LoadedCert, Problem, VERSIONS, provider};

/// What one HTTPS listener of a port contributes.
#[derive(Debug, Clone)]
pub struct ListenerCerts {
    /// Hostname of the listener; `None` is every hostname.
    pub hostname: Option<Hostname>,
    /// In the order of the listener; the first is its default.
    pub certificates: Vec<LoadedCert>,
}

/// TLS identity of one port.
pub struct ServerIdentity {
    config: Arc<ServerConfig>,
    resolver: Arc<Resolver>,
}

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerIdentity").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

impl ServerIdentity {
    /// An identity that serves the certificates of these listeners.
    pub fn new(listeners: &[ListenerCerts]) -> Result<Arc<Self>, IdentityError> {
        let resolver = Arc::new(Resolver { table: ArcSwap::from_pointee(Table::build(listeners)) });
        let failed = |error: rustls::Error| IdentityError {
            certificate: listeners
                .iter()
                .find_map(|l| l.certificates.first())
                .map_or_else(|| Key::new("default", "?"), |c| c.key.clone()),
            place: "server".into(),
            problem: Problem::Crypto(error.to_string()),
        };
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(VERSIONS)
            .map_err(failed)?
            .with_no_client_auth()
            .with_cert_resolver(resolver.clone());
        config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP1.to_vec()];
        // Stateless resumption: any worker continues a session that another one began. The keys rotate by themselves.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(failed)?;
        // One ticket is enough for clients that resume at all; each costs a write and ~200 bytes per handshake.
        config.send_tls13_tickets = 1;
        Ok(Arc::new(Self { config: Arc::new(config), resolver }))
    }

    /// For the acceptor; the same value for the life of the port.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }

    /// Serves other certificates from the next handshake on.
    pub fn replace(&self, listeners: &[ListenerCerts]) {
        self.resolver.table.store(Arc::new(Table::build(listeners)));
    }

    /// Whether a request for `host` belongs to another listener than the one whose certificate the client was shown:
    /// RFC 9110's 421 then tells it to open a connection of its own. Clients without SNI are never misdirected.
    pub fn is_misdirected(&self, sni: Option<&str>, host: &str) -> bool {
        let Some(sni) = sni else { return false };
        let table = self.resolver.table.load();
        table.listener(&lower(sni)) != table.listener(&lower(host))
    }
}

#[derive(Debug)]
struct Resolver {
    table: ArcSwap<Table>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.table.load();
        let name = hello.server_name().map(lower);
        let candidates = table.choose(name.as_deref());
        // Certificates of different key types may share a name: the first that this client can verify.
        candidates
            .iter()
            .find(|c| c.key.choose_scheme(hello.signature_schemes()).is_some())
            .or_else(|| candidates.first())
            .cloned()
    }
}

type Certs = Vec<Arc<CertifiedKey>>;

/// Every name, prepared for lookup. Built per reload, read per handshake.
#[derive(Debug, Default)]
struct Table {
    listeners: Vec<Names>,
    by_host: HashMap<Arc<str>, usize>,
    by_suffix: HashMap<Arc<str>, usize>,
    catch_all: Option<usize>,
}

/// The certificates of one listener.
#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Arc<str>, Certs>,
    /// `*.example.com` under `example.com`.
    wildcard: HashMap<Arc<str>, Certs>,
    /// In the order of the listener.
    all: Certs,
}

impl Table {
    fn build(listeners: &[ListenerCerts]) -> Self {
        let mut table = Self { by_host: HashMap::new(), by_suffix: HashMap::new(), ..Self::default() };
        for listener in listeners.iter().filter(|l| !l.certificates.is_empty()) {
            let next = table.listeners.len();
            // Two listeners with one hostname are one: Gateway API reports the conflict, the certificates add up.
            let index = match &listener.hostname {
                Some(Hostname::Exact(host)) => *table.by_host.entry(host.clone()).or_insert(next),
                Some(Hostname::Wildcard(suffix)) => *table.by_suffix.entry(suffix.clone()).or_insert(next),
                None => *table.catch_all.get_or_insert(next),
            };
            if index == next {
                table.listeners.push(Names::default());
            }
            if let Some(names) = table.listeners.get_mut(index) {
                listener.certificates.iter().for_each(|certificate| names.add(certificate));
            }
        }
        table
    }

    /// The listener for a lower-case name: exact, then the longest wildcard, then the one without a hostname.
    fn listener(&self, name: &str) -> Option<usize> {
        if let Some(index) = self.by_host.get(name) {
            return Some(*index);
        }
        let mut rest = name;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(index) = self.by_suffix.get(suffix) {
                return Some(*index);
            }
            rest = suffix;
        }
        self.catch_all
    }

    fn choose(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let index = name.map_or(self.catch_all, |name| self.listener(name)).or(self.catch_all).unwrap_or(0);
        let Some(listener) = self.listeners.get(index) else { return &[] };
        let Some(name) = name else { return &listener.all };
        if let Some(exact) = listener.exact.get(name) {
            return exact;
        }
        // A certificate's wildcard stands for exactly one label.
        name.split_once('.').and_then(|(_, suffix)| listener.wildcard.get(suffix)).unwrap_or(&listener.all)
    }
}

impl Names {
    fn add(&mut self, certificate: &LoadedCert) {
        for name in &certificate.dns_names {
            let slot = match name.strip_prefix("*.") {
                Some(suffix) => self.wildcard.entry(suffix.into()).or_default(),
                None => self.exact.entry(name.clone()).or_default(),
            };
            slot.push(certificate.certified.clone());
        }
        self.all.push(certificate.certified.clone());
    }
}

/// Lower case without a trailing dot. SNI is short, and this runs once per handshake.
fn lower(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests;
