//! The validated form: what the rest of Weft sees.
//!
//! Everything here has passed the checks of `crate::validate`: references by name are well formed (and, for a
//! complete configuration, resolve), regular expressions compile, numbers are in range, durations are parsed. Nothing
//! here does I/O. All of it is plain data, cheap to compare and to clone.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

pub use crate::policy::*;

/// What SPIFFE ids of this mesh begin with, after `spiffe://`.
pub const TRUST_DOMAIN: &str = "mesh.local";

/// Namespace and name of an object. `default` is the namespace of a document that names none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Key {
    /// Namespace, `default` when the document names none.
    pub namespace: Arc<str>,
    /// Name, unique per kind and namespace.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    /// `cart`, or `payments/cart` outside the `default` namespace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if &*self.namespace == "default" {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A complete, valid configuration.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Config {
    /// Explicit listeners.
    pub gateways: Vec<Gateway>,
    /// HTTPRoutes and GRPCRoutes, in the order in which they were read.
    pub http_routes: Vec<HttpRoute>,
    /// TCPRoutes.
    pub tcp_routes: Vec<TcpRoute>,
    /// Services and their endpoints. Shared, because a new configuration has most of them from the one before: what is the
    /// same value needs no second look.
    pub services: Vec<Arc<Service>>,
    /// TrafficPolicies, not yet merged: see [`Config::policy_for`].
    pub traffic_policies: Vec<TrafficPolicy>,
    /// TLS towards upstreams.
    pub backend_tls: Vec<BackendTls>,
    /// Who may talk to whom.
    pub access_policies: Vec<AccessPolicy>,
    /// Workloads of the node, found by cgroup.
    pub workloads: Vec<Workload>,
    /// Tracing and access log; defaults when no TelemetryPolicy is given.
    pub telemetry: Telemetry,
    /// Where each piece of key material named by a listener or policy comes from.
    pub certificates: Vec<Certificate>,
}

/// `Gateway`: a set of listeners.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Gateway {
    /// Identity.
    pub key: Key,
    /// Addresses to bind; empty means every address of the host, IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
    /// At least one.
    pub listeners: Vec<Listener>,
}

/// One listener of a Gateway. Several listeners may share a port when their hostnames differ.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Listener {
    /// Unique within the Gateway; what `sectionName` refers to.
    pub name: Arc<str>,
    /// Restricts the hostnames served; `None` is every hostname.
    pub hostname: Option<Hostname>,
    /// TCP port.
    pub port: u16,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// Which namespaces' routes may attach.
    pub allowed_namespaces: AllowedNamespaces,
}

/// Protocol of a listener.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum ListenerProtocol {
    /// Cleartext HTTP/1.1 and HTTP/2 with prior knowledge.
    Http,
    /// HTTP over TLS terminated here; the keys name [`Certificate`]s, first is the default.
    Https {
        /// Keys of the certificates, chosen by SNI.
        certificates: Vec<Key>,
    },
    /// Opaque bytes to the backend of a TCPRoute.
    Tcp,
}

/// `allowedRoutes.namespaces.from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum AllowedNamespaces {
    /// Only routes in the Gateway's namespace (Gateway API's default).
    Same,
    /// Routes of every namespace.
    All,
}

/// A Gateway API hostname: exact, or with one leading wildcard label. Always lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub enum Hostname {
    /// `shop.example.com`
    Exact(Arc<str>),
    /// `*.example.com`, kept as `example.com`: matches one or more labels before it, never the bare suffix.
    Wildcard(Arc<str>),
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// What a route attaches to.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum ParentRef {
    /// Listeners of a Gateway: all, or those chosen by section name and port.
    Gateway {
        /// The Gateway.
        key: Key,
        /// `sectionName`: the listener's name.
        section: Option<Arc<str>>,
        /// `port`: every listener on this port.
        port: Option<u16>,
    },
    /// Mesh binding (GAMMA): connections to this Service that the kernel captured.
    Service {
        /// The Service.
        key: Key,
        /// One port of it, or all.
        port: Option<u16>,
    },
}

/// HTTPRoute or GRPCRoute; both become the same rules.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HttpRoute {
    /// Identity.
    pub key: Key,
    /// Which kind was written. An HTTPRoute and a GRPCRoute may share a name.
    pub kind: RouteKind,
    /// Where it attaches.
    pub parents: Vec<ParentRef>,
    /// Empty: every hostname of the parent.
    pub hostnames: Vec<Hostname>,
    /// In the order of the document (the last tie-breaker of precedence).
    pub rules: Vec<HttpRule>,
    /// `metadata.creationTimestamp` as written (RFC 3339 sorts as text); older routes win ties.
    pub created: Option<Arc<str>>,
}

/// The kind of a route that carries HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum RouteKind {
    /// HTTPRoute
    Http,
    /// GRPCRoute
    Grpc,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HttpRule {
    /// `name`, if given.
    pub name: Option<Arc<str>>,
    /// Any of these may match; never empty (an omitted list is one match of everything).
    pub matches: Vec<HttpMatch>,
    /// In the order written.
    pub filters: Vec<Filter>,
    /// Weighted. Empty is allowed only together with a redirect, otherwise requests get 500-class replies.
    pub backends: Vec<BackendRef>,
    /// `timeouts.request`: the whole request. `Some(ZERO)` switches the time-out off.
    pub request_timeout: Option<Duration>,
    /// `timeouts.backendRequest`: one attempt. `Some(ZERO)` switches it off.
    pub backend_timeout: Option<Duration>,
    /// `retry` of HTTPRoute.
    pub retry: Option<RuleRetry>,
}

/// `HTTPRoute.rules[].retry`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RuleRetry {
    /// Attempts after the first.
    pub attempts: Option<u32>,
    /// Least wait between two attempts.
    pub backoff: Option<Duration>,
    /// Status codes to retry on.
    pub codes: Vec<u16>,
}

/// Everything given must match.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct HttpMatch {
    /// Path; `PathPrefix /` when omitted.
    pub path: PathMatch,
    /// Names in lower case; each name once (Gateway API: the first of equal names counts).
    pub headers: Vec<NamedMatch>,
    /// Names compared exactly; each name once.
    pub query: Vec<NamedMatch>,
    /// Method, upper case.
    pub method: Option<Arc<str>>,
}

/// How a path matches. Paths start with `/`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum PathMatch {
    /// The whole path, case sensitive.
    Exact(Arc<str>),
    /// Whole segments: `/abc` matches `/abc` and `/abc/d`, not `/abcd`. Kept without a trailing `/` except `/` itself.
    Prefix(Arc<str>),
    /// RE2-style expression, matched against the whole path.
    Regex(Arc<str>),
}

/// A header or query parameter to match.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NamedMatch {
    /// Header name (lower case) or parameter name.
    pub name: Arc<str>,
    /// What its value has to be.
    pub value: ValueMatch,
}

/// How a value matches.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum ValueMatch {
    /// Equal.
    Exact(Arc<str>),
    /// RE2-style expression, matched against the whole value.
    Regex(Arc<str>),
}

/// What a rule does to a request besides forwarding it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum Filter {
    /// RequestHeaderModifier
    RequestHeaders(HeaderModifier),
    /// ResponseHeaderModifier
    ResponseHeaders(HeaderModifier),
    /// RequestRedirect
    Redirect(Redirect),
    /// URLRewrite
    Rewrite(Rewrite),
    /// RequestMirror
    Mirror(Mirror),
}

/// Headers that no filter may touch: they say where a message ends, or are about one connection, which is Weft's own.
pub const OF_CONNECTION: [&str; 8] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/// Applied in the order set, add, remove. Names in lower case and valid, values valid header values.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct HeaderModifier {
    /// Overwrites.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Appends.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Removes.
    pub remove: Vec<Arc<str>>,
}

/// RequestRedirect. Omitted parts are those of the request.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Arc<str>>,
    /// Replaces the host.
    pub hostname: Option<Arc<str>>,
    /// Replaces the path.
    pub path: Option<PathModifier>,
    /// Replaces the port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308; 302 when omitted.
    pub status: u16,
}

/// URLRewrite.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Rewrite {
    /// Replaces `Host`.
    pub hostname: Option<Arc<str>>,
    /// Replaces the path.
    pub path: Option<PathModifier>,
}

/// How a path is changed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum PathModifier {
    /// The whole path; the query stays.
    ReplaceFullPath(Arc<str>),
    /// The prefix that matched (the rule has only PathPrefix matches then).
    ReplacePrefixMatch(Arc<str>),
}

/// RequestMirror: a copy of a share of the requests, its answer ignored.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Mirror {
    /// Where the copy goes.
    pub service: Key,
    /// Port of that service.
    pub port: u16,
    /// Share as a fraction; 1/1 when omitted.
    pub numerator: u32,
    /// Never 0.
    pub denominator: u32,
}

/// One weighted backend.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BackendRef {
    /// The Service.
    pub service: Key,
    /// One of its ports.
    pub port: u16,
    /// 0 gets no traffic; 1 when omitted.
    pub weight: u32,
    /// Only header modifiers, redirects and rewrites are allowed here.
    pub filters: Vec<Filter>,
}

/// TCPRoute: one rule with weighted backends.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TcpRoute {
    /// Identity.
    pub key: Key,
    /// Where it attaches.
    pub parents: Vec<ParentRef>,
    /// Weighted; filters are empty.
    pub backends: Vec<BackendRef>,
    /// As for HTTPRoute.
    pub created: Option<Arc<str>>,
}

/// `weft.dev` Service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Service {
    /// Identity.
    pub key: Key,
    /// Virtual addresses that the kernel programs classify.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether captured connections need the proxy.
    pub mode: ServiceMode,
    /// What happens to captured connections when the proxy is down.
    pub fail_open: bool,
    /// At least one.
    pub ports: Vec<ServicePort>,
    /// May be empty.
    pub endpoints: Vec<Endpoint>,
}

impl Service {
    /// Whether captured connections to this port go through the proxy, and not directly to an endpoint.
    pub fn is_proxied(&self, port: &ServicePort) -> bool {
        match self.mode {
            ServiceMode::Auto => port.protocol != AppProtocol::Tcp,
            ServiceMode::Proxy => true,
            ServiceMode::Direct => false,
        }
    }
}

/// `Service.spec.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum ServiceMode {
    /// Proxy for HTTP protocols, Direct for tcp.
    Auto,
    /// Always through the proxy.
    Proxy,
    /// Balanced in the kernel.
    Direct,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ServicePort {
    /// Unique within the service when there are several.
    pub name: Arc<str>,
    /// The port that clients use.
    pub port: u16,
    /// What the endpoints speak.
    pub protocol: AppProtocol,
    /// `appProtocol` was written. Where it was not, `protocol` is a guess: what a captured connection carries is known
    /// once somebody has said something on it.
    pub declared: bool,
}

/// What an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum AppProtocol {
    /// HTTP/1.1 (`http`, also `kubernetes.io/ws`).
    Http,
    /// HTTP/2 with prior knowledge (`h2c`, `http2`, `kubernetes.io/h2c`).
    Http2,
    /// gRPC over HTTP/2 with prior knowledge (`grpc`).
    Grpc,
    /// Opaque (`tcp`).
    Tcp,
}

/// One endpoint of a Service.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Endpoint {
    /// IP address, or a name to resolve.
    pub address: Address,
    /// Port on that address.
    pub port: u16,
    /// Relative share, 1 when omitted, 0 for none.
    pub weight: u32,
    /// Zone, for zone-aware balancing.
    pub zone: Option<Arc<str>>,
    /// It finishes what it has and gets nothing new. Only an endpoint that registered itself says this.
    pub draining: bool,
}

impl Endpoint {
    /// Its share of what is new: its weight, unless it drains.
    pub fn share(&self) -> u32 {
        if self.draining { 0 } else { self.weight }
    }
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Address {
    /// Known.
    Ip(IpAddr),
    /// Resolved, and resolved again by TTL.
    Name(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `BackendTLSPolicy`: TLS from Weft to the endpoints of a service.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct BackendTls {
    /// Identity.
    pub key: Key,
    /// The services, and for each the port name (`sectionName`) if only one port is meant.
    pub targets: Vec<(Key, Option<Arc<str>>)>,
    /// SNI and the name that the certificate must carry.
    pub hostname: Arc<str>,
    /// Whom to trust.
    pub trust: Trust,
    /// Names accepted instead of `hostname` (`subjectAltNames`).
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// `subjectAltNames[]` of a BackendTLSPolicy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub enum SubjectAltName {
    /// A DNS name, possibly with a leading wildcard.
    Hostname(Arc<str>),
    /// A URI, for instance a SPIFFE id.
    Uri(Arc<str>),
}

/// Trust anchors.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub enum Trust {
    /// `wellKnownCACertificates: System`.
    System,
    /// `caCertificateRefs`: keys of [`Certificate`]s of which the CA bundle is used.
    Bundles(Vec<Key>),
}

/// Key material. Written as a `weft.dev` Certificate (files, re-read when they change), a core `Secret`
/// (`kubernetes.io/tls`) or a core `ConfigMap` with `ca.crt`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Certificate {
    /// Identity; the three kinds share one name space here because references name the kind.
    pub key: Key,
    /// Which kind of document it came from.
    pub kind: CertificateKind,
    /// Certificate chain, PEM, leaf first.
    pub chain: Option<Pem>,
    /// Private key, PEM.
    pub private_key: Option<Pem>,
    /// CA bundle, PEM.
    pub ca: Option<Pem>,
}

/// The document kind behind a [`Certificate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum CertificateKind {
    /// `weft.dev/v1alpha1` Certificate
    Certificate,
    /// `v1` Secret
    Secret,
    /// `v1` ConfigMap
    ConfigMap,
}

/// Where PEM text is.
#[derive(Clone, PartialEq, serde::Serialize)]
#[serde(into = "String")]
pub enum Pem {
    /// In a file; relative paths were resolved against the directory of the document.
    File(PathBuf),
    /// In the document itself.
    Inline(Arc<str>),
}

impl From<Pem> for String {
    /// Never gives key material away.
    fn from(pem: Pem) -> Self {
        match pem {
            Pem::File(path) => path.display().to_string(),
            Pem::Inline(text) => format!("({} bytes in the document)", text.len()),
        }
    }
}

impl fmt::Debug for Pem {
    /// Never prints key material.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Inline(text) => write!(f, "Inline({} bytes)", text.len()),
        }
    }
}

/// `AccessPolicy`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AccessPolicy {
    /// Identity.
    pub key: Key,
    /// The services it protects.
    pub services: Vec<Key>,
    /// What a matching rule means.
    pub action: AccessAction,
    /// Any rule may match.
    pub rules: Vec<AccessRule>,
}

/// `AccessPolicy.spec.action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum AccessAction {
    /// Matching sources are let in, everybody else is refused.
    Allow,
    /// Matching sources are refused.
    Deny,
}

/// One rule of an AccessPolicy: sources that match any of its entries.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AccessRule {
    /// `from[]`.
    pub from: Vec<AccessSource>,
}

/// `from[]`: everything given must match.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct AccessSource {
    /// Names of Workloads.
    pub workloads: Vec<Arc<str>>,
    /// Source addresses as prefixes.
    pub ip_blocks: Vec<(IpAddr, u8)>,
    /// SPIFFE ids.
    pub identities: Vec<Arc<str>>,
}

/// `Workload`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Workload {
    /// Identity.
    pub key: Key,
    /// cgroup2 path, relative to the attach point.
    pub cgroup: Arc<str>,
    /// Last part of its SPIFFE id.
    pub service_account: Option<Arc<str>>,
}

impl Workload {
    /// Its SPIFFE id, if it has a service account.
    pub fn identity(&self) -> Option<String> {
        let account = self.service_account.as_ref()?;
        Some(format!("spiffe://{TRUST_DOMAIN}/ns/{}/sa/{account}", self.key.namespace))
    }
}

/// Tracing and access log.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Telemetry {
    /// 0–100; requests that arrive with a sampling decision keep it. 100 when there is no policy but an exporter is set
    /// by environment.
    pub sample_percent: f64,
    /// Where spans go; `None` keeps them on the node.
    pub otlp: Option<Otlp>,
    /// `None`: no access log.
    pub access_log: Option<AccessLog>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { sample_percent: 0.0, otlp: None, access_log: None }
    }
}

/// OTLP exporter.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Otlp {
    /// `http://host:port`, scheme required.
    pub endpoint: Arc<str>,
    /// Transport.
    pub protocol: OtlpProtocol,
}

/// OTLP transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum OtlpProtocol {
    /// OTLP/gRPC, usually port 4317.
    Grpc,
    /// OTLP/HTTP with protobuf, usually port 4318.
    Http,
}

/// Access log.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct AccessLog {
    /// How a line looks.
    pub format: LogFormat,
    /// Which requests are logged; `None` is all of them.
    #[serde(serialize_with = "condition")]
    pub when: Option<crate::condition::Condition>,
}

fn condition<S: serde::Serializer>(
    when: &Option<crate::condition::Condition>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match when {
        Some(when) => serializer.collect_str(&format_args!("{when:?}")),
        None => serializer.serialize_none(),
    }
}

/// Format of the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// One readable line.
    Text,
}
