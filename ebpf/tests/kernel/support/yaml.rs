//! Small pieces of configuration.

/// A service with one port; `mode` is `Direct` or `Proxy`.
pub fn service(name: &str, vips: &[&str], port: u16, mode: &str) -> String {
    service_with(name, vips, port, mode, false)
}

pub fn service_with(name: &str, vips: &[&str], port: u16, mode: &str, fail_open: bool) -> String {
    let vips: Vec<String> = vips.iter().map(|vip| format!("\"{vip}\"")).collect();
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIPs: [{}], \
         mode: {mode}, failOpen: {fail_open}, ports: [{{name: main, port: {port}, appProtocol: tcp}}]}}",
        vips.join(", ")
    )
}

/// A workload in the cgroup of the same name.
pub fn workload(name: &str) -> String {
    workload_in(name, name)
}

pub fn workload_in(name: &str, cgroup: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {name}}}\n\
         spec: {{selector: {{cgroup: {cgroup}}}, serviceAccount: {name}}}"
    )
}

/// An AccessPolicy on a service. `from` is a source in flow style: `{workloads: [web]}`.
pub fn access(service: &str, action: &str, from: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {service}-{}}}\nspec: {{targetRefs: \
         [{{group: weft.dev, kind: Service, name: {service}}}], action: {action}, rules: [{{from: [{from}]}}]}}",
        action.to_lowercase()
    )
}
