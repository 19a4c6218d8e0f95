//! One request, one reply.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{self, HeaderName},
    request::Parts,
    uri::Authority,
};
use http_body::Body;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use serde_json::Value;

use super::{Admin, Question, TraceQuery, heap};

/// Larger request bodies are refused. Nothing here needs one.
const MAX_BODY_BYTES: usize = 64 << 10;

/// Path, method, what it is.
const ROUTES: &[(&str, &str, &str)] = &[
    ("/ready", "GET", "200, or 503 with the reasons"),
    ("/metrics", "GET", "Prometheus or OpenMetrics text"),
    ("/config_dump", "GET", "the loaded configuration with its revision"),
    ("/endpoints", "GET", "services and their endpoints: health, breaker, load"),
    ("/limits", "GET", "rate limiters"),
    ("/routes", "GET", "rules of all routes"),
    ("/explain", "GET", "what would happen to a request: ?method=&url=&header=name:value&client="),
    ("/traces", "GET", "recent traces: ?min_ms=&status=&route="),
    ("/connections", "GET", "captured connections with their verdicts"),
    ("/flows", "GET", "verdicts of the kernel as they are made: ?after=NUMBER"),
    ("/ebpf", "GET", "kernel programs, where they are attached, how full their maps are"),
    ("/drain", "POST", "stop accepting, finish what is in flight"),
    ("/debug/tasks", "GET", "connections and requests per worker"),
    ("/debug/heap", "GET", "memory of the process"),
];

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Reply = Response<Full<Bytes>>;

/// The names under which this server may be addressed. A web page that points its own name at this address (DNS
/// rebinding) sends that name as `Host`, and gets nothing.
#[derive(Debug, Clone)]
pub struct Hosts {
    listening: IpAddr,
    names: Vec<String>,
}

impl Hosts {
    /// Loopback, and the address that is listened on. When that is every address, every literal address is fine: it
    /// takes a name to rebind.
    pub const fn new(listening: SocketAddr) -> Self {
        Self { listening: listening.ip(), names: Vec::new() }
    }

    /// Allows a name too, for instance that of the node.
    pub fn allow(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Whether `authority` (host with or without a port) is one of them.
    pub fn allows(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match literal.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || ip == self.listening || self.listening.is_unspecified(),
            Err(_) => {
                let host = host.strip_suffix('.').unwrap_or(host);
                host.eq_ignore_ascii_case("localhost") || self.names.iter().any(|name| host.eq_ignore_ascii_case(name))
            }
        }
    }
}

/// Answers `request`.
pub async fn answer<B>(admin: &dyn Admin, hosts: &Hosts, request: Request<B>) -> Reply
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let mut reply = match check(hosts, &parts) {
        Err((status, why)) => text(status, why),
        Ok(()) if body.size_hint().lower() > MAX_BODY_BYTES as u64 => too_large(),
        Ok(()) => route(admin, &parts, body).await,
    };
    let headers = reply.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("weft"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// Who is asked, and by whom.
fn check(hosts: &Hosts, parts: &Parts) -> Result<(), (StatusCode, &'static str)> {
    let wrong_host = (StatusCode::FORBIDDEN, "this name is not known here: use localhost or the address\n");
    let mut named = false;
    if let Some(authority) = parts.uri.authority() {
        named = true;
        if !hosts.allows(authority.as_str()) {
            return Err(wrong_host);
        }
    }
    for host in parts.headers.get_all(header::HOST) {
        if std::mem::replace(&mut named, true) && parts.uri.authority().is_none() {
            return Err((StatusCode::BAD_REQUEST, "more than one Host\n"));
        }
        if !host.to_str().is_ok_and(|host| hosts.allows(host)) {
            return Err(wrong_host);
        }
    }
    if !named && parts.version >= Version::HTTP_11 {
        return Err((StatusCode::BAD_REQUEST, "Host is missing\n"));
    }
    // Any web page may send a POST here; browsers say for whom.
    if !parts.method.is_safe() && !same_origin(hosts, &parts.headers) {
        return Err((StatusCode::FORBIDDEN, "requests from other sites are refused\n"));
    }
    Ok(())
}

fn same_origin(hosts: &Hosts, headers: &HeaderMap) -> bool {
    let site = headers.get(HeaderName::from_static("sec-fetch-site"));
    site.is_none_or(|site| site == "same-origin" || site == "none")
        && headers.get_all(header::ORIGIN).iter().all(|origin| {
            let origin = origin.to_str().unwrap_or_default();
            origin.strip_prefix("http://").is_some_and(|host| hosts.allows(host))
        })
}

async fn route<B>(admin: &dyn Admin, parts: &Parts, body: B) -> Reply
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let path = parts.uri.path();
    if path == "/" {
        return if is_get(&parts.method) { text(StatusCode::OK, listing()) } else { wrong_method("GET") };
    }
    let Some((_, method, _)) = ROUTES.iter().find(|(known, _, _)| *known == path) else {
        return text(StatusCode::NOT_FOUND, format!("no such path; there are:\n{}", listing()));
    };
    let allowed = if *method == "GET" { is_get(&parts.method) } else { parts.method == *method };
    if !allowed {
        return wrong_method(method);
    }
    let accept = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match path {
        "/ready" => ready(admin, accept),
        "/metrics" => {
            let (metrics, content_type) = admin.metrics(accept);
            reply(StatusCode::OK, &content_type, metrics)
        }
        "/config_dump" => json(&admin.config_dump()),
        "/endpoints" => json(&admin.endpoints()),
        "/limits" => json(&admin.limits()),
        "/routes" => json(&admin.routes()),
        "/explain" => match Question::parse(parts.uri.query().unwrap_or_default()) {
            Ok(question) => json(&admin.explain(&question)),
            Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
        },
        "/connections" => json(&admin.connections()),
        "/flows" => match after(parts.uri.query().unwrap_or_default()) {
            Ok(after) => json(&admin.flows(after)),
            Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
        },
        "/ebpf" => json(&admin.ebpf()),
        "/traces" => match TraceQuery::parse(parts.uri.query().unwrap_or_default()) {
            Ok(query) => json(&admin.traces(&query)),
            Err(problem) => text(StatusCode::BAD_REQUEST, problem + "\n"),
        },
        "/debug/tasks" => json(&admin.tasks()),
        "/debug/heap" => json(&heap::report()),
        _ => drain(admin, body).await,
    }
}

/// `after=NUMBER`, or everything.
fn after(query: &str) -> Result<u64, String> {
    let mut after = 0;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("after", number)) => {
                after = number.parse().map_err(|_| format!("after={number}: expected the number of a verdict"))?;
            }
            _ => return Err(format!("{pair}: only after=NUMBER is known")),
        }
    }
    Ok(after)
}

fn ready(admin: &dyn Admin, accept: &str) -> Reply {
    let readiness = admin.ready();
    let status = if readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if accept.contains("json") {
        let value = serde_json::json!({ "ready": readiness.is_ready(), "reasons": readiness.reasons });
        return reply(status, "application/json", format!("{value:#}\n"));
    }
    let lines = if readiness.is_ready() { "ready\n".to_owned() } else { readiness.reasons.join("\n") + "\n" };
    text(status, lines)
}

/// The body means nothing, but it has to be read for the connection to go on.
async fn drain<B>(admin: &dyn Admin, body: B) -> Reply
where
    B: Body,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Err(error) if error.is::<LengthLimitError>() => too_large(),
        Err(_) => text(StatusCode::BAD_REQUEST, "the body cannot be read\n"),
        Ok(_) => {
            admin.drain();
            json(&serde_json::json!({ "draining": true }))
        }
    }
}

fn is_get(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

fn listing() -> String {
    ROUTES.iter().map(|(path, method, what)| format!("{method:<5}{path:<14}{what}\n")).collect()
}

fn wrong_method(method: &str) -> Reply {
    let allow = if method == "GET" { "GET, HEAD" } else { "POST" };
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, format!("allowed: {allow}\n"));
    reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    reply
}

fn too_large() -> Reply {
    let mut reply = text(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 64 KiB\n");
    // The rest of it is not worth reading.
    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    reply
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

fn json(value: &Value) -> Reply {
    reply(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn reply(status: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        reply.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    reply
}
