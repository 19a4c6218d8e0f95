//! TLS of listeners and towards upstreams, as far as files say it: no key goes over the wire.

use std::{path::Path, sync::Arc};

use weft_model::config::{
    AppProtocol, BackendTls, Certificate, Config, Key, Pem, Service, ServicePort, SubjectAltName, Trust,
};

use super::{World, wire, wire::Typed};

const SOCKET: &str = "envoy.transport_sockets.tls";

/// TLS that a listener ends, with certificates of these keys.
///
/// # Errors
/// When a certificate is not in files.
pub(super) fn downstream(config: &Config, keys: &[Key]) -> Result<wire::TransportSocket, String> {
    let certificates: Result<Vec<_>, String> = keys.iter().map(|key| pair(config, key)).collect();
    let tls = wire::CommonTls {
        tls_certificates: certificates?,
        validation_context: None,
        alpn_protocols: ["h2", "http/1.1"].map(str::to_owned).into(),
    };
    Ok(socket(&wire::DownstreamTlsContext { common_tls_context: Some(tls) }))
}

fn pair(config: &Config, key: &Key) -> Result<wire::TlsCertificate, String> {
    let certificate = find(config, key)?;
    let in_file = |pem: &Option<Pem>, what: &str| match pem {
        Some(Pem::File(path)) => file(path),
        Some(Pem::Inline(_)) => {
            Err(format!("the {what} of {key} is in the document: no key goes over the wire, so write files"))
        }
        None => Err(format!("{key} has no {what}")),
    };
    Ok(wire::TlsCertificate {
        certificate_chain: Some(in_file(&certificate.chain, "certificate")?),
        private_key: Some(in_file(&certificate.private_key, "private key")?),
    })
}

/// TLS towards a service port, if a BackendTLSPolicy wants it.
///
/// # Errors
/// When the client could not verify it.
pub(super) fn upstream(
    world: &World<'_>,
    service: &Service,
    port: &ServicePort,
) -> Result<Option<wire::TransportSocket>, String> {
    let Some(policy) = policy_for(world.config, &service.key, port) else { return Ok(None) };
    let trusted = match &policy.trust {
        Trust::System => return Err("its TLS trusts the system, whose roots Envoy has to be told: name a CA".into()),
        Trust::Bundles(keys) => match &**keys {
            [key] => bundle(find(world.config, key)?, key)?,
            _ => return Err("its TLS trusts several bundles of which Envoy takes one: put them into one file".into()),
        },
    };
    let dns = |name: &Arc<str>| san(wire::SanType::Dns, name);
    let names = match &*policy.subject_alt_names {
        [] => vec![dns(&policy.hostname)],
        names => names
            .iter()
            .map(|name| match name {
                SubjectAltName::Hostname(name) => dns(name),
                SubjectAltName::Uri(uri) => san(wire::SanType::Uri, uri),
            })
            .collect(),
    };
    let http2 = matches!(port.protocol, AppProtocol::Http2 | AppProtocol::Grpc);
    let alpn: &[&str] = match port.protocol {
        AppProtocol::Tcp => &[],
        _ if http2 => &["h2"],
        _ => &["http/1.1"],
    };
    let tls = wire::CommonTls {
        tls_certificates: Vec::new(),
        validation_context: Some(wire::Validation { trusted_ca: Some(trusted), match_typed_subject_alt_names: names }),
        alpn_protocols: alpn.iter().copied().map(str::to_owned).collect(),
    };
    let context = wire::UpstreamTlsContext { common_tls_context: Some(tls), sni: policy.hostname.to_string() };
    Ok(Some(socket(&context)))
}

/// The BackendTLSPolicy for a port: one that names the port wins over one that does not.
fn policy_for<'c>(config: &'c Config, service: &Key, port: &ServicePort) -> Option<&'c BackendTls> {
    let find = |wanted: &dyn Fn(&Option<Arc<str>>) -> bool| {
        config.backend_tls.iter().find(|tls| tls.targets.iter().any(|(key, section)| key == service && wanted(section)))
    };
    find(&|section| section.as_ref() == Some(&port.name)).or_else(|| find(&|section| section.is_none()))
}

fn find<'c>(config: &'c Config, key: &Key) -> Result<&'c Certificate, String> {
    config.certificates.iter().find(|one| one.key == *key).ok_or_else(|| format!("there is no certificate {key}"))
}

/// A CA's certificates are no secret: they may come along.
fn bundle(certificate: &Certificate, key: &Key) -> Result<wire::DataSource, String> {
    match &certificate.ca {
        Some(Pem::File(path)) => file(path),
        Some(Pem::Inline(text)) => Ok(wire::DataSource { specifier: Some(wire::Data::Inline(text.to_string())) }),
        None => Err(format!("{key} has no CA")),
    }
}

/// A file on the client's machine.
fn file(path: &Path) -> Result<wire::DataSource, String> {
    match path.to_str().filter(|_| path.is_absolute()) {
        Some(path) => Ok(wire::DataSource { specifier: Some(wire::Data::Filename(path.to_owned())) }),
        None => Err(format!("{} is a place only relative to the document: write a path from /", path.display())),
    }
}

fn san(kind: wire::SanType, name: &Arc<str>) -> wire::SanMatcher {
    let pattern = Some(wire::TextMatch::Exact(name.to_string()));
    wire::SanMatcher { san_type: kind.into(), matcher: Some(wire::StringMatcher { pattern }) }
}

fn socket(context: &impl Typed) -> wire::TransportSocket {
    wire::TransportSocket { name: SOCKET.to_owned(), typed_config: Some(context.any()) }
}
