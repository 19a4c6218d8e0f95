//! Routes bound to a Service: whether the connections that they mean are captured, and come to the proxy.

use std::collections::HashMap;

use super::{At, Context, Document, Written, service::relative};
use crate::{
    config::{AppProtocol, Config, Key, Service, ServiceMode, ServicePort},
    written::ParentRef,
};

/// Tells of parents of kind Service that bring a route no traffic.
pub(super) fn unreached(documents: &[Document], config: &Config, cx: &Context<'_>) {
    // Without references, the service may be in another file.
    if !cx.refs {
        return;
    }
    let mut services: HashMap<&Key, &Service> = HashMap::new();
    for document in documents {
        let (parents, tcp): (&[ParentRef], bool) = match &document.written {
            Written::HttpRoute(spec) => (&spec.parent_refs, false),
            Written::GrpcRoute(spec) => (&spec.parent_refs, false),
            Written::TcpRoute(spec) => (&spec.parent_refs, true),
            _ => continue,
        };
        let at = At::new(cx, document).field("spec").field("parentRefs");
        for (i, parent) in parents.iter().enumerate().filter(|(_, parent)| parent.kind.as_deref() == Some("Service")) {
            if services.is_empty() {
                services.extend(config.services.iter().map(|service| (&service.key, &**service)));
            }
            let at = at.item(i);
            let Some(name) = parent.name.as_deref() else { continue };
            let Some(service) = services.get(&at.key(parent.namespace.as_deref(), name)) else { continue };
            let of = relative(at, &service.key);
            if service.key.namespace != document.key.namespace {
                let message =
                    format!("only routes of its own namespace count for Service {of}: this one has no effect on it");
                at.field("namespace").warn(
                    "contradictory",
                    message,
                    Some("put the route into the Service's namespace".into()),
                );
                continue;
            }
            if service.cluster_ips.is_empty() {
                let message = format!("Service {of} has no clusterIPs: no connection to it is captured for this route");
                let hint = "add clusterIPs to the Service, or attach the route to a Gateway";
                at.field("name").warn("not-attached", message, Some(hint.into()));
                continue;
            }
            let ports = service.ports.iter().filter(|port| parent.port.is_none_or(|number| number == port.port));
            let reasons: Vec<Reason> = ports.map(|port| reason(service, port, tcp)).collect();
            // One port that it serves is enough: the others are the business of other routes.
            if reasons.contains(&Reason::Served) {
                continue;
            }
            if let Some(why) = reasons.first() {
                at.field("name").warn("contradictory", why.message(&of), Some(why.hint(service.mode, tcp).into()));
            }
        }
    }
}

/// What becomes of a route on one port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Served,
    /// The kernel leads connections to an endpoint.
    Direct,
    /// A route of requests, and the port carries TCP.
    Opaque,
    /// A route of connections, and the port carries requests.
    Requests,
}

fn reason(service: &Service, port: &ServicePort, tcp: bool) -> Reason {
    match port.protocol {
        _ if !service.is_proxied(port) => Reason::Direct,
        AppProtocol::Tcp if !tcp => Reason::Opaque,
        AppProtocol::Tcp => Reason::Served,
        _ if tcp && port.declared => Reason::Requests,
        _ => Reason::Served,
    }
}

impl Reason {
    fn message(self, service: &str) -> String {
        let what = match self {
            Self::Direct => format!("connections to Service {service} go directly to its endpoints"),
            Self::Opaque => format!("connections to Service {service} are passed on as TCP"),
            Self::Requests | Self::Served => format!("Service {service} speaks HTTP"),
        };
        format!("{what}: this route has no effect on them")
    }

    const fn hint(self, mode: ServiceMode, tcp: bool) -> &'static str {
        match (self, mode, tcp) {
            (Self::Direct, _, true) => "set mode: Proxy on the Service",
            (Self::Direct, ServiceMode::Auto, false) => "set appProtocol: http on the Service's port",
            (Self::Direct, _, false) => "set mode: Proxy on the Service, and appProtocol: http on its port",
            (Self::Opaque, ..) => "set appProtocol: http on the Service's port",
            (Self::Requests | Self::Served, ..) => "use an HTTPRoute, or set appProtocol: tcp on the Service's port",
        }
    }
}
