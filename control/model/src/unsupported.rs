//! Fields and values that the Gateway API (or the contract) knows and Weft does not do. They are errors with a name of
//! their own: whoever writes one has not misspelt anything.

use crate::written::Kind;

use Kind::{BackendTlsPolicy, ConfigMap, Gateway, GrpcRoute, HttpRoute, Secret, Service, TcpRoute, TrafficPolicy};

/// Kind, path (`[]` for the entries of a list) and hint.
const FIELDS: &[(Kind, &str, &str)] = &[
    (Gateway, "spec.infrastructure", "labels and annotations of generated resources have no meaning here; remove it"),
    (Gateway, "spec.allowedListeners", "write all listeners into the Gateway"),
    (Gateway, "spec.backendTLS", "client certificates towards backends are not configured on a Gateway"),
    (Gateway, "spec.tls", "client certificates of callers are not checked by explicit listeners; remove it"),
    (Gateway, "spec.defaultScope", "routes name their Gateway in parentRefs"),
    (
        Gateway,
        "spec.listeners[].tls.frontendValidation",
        "client certificates of callers are not checked by explicit listeners; remove it",
    ),
    (Gateway, "spec.listeners[].tls.options", "TLS 1.2 and 1.3 with safe ciphers are always used; remove it"),
    (
        Gateway,
        "spec.listeners[].allowedRoutes.kinds",
        "every kind of route that the protocol carries may attach; remove it",
    ),
    (Gateway, "spec.listeners[].allowedRoutes.namespaces.selector", "use from: Same or from: All"),
    (HttpRoute, "spec.useDefaultGateways", "name the Gateway in parentRefs"),
    (
        HttpRoute,
        "spec.rules[].sessionPersistence",
        "use loadBalancer: {type: RingHash, hash: {cookie: NAME}} in a TrafficPolicy",
    ),
    (HttpRoute, "spec.rules[].filters[].extensionRef", "there are no extensions; use the filters of the Gateway API"),
    (
        HttpRoute,
        "spec.rules[].filters[].cors",
        "let the application answer CORS requests, or set its headers with ResponseHeaderModifier",
    ),
    (HttpRoute, "spec.rules[].filters[].externalAuth", "let the application authorise requests"),
    (
        HttpRoute,
        "spec.rules[].backendRefs[].filters[].extensionRef",
        "there are no extensions; use the filters of the Gateway API",
    ),
    (HttpRoute, "spec.rules[].backendRefs[].filters[].cors", "let the application answer CORS requests"),
    (HttpRoute, "spec.rules[].backendRefs[].filters[].externalAuth", "let the application authorise requests"),
    (GrpcRoute, "spec.useDefaultGateways", "name the Gateway in parentRefs"),
    (
        GrpcRoute,
        "spec.rules[].sessionPersistence",
        "use loadBalancer: {type: RingHash, hash: {header: NAME}} in a TrafficPolicy",
    ),
    (GrpcRoute, "spec.rules[].timeouts", "use timeouts of a TrafficPolicy on this route; grpc-timeout is honoured"),
    (GrpcRoute, "spec.rules[].retry", "use retry of a TrafficPolicy on this route"),
    (GrpcRoute, "spec.rules[].filters[].extensionRef", "there are no extensions; use the filters of the Gateway API"),
    (GrpcRoute, "spec.rules[].filters[].requestRedirect", "a GRPCRoute cannot redirect"),
    (GrpcRoute, "spec.rules[].filters[].urlRewrite", "a GRPCRoute cannot rewrite; use an HTTPRoute"),
    (
        GrpcRoute,
        "spec.rules[].backendRefs[].filters[].extensionRef",
        "there are no extensions; use the filters of the Gateway API",
    ),
    (TcpRoute, "spec.useDefaultGateways", "name the Gateway in parentRefs"),
    (BackendTlsPolicy, "spec.options", "TLS 1.2 and 1.3 with safe ciphers are always used; remove it"),
    (Service, "spec.selector", "list the endpoints, or register them with the control plane"),
    (Service, "spec.clusterIP", "write clusterIPs: [ADDRESS]"),
    (Service, "spec.type", "every Service is reached at its clusterIPs; expose it with a Gateway"),
    (Service, "spec.ports[].targetPort", "give the port with each endpoint"),
    (Service, "spec.ports[].protocol", "use appProtocol: http, http2, grpc or tcp"),
    (Service, "spec.sessionAffinity", "use loadBalancer: {type: RingHash, hash: sourceIP} in a TrafficPolicy"),
    (ConfigMap, "binaryData", "put the CA bundle into data under ca.crt"),
    (Secret, "spec", "a Secret has data or stringData"),
];

/// Kind, path, value and hint.
const VALUES: &[(Kind, &str, &str, &str)] = &[
    (Gateway, "spec.listeners[].protocol", "TLS", "use HTTPS to end TLS here, or TCP to pass the bytes on"),
    (Gateway, "spec.listeners[].protocol", "UDP", "Weft carries HTTP, gRPC and TCP"),
    (Gateway, "spec.listeners[].tls.mode", "Passthrough", "use a TCP listener and a TCPRoute to pass TLS on unread"),
    (Gateway, "spec.listeners[].allowedRoutes.namespaces.from", "Selector", "use Same or All"),
    (Gateway, "spec.listeners[].allowedRoutes.namespaces.from", "None", "use Same or All"),
    (Gateway, "spec.addresses[].type", "Hostname", "use an IPAddress of this host"),
    (Gateway, "spec.addresses[].type", "NamedAddress", "use an IPAddress of this host"),
    (
        HttpRoute,
        "spec.rules[].filters[].type",
        "ExtensionRef",
        "there are no extensions; use the filters of the Gateway API",
    ),
    (
        HttpRoute,
        "spec.rules[].filters[].type",
        "CORS",
        "let the application answer CORS requests, or set its headers with ResponseHeaderModifier",
    ),
    (HttpRoute, "spec.rules[].filters[].type", "ExternalAuth", "let the application authorise requests"),
    (
        HttpRoute,
        "spec.rules[].backendRefs[].filters[].type",
        "ExtensionRef",
        "there are no extensions; use the filters of the Gateway API",
    ),
    (HttpRoute, "spec.rules[].backendRefs[].filters[].type", "CORS", "let the application answer CORS requests"),
    (HttpRoute, "spec.rules[].backendRefs[].filters[].type", "ExternalAuth", "let the application authorise requests"),
    (
        GrpcRoute,
        "spec.rules[].filters[].type",
        "ExtensionRef",
        "there are no extensions; use the filters of the Gateway API",
    ),
    (GrpcRoute, "spec.rules[].filters[].type", "RequestRedirect", "a GRPCRoute cannot redirect"),
    (GrpcRoute, "spec.rules[].filters[].type", "URLRewrite", "a GRPCRoute cannot rewrite; use an HTTPRoute"),
    (
        GrpcRoute,
        "spec.rules[].backendRefs[].filters[].type",
        "ExtensionRef",
        "there are no extensions; use the filters of the Gateway API",
    ),
    (
        TrafficPolicy,
        "spec.rateLimit[].scope",
        "Cluster",
        "limits count on each node for now: use scope: Node and divide by the number of nodes",
    ),
];

/// Kinds of the Gateway API that are not read, with a hint.
const KINDS: &[(&str, &str)] = &[
    ("TLSRoute", "use an HTTPS listener, or a TCP listener with a TCPRoute to pass TLS on unread"),
    ("UDPRoute", "Weft carries HTTP, gRPC and TCP"),
    ("GatewayClass", "there is one class; remove the document"),
    ("ReferenceGrant", "references to other namespaces are allowed; remove the document"),
    ("ListenerSet", "write the listeners into the Gateway"),
    ("XListenerSet", "write the listeners into the Gateway"),
    ("XBackendTrafficPolicy", "use a TrafficPolicy (weft.dev/v1alpha1)"),
    ("Deployment", "Weft reads routes and services only"),
    ("Ingress", "use a Gateway and an HTTPRoute"),
];

/// The hint for an unsupported field.
pub(crate) fn field(kind: Kind, path: &[String]) -> Option<&'static str> {
    let path = join(path);
    FIELDS.iter().find(|(of, field, _)| *of == kind && *field == path).map(|(_, _, hint)| *hint)
}

/// The hint for an unsupported value.
pub(crate) fn value(kind: Kind, path: &[String], value: &str) -> Option<&'static str> {
    let path = join(path);
    VALUES.iter().find(|(of, field, one, _)| *of == kind && *field == path && *one == value).map(|(.., hint)| *hint)
}

/// The hint for an unsupported kind.
pub(crate) fn kind(name: &str) -> Option<&'static str> {
    KINDS.iter().find(|(kind, _)| *kind == name).map(|(_, hint)| *hint)
}

/// Every unsupported field, for tests of this table.
#[cfg(test)]
pub(crate) fn paths() -> impl Iterator<Item = (Kind, &'static str)> {
    FIELDS.iter().map(|(kind, path, _)| (*kind, *path))
}

/// Every unsupported value, for tests of this table.
#[cfg(test)]
pub(crate) fn values() -> impl Iterator<Item = (Kind, &'static str, &'static str)> {
    VALUES.iter().map(|(kind, path, value, _)| (*kind, *path, *value))
}

/// `spec.rules[].filters[].cors`
pub(crate) fn join(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
        if part != "[]" && !text.is_empty() {
            text.push('.');
        }
        text.push_str(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_lists_with_brackets() {
        let path = ["spec", "rules", "[]", "filters", "[]", "cors"].map(str::to_owned);
        assert_eq!(join(&path), "spec.rules[].filters[].cors");
        assert!(field(HttpRoute, &path).is_some());
        assert!(field(GrpcRoute, &path).is_none());
    }
}
