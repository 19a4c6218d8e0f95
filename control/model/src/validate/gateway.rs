//! `Gateway`.

use std::net::IpAddr;

use super::{Context, Document, Written, at::At, security, syntax, whereabouts};
use crate::{
    config::{AllowedNamespaces, Gateway, Key, Listener, ListenerProtocol},
    written::{self, FromNamespaces, Protocol},
};

pub(super) fn gateway(at: At<'_>, key: &Key, written: &written::GatewaySpec) -> Option<Gateway> {
    let mut addresses = Vec::new();
    for (i, address) in written.addresses.iter().enumerate() {
        let Some(text) = &address.value else { continue };
        let at = at.field("addresses").item(i).field("value");
        if let Some(ip) = at.parse::<IpAddr>(text, "an IP address", "for instance 127.0.0.1, 0.0.0.0 or ::1") {
            if addresses.contains(&ip) {
                at.error("conflict", format!("{ip} is listed twice"), Some("remove one".into()));
            } else {
                addresses.push(ip);
            }
        }
    }
    let written = written.listeners.as_deref().unwrap_or_default();
    let at = at.field("listeners");
    let listeners = written.iter().enumerate().filter_map(|(i, written)| listener(at.item(i), written)).collect();
    Some(Gateway { key: key.clone(), addresses, listeners })
}

fn listener(at: At<'_>, written: &written::Listener) -> Option<Listener> {
    if let Some(name) = &written.name
        && let Err(reason) = syntax::subdomain(name)
    {
        at.field("name").invalid(format!("{name:?} is not a name: {reason}"), "lower-case letters, digits, - and .");
    }
    let hostname = written.hostname.as_deref().filter(|text| !text.is_empty());
    let hostname = hostname.and_then(|text| at.field("hostname").hostname(text, true));
    let protocol = written.protocol?;
    if protocol == Protocol::TCP && hostname.is_some() {
        at.field("hostname").invalid("a TCP listener has no hostname", "remove it; TCP carries no name to compare");
    }
    if protocol != Protocol::HTTPS && written.tls.is_some() {
        at.field("tls").invalid("only an HTTPS listener has tls", "use protocol: HTTPS, or remove tls");
    }
    let protocol = match protocol {
        Protocol::HTTP => ListenerProtocol::Http,
        Protocol::TCP => ListenerProtocol::Tcp,
        Protocol::HTTPS => ListenerProtocol::Https { certificates: certificates(at, written.tls.as_ref()) },
    };
    let from = written.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref()?.from);
    Some(Listener {
        name: written.name.as_deref()?.into(),
        hostname,
        port: written.port?,
        protocol,
        allowed_namespaces: match from {
            None | Some(FromNamespaces::Same) => AllowedNamespaces::Same,
            Some(FromNamespaces::All) => AllowedNamespaces::All,
        },
    })
}

fn certificates(at: At<'_>, tls: Option<&written::ListenerTls>) -> Vec<Key> {
    let refs = tls.map(|tls| tls.certificate_refs.as_slice()).unwrap_or_default();
    let tls = at.field("tls");
    if refs.is_empty() && !at.wrote("tls") || refs.is_empty() && !tls.wrote("certificateRefs") {
        let hint = "add tls: {certificateRefs: [{group: weft.dev, kind: Certificate, name: …}]}";
        at.field("protocol").error("missing-field", "an HTTPS listener needs tls.certificateRefs", Some(hint.into()));
    }
    let at = tls.field("certificateRefs");
    refs.iter().enumerate().filter_map(|(i, reference)| security::pair_ref(at.item(i), reference)).collect()
}

/// A listener among all listeners.
struct Bound<'a> {
    document: &'a Document,
    at: At<'a>,
    listener: &'a written::Listener,
    port: u16,
    protocol: Protocol,
}

/// Listeners that cannot both be bound or told apart.
pub(super) fn conflicts(documents: &[Document], cx: &Context<'_>) {
    let mut bound: Vec<Bound<'_>> = Vec::new();
    for document in documents {
        let Written::Gateway(spec) = &document.written else { continue };
        let at = At::new(cx, document).field("spec").field("listeners");
        for (i, listener) in spec.listeners.iter().flatten().enumerate() {
            let at = at.item(i);
            let same = bound
                .iter()
                .find(|other| same_object(other.document, document) && other.listener.name == listener.name);
            if let (Some(_), Some(name)) = (same, &listener.name) {
                let hint = Some("each listener of a Gateway has its own name".to_owned());
                at.field("name").error("conflict", format!("listener {name:?} is defined twice"), hint);
            }
            let (Some(port), Some(protocol)) = (listener.port, listener.protocol) else { continue };
            let this = Bound { document, at, listener, port, protocol };
            if let Some((other, message, field)) = bound.iter().find_map(|other| clash(&this, other)) {
                let name = other.listener.name.as_deref().unwrap_or_default();
                let hint =
                    format!("it clashes with listener {name:?} of the Gateway at {}", whereabouts(other.document));
                this.at.field(field).error("conflict", message, Some(hint));
            }
            bound.push(this);
        }
    }
}

fn clash<'a, 'b>(this: &Bound<'_>, other: &'b Bound<'a>) -> Option<(&'b Bound<'a>, String, &'static str)> {
    let overlap = match (&this.document.written, &other.document.written) {
        _ if same_object(this.document, other.document) => true,
        (Written::Gateway(a), Written::Gateway(b)) => {
            a.addresses.is_empty()
                || b.addresses.is_empty()
                || a.addresses.iter().any(|mine| {
                    b.addresses.iter().any(|theirs| mine.value == theirs.value || wild(mine) || wild(theirs))
                })
        }
        _ => false,
    };
    if this.port != other.port || !overlap {
        return None;
    }
    let port = this.port;
    if this.protocol != other.protocol {
        let message = format!("port {port} cannot speak both {:?} and {:?}", other.protocol, this.protocol);
        return Some((other, message, "protocol"));
    }
    if this.protocol == Protocol::TCP {
        return Some((other, format!("port {port} is bound twice for TCP"), "port"));
    }
    let name = |bound: &Bound<'_>| bound.listener.hostname.as_deref().unwrap_or_default().to_ascii_lowercase();
    if name(this) != name(other) {
        return None;
    }
    match name(this).as_str() {
        "" => Some((other, format!("port {port} has two listeners for every hostname"), "port")),
        host => Some((other, format!("port {port} has two listeners for {host:?}"), "hostname")),
    }
}

fn wild(address: &written::GatewayAddress) -> bool {
    address.value.as_deref().and_then(|text| text.parse::<IpAddr>().ok()).is_some_and(|ip| ip.is_unspecified())
}

fn same_object(a: &Document, b: &Document) -> bool {
    std::ptr::eq(a, b)
}
