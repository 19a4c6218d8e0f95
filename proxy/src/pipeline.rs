//! The life of a request, on one screen. Read `prepare` and `forward` from top to bottom.
//!
//! The steps are plain functions around one `async fn`, and not a stack of tower services: the code stands in the order
//! in which things happen, and what a route does not use is a branch not taken. tower stays the place where users extend.

use std::{
    convert::Infallible,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery};
use hyper::body::Incoming;
use smallvec::SmallVec;
use weft_model::config::HashKey;

use crate::{
    balance::hash_str,
    body::{ReplyBody, RequestBody},
    conn::Conn,
    endpoint::Endpoint,
    error::{Reason, Refusal},
    exchange::Exchange,
    headers::{self, Seen},
    layer::{mirror, target},
    reply::{self, Answer, Manner},
    resilience::outcome::Failure,
    snapshot::{Rule, Target, Upstream},
    upgrade::{Client, Tunnel},
    upstream::{interim, obtain::Patience, pool::Lease, send},
};

/// Answers one request. Never fails: what goes wrong becomes a reply with its reason.
///
/// Everything up to the first wait is done by `prepare`, outside of the future: what a future holds across a wait is
/// paid for by every connection, and what is moved into it is copied.
pub fn handle(
    conn: Rc<Conn>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<ReplyBody>, Infallible>> {
    let mut seen = headers::scan(request.headers());
    // RFC 9110 §7.8: an HTTP/1.0 client cannot ask for another protocol.
    seen.upgrade &= request.version() != Version::HTTP_10;
    let mut exchange = Exchange::begin(&conn, &request, seen.grpc);
    let manner = Manner::of(&request, seen.grpc);
    let mut prepared = prepare(&conn, request, seen, &mut exchange);
    async move {
        let answered = match &mut prepared {
            Ok(prepared) => forward(&mut exchange, prepared).await,
            // The answer is there already; nothing waits for its place to be used again.
            Err(answer) => Err(std::mem::take(answer)),
        };
        let mut response = match answered {
            Ok((response, lease)) => {
                exchange.answered(response.status().as_u16());
                response.map(|body| ReplyBody::upstream(body, lease, exchange))
            }
            Err(answer) => reply::reply(answer, &manner, exchange),
        };
        if conn.worker.draining.get() && !manner.h2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// A request that is ready to be sent.
struct Prepared {
    /// Taken out while it is being sent.
    request: Option<Request<RequestBody>>,
    /// The client's side of a tunnel, if it asked for one.
    client: Option<Client>,
    /// For RingHash and Maglev.
    hash: u64,
}

/// Everything before the first wait: which rule, which backend, and what the upstream will see.
fn prepare(
    conn: &Rc<Conn>,
    mut request: Request<Incoming>,
    seen: Seen,
    exchange: &mut Exchange,
) -> Result<Prepared, Answer> {
    let worker = &conn.worker;
    let snapshot = worker.snapshot();

    // Which rule: by host, path, method, headers and query, in the form that will be forwarded.
    let source = target::Source::of(&request)?;
    let asked = source.asked(request.method())?;
    let found = target::route(&snapshot, conn, &request, &asked)?;
    exchange.routed(&snapshot, found.rule);
    let rule = &snapshot.rules[found.rule as usize];
    if let Some(redirect) = &rule.redirect {
        return Err(target::redirect(redirect, conn, &asked, found.matched)?);
    }

    // Which backend of the rule.
    let picked = rule.backends.pick_position(worker.random()).and_then(|at| Some((at, rule.backends.get(at)?)));
    let (position, target) = picked.ok_or_else(|| nowhere("the rule has no backend with a weight"))?;
    exchange.targeted(position, target);
    let upstream = target.upstream.as_ref().ok_or_else(|| nowhere("the service or its port does not exist"))?;
    exchange.occupy(upstream)?;
    if let Some(timeout) = seen.grpc.then(|| headers::grpc_timeout(request.headers())).flatten() {
        exchange.limit(timeout);
    }
    headers::check_length(request.headers(), worker.shared.options.limits.body_bytes)?;

    // What the upstream sees.
    let from_http11 = request.version() == Version::HTTP_11;
    let hash = hash_of(upstream, conn, &request, asked.path());
    if *request.method() == Method::CONNECT && upstream.is_h2() {
        let detail = "CONNECT is passed on to HTTP/1.1 services only (appProtocol: http)";
        return Err(Refusal::new(Reason::BadRequest, detail).into());
    }
    let tunnel = headers::wants_tunnel(request.method(), seen) && !upstream.is_h2();
    let client = tunnel.then(|| match request.version() {
        Version::HTTP_2 => Client::Http2(hyper::upgrade::on(&mut request)),
        _ => Client::Http1,
    });
    let uri = target::forwarded_uri(rule, upstream, request.method(), &asked, found.matched)?;
    let mut host = target::forwarded_host(rule, &asked)?;
    if host.is_none() && asked.authority().is_none() {
        // HTTP/1.0 without Host goes on as HTTP/1.1, which needs one (RFC 9112 §3.2).
        host = HeaderValue::from_str(&upstream.service.name).ok();
    }
    headers::prepare_request(request.headers_mut(), seen, tunnel && seen.upgrade, asked.authority(), conn)?;
    apply(&mut request, uri, host, rule, target, upstream);
    exchange.record.forwarded(request.headers());

    // The body begins to flow when the upstream asks for it.
    let (mut parts, body) = request.into_parts();
    parts.extensions.clear();
    let (mut body, progress) = RequestBody::from_client(body, worker.shared.options.limits.body_bytes, conn);
    exchange.progress = progress;
    if !upstream.is_h2() && !body.is_empty() && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        // Said in so many words: hyper takes a GET of unknown length for one without a body.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    mirror::copies(conn, rule, &parts, &mut body);
    let mut request = Request::from_parts(parts, body);
    // An HTTP/1.0 client does not know interim responses, and hyper cannot send them over HTTP/2.
    if from_http11 && conn.guard.get().is_some() && !upstream.is_h2() {
        conn.interim.get_or_init(Arc::default).listen(&mut request);
    }
    Ok(Prepared { request: Some(request), client, hash })
}

/// Picks an endpoint, sends, and makes the response fit for the client.
///
/// A request that no endpoint has processed is picked again, a few times; other retries are a matter of policy.
async fn forward(exchange: &mut Exchange, prepared: &mut Prepared) -> Result<(Response<Incoming>, Lease), Answer> {
    const PICKS: usize = 3;
    let conn = exchange.conn.clone();
    let worker = &conn.worker;
    let chosen = exchange.target().ok_or_else(|| nowhere("no backend was chosen"))?;
    let target = chosen.target().ok_or_else(|| nowhere("no backend was chosen"))?;
    let upstream = chosen.upstream().ok_or_else(|| nowhere("the service or its port does not exist"))?;
    let mut tried = SmallVec::<[u64; PICKS]>::new();
    loop {
        let now = worker.clock.now();
        let picked = upstream.balancer.pick(prepared.hash, &tried, now, &mut worker.rng.borrow_mut()).cloned();
        let endpoint = picked.ok_or_else(|| no_endpoint(upstream))?;
        exchange.attempt(&endpoint, upstream.tls.is_some(), prepared.request.as_mut().map(Request::headers_mut));
        let progress = exchange.progress.clone();
        let answered = {
            let sending =
                pin!(
                    send::send(worker, upstream, &endpoint, &mut prepared.request, progress.as_ref(), Patience::Wait,)
                );
            let relayed = pin!(interim::relay(&conn, sending));
            exchange.within(relayed).await
        };
        let error = match answered {
            Ok((mut response, mut lease)) => {
                let now = worker.clock.read();
                exchange.record.head(response.status().as_u16(), response.headers(), now);
                // The first exchange on a connection includes opening it, which says nothing of the requests to come.
                if !lease.is_fresh() {
                    // Nor does the wait for a connection.
                    let now = now.checked_sub(lease.waited()).unwrap_or(now);
                    observe(&endpoint, exchange, now, Duration::ZERO);
                }
                finish(&mut response, &mut lease, prepared.client.take(), exchange, target)?;
                return Ok((response, lease));
            }
            Err(error) => error,
        };
        let now = worker.clock.read();
        exchange.record.attempt_failed(error.refusal.reason, now);
        if Failure::of_reason(error.refusal.reason).is_some() {
            observe(&endpoint, exchange, now, FAILURE);
        }
        tried.push(endpoint.id);
        // A limit of the whole service is no better elsewhere.
        let elsewhere = error.unprocessed && error.refusal.reason != Reason::Overloaded;
        let others = upstream.service.endpoints().len() > tried.len();
        if !(prepared.request.is_some() && elsewhere && others && tried.len() < PICKS) {
            return Err(error.refusal.into());
        }
        endpoint.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// A failed attempt counts as one that took so long: otherwise an endpoint that refuses at once would look fast, and
/// draw requests.
const FAILURE: Duration = Duration::from_secs(1);

/// Tells the balancer how long the endpoint took.
fn observe(endpoint: &Endpoint, exchange: &Exchange, now: Instant, least: Duration) {
    if let Some(start) = exchange.record.attempt_start() {
        endpoint.latency.observe(now.saturating_duration_since(start).max(least), now);
    }
}

/// Request and fields as the upstream gets them.
fn apply(
    request: &mut Request<Incoming>,
    uri: Option<Uri>,
    host: Option<HeaderValue>,
    rule: &Rule,
    target: &Target,
    upstream: &Upstream,
) {
    if let Some(uri) = uri {
        *request.uri_mut() = uri;
    }
    if request.version() == Version::HTTP_2 && !upstream.is_h2() {
        headers::join_cookies(request.headers_mut());
    }
    let h2 = upstream.is_h2();
    *request.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
    if h2 {
        request.headers_mut().remove(header::HOST);
    } else if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    for modifier in [&rule.request_headers, &target.request_headers].into_iter().flatten() {
        modifier.apply(request.headers_mut());
        // HTTP/2 says it as :authority, and the two must not differ (RFC 9113 §8.3.1).
        if h2 && let Some(host) = request.headers_mut().remove(header::HOST) {
            let mut parts = request.uri().clone().into_parts();
            parts.authority = host.as_bytes().try_into().ok().or(parts.authority);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
}

/// Makes the upstream's response fit for the client; starts the tunnel if that is what it is.
fn finish(
    response: &mut Response<Incoming>,
    lease: &mut Lease,
    client: Option<Client>,
    exchange: &Exchange,
    target: &Target,
) -> Result<(), Refusal> {
    let conn = &exchange.conn;
    let response_headers = exchange.rule().and_then(|rule| rule.response_headers.as_ref());
    let connect = exchange.record.method() == Method::CONNECT;
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !connect && switched && !response.headers().contains_key(header::UPGRADE) {
        let detail = "the endpoint switched protocols without saying to which";
        return Err(Refusal::new(Reason::BadUpstreamResponse, detail));
    }
    let tunnel = if connect { response.status().is_success() } else { switched };
    if switched && client.is_none() {
        let detail = "the endpoint switched protocols without being asked to";
        return Err(Refusal::new(Reason::BadUpstreamResponse, detail));
    }
    headers::check_response_framing(response)?;
    // A proxy speaks its own version (RFC 9110 §2.5), whatever the endpoint speaks.
    *response.version_mut() = Version::HTTP_11;
    if headers::prepare_response(response.headers_mut(), tunnel && !connect).close {
        lease.forfeit();
    }
    for modifier in [response_headers, target.response_headers.as_ref()].into_iter().flatten() {
        modifier.apply(response.headers_mut());
    }
    if let Some(client) = client {
        // Bytes that the guard held back belong to the tunnel, or are the next request.
        if let Some(guard) = conn.guard.get() {
            guard.resume_after_upgrade(tunnel);
        }
        if tunnel {
            lease.forfeit();
            Tunnel::new(conn, hyper::upgrade::on(response), target).start(conn, client);
        } else if connect {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    Ok(())
}

fn nowhere(detail: &'static str) -> Refusal {
    Refusal::new(Reason::NoEndpoint, detail)
}

fn no_endpoint(upstream: &Upstream) -> Refusal {
    let all = upstream.service.endpoints().len();
    let name = &upstream.service.name;
    let detail = if all == 0 {
        format!("service {name} has no endpoints")
    } else {
        format!("none of the {all} endpoints of service {name} is usable")
    };
    Refusal::with(Reason::NoEndpoint, detail)
}

/// What RingHash and Maglev hash; 0 for the others, which ignore it.
fn hash_of(upstream: &Upstream, conn: &Conn, request: &Request<Incoming>, path: &str) -> u64 {
    if !upstream.balancer.needs_hash() {
        return 0;
    }
    let source = || hash_str(conn.forwarded_for.as_bytes());
    match &upstream.policy.load_balancer.hash {
        HashKey::Header(name) => request.headers().get(&**name).map_or_else(source, |value| hash_str(value.as_bytes())),
        HashKey::Cookie(name) => target::cookie(request.headers(), name).map_or_else(source, hash_str),
        HashKey::SourceIp => source(),
        HashKey::Path => hash_str(path.as_bytes()),
    }
}

/// Keeps the request's own target unless something changes it.
pub fn with_path(path: PathAndQuery) -> Result<Uri, Refusal> {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| Refusal::new(Reason::BadRequest, "the request target cannot be forwarded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// hyper keeps room for this in every connection, idle ones too, and moving it about costs time.
    #[test]
    fn the_future_of_a_request_stays_small() {
        fn size<F: Future>(_: impl FnOnce(Rc<Conn>, Request<Incoming>) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(handle);
        assert!(size <= 2560, "{size} bytes");
    }
}
