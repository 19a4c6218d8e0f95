//! A real Envoy: it knows nothing but where the control plane is.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    common::until,
    mesh::{Mesh, Upstream, get},
    need, tool,
};

struct Envoy {
    child: Child,
    admin: SocketAddr,
    dir: TempDir,
}

impl Envoy {
    fn start(program: &std::path::Path, api_type: &str, control: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admin = SocketAddr::from(([127, 0, 0, 1], tool::free_port()));
        let bootstrap = format!(
            "node: {{id: {api_type}, cluster: test, locality: {{zone: a}}}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin_port}}}}}}}
dynamic_resources:
  ads_config:
    api_type: {api_type}
    transport_api_version: V3
    grpc_services: [{{envoy_grpc: {{cluster_name: weft}}}}]
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: weft
    type: STATIC
    connect_timeout: 5s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: weft
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]
",
            admin_port = admin.port(),
            port = control.port(),
        );
        let config = dir.path().join("envoy.yaml");
        std::fs::write(&config, bootstrap).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("--config-path")
            .arg(&config)
            .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, admin, dir }
    }

    async fn admin(&self, path: &str) -> String {
        get(self.admin, "localhost", path).await.1
    }

    /// What it did not take, of any type, and what it waited for in vain.
    async fn complaints(&self) -> Vec<String> {
        let stats = self.admin("/stats?filter=update_rejected|init_fetch_timeout").await;
        assert!(stats.contains("cluster_manager.cds.update_rejected: "), "{stats}");
        stats.lines().filter(|line| !line.ends_with(": 0")).map(str::to_owned).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- envoy\n{}\n---", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gateway(http: u16, tcp: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners:
  - {{name: http, port: {http}, protocol: HTTP}}
  - {{name: raw, port: {tcp}, protocol: TCP}}
---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TCPRoute
metadata: {{name: raw}}
spec:
  parentRefs: [{{name: edge, sectionName: raw}}]
  rules: [{{backendRefs: [{{group: weft.dev, kind: Service, name: web, port: 80}}]}}]
---
"
    )
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web}}\nspec:\n  \
         parentRefs: [{{name: edge, sectionName: http}}]\n  rules:\n{rules}\n---\n"
    )
}

const TO_WEB: &str = "  - backendRefs: [{group: weft.dev, kind: Service, name: web, port: 80}]";
const TO_OTHER: &str = "  - matches: [{path: {type: PathPrefix, value: /files}}]
    filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-test, value: 100%}]}}
    backendRefs: [{group: weft.dev, kind: Service, name: other, port: 80}]";

fn service(name: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  \
         ports: [{{port: 80, appProtocol: http}}]\n  endpoints: [{endpoints}]\n---\n"
    )
}

/// The names of those that answer, after as many requests as make sure that all do.
async fn answering(to: SocketAddr, path: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for _ in 0..30 {
        let (status, body) = get(to, "web.test", path).await;
        let name = body.split(' ').next().unwrap_or_default().to_owned();
        names.insert(if status == 200 { name } else { status.to_string() });
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_over_delta() {
    follows("DELTA_GRPC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_over_state_of_the_world() {
    follows("GRPC").await;
}

async fn follows(api_type: &str) {
    let program = need!(tool::envoy());
    let (first, second, other) =
        (Upstream::start("first").await, Upstream::start("second").await, Upstream::start("other").await);
    let (http, tcp) = (tool::free_port(), tool::free_port());
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let mut mesh = Mesh::start().await;
    let one = format!("{{address: 127.0.0.1, port: {}}}", other.address.port());
    mesh.apply(&[gateway(http, tcp), service("web", ""), service("other", &one), route(TO_WEB)].concat()).await;
    mesh.register("web", first.address, false).await;
    let envoy = Envoy::start(&program, api_type, mesh.running.member.address());
    let answers = async |what: &str, to: u16, path: &str, expected: &[&str]| {
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        until(what, async || answering(local(to), path).await == expected).await;
    };
    answers("the first endpoint", http, "/", &["first"]).await;
    answers("the same over TCP", tcp, "/", &["first"]).await;
    mesh.register("web", second.address, false).await;
    answers("an endpoint more", http, "/", &["first", "second"]).await;
    mesh.register("web", first.address, true).await;
    answers("one that drains gets nothing", http, "/", &["second"]).await;
    mesh.register("web", first.address, false).await;
    answers("it is back", http, "/", &["first", "second"]).await;
    mesh.deregister("web", second.address).await;
    answers("one less", http, "/", &["first"]).await;

    let limit = "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web}\nspec:\n  \
                 targetRefs: [{group: weft.dev, kind: Service, name: web}]\n  connectionPool: {maxConnections: 77}\n";
    mesh.apply(limit).await;
    until("another limit", async || {
        let clusters = envoy.admin("/clusters").await;
        clusters.contains("default/web:80::default_priority::max_connections::77")
    })
    .await;
    answers("a cluster that has changed keeps its endpoints", http, "/", &["first"]).await;

    mesh.apply(&route(&format!("{TO_WEB}\n{TO_OTHER}"))).await;
    answers("a rule more, which is more specific", http, "/files/a", &["other"]).await;
    assert_eq!(get(local(http), "web.test", "/files/a").await, (200, "other /a 100%".into()));
    assert_eq!(get(local(http), "web.test", "/files").await, (200, "other / 100%".into()));
    assert_eq!(get(local(http), "web.test", "/filesystem").await.1, "first /filesystem ");
    mesh.apply(&route(TO_WEB)).await;
    answers("a rule less", http, "/files/a", &["first"]).await;
    mesh.delete("Service", "other").await;
    until("its cluster is gone", async || !envoy.admin("/clusters").await.contains("default/other:80")).await;
    answers("the rest stays", http, "/", &["first"]).await;

    // Another Envoy finds what has happened since.
    assert_eq!(envoy.complaints().await, [""; 0]);
    assert!(!envoy.log().contains("ApiListener"), "what is for gRPC's client is not told to everybody");
    drop(envoy);
    mesh.register("web", second.address, false).await;
    let envoy = Envoy::start(&program, api_type, mesh.running.member.address());
    answers("everything from the start", http, "/", &["first", "second"]).await;
    mesh.delete("TCPRoute", "raw").await;
    until("its listener is gone", async || !envoy.admin("/listeners").await.contains(&format!(":{tcp}"))).await;
    assert_eq!(envoy.complaints().await, [""; 0]);
    until("all of it is acknowledged", async || {
        mesh.node(api_type).await.is_some_and(|node| node["state"] == "SYNCED")
    })
    .await;
}

/// Everything that the contract writes, at once: what Envoy would not take of it, it says.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_all_that_the_contract_writes() {
    let program = need!(tool::envoy());
    let (http, tcp) = (tool::free_port(), tool::free_port());
    let cart = Upstream::start("cart").await;
    let text = include_str!("../../../model/tests/contract/gateway.yaml")
        .replace("port: 8080", &format!("port: {http}"))
        .replace("port: 8081", &format!("port: {tcp}"))
        .replace("port: 9001", &format!("port: {}", cart.address.port()))
        .replace("port: 9002", &format!("port: {}", cart.address.port() ^ 1))
        .replace("port: 9003", &format!("port: {}", cart.address.port()));
    let mut more = text;
    for kind in ["RoundRobin", "Random", "Maglev"] {
        let name = kind.to_lowercase();
        more += &format!(
            "\n---\n{}apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
             targetRefs: [{{group: weft.dev, kind: Service, name: {name}}}]\n  \
             loadBalancer: {{type: {kind}, slowStart: 5s, hash: path}}\n  healthCheck: {{grpc: x}}\n",
            service(&name, "")
        );
    }
    let mut mesh = Mesh::start().await;
    mesh.apply(&more).await;
    let envoy = Envoy::start(&program, "DELTA_GRPC", mesh.running.member.address());
    let to = SocketAddr::from(([127, 0, 0, 1], http));
    until("it serves", async || get(to, "shop.local", "/cart").await.0 == 200).await;
    assert_eq!(get(to, "elsewhere.local", "/cart").await.0, 404);
    assert_eq!(get(to, "shop.local", "/old").await.0, 301);
    assert_eq!(get(to, "a.shop.local:8080", "/cart").await.0, 200);
    assert_eq!(envoy.complaints().await, [""; 0]);
    let clusters = envoy.admin("/clusters").await;
    for name in ["cart", "cart-v2", "files", "roundrobin", "random", "maglev"] {
        assert!(clusters.contains(&format!("default/{name}:80")), "{name}");
    }
    assert!(envoy.admin("/listeners").await.contains(&format!(":{tcp}")));
    for word in ["rejected", "deprecated", "unknown field"] {
        assert!(!envoy.log().contains(word), "{word}");
    }
}

fn https(port: u16, files: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: secure}}
spec:
  gatewayClassName: weft
  addresses: [{{type: IPAddress, value: 127.0.0.1}}]
  listeners:
  - name: web
    port: {port}
    protocol: HTTPS
    hostname: web.test
    tls: {{certificateRefs: [{{group: weft.dev, kind: Certificate, name: web}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: inside}}
spec:
  parentRefs: [{{name: secure}}]
  rules: [{{backendRefs: [{{group: weft.dev, kind: Service, name: inside, port: 80}}]}}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {{name: web}}
spec:
  targetRefs: [{{group: weft.dev, kind: Service, name: web}}]
  validation:
    hostname: web.test
    caCertificateRefs: [{{group: weft.dev, kind: Certificate, name: web}}]
---
apiVersion: weft.dev/v1alpha1
kind: Certificate
metadata: {{name: web}}
spec: {{{files}}}
---
"
    )
}

/// Through the HTTP listener to the HTTPS one, of the same Envoy: both ends of TLS, of which each checks the other.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_speaks_tls_with_the_files_that_are_named() {
    let program = need!(tool::envoy());
    let upstream = Upstream::start("inside").await;
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name).display().to_string();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["web.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    let another = rcgen::CertificateParams::new(vec!["web.test".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(path("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(path("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(path("another.pem"), another.pem()).unwrap();
    let (http, tcp, secure) = (tool::free_port(), tool::free_port(), tool::free_port());
    let at = |port: u16| format!("{{address: 127.0.0.1, port: {port}}}");
    let files =
        |ca: &str| format!("certFile: {}, keyFile: {}, caFile: {}", path("cert.pem"), path("key.pem"), path(ca));
    let mut mesh = Mesh::start().await;
    let all = [
        gateway(http, tcp),
        route(TO_WEB),
        service("web", &at(secure)),
        service("inside", &at(upstream.address.port())),
        https(secure, &files("cert.pem")),
    ];
    mesh.apply(&all.concat()).await;
    let envoy = Envoy::start(&program, "DELTA_GRPC", mesh.running.member.address());
    let to = SocketAddr::from(([127, 0, 0, 1], http));
    until("TLS on both sides", async || get(to, "web.test", "/a").await == (200, "inside /a ".into())).await;
    assert_eq!(get(SocketAddr::from(([127, 0, 0, 1], secure)), "web.test", "/").await.0, 0, "not without TLS");
    mesh.apply(&https(secure, &files("another.pem"))).await;
    until("a CA that did not sign it", async || get(to, "web.test", "/a").await.0 == 503).await;
    assert_eq!(envoy.complaints().await, [""; 0]);
}
