//! Header fields at the hop: what belongs to one connection is removed, what the next hop should know is added.
//!
//! RFC 9110 §7.6 says what a proxy must not forward; the rest is about `x-forwarded-*`, request ids and loops.

mod deadline;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use smallvec::SmallVec;

use crate::{
    conn::Conn,
    error::{Reason, Refusal},
};

pub use deadline::{deadline, expected_timeout, forward_deadline, grpc_timeout};

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static HOPS: HeaderName = HeaderName::from_static("x-weft-hops");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// More passes through Weft than this are a loop.
const MAX_HOPS: u8 = 10;

/// What one look over the fields of a request has shown.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// The client wants another protocol on this connection (`Upgrade` named by `Connection`, h2c apart).
    pub upgrade: bool,
    /// `content-type: application/grpc…`
    pub grpc: bool,
    /// The client may have said how long it will wait.
    deadline: bool,
    connection: bool,
    /// `Connection` says more than `close` or `keep-alive`: its list has to be read.
    listed: bool,
    close: bool,
    upgrade_field: bool,
    other_hop: bool,
    te: bool,
    expect: bool,
    request_id: bool,
    hops: bool,
    forwarded: bool,
}

impl Seen {
    fn connection_field(&mut self, value: &HeaderValue) {
        self.connection = true;
        if value.as_bytes().eq_ignore_ascii_case(b"close") {
            self.close = true;
        } else if !value.as_bytes().eq_ignore_ascii_case(b"keep-alive") {
            self.listed = true;
        }
    }
}

/// Looks over the fields of a request, once.
pub fn scan(headers: &HeaderMap) -> Seen {
    let mut seen = Seen::default();
    for (name, value) in headers {
        match name.as_str() {
            "connection" => seen.connection_field(value),
            "upgrade" => {
                seen.upgrade_field = true;
                seen.upgrade = !value.as_bytes().eq_ignore_ascii_case(b"h2c");
            }
            "te" => seen.te = true,
            "expect" => seen.expect = true,
            "keep-alive" | "proxy-connection" | "transfer-encoding" | "http2-settings" => seen.other_hop = true,
            "content-type" => seen.grpc = value.as_bytes().starts_with(b"application/grpc"),
            "grpc-timeout" | "x-envoy-expected-rq-timeout-ms" => seen.deadline = true,
            "x-request-id" => seen.request_id = true,
            "x-weft-hops" => seen.hops = true,
            "forwarded" | "x-real-ip" => seen.forwarded = true,
            name if name.starts_with("x-forwarded-") => seen.forwarded = true,
            _ => {}
        }
    }
    seen.upgrade &= seen.listed && names(headers, b"upgrade");
    seen
}

/// Whether `Connection` lists `token`.
fn names(headers: &HeaderMap, token: &[u8]) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Removes what belongs to the connection, from a request or a response (RFC 9110 §7.6.1).
fn strip(headers: &mut HeaderMap, seen: Seen) {
    if seen.listed {
        let listed: SmallVec<[HeaderName; 4]> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|item| !item.eq_ignore_ascii_case(b"keep-alive") && !item.eq_ignore_ascii_case(b"close"))
            .filter_map(|item| HeaderName::from_bytes(item).ok())
            // A client must not be able to take these from us by listing them.
            .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::CONTENT_TYPE))
            .filter(|name| *name != REQUEST_ID && *name != HOPS)
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    if seen.connection {
        headers.remove(header::CONNECTION);
    }
    if seen.upgrade_field {
        headers.remove(header::UPGRADE);
    }
    if seen.other_hop {
        headers.remove(&KEEP_ALIVE);
        headers.remove(&PROXY_CONNECTION);
        headers.remove(&HTTP2_SETTINGS);
        headers.remove(header::TRANSFER_ENCODING);
    }
}

/// Makes a request's fields fit for the upstream.
///
/// `host` is the authority that the client asked for; `upgrade` says whether an upgrade is passed on.
///
/// # Errors
/// An unknown expectation, or a request that has passed too often.
pub fn prepare_request(
    headers: &mut HeaderMap,
    seen: Seen,
    upgrade: bool,
    host: Option<HeaderValue>,
    conn: &Conn,
) -> Result<(), Refusal> {
    if seen.expect {
        let known =
            headers.get_all(header::EXPECT).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        if !known {
            return Err(Refusal::new(Reason::ExpectationFailed, "only 100-continue is known"));
        }
        // hyper answers it when the upstream's connection asks for the body, so a refused request is never sent one.
        headers.remove(header::EXPECT);
    }
    let hops = if seen.hops { count_hops(headers)? } else { 0 };
    let trailers = seen.te && headers.get_all(header::TE).iter().any(accepts_trailers);
    let protocol = if upgrade { headers.remove(header::UPGRADE) } else { None };
    strip(headers, seen);
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
    if seen.te {
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    forward(headers, seen, host, conn);
    if seen.request_id || seen.hops {
        // It has been through a proxy already, perhaps this one.
        headers.insert(HOPS.clone(), HeaderValue::from(u16::from(hops + 1)));
    }
    if !seen.request_id {
        headers.insert(REQUEST_ID.clone(), request_id(conn.worker.random(), conn.worker.random()));
    }
    Ok(())
}

fn accepts_trailers(te: &HeaderValue) -> bool {
    te.as_bytes().split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn count_hops(headers: &HeaderMap) -> Result<u8, Refusal> {
    let hops = headers.get(&HOPS).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u8>().ok());
    match hops {
        Some(hops) if hops >= MAX_HOPS => {
            Err(Refusal::new(Reason::LoopDetected, "the request has come through Weft ten times"))
        }
        Some(hops) => Ok(hops),
        None => Err(Refusal::new(Reason::BadRequest, "x-weft-hops is not a number")),
    }
}

/// `x-forwarded-for`, `-proto` and `-host`: extended when the peer is trusted, replaced otherwise; left alone on captured
/// connections.
fn forward(headers: &mut HeaderMap, seen: Seen, host: Option<HeaderValue>, conn: &Conn) {
    let proto = HeaderValue::from_static(conn.scheme());
    if conn.captured.is_some() {
        // The client is an application of this node, which has asked for the service itself: what it says of its own clients
        // reaches the service as it would without Weft, and loopback is nobody's address.
        headers.entry(&FORWARDED_PROTO).or_insert(proto);
        if let Some(host) = host {
            headers.entry(&FORWARDED_HOST).or_insert(host);
        }
        return;
    }
    if seen.forwarded && conn.trusted {
        let before =
            headers.get_all(&FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
        let all = if before.is_empty() {
            Ok(conn.forwarded_for.clone())
        } else {
            HeaderValue::from_bytes(&[&before, &b", "[..], conn.forwarded_for.as_bytes()].concat())
        };
        if let Ok(all) = all {
            headers.insert(FORWARDED_FOR.clone(), all);
        }
        headers.entry(&FORWARDED_PROTO).or_insert(proto);
        if let Some(host) = host {
            headers.entry(&FORWARDED_HOST).or_insert(host);
        }
        return;
    }
    if seen.forwarded {
        // All of the family: whoever reads one of them believes that a proxy wrote it.
        let forged = headers.keys().filter(|name| is_forwarding(name)).cloned().collect::<SmallVec<[HeaderName; 4]>>();
        for name in forged {
            headers.remove(name);
        }
    }
    headers.insert(FORWARDED_FOR.clone(), conn.forwarded_for.clone());
    headers.insert(FORWARDED_PROTO.clone(), proto);
    if let Some(host) = host {
        headers.insert(FORWARDED_HOST.clone(), host);
    }
}

fn is_forwarding(name: &HeaderName) -> bool {
    matches!(name.as_str(), "forwarded" | "x-real-ip") || name.as_str().starts_with("x-forwarded-")
}

fn request_id(high: u64, low: u64) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0u8; 32];
    let bits = u128::from(high) << 64 | u128::from(low);
    for (place, byte) in text.iter_mut().enumerate() {
        *byte = HEX[(bits >> (124 - 4 * place)) as usize & 15];
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("-"))
}

/// What a response's fields say about its connection.
#[derive(Debug, Clone, Copy)]
pub struct Closing {
    /// The upstream will close the connection.
    pub close: bool,
}

/// Makes a response's fields fit for the client. `upgrade` keeps what a 101 needs.
pub fn prepare_response(headers: &mut HeaderMap, upgrade: bool) -> Closing {
    let mut seen = Seen::default();
    let mut alt_svc = false;
    for (name, value) in &*headers {
        match name.as_str() {
            "connection" => seen.connection_field(value),
            "upgrade" => seen.upgrade_field = true,
            "keep-alive" | "proxy-connection" | "transfer-encoding" | "http2-settings" => seen.other_hop = true,
            "alt-svc" => alt_svc = true,
            _ => {}
        }
    }
    let close = seen.close || (seen.listed && names(headers, b"close"));
    if alt_svc {
        // It names another way to reach the upstream, past this proxy (RFC 7838 §2.4).
        headers.remove(header::ALT_SVC);
    }
    if seen.connection || seen.upgrade_field || seen.other_hop {
        let protocol = if upgrade { headers.remove(header::UPGRADE) } else { None };
        strip(headers, seen);
        if let Some(protocol) = protocol {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol);
        }
    }
    Closing { close }
}

/// HTTP/2 clients may split `cookie`; HTTP/1 has it once (RFC 9113 §8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    let all = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    if let Ok(all) = HeaderValue::from_bytes(&all) {
        headers.insert(header::COOKIE, all);
    }
}

/// Refuses an HTTP/1 response whose body cannot be passed on as what it is: in a transfer coding besides `chunked`, which
/// belongs to the hop and would be taken off here unseen, or with a `content-length` beside one (RFC 9112 §6.1).
///
/// # Errors
/// `bad_upstream_response`.
pub fn check_response_framing<B>(response: &Response<B>) -> Result<(), Refusal> {
    let mut codings = response.headers().get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    let detail = if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        "the answer's transfer coding is not chunked alone"
    } else if response.headers().contains_key(header::CONTENT_LENGTH) {
        "the answer has a length beside its chunks"
    } else {
        return Ok(());
    };
    Err(Refusal::new(Reason::BadUpstreamResponse, detail))
}

/// Refuses a body that is declared larger than `limit`, before any of it is read.
pub fn check_length(headers: &HeaderMap, limit: u64) -> Result<(), Refusal> {
    if limit == u64::MAX {
        return Ok(());
    }
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if declared.is_some_and(|declared| declared > limit) {
        return Err(Refusal::new(Reason::RequestTooLarge, "the body is larger than --max-body-bytes"));
    }
    Ok(())
}

/// Whether a request with this method may ask for a tunnel.
pub fn wants_tunnel(method: &Method, seen: Seen) -> bool {
    seen.upgrade || *method == Method::CONNECT
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn removes_what_belongs_to_the_connection_and_what_connection_lists() {
        let mut headers = map(&[
            ("host", "a"),
            ("connection", "close, X-Private"),
            ("connection", "keep-alive , x-other,host,content-length"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAA"),
            ("x-private", "1"),
            ("x-other", "1"),
            ("content-length", "0"),
            ("accept", "*/*"),
        ]);
        let seen = scan(&headers);
        assert!(!seen.upgrade, "h2c never passes");
        strip(&mut headers, seen);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    #[test]
    fn an_upgrade_counts_only_when_connection_names_it() {
        assert!(scan(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).upgrade);
        assert!(!scan(&map(&[("connection", "keep-alive"), ("upgrade", "websocket")])).upgrade);
        assert!(!scan(&map(&[("upgrade", "websocket")])).upgrade);
    }

    #[test]
    fn a_response_keeps_its_upgrade_only_for_a_101() {
        let fields = [("connection", "upgrade"), ("upgrade", "websocket"), ("alt-svc", "h3=\":443\"")];
        let mut headers = map(&fields);
        prepare_response(&mut headers, true);
        assert_eq!(headers, map(&fields[..2]));
        let mut headers = map(&fields);
        prepare_response(&mut headers, false);
        assert!(headers.is_empty());
        let mut headers = map(&[("connection", "Close")]);
        assert!(prepare_response(&mut headers, false).close);
    }

    #[test]
    fn a_response_is_chunked_alone_or_has_a_length() {
        let framed = |fields: &[(&str, &str)]| {
            let mut response = Response::new(());
            *response.headers_mut() = map(fields);
            check_response_framing(&response).is_ok()
        };
        assert!(framed(&[]) && framed(&[("content-length", "5")]) && framed(&[("transfer-encoding", "Chunked")]));
        for coding in ["gzip", "gzip, chunked", "chunked, gzip", "identity"] {
            assert!(!framed(&[("transfer-encoding", coding)]), "{coding}");
        }
        assert!(!framed(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
        assert!(!framed(&[("transfer-encoding", "chunked"), ("content-length", "5")]));
    }

    #[test]
    fn cookie_crumbs_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3"), ("x", "y")]));
        join_cookies(&mut headers);
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn hops_are_bounded() {
        assert_eq!(count_hops(&map(&[("x-weft-hops", "9")])).unwrap(), 9);
        assert_eq!(count_hops(&map(&[("x-weft-hops", "10")])).unwrap_err().reason, Reason::LoopDetected);
        assert_eq!(count_hops(&map(&[("x-weft-hops", "many")])).unwrap_err().reason, Reason::BadRequest);
    }

    #[test]
    fn request_ids_are_32_hex_digits() {
        assert_eq!(request_id(0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210), "0123456789abcdeffedcba9876543210");
    }

    #[test]
    fn a_declared_length_over_the_limit_is_refused() {
        let headers = map(&[("content-length", "11")]);
        assert!(check_length(&headers, 11).is_ok());
        assert_eq!(check_length(&headers, 10).unwrap_err().reason, Reason::RequestTooLarge);
    }
}
