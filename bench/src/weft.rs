//! Where the `weft` binary comes from, and the configuration that measurements run it with.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::child::{TempDir, free_port};
use crate::machine;

/// The binary that was asked for, else one freshly built with the `dist` profile.
pub async fn binary(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = given {
        return path.canonicalize().with_context(|| format!("--weft {}", path.display()));
    }
    eprintln!("building weft with the dist profile …");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = tokio::process::Command::new(cargo);
    build.args(["build", "--quiet", "--profile", "dist", "-p", "weft", "--message-format", "json"]);
    build.current_dir(machine::workspace()?).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = build.output().await.context("start cargo")?;
    if !output.status.success() {
        bail!("building weft failed");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let built = messages.filter(|message| message["target"]["name"] == "weft").find_map(|message| {
        let path = message["executable"].as_str()?;
        Some(PathBuf::from(path))
    });
    built.context("cargo built no binary named weft")
}

/// The arguments of `weft proxy` for one listener in front of one endpoint, on one worker.
pub fn proxy_args(dir: &TempDir, listen: SocketAddr, upstream: SocketAddr) -> Result<Vec<OsString>> {
    let site = Site { name: "hello", listen, endpoints: &[upstream], filters: "", policy: "" };
    args(dir, &site.yaml(), 1, free_port()?)
}

/// The arguments of `weft proxy` with this configuration, which is written to [`CONFIG`] in `dir`.
pub fn args(dir: &TempDir, config: &str, workers: u32, admin: SocketAddr) -> Result<Vec<OsString>> {
    let config = dir.write(CONFIG, config)?;
    let mut args: Vec<OsString> = vec!["proxy".into(), "--config".into(), config.into()];
    let (workers, admin) = (workers.to_string(), admin.to_string());
    args.extend(["--workers", &workers, "--admin", &admin, "--drain-timeout", "2s"].map(OsString::from));
    Ok(args)
}

/// The configuration's file name.
pub const CONFIG: &str = "weft.yaml";

/// The smallest useful configuration: a listener, a route that takes everything, a service, and a policy on it.
pub struct Site<'a> {
    /// Of every object.
    pub name: &'a str,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Of the service.
    pub endpoints: &'a [SocketAddr],
    /// Filters of the only rule, as YAML in one line; empty for none.
    pub filters: &'a str,
    /// Fields of the TrafficPolicy on the service, a line each; empty for no policy.
    pub policy: &'a str,
}

impl Site<'_> {
    /// As documents, the last one ended: several sites can follow each other in one file.
    pub fn yaml(&self) -> String {
        let Self { name, listen, endpoints, filters, policy } = self;
        let filters = if filters.is_empty() { String::new() } else { format!("\n    filters: {filters}") };
        let endpoints: String = endpoints
            .iter()
            .map(|endpoint| format!("\n  - {{address: {}, port: {}}}", endpoint.ip(), endpoint.port()))
            .collect();
        let policy: String = policy.lines().map(|line| format!("\n  {line}")).collect();
        let policy = match policy.as_str() {
            "" => String::new(),
            fields => format!(
                "apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{{group: weft.dev, kind: Service, name: {name}}}]{fields}
---
"
            ),
        };
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: {listen_ip}}}]
  listeners: [{{name: http, port: {listen_port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: {name}}}]
  rules:
  - backendRefs: [{{group: weft.dev, kind: Service, name: {name}, port: 80}}]{filters}
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  ports: [{{name: http, port: 80, appProtocol: http}}]
  endpoints:{endpoints}
---
{policy}",
            listen_ip = listen.ip(),
            listen_port = listen.port(),
        )
    }
}
