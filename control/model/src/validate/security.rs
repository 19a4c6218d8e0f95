//! `BackendTLSPolicy`, `AccessPolicy`, `TelemetryPolicy` and key material.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    at::At,
    service::{relative, service_ref},
    syntax,
};
use crate::{
    condition::Condition,
    config::{
        AccessAction, AccessLog, AccessPolicy, AccessRule, AccessSource, BackendTls, Certificate, CertificateKind, Key,
        LogFormat, Otlp, OtlpProtocol, Pem, SubjectAltName, Telemetry, Trust,
    },
    problem::{Diagnostic, Span},
    written::{self, Kind, SubjectAltNameType},
};

/// A reference of a listener to a certificate with its key.
pub(super) fn pair_ref(at: At<'_>, written: &written::CertificateRef) -> Option<Key> {
    let (kind, key) = material_ref(at, written, &[Kind::Secret, Kind::Certificate], Kind::Secret)?;
    let material = at.cx.index.material.get(&(kind, key.clone()));
    if material.is_some_and(|material| !material.pair) {
        let hint =
            if kind == Kind::Secret { "add tls.crt and tls.key to it" } else { "add certFile and keyFile to it" };
        at.field("name").error(
            "unresolved-reference",
            format!("{kind} {key} has no certificate with its key"),
            Some(hint.into()),
        );
    }
    Some(key)
}

fn ca_ref(at: At<'_>, written: &written::CertificateRef) -> Option<Key> {
    let (kind, key) = material_ref(at, written, &[Kind::ConfigMap, Kind::Secret, Kind::Certificate], Kind::ConfigMap)?;
    let material = at.cx.index.material.get(&(kind, key.clone()));
    if material.is_some_and(|material| !material.ca) {
        let hint = if kind == Kind::Certificate { "add caFile to it" } else { "add ca.crt to it" };
        at.field("name").error("unresolved-reference", format!("{kind} {key} has no CA bundle"), Some(hint.into()));
    }
    Some(key)
}

fn material_ref(at: At<'_>, written: &written::CertificateRef, kinds: &[Kind], default: Kind) -> Option<(Kind, Key)> {
    let name = written.name.as_deref()?;
    let kind = written.kind.as_deref().unwrap_or(default.name());
    // A Certificate is recognised without its group: no other group has one that Weft could mean.
    let group = written.group.as_deref().unwrap_or(if kind == "Certificate" { "weft.dev" } else { "" });
    let Some(kind) = kinds.iter().copied().find(|known| known.name() == kind && known.group() == group) else {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let field = if written.kind.is_some() { "kind" } else { "group" };
        let hint = format!("use one of {} (a Certificate has group: weft.dev)", names.join(", "));
        at.field(field).unsupported(format!("a reference to {kind} of group {group:?}"), &hint);
        return None;
    };
    let key = at.key(written.namespace.as_deref(), name);
    if at.cx.refs && !at.cx.index.material.contains_key(&(kind, key.clone())) {
        let known = at.cx.index.material.keys().filter(|(of, _)| *of == kind).map(|(_, key)| relative(at, key));
        at.field("name").unresolved(kind.name(), &relative(at, &key), &known.collect::<Vec<_>>());
    }
    Some((kind, key))
}

pub(super) fn backend_tls(at: At<'_>, key: &Key, written: &written::BackendTlsPolicySpec) -> Option<BackendTls> {
    let mut targets = Vec::new();
    for (i, target) in written.target_refs.iter().flatten().enumerate() {
        let at = at.field("targetRefs").item(i);
        let Some(name) = &target.name else { continue };
        let Some(service) = service_ref(at, target.group.as_deref(), target.kind.as_deref(), None, name) else {
            continue;
        };
        if let (Some(section), true, Some(ports)) =
            (&target.section_name, at.cx.refs, at.cx.index.services.get(&service))
            && !ports.is_empty()
            && !ports.iter().any(|port| port.name == *section)
        {
            let known: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            let hint = crate::suggest::hint(section, "its ports are", known);
            at.field("sectionName").error(
                "unresolved-reference",
                format!("Service {service} has no port named {section:?}"),
                hint,
            );
        }
        targets.push((service, target.section_name.as_deref().map(Into::into)));
    }
    let validation = written.validation.as_ref()?;
    let at = at.field("validation");
    let refs = &validation.ca_certificate_refs;
    let trust = match (validation.well_known_ca_certificates, refs.is_empty()) {
        (Some(_), true) => Trust::System,
        (None, false) => {
            let at = at.field("caCertificateRefs");
            Trust::Bundles(refs.iter().enumerate().filter_map(|(i, written)| ca_ref(at.item(i), written)).collect())
        }
        (Some(_), false) => {
            let hint = Some("remove one of them".to_owned());
            at.field("wellKnownCACertificates").error(
                "conflict",
                "caCertificateRefs and wellKnownCACertificates exclude each other",
                hint,
            );
            return None;
        }
        (None, true) => {
            if !at.wrote("caCertificateRefs") && !at.wrote("wellKnownCACertificates") {
                let hint = "add wellKnownCACertificates: System, or caCertificateRefs";
                at.error("missing-field", "validation says nothing about whom to trust", Some(hint.into()));
            }
            return None;
        }
    };
    let names = &validation.subject_alt_names;
    let names_at = at.field("subjectAltNames");
    let subject_alt_names =
        names.iter().enumerate().filter_map(|(i, name)| subject_alt_name(names_at.item(i), name)).collect();
    let hostname = at.field("hostname").hostname(validation.hostname.as_deref()?, false)?;
    Some(BackendTls { key: key.clone(), targets, hostname: hostname.to_string().into(), trust, subject_alt_names })
}

fn subject_alt_name(at: At<'_>, written: &written::SubjectAltName) -> Option<SubjectAltName> {
    match written.kind? {
        SubjectAltNameType::Hostname => {
            let Some(text) = &written.hostname else {
                at.field("type").error("missing-field", "type Hostname needs hostname", None);
                return None;
            };
            let hostname = at.field("hostname").hostname(text, true)?;
            Some(SubjectAltName::Hostname(hostname.to_string().into()))
        }
        SubjectAltNameType::URI => {
            let Some(text) = &written.uri else {
                at.field("type").error("missing-field", "type URI needs uri", None);
                return None;
            };
            if !text.contains("://") {
                at.field("uri")
                    .invalid(format!("{text:?} is not a URI"), "for instance spiffe://mesh.local/ns/default/sa/web");
            }
            Some(SubjectAltName::Uri(text.as_str().into()))
        }
    }
}

pub(super) fn access(at: At<'_>, key: &Key, written: &written::AccessPolicySpec) -> AccessPolicy {
    let mut services = Vec::new();
    for (i, target) in written.target_refs.iter().flatten().enumerate() {
        let at = at.field("targetRefs").item(i);
        if target.section_name.is_some() {
            at.field("sectionName")
                .unsupported("sectionName of an AccessPolicy", "the policy covers every port of the Service");
        }
        let Some(name) = &target.name else { continue };
        services.extend(service_ref(at, target.group.as_deref(), target.kind.as_deref(), None, name));
    }
    let rules_at = at.field("rules");
    let rules = written.rules.iter().enumerate().map(|(i, rule)| {
        let at = rules_at.item(i).field("from");
        let from = rule.from.as_deref().unwrap_or_default();
        AccessRule { from: from.iter().enumerate().map(|(i, written)| source(at.item(i), written)).collect() }
    });
    AccessPolicy {
        key: key.clone(),
        services,
        action: match written.action {
            None | Some(written::AccessAction::Allow) => AccessAction::Allow,
            Some(written::AccessAction::Deny) => AccessAction::Deny,
        },
        rules: rules.collect(),
    }
}

fn source(at: At<'_>, written: &written::AccessSource) -> AccessSource {
    let empty = written.workloads.is_empty() && written.ip_blocks.is_empty() && written.identities.is_empty();
    if empty && !at.lost_fields() {
        let hint = "add workloads, ipBlocks or identities; ipBlocks: [0.0.0.0/0, \"::/0\"] is everybody";
        at.error("missing-field", "a source says nothing about who it is", Some(hint.into()));
    }
    for (i, name) in written.workloads.iter().enumerate() {
        let key = at.key(None, name);
        if at.cx.refs && !at.cx.index.workloads.contains(&key) {
            let known: Vec<String> = at.cx.index.workloads.iter().map(|key| relative(at, key)).collect();
            at.field("workloads").item(i).unresolved("Workload", name, &known);
        }
    }
    let blocks = written.ip_blocks.iter().enumerate().filter_map(|(i, text)| match syntax::ip_block(text) {
        Ok(block) => Some(block),
        Err(reason) => {
            let at = at.field("ipBlocks").item(i);
            at.invalid(format!("{text:?} is not an IP block: {reason}"), "for instance 10.0.0.0/8 or fd00::/8");
            None
        }
    });
    let ip_blocks = blocks.collect();
    for (i, identity) in written.identities.iter().enumerate() {
        let path = identity.strip_prefix("spiffe://").filter(|rest| !rest.is_empty() && !rest.starts_with('/'));
        if path.is_none() {
            let at = at.field("identities").item(i);
            at.invalid(
                format!("{identity:?} is not a SPIFFE id"),
                "for instance spiffe://mesh.local/ns/default/sa/web",
            );
        }
    }
    let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect();
    AccessSource { workloads: texts(&written.workloads), ip_blocks, identities: texts(&written.identities) }
}

pub(super) fn telemetry(at: At<'_>, written: &written::TelemetryPolicySpec) -> Telemetry {
    let tracing = written.tracing.as_ref();
    let otlp = tracing.and_then(|tracing| tracing.otlp.as_ref());
    Telemetry {
        sample_percent: tracing.map_or(0.0, |tracing| tracing.sample_percent.unwrap_or(100.0)),
        otlp: otlp.and_then(|written| self::otlp(at.field("tracing").field("otlp"), written)),
        access_log: written.access_log.as_ref().map(|log| AccessLog {
            format: match log.format {
                None | Some(written::LogFormat::Json) => LogFormat::Json,
                Some(written::LogFormat::Text) => LogFormat::Text,
            },
            when: log.when.as_deref().and_then(|text| condition(at.field("accessLog").field("when"), text)),
        }),
    }
}

fn otlp(at: At<'_>, written: &written::Otlp) -> Option<Otlp> {
    let endpoint = written.endpoint.as_deref()?;
    let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    if !host
        .is_some_and(|host| !host.is_empty() && !host.starts_with(['/', ':']) && !host.contains(char::is_whitespace))
    {
        let message = format!("{endpoint:?} is not an endpoint");
        at.field("endpoint").invalid(message, "the scheme is needed, for instance http://127.0.0.1:4317");
        return None;
    }
    let protocol = match written.protocol {
        None | Some(written::OtlpProtocol::Grpc) => OtlpProtocol::Grpc,
        Some(written::OtlpProtocol::Http) => OtlpProtocol::Http,
    };
    Some(Otlp { endpoint: endpoint.into(), protocol })
}

fn condition(at: At<'_>, text: &str) -> Option<Condition> {
    match Condition::parse(text) {
        Ok(condition) => Some(condition),
        Err(error) => {
            // The place inside the text is known unless the text was folded or has escapes.
            let source = &at.document.source;
            let span = at.span();
            let written = source.text().get(span.start..span.end).unwrap_or_default();
            let span = match written.find(text) {
                Some(offset) => {
                    let start = span.start + offset + error.offset;
                    Span { start, end: start }
                }
                None => span,
            };
            at.cx.problems.push(Diagnostic::at(source, span, "invalid-condition", error.message, error.hint));
            None
        }
    }
}

pub(super) fn certificate(at: At<'_>, key: &Key, written: &written::CertificateSpec) -> Certificate {
    match (&written.cert_file, &written.key_file) {
        (Some(_), None) if !at.wrote("keyFile") => {
            at.error("missing-field", "certFile needs keyFile", Some("add keyFile".into()))
        }
        (None, Some(_)) if !at.wrote("certFile") => {
            at.error("missing-field", "keyFile needs certFile", Some("add certFile".into()))
        }
        (None, None) if written.ca_file.is_none() && !at.lost_fields() => {
            at.error(
                "missing-field",
                "this Certificate names no file",
                Some("add certFile and keyFile, or caFile".into()),
            );
        }
        _ => {}
    }
    let dir = &at.document.source.dir;
    let pem = |field: &str, path: &Option<String>| {
        let path = path.as_deref()?;
        if path.is_empty() {
            at.field(field).invalid(format!("{field} is empty"), "write the path of a PEM file");
        }
        Some(Pem::File(dir.join(path)))
    };
    Certificate {
        key: key.clone(),
        kind: CertificateKind::Certificate,
        chain: pem("certFile", &written.cert_file),
        private_key: pem("keyFile", &written.key_file),
        ca: pem("caFile", &written.ca_file),
    }
}

pub(super) fn secret(at: At<'_>, key: &Key, written: &written::Secret) -> Certificate {
    if !matches!(written.secret_type.as_deref(), None | Some("kubernetes.io/tls" | "Opaque")) {
        at.field("type").unsupported("a Secret of this type", "use type: kubernetes.io/tls");
    }
    let pem = |name: &str| -> Option<Pem> {
        if let Some(text) = written.string_data.get(name) {
            return inline(at.field("stringData").field(name), name, text);
        }
        let at = at.field("data").field(name);
        match syntax::base64(written.data.get(name)?).and_then(|bytes| String::from_utf8(bytes).ok()) {
            Some(text) => inline(at, name, &text),
            None => {
                at.invalid(
                    format!("{name} is not base64 of PEM text"),
                    "encode the file with base64 -w0, or put it into stringData",
                );
                None
            }
        }
    };
    let (chain, private_key, ca) = (pem("tls.crt"), pem("tls.key"), pem("ca.crt"));
    let has = |name| written.data.contains_key(name) || written.string_data.contains_key(name);
    let tls = written.secret_type.as_deref() == Some("kubernetes.io/tls");
    if has("tls.crt") != has("tls.key") || (tls || !has("ca.crt")) && !has("tls.crt") {
        at.field("metadata").field("name").error(
            "missing-field",
            "a Secret needs tls.crt and tls.key, or ca.crt",
            None,
        );
    }
    Certificate { key: key.clone(), kind: CertificateKind::Secret, chain, private_key, ca }
}

pub(super) fn config_map(at: At<'_>, key: &Key, written: &written::ConfigMap) -> Certificate {
    let data: &BTreeMap<String, String> = &written.data;
    let ca = match data.get("ca.crt") {
        Some(text) => inline(at.field("data").field("ca.crt"), "ca.crt", text),
        None => {
            at.field("metadata").field("name").error("missing-field", "a ConfigMap needs ca.crt in its data", None);
            None
        }
    };
    Certificate { key: key.clone(), kind: CertificateKind::ConfigMap, chain: None, private_key: None, ca }
}

/// PEM text in a document. The text itself is never part of a message.
fn inline(at: At<'_>, name: &str, text: &str) -> Option<Pem> {
    if !text.contains("-----BEGIN ") {
        at.invalid(format!("{name} is not PEM text"), "it starts with -----BEGIN …-----");
        return None;
    }
    Some(Pem::Inline(Arc::from(text)))
}
