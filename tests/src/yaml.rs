//! Small pieces of configuration, to be joined with [`docs`].

use std::{fmt::Display, net::SocketAddr};

/// Joins documents.
pub fn docs<S: AsRef<str>>(parts: &[S]) -> String {
    parts.iter().map(|part| part.as_ref().trim_end()).collect::<Vec<_>>().join("\n---\n") + "\n"
}

/// Gateway `edge` on 127.0.0.1 with one HTTP listener named `http`.
pub fn gateway(port: u16) -> String {
    listeners(&[format!("{{name: http, port: {port}, protocol: HTTP}}")])
}

/// Gateway `edge` on 127.0.0.1 with these listeners.
pub fn listeners<S: Display>(listeners: &[S]) -> String {
    let mut text = String::from(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  \
         gatewayClassName: weft\n  addresses: [{type: IPAddress, value: 127.0.0.1}]\n  listeners:\n",
    );
    for listener in listeners {
        text += &format!("  - {listener}\n");
    }
    text
}

/// HTTPRoute attached to `edge`; `spec` is the rest of its spec, in flow or block style, indented by two.
pub fn http_route(name: &str, spec: &str) -> String {
    route("HTTPRoute", name, spec)
}

pub fn grpc_route(name: &str, spec: &str) -> String {
    route("GRPCRoute", name, spec)
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    let spec = indent(spec);
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  \
         parentRefs: [{{name: edge}}]\n{spec}"
    )
}

/// TCPRoute from the listener `section` to a service.
pub fn tcp_route(section: &str, service: &str, port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: TCPRoute\nmetadata: {{name: {section}}}\nspec:\n  \
         parentRefs: [{{name: edge, sectionName: {section}}}]\n  rules: [{{backendRefs: [{}]}}]\n",
        backend_port(service, port)
    )
}

/// A reference to port 80 of a service.
pub fn backend(service: &str) -> String {
    backend_port(service, 80)
}

pub fn backend_port(service: &str, port: u16) -> String {
    format!("{{group: weft.dev, kind: Service, name: {service}, port: {port}}}")
}

/// A weighted reference to port 80 of a service.
pub fn weighted(service: &str, weight: u32) -> String {
    format!("{{group: weft.dev, kind: Service, name: {service}, port: 80, weight: {weight}}}")
}

/// HTTPRoute `all`: everything to one service.
pub fn all_to(service: &str) -> String {
    http_route("all", &format!("rules: [{{backendRefs: [{}]}}]", backend(service)))
}

/// A service whose port 80 speaks `protocol`.
pub fn service(name: &str, protocol: &str, endpoints: &[SocketAddr]) -> String {
    service_port(name, protocol, 80, endpoints)
}

pub fn service_port(name: &str, protocol: &str, port: u16, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> =
        endpoints.iter().map(|addr| format!("{{address: {}, port: {}}}", addr.ip(), addr.port())).collect();
    service_with(name, protocol, port, &endpoints)
}

/// A service with endpoints as written.
pub fn service_with<S: AsRef<str>>(name: &str, protocol: &str, port: u16, endpoints: &[S]) -> String {
    let endpoints = endpoints.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
         ports: [{{name: main, port: {port}, appProtocol: {protocol}}}]\n  endpoints: [{endpoints}]\n"
    )
}

/// TrafficPolicy on a service.
pub fn policy(service: &str, spec: &str) -> String {
    let spec = indent(spec);
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}-policy}}\nspec:\n  \
         targetRefs: [{{group: weft.dev, kind: Service, name: {service}}}]\n{spec}"
    )
}

/// TelemetryPolicy `default`.
pub fn telemetry(spec: &str) -> String {
    let spec = indent(spec);
    format!("apiVersion: weft.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {{name: default}}\nspec:\n{spec}")
}

/// Gateway on `port`, everything to the service `app` at `addr`, which speaks `protocol`.
pub fn simple(port: u16, protocol: &str, addr: SocketAddr) -> String {
    docs(&[gateway(port), all_to("app"), service("app", protocol, &[addr])])
}

fn indent(text: &str) -> String {
    text.trim_matches('\n').lines().map(|line| format!("  {line}\n")).collect()
}
