//! `Service`, `Workload`, and references to services.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{Context, Document, Written, at::At, syntax, whereabouts};
use crate::{
    config::{Address, AppProtocol, Endpoint, Key, Service, ServiceMode, ServicePort, Workload},
    written,
};

pub(super) fn service(at: At<'_>, key: &Key, written: &written::ServiceSpec) -> Service {
    let mut cluster_ips: Vec<IpAddr> = Vec::new();
    for (i, text) in written.cluster_ips.iter().enumerate() {
        let at = at.field("clusterIPs").item(i);
        let Some(ip) = at.parse::<IpAddr>(text, "an IP address", "for instance 10.96.0.10 or fd00:96::10") else {
            continue;
        };
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            at.invalid(
                format!("{ip} cannot be a virtual address"),
                "use an address that nothing else has, for instance 10.96.0.10",
            );
        } else if cluster_ips.contains(&ip) {
            at.error("conflict", format!("{ip} is listed twice"), Some("remove one".into()));
        } else {
            cluster_ips.push(ip);
        }
    }
    Service {
        key: key.clone(),
        cluster_ips,
        mode: match written.mode {
            None | Some(written::ServiceMode::Auto) => ServiceMode::Auto,
            Some(written::ServiceMode::Proxy) => ServiceMode::Proxy,
            Some(written::ServiceMode::Direct) => ServiceMode::Direct,
        },
        fail_open: written.fail_open.unwrap_or(false),
        ports: ports(at.field("ports"), written.ports.as_deref().unwrap_or_default()),
        endpoints: endpoints(at.field("endpoints"), &written.endpoints),
    }
}

fn ports(at: At<'_>, written: &[written::ServicePort]) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, port) in written.iter().enumerate() {
        let at = at.item(i);
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() && written.len() > 1 && !at.wrote("name") {
            at.error("missing-field", "a port needs a name when there are several", Some("add name: http".into()));
        }
        if port.name.is_some()
            && let Err(reason) = syntax::label(name)
        {
            at.field("name").invalid(format!("{name:?} is not a port name: {reason}"), "for instance http");
        }
        let Some(number) = port.port else { continue };
        if ports.iter().any(|other| other.port == number) {
            at.field("port").error("conflict", format!("port {number} is listed twice"), Some("remove one".into()));
        }
        if !name.is_empty() && ports.iter().any(|other| &*other.name == name) {
            at.field("name").error("conflict", format!("port name {name:?} is used twice"), Some("rename one".into()));
        }
        use written::AppProtocol as P;
        let protocol = match port.app_protocol {
            None | Some(P::Http | P::KubernetesWs) => AppProtocol::Http,
            Some(P::Http2 | P::H2c | P::KubernetesH2c) => AppProtocol::Http2,
            Some(P::Grpc) => AppProtocol::Grpc,
            Some(P::Tcp) => AppProtocol::Tcp,
        };
        let declared = port.app_protocol.is_some();
        ports.push(ServicePort { name: name.into(), port: number, protocol, declared });
    }
    ports
}

fn endpoints(at: At<'_>, written: &[written::Endpoint]) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut seen: HashSet<(Address, u16)> = HashSet::new();
    for (i, endpoint) in written.iter().enumerate() {
        let at = at.item(i);
        let (Some(text), Some(port)) = (&endpoint.address, endpoint.port) else { continue };
        let address = match address(text) {
            Ok(address) => address,
            Err((message, hint)) => {
                at.field("address").invalid(message, hint);
                continue;
            }
        };
        let endpoint = Endpoint {
            address,
            port,
            weight: endpoint.weight.unwrap_or(1),
            zone: endpoint.zone.as_deref().map(Into::into),
            draining: false,
        };
        if !seen.insert((endpoint.address.clone(), port)) {
            let message = format!("endpoint {} port {port} is listed twice", endpoint.address);
            at.error("conflict", message, Some("remove one; use weight to give it a larger share".into()));
        }
        endpoints.push(endpoint);
    }
    endpoints
}

/// Where an endpoint is, or what is wrong with the text and a hint.
pub(crate) fn address(text: &str) -> Result<Address, (String, &'static str)> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
            Err((format!("{ip} is not the address of an endpoint"), "write the address it listens on"))
        }
        Ok(ip) => Ok(Address::Ip(ip)),
        Err(_) => {
            let name = text.to_ascii_lowercase();
            let digits = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            match syntax::subdomain(name.strip_suffix('.').unwrap_or(&name)) {
                Ok(()) if !digits => Ok(Address::Name(name.as_str().into())),
                result => {
                    let reason = result.err().unwrap_or("it has only digits and dots");
                    let message = format!("{text:?} is neither an IP address nor a name: {reason}");
                    Err((message, "for instance 10.0.0.7 or cart.internal; the port has its own field"))
                }
            }
        }
    }
}

/// One virtual address belongs to one service.
pub(super) fn conflicts(documents: &[Document], cx: &Context<'_>) {
    let mut owners: HashMap<IpAddr, &Document> = HashMap::new();
    for document in documents {
        let Written::Service(spec) = &document.written else { continue };
        let at = At::new(cx, document).field("spec").field("clusterIPs");
        for (i, text) in spec.cluster_ips.iter().enumerate() {
            let Ok(ip) = text.parse() else { continue };
            match owners.insert(ip, document) {
                Some(other) if other.key != document.key => {
                    let hint = format!("Service {} at {} has it", other.key, whereabouts(other));
                    at.item(i).error("conflict", format!("{ip} belongs to another Service"), Some(hint));
                }
                _ => {}
            }
        }
    }
}

pub(super) fn workload(at: At<'_>, key: &Key, written: &written::WorkloadSpec) -> Option<Workload> {
    if let Some(account) = &written.service_account
        && let Err(reason) = syntax::subdomain(account)
    {
        at.field("serviceAccount")
            .invalid(format!("{account:?} is not a name: {reason}"), "lower-case letters, digits and -");
    }
    let text = written.selector.as_ref()?.cgroup.as_deref()?;
    let cgroup = text.trim_matches('/');
    let at = at.field("selector").field("cgroup");
    if cgroup.is_empty() || cgroup.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        at.invalid(
            format!("{text:?} is not a cgroup path"),
            "a path below the attach point, for instance web or system.slice/web.service",
        );
    }
    Some(Workload {
        key: key.clone(),
        cgroup: cgroup.into(),
        service_account: written.service_account.as_deref().map(Into::into),
    })
}

/// The service that a backendRef or targetRef means; its kind and existence are checked.
pub(super) fn service_ref(
    at: At<'_>,
    group: Option<&str>,
    kind: Option<&str>,
    namespace: Option<&str>,
    name: &str,
) -> Option<Key> {
    if !matches!((group, kind), (None | Some("" | "core" | "weft.dev"), None | Some("Service"))) {
        let field = if matches!(kind, None | Some("Service")) { "group" } else { "kind" };
        let what = format!("{} of group {:?}", kind.unwrap_or("Service"), group.unwrap_or_default());
        at.field(field).unsupported(what, "use a Service: {group: weft.dev, kind: Service, name: …}");
        return None;
    }
    let key = at.key(namespace, name);
    if at.cx.refs && !at.cx.index.services.contains_key(&key) {
        let known: Vec<String> = at.cx.index.services.keys().map(|key| relative(at, key)).collect();
        at.field("name").unresolved("Service", &relative(at, &key), &known);
        return None;
    }
    Some(key)
}

/// Checks that a service has a port.
pub(super) fn port_ref(at: At<'_>, service: &Key, port: u16) {
    let Some(ports) = at.cx.index.services.get(service).filter(|_| at.cx.refs) else { return };
    if !ports.is_empty() && !ports.iter().any(|known| known.port == port) {
        let known: Vec<String> = ports.iter().map(|known| known.port.to_string()).collect();
        let hint = format!("its ports are: {}", known.join(", "));
        at.field("port").error("unresolved-reference", format!("Service {service} has no port {port}"), Some(hint));
    }
}

/// A key as the document would write it: without a namespace when it is the document's own.
pub(super) fn relative(at: At<'_>, key: &Key) -> String {
    match key.namespace == at.document.key.namespace {
        true => key.name.to_string(),
        false => format!("{}/{}", key.namespace, key.name),
    }
}
