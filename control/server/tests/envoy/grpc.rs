//! gRPC's own xDS client, in Python: `xds:///web` without any proxy.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    common::{LIMIT, until},
    mesh::Mesh,
    need, tool,
};

/// A program with two servers, that calls what it is told to.
struct Program {
    child: Child,
    input: ChildStdin,
    output: Option<BufReader<ChildStdout>>,
    servers: Vec<SocketAddr>,
    _dir: TempDir,
}

impl Program {
    async fn start(python: &std::path::Path, control: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bootstrap = dir.path().join("bootstrap.json");
        let text = json!({
            "xds_servers": [{
                "server_uri": control.to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            "node": {"id": "grpc", "locality": {"zone": "a"}},
        });
        std::fs::write(&bootstrap, text.to_string()).unwrap();
        let mut child = Command::new(python)
            .args(["-c", include_str!("client.py")])
            .env("GRPC_XDS_BOOTSTRAP", &bootstrap)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut program = Self { child, input, output: Some(output), servers: Vec::new(), _dir: dir };
        let ports = program.line().await;
        let ports = ports.as_array().unwrap().iter().map(|port| port.as_u64().unwrap() as u16);
        program.servers = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        program
    }

    async fn line(&mut self) -> Value {
        let mut output = self.output.take().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            output.read_line(&mut line).map(|_| (output, line))
        });
        let (output, line) =
            tokio::time::timeout(LIMIT + Duration::from_secs(10), read).await.unwrap().unwrap().unwrap();
        self.output = Some(output);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// What 20 calls were answered, errors by the name of their status.
    async fn call(&mut self, target: &str, method: &str) -> BTreeSet<String> {
        writeln!(self.input, "{target} {method}").unwrap();
        self.line().await.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
         ports: [{{port: 80, appProtocol: grpc}}]\n---\n"
    )
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcs_client_follows() {
    let python = need!(tool::grpcio());
    let mut mesh = Mesh::start().await;
    let mut program = Program::start(&python, mesh.running.member.address()).await;
    let (first, second) = (program.servers[0], program.servers[1]);
    mesh.apply(&[service("web"), service("other")].concat()).await;
    mesh.register("web", first, false).await;
    mesh.register("other", second, false).await;
    let program = tokio::sync::Mutex::new(&mut program);
    let answers = async |what: &str, target: &str, method: &str, expected: &[&str]| {
        let expected = set(expected);
        until(what, async || program.lock().await.call(target, method).await == expected).await;
    };
    for target in ["web", "web:80", "web.default", "web.default:80"] {
        answers("a call is answered", &format!("xds:///{target}"), "/demo.Web/Get", &["first"]).await;
    }
    mesh.register("web", second, false).await;
    answers("an endpoint more", "xds:///web", "/demo.Web/Get", &["first", "second"]).await;
    mesh.register("web", first, true).await;
    answers("one that drains gets nothing", "xds:///web", "/demo.Web/Get", &["second"]).await;
    mesh.register("web", first, false).await;
    mesh.deregister("web", second).await;
    answers("one less", "xds:///web", "/demo.Web/Get", &["first"]).await;

    // Bound to the service: its callers go elsewhere with one method.
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: web}\nspec:\n  \
                 parentRefs: [{group: weft.dev, kind: Service, name: web}]\n  rules:\n  \
                 - backendRefs: [{group: weft.dev, kind: Service, name: web, port: 80}]\n  \
                 - matches: [{method: {service: demo.Web, method: Put}}]\n    \
                 backendRefs: [{group: weft.dev, kind: Service, name: other, port: 80}]\n";
    mesh.apply(route).await;
    answers("a method of its own", "xds:///web", "/demo.Web/Put", &["second"]).await;
    answers("the others as before", "xds:///web", "/demo.Web/Get", &["first"]).await;
    until("all of it is acknowledged", async || mesh.node("grpc").await.is_some_and(|node| node["state"] == "SYNCED"))
        .await;

    mesh.delete("GRPCRoute", "web").await;
    answers("the route is gone", "xds:///web", "/demo.Web/Put", &["first"]).await;
    mesh.deregister("web", first).await;
    answers("nobody is left", "xds:///web", "/demo.Web/Get", &["UNAVAILABLE"]).await;
}
