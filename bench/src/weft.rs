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
    let config = dir.write("weft.yaml", config(listen, upstream))?;
    let admin = free_port()?.to_string();
    let mut args: Vec<OsString> = vec!["proxy".into(), "--config".into(), config.into()];
    args.extend(["--workers", "1", "--admin", &admin].map(OsString::from));
    Ok(args)
}

/// The smallest useful configuration, with ports of our own.
fn config(listen: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: {listen_ip}}}]
  listeners: [{{name: http, port: {listen_port}, protocol: HTTP}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: all}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{group: weft.dev, kind: Service, name: hello, port: 80}}]
---
apiVersion: weft.dev/v1alpha1
kind: Service
metadata: {{name: hello}}
spec:
  ports: [{{name: http, port: 80, appProtocol: http}}]
  endpoints: [{{address: {upstream_ip}, port: {upstream_port}}}]
",
        listen_ip = listen.ip(),
        listen_port = listen.port(),
        upstream_ip = upstream.ip(),
        upstream_port = upstream.port(),
    )
}
