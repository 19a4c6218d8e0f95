//! Endpoints by name: DNS and `/etc/hosts`, looked up again when the answer expires.
//!
//! **IPv4 or IPv6.** A name stands for its IPv4 addresses; its IPv6 addresses count only when it has none of the
//! other kind. Most names with both mean the same server twice, and a server that listens on one of them (as many do on
//! `127.0.0.1` but not on `::1`) must not fail half of the requests. Whoever wants both writes addresses.
//!
//! **Order of sources.** A literal address; `/etc/hosts`, which is read anew each time; `localhost` and names below it,
//! which are 127.0.0.1 without asking anybody (RFC 6761, section 6.3); DNS as `/etc/resolv.conf` says, search domains
//! included, without caring whether that file exists or changes.

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{IntoName, Name, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use tokio::{runtime::Handle, sync::watch};

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// An answer is used for at least and at most this long, whatever its TTL says.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// `/etc/hosts` has no TTL.
const HOSTS_TTL: Duration = Duration::from_secs(10);

/// After failures: the first wait, doubled up to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// For one resolution with all its attempts.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Sorted, without duplicates, never empty, all of one family.
    pub addresses: Vec<IpAddr>,
    /// How long it holds: between one second and five minutes.
    pub ttl: Duration,
}

/// Why a name has no addresses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// Not a domain name.
    #[error("not a domain name")]
    BadName,
    /// It does not exist, or has no addresses.
    #[error("no such name, or it has no address")]
    NoAddress,
    /// No DNS server is configured.
    #[error("not in /etc/hosts, and no DNS server is configured: {0}")]
    NoServer(NetError),
    /// No server gave a usable answer.
    #[error("DNS: {0}")]
    Dns(NetError),
    /// Nothing within 20 seconds.
    #[error("no answer from DNS within {TIMEOUT:?}")]
    TimedOut,
}

/// Resolves names. Cheap to clone.
#[derive(Clone)]
pub struct Resolver(Arc<Source>);

enum Source {
    /// As the system says.
    System(System),
    /// These servers, and no hosts file.
    Servers(Arc<TokioResolver>),
}

/// The resolver for the present content of a `resolv.conf`.
struct System {
    path: PathBuf,
    /// With the time of the file's last change.
    built: Mutex<Option<(Option<SystemTime>, Arc<TokioResolver>)>>,
}

impl Resolver {
    /// Resolves as the system's configuration says. Cannot fail: without a configuration, names in `/etc/hosts` and
    /// `localhost` still work.
    pub fn new() -> Self {
        Self(Arc::new(Source::System(System::new(RESOLV_CONF.into()))))
    }

    /// Asks only these servers, by UDP and TCP.
    pub fn with_servers(servers: &[SocketAddr]) -> Result<Self, ResolveError> {
        let server = |address: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            NameServerConfig::new(address.ip(), true, connections.into())
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        let resolver = build(config, ResolverOpts::default()).map_err(ResolveError::NoServer)?;
        Ok(Self(Arc::new(Source::Servers(Arc::new(resolver)))))
    }

    /// Resolves `name` once.
    pub async fn resolve(&self, name: &str) -> Result<Answer, ResolveError> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(Answer { addresses: vec![address], ttl: TTL.1 });
        }
        let parsed = name.into_name().map_err(|_| ResolveError::BadName)?;
        let dns = match &*self.0 {
            Source::Servers(resolver) => resolver.clone(),
            Source::System(system) => {
                if let Some(answer) = from_hosts(&parsed).await {
                    return Ok(answer);
                }
                if is_localhost(name) {
                    return Ok(Answer { addresses: vec![Ipv4Addr::LOCALHOST.into()], ttl: HOSTS_TTL });
                }
                system.resolver().map_err(ResolveError::NoServer)?
            }
        };
        let ask = async {
            match ask(&dns, &parsed, RecordType::A).await {
                // Only if there is none: an error must not turn IPv4 endpoints into IPv6 ones.
                Err(ResolveError::NoAddress) => ask(&dns, &parsed, RecordType::AAAA).await,
                answer => answer,
            }
        };
        tokio::time::timeout(TIMEOUT, ask).await.unwrap_or(Err(ResolveError::TimedOut))
    }

    /// Resolves `name` now and whenever the answer expires, on the runtime of `handle`, as long as a receiver is alive.
    ///
    /// The addresses are sorted; a change is signalled only if they differ. Empty means not yet known. When resolving
    /// fails, or the name vanishes, the last good answer stays and the next attempt comes after 1 to 30 seconds.
    pub fn watch(&self, handle: &Handle, name: &str) -> watch::Receiver<Vec<IpAddr>> {
        let (sender, receiver) = watch::channel(Vec::new());
        handle.spawn(follow(self.clone(), name.to_owned(), sender));
        receiver
    }
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new()
    }
}

async fn follow(resolver: Resolver, name: String, sender: watch::Sender<Vec<IpAddr>>) {
    let mut rng = fastrand::Rng::new();
    let mut failures = 0_u32;
    loop {
        let result = tokio::select! {
            result = resolver.resolve(&name) => result,
            () = sender.closed() => return,
        };
        let pause = match result {
            Ok(answer) => {
                if failures > 0 {
                    tracing::info!(name, addresses = ?answer.addresses, "resolved again");
                }
                failures = 0;
                sender.send_if_modified(|addresses| {
                    let differs = *addresses != answer.addresses;
                    if differs {
                        tracing::debug!(name, addresses = ?answer.addresses, "resolved");
                        *addresses = answer.addresses;
                    }
                    differs
                });
                // A moment later than exactly: the resolver's own cache still holds the answer at that instant.
                answer.ttl + Duration::from_millis(rng.u64(10..100))
            }
            Err(error) => {
                if failures == 0 {
                    let kept = sender.borrow().len();
                    tracing::warn!(name, %error, kept, "cannot be resolved; the last known addresses stay in use");
                }
                failures = failures.saturating_add(1);
                back_off(failures, &mut rng)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = sender.closed() => return,
        }
    }
}

/// Half to all of 1 s, 2 s, 4 s … 30 s.
fn back_off(failures: u32, rng: &mut fastrand::Rng) -> Duration {
    let most = RETRY.0.saturating_mul(1 << failures.saturating_sub(1).min(5)).min(RETRY.1);
    most.mul_f64(0.5 + rng.f64() / 2.0)
}

async fn ask(resolver: &TokioResolver, name: &Name, kind: RecordType) -> Result<Answer, ResolveError> {
    match resolver.lookup(name.clone(), kind).await {
        Ok(lookup) => {
            let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
            answer(&lookup, ttl).ok_or(ResolveError::NoAddress)
        }
        Err(error) if error.is_no_records_found() || error.is_nx_domain() => Err(ResolveError::NoAddress),
        Err(error) => Err(ResolveError::Dns(error)),
    }
}

fn answer(lookup: &Lookup, ttl: Duration) -> Option<Answer> {
    let mut addresses: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    (!addresses.is_empty()).then(|| Answer { addresses, ttl: ttl.clamp(TTL.0, TTL.1) })
}

async fn from_hosts(name: &Name) -> Option<Answer> {
    let hosts = tokio::task::spawn_blocking(Hosts::from_system).await.ok()?.ok()?;
    let find = |kind| answer(&hosts.lookup_static_host(&Query::query(name.to_lowercase(), kind))?, HOSTS_TTL);
    find(RecordType::A).or_else(|| find(RecordType::AAAA))
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

impl System {
    fn new(path: PathBuf) -> Self {
        Self { path, built: Mutex::new(None) }
    }

    fn resolver(&self) -> Result<Arc<TokioResolver>, NetError> {
        let changed = std::fs::metadata(&self.path).and_then(|file| file.modified()).ok();
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, resolver)) = &*built
            && *at == changed
        {
            return Ok(resolver.clone());
        }
        let read = || {
            let (config, options) = parse_resolv_conf(std::fs::read(&self.path)?)?;
            build(config, options)
        };
        match read() {
            Ok(resolver) => Ok(built.insert((changed, Arc::new(resolver))).1.clone()),
            // It is being written, perhaps: the old one serves until it can be read.
            Err(error) => built.as_ref().map(|(_, resolver)| resolver.clone()).ok_or(error),
        }
    }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, NetError> {
    options.use_hosts_file = ResolveHosts::Never;
    (options.positive_min_ttl, options.positive_max_ttl) = (Some(TTL.0), Some(TTL.1));
    // A name that appears is seen at the next attempt.
    options.negative_max_ttl = Some(Duration::from_millis(100));
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build()
}
