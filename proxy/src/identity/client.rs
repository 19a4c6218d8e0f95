//! TLS towards endpoints, as a `BackendTLSPolicy` asks for it.
//!
//! The policy's hostname is the SNI and the name that the certificate must carry. Where `subjectAltNames` are given they
//! replace the hostname for authentication, as Gateway API demands, and may be URIs such as SPIFFE ids.

use std::{fmt, io, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InvalidMessage, OtherError, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};
use weft_model::config::{AppProtocol, BackendTls, SubjectAltName};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{ALPN_H2, ALPN_HTTP1, IdentityError, Problem, VERSIONS, files::span, provider};

/// Sessions remembered per policy and protocol; one per endpoint is what is needed.
const SESSIONS: usize = 256;

/// TLS to the endpoints of one policy. Shared by all workers.
pub struct ClientTls {
    name: ServerName<'static>,
    configs: ArcSwap<Configs>,
}

struct Configs {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    opaque: Arc<ClientConfig>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// TLS as `policy` wants it, trusting `roots`.
    pub fn new(policy: &BackendTls, roots: Arc<RootCertStore>) -> Result<Arc<Self>, IdentityError> {
        let name = ServerName::try_from(policy.hostname.to_string())
            .map_err(|_| error(policy, Problem::BadName(policy.hostname.to_string())))?;
        let configs = Configs::new(policy, roots).map_err(|problem| error(policy, problem))?;
        Ok(Arc::new(Self { name, configs: ArcSwap::from_pointee(configs) }))
    }

    /// Trusts `roots` from the next connection on. No session outlives the change: resuming one would skip the new roots.
    pub fn replace(&self, policy: &BackendTls, roots: Arc<RootCertStore>) -> Result<(), IdentityError> {
        let configs = Configs::new(policy, roots).map_err(|problem| error(policy, problem))?;
        self.configs.store(Arc::new(configs));
        Ok(())
    }

    /// What a connection that speaks `protocol` is made with: configuration as of now, and the name to ask for.
    pub fn parts(&self, protocol: AppProtocol) -> (Arc<ClientConfig>, ServerName<'static>) {
        let configs = self.configs.load();
        let config = match protocol {
            AppProtocol::Http => &configs.http1,
            AppProtocol::Http2 | AppProtocol::Grpc => &configs.http2,
            AppProtocol::Tcp => &configs.opaque,
        };
        (config.clone(), self.name.clone())
    }

    /// Encrypts `io`, a fresh connection to an endpoint that speaks `protocol`. The caller sets the deadline.
    pub async fn connect<IO>(&self, io: IO, protocol: AppProtocol) -> Result<TlsStream<IO>, ClientTlsError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let (config, name) = self.parts(protocol);
        let spoken = match protocol {
            AppProtocol::Http => "HTTP/1.1",
            AppProtocol::Http2 | AppProtocol::Grpc => "HTTP/2",
            AppProtocol::Tcp => "TCP",
        };
        let connected = TlsConnector::from(config).connect(name, io).await;
        let stream = connected.map_err(|error| ClientTlsError::classify(error, spoken))?;
        // RFC 9113, 3.2: HTTP/2 over TLS has to be agreed on, an endpoint that ignores ALPN speaks HTTP/1.1.
        if spoken == "HTTP/2" && stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(ClientTlsError::NoAlpn(spoken));
        }
        Ok(stream)
    }
}

impl Configs {
    fn new(policy: &BackendTls, roots: Arc<RootCertStore>) -> Result<Self, Problem> {
        let verifier = Arc::new(Verifier {
            roots,
            accepted: policy.subject_alt_names.clone(),
            algorithms: provider().signature_verification_algorithms,
        });
        let config = |alpn: &[&[u8]]| -> Result<Arc<ClientConfig>, Problem> {
            let mut config = ClientConfig::builder_with_provider(provider().clone())
                .with_protocol_versions(VERSIONS)
                .map_err(|error| Problem::Crypto(error.to_string()))?
                .dangerous()
                .with_custom_certificate_verifier(verifier.clone())
                .with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            config.resumption = Resumption::in_memory_sessions(SESSIONS);
            Ok(Arc::new(config))
        };
        Ok(Self { http1: config(&[ALPN_HTTP1])?, http2: config(&[ALPN_H2])?, opaque: config(&[])? })
    }
}

/// The CA certificates of the host, read on every call: the caller keeps them.
pub fn system_roots() -> Result<Arc<RootCertStore>, Problem> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added > 0 {
        return Ok(Arc::new(roots));
    }
    let reasons: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
    Err(Problem::NoSystemRoots(if reasons.is_empty() { "none found".into() } else { reasons.join("; ") }))
}

fn error(policy: &BackendTls, problem: Problem) -> IdentityError {
    IdentityError { certificate: policy.key.clone(), place: "BackendTLSPolicy".into(), problem }
}

/// Chain validation by webpki, then the names that the policy accepts.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    /// Empty: the server name itself.
    accepted: Vec<SubjectAltName>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Reasons of our own, carried through rustls.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("it is issued by `{0}`, which the policy does not trust")]
    UnknownIssuer(String),
    #[error("it is self-signed, and the policy does not trust it")]
    SelfSigned,
    #[error("it is for {presented}, not for {accepted}")]
    Names { presented: String, accepted: String },
    #[error("it carries several URI names beside a SPIFFE id")]
    AmbiguousSpiffe,
}

impl From<Rejected> for rustls::Error {
    fn from(rejected: Rejected) -> Self {
        CertificateError::Other(OtherError(Arc::new(rejected))).into()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)
            .map_err(|error| match error {
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => unknown_issuer(end_entity),
                other => other,
            })?;
        if self.accepted.is_empty() {
            verify_server_name(&parsed, server_name)?;
        } else {
            verify_alternatives(&parsed, end_entity, &self.accepted)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Says who issued it, which is what one needs to know next.
fn unknown_issuer(leaf: &CertificateDer<'_>) -> rustls::Error {
    match X509Certificate::from_der(leaf) {
        Ok((_, leaf)) if leaf.issuer() == leaf.subject() => Rejected::SelfSigned.into(),
        Ok((_, leaf)) => Rejected::UnknownIssuer(printable(&leaf.issuer().to_string())).into(),
        Err(_) => CertificateError::UnknownIssuer.into(),
    }
}

/// One of `accepted` has to be in the certificate.
fn verify_alternatives(
    parsed: &ParsedCertificate<'_>,
    leaf: &CertificateDer<'_>,
    accepted: &[SubjectAltName],
) -> Result<(), rustls::Error> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateError::BadEncoding)?;
    let names = leaf.subject_alternative_name().map_err(|_| CertificateError::BadEncoding)?;
    let names: &[GeneralName<'_>] = names.as_ref().map_or(&[], |names| &names.value.general_names);
    let dns = || names.iter().filter_map(|n| if let GeneralName::DNSName(name) = n { Some(*name) } else { None });
    let uris = || names.iter().filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None });
    let mut ambiguous = false;
    for name in accepted {
        let matches = match name {
            // A wildcard in the policy stands for one label, as it does in a certificate.
            SubjectAltName::Hostname(host) if host.starts_with("*.") => dns().any(|presented| {
                presented.eq_ignore_ascii_case(host)
                    || presented.split_once('.').is_some_and(|(label, suffix)| {
                        !label.is_empty() && !label.contains('*') && suffix.eq_ignore_ascii_case(&host[2..])
                    })
            }),
            SubjectAltName::Hostname(host) => {
                ServerName::try_from(host.to_string()).is_ok_and(|host| verify_server_name(parsed, &host).is_ok())
            }
            SubjectAltName::Uri(uri) => {
                let found = uris().any(|presented| presented == &**uri);
                // X.509-SVID, 5.2: exactly one URI, otherwise it is not clear who this is.
                let single = !uri.starts_with("spiffe://") || uris().count() == 1;
                ambiguous |= found && !single;
                found && single
            }
        };
        if matches {
            return Ok(());
        }
    }
    if ambiguous {
        return Err(Rejected::AmbiguousSpiffe.into());
    }
    let presented: Vec<String> = dns().chain(uris()).map(printable).collect();
    let accepted = accepted.iter().map(|name| match name {
        SubjectAltName::Hostname(name) | SubjectAltName::Uri(name) => name.to_string(),
    });
    Err(Rejected::Names { presented: list(presented), accepted: list(accepted.collect()) }.into())
}

/// Names come from the peer and end up in logs.
fn printable(name: &str) -> String {
    name.chars().take(256).flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// `a`, `b` and 3 more.
fn list(mut names: Vec<String>) -> String {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    match (names.is_empty(), more) {
        (true, _) => "no name".into(),
        (false, 0) => format!("`{}`", names.join("`, `")),
        (false, more) => format!("`{}` and {more} more", names.join("`, `")),
    }
}

/// Why there is no TLS connection to an endpoint. The text is the detail of `connect_failed`.
#[derive(Debug, thiserror::Error)]
pub enum ClientTlsError {
    /// The endpoint's certificate is not accepted.
    #[error("the endpoint's certificate is refused: {0}")]
    Certificate(String),
    /// The endpoint refused us.
    #[error("the endpoint ended the TLS handshake: {0}")]
    Refused(String),
    /// The endpoint speaks something else.
    #[error("the endpoint does not speak TLS on this port")]
    NotTls,
    /// The endpoint speaks TLS, but not the protocol of the service port.
    #[error("the endpoint does not offer {0} over TLS (ALPN): check the port's appProtocol")]
    NoAlpn(&'static str),
    /// The endpoint closed the connection.
    #[error("the endpoint closed the connection during the TLS handshake")]
    Closed,
    /// Any other breach of protocol.
    #[error("TLS with the endpoint failed: {0}")]
    Tls(rustls::Error),
    /// The socket failed.
    #[error("connection failed during the TLS handshake: {0}")]
    Io(io::Error),
}

impl ClientTlsError {
    fn classify(error: io::Error, spoken: &'static str) -> Self {
        use rustls::Error as E;
        let kind = error.kind();
        match error.downcast::<rustls::Error>() {
            Ok(E::InvalidCertificate(reason)) => Self::Certificate(explain(&reason)),
            Ok(E::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => Self::NoAlpn(spoken),
            Ok(E::AlertReceived(alert)) => Self::Refused(format!("{alert:?}")),
            Ok(E::InvalidMessage(
                InvalidMessage::InvalidContentType
                | InvalidMessage::UnknownProtocolVersion
                | InvalidMessage::MessageTooLarge,
            )) => Self::NotTls,
            Ok(error) => Self::Tls(error),
            Err(_) if matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => Self::Closed,
            Err(_) if kind == io::ErrorKind::BrokenPipe => Self::Closed,
            Err(error) => Self::Io(error),
        }
    }
}

/// In words, with the facts at hand.
fn explain(error: &CertificateError) -> String {
    use CertificateError as E;
    let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    let apart = |a: UnixTime, b: UnixTime| span(std::time::Duration::from_secs(a.as_secs().abs_diff(b.as_secs())));
    match error {
        E::NotValidForNameContext { expected, presented } => {
            let presented = presented.iter().map(|name| printable(&plain(name))).collect();
            format!("it is for {}, not for `{}`", list(presented), expected.to_str())
        }
        E::ExpiredContext { not_after, .. } => format!("it expired {} ago", apart(now, *not_after)),
        E::NotValidYetContext { not_before, .. } => {
            format!("it is not valid yet, only {} from now: compare the clocks", apart(now, *not_before))
        }
        E::Other(OtherError(reason)) if reason.to_string() == "CaUsedAsEndEntity" => {
            "it is a CA certificate: the endpoint needs one with `basicConstraints CA:FALSE`, issued by that CA".into()
        }
        E::Other(OtherError(reason)) => reason.to_string(),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "it may not be used by servers (extendedKeyUsage without serverAuth)".into()
        }
        other => other.to_string(),
    }
}

/// webpki presents names in its debug form, `DnsName("a.example")`.
fn plain(name: &str) -> String {
    name.split('"').nth(1).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests;
