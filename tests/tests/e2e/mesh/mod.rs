//! Applications connect to virtual addresses, and know of nothing.

mod access;
mod direct;
mod http;
mod kernel;
mod loss;
mod survive;
mod unprivileged;

use std::net::SocketAddr;

use weft_tests::yaml;

/// Where services are; every test has an attach point of its own, so they do not meet.
fn vip(last: u8, port: u16) -> SocketAddr {
    ([10, 96, 0, last], port).into()
}

/// A service at `10.96.0.LAST` and `fd00:96::LAST`. `spec` is more of its spec, `port` its port in flow style.
fn service(name: &str, last: u8, spec: &str, port: &str, endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<String> =
        endpoints.iter().map(|addr| format!("{{address: \"{}\", port: {}}}", addr.ip(), addr.port())).collect();
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIPs: [10.96.0.{last}, \
         \"fd00:96::{last}\"], {spec}, ports: [{port}], endpoints: [{}]}}",
        endpoints.join(", ")
    )
}

/// HTTP on port 80, through the proxy.
fn http(name: &str, last: u8, endpoints: &[SocketAddr]) -> String {
    service(name, last, "mode: Proxy", "{name: http, port: 80, appProtocol: http}", endpoints)
}

/// TCP on port 6379, straight to an endpoint.
fn direct(name: &str, last: u8, endpoints: &[SocketAddr]) -> String {
    service(name, last, "mode: Auto", "{name: tcp, port: 6379, appProtocol: tcp}", endpoints)
}

fn workload(name: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{cgroup: {name}}}, serviceAccount: {name}}}"
    )
}

fn allow(service: &str, workload: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {service}-only-{workload}}}\nspec: \
         {{targetRefs: [{{group: weft.dev, kind: Service, name: {service}}}], action: Allow, \
         rules: [{{from: [{{workloads: [{workload}]}}]}}]}}"
    )
}

/// HTTPRoute `route` bound to a service: `rules` in flow style.
fn route(service: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}-route}}\nspec: \
         {{parentRefs: [{{group: weft.dev, kind: Service, name: {service}}}], rules: {rules}}}"
    )
}

fn docs(parts: &[String]) -> String {
    yaml::docs(parts)
}
