//! The same work, said four times: one worker, HTTP/1.1 keep-alive to one upstream with at most [`POOL`] idle
//! connections, the client's address and scheme added, the host passed on, no logs, no files for bodies.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::child::TempDir;

/// Connections to the upstream that are kept at most: Weft's default.
const POOL: u32 = 1024;
/// Enough requests on one connection that none is closed for its age during a run.
const FOREVER: u32 = 1_000_000_000;

/// The arguments for nginx with this configuration, all its files inside `dir`.
pub fn nginx_args(dir: &TempDir, config: &Path) -> Vec<OsString> {
    ["-p".as_ref(), dir.path().as_os_str(), "-e".as_ref(), "stderr".as_ref(), "-c".as_ref(), config.as_os_str()]
        .map(OsString::from)
        .into()
}

/// What both nginx configurations start with. A worker that root starts would leave root's temporary directory.
fn nginx_head() -> String {
    let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
    let directories = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let directories: String = directories.iter().map(|name| format!("  {name}_temp_path {name};\n")).collect();
    format!(
        "{user}
daemon off;
pid nginx.pid;
worker_processes 1;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests {FOREVER};
  keepalive_timeout 60s;
  http2_max_concurrent_streams 100;
{directories}"
    )
}

/// The upstream: a body from memory when it is small, else a file that stays open in the page cache.
pub fn upstream(dir: &TempDir, listen: SocketAddr, h2: Option<SocketAddr>, body: usize) -> Result<PathBuf> {
    let location = match body {
        6 => "return 200 \"hello\\n\";".to_owned(),
        ..=2048 => format!("return 200 \"{}\";", "x".repeat(body)),
        _ => {
            dir.write("body", vec![b'x'; body])?;
            format!("root {}; try_files /body =404;", dir.path().display())
        }
    };
    let h2 = h2.map(|addr| format!("    listen {addr} http2;\n")).unwrap_or_default();
    let head = nginx_head();
    dir.write(
        "nginx.conf",
        format!(
            "{head}
  default_type text/plain;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=16 inactive=1h;
  open_file_cache_valid 1h;
  server {{
    listen {listen};
{h2}    location / {{ {location} }}
  }}
}}
"
        ),
    )
}

/// nginx as the proxy.
pub fn nginx(dir: &TempDir, listen: SocketAddr, upstream: SocketAddr, h2: bool) -> Result<PathBuf> {
    let head = nginx_head();
    let h2 = if h2 { " http2" } else { "" };
    dir.write(
        "nginx.conf",
        format!(
            "{head}
  upstream hello {{
    server {upstream};
    keepalive {POOL};
    keepalive_requests {FOREVER};
  }}
  server {{
    listen {listen}{h2};
    location / {{
      proxy_pass http://hello;
      proxy_http_version 1.1;
      proxy_max_temp_file_size 0;
      proxy_set_header Connection \"\";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
"
        ),
    )
}

/// HAProxy's arguments, with its configuration written.
pub fn haproxy(dir: &TempDir, listen: SocketAddr, upstream: SocketAddr, h2: bool) -> Result<Vec<OsString>> {
    let h2 = if h2 { " proto h2" } else { "" };
    let config = dir.write(
        "haproxy.cfg",
        format!(
            "global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 1s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  option forwardfor
  http-reuse always
frontend edge
  bind {listen}{h2}
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header X-Request-Id %[uuid()]
  default_backend hello
backend hello
  server hello {upstream} pool-max-conn {POOL}
"
        ),
    )?;
    Ok(vec!["-db".into(), "-f".into(), config.into()])
}

/// Envoy's arguments, with its bootstrap written. What Envoy adds by itself and the others do not is switched off.
pub fn envoy(dir: &TempDir, listen: SocketAddr, upstream: SocketAddr) -> Result<Vec<OsString>> {
    let address =
        |addr: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", addr.ip(), addr.port());
    let filters = "type.googleapis.com/envoy.extensions.filters";
    let config = dir.write(
        "envoy.yaml",
        format!(
            "static_resources:
  listeners:
  - name: edge
    address: {listen}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          '@type': {filters}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: edge
          codec_type: AUTO
          use_remote_address: true
          generate_request_id: true
          http_filters:
          - name: router
            typed_config:
              '@type': {filters}.http.router.v3.Router
              suppress_envoy_headers: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ['*']
              request_headers_to_add: [{{header: {{key: x-forwarded-host, value: '%REQ(:AUTHORITY)%'}}}}]
              routes: [{{match: {{prefix: /}}, route: {{cluster: hello, timeout: 15s}}}}]
  clusters:
  - name: hello
    type: STATIC
    connect_timeout: 1s
    circuit_breakers: {{thresholds: [{{max_connections: {POOL}}}]}}
    load_assignment:
      cluster_name: hello
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {upstream}}}}}]}}]
",
            listen = address(listen),
            upstream = address(upstream),
        ),
    )?;
    let mut args: Vec<OsString> = vec!["--config-path".into(), config.into()];
    args.extend(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"].map(OsString::from));
    Ok(args)
}
