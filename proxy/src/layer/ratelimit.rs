//! Asks the rate limits of a route: what a request has for each key, and the refusal when it is too many.

use http::HeaderMap;

use super::target::cookie;
use crate::{
    error::{Reason, Refusal},
    exchange::Exchange,
    resilience::{
        circuit::Circuit,
        limiter::{Key, RateLimits},
    },
};

/// Charges a request, or refuses it. Either way its response will tell what is left. `path` is the normalised one.
///
/// # Errors
/// `rate_limited` when a limit is used up.
pub fn charge(
    limits: &RateLimits,
    circuit: &Circuit,
    exchange: &mut Exchange,
    headers: &HeaderMap,
    path: &str,
) -> Result<(), Refusal> {
    let source = exchange.conn.forwarded_for.as_bytes();
    let circuit = circuit.view(exchange.start);
    let identity = exchange.conn.captured.as_ref().and_then(|captured| captured.identity.as_deref());
    let asked = limits.admit(|key| key_of(key, headers, source, identity, path), circuit, exchange.start);
    let exceeded = match asked {
        Ok(standing) => {
            exchange.standing = Some(Box::new(standing));
            return Ok(());
        }
        Err(exceeded) => exceeded,
    };
    if let Some(slot) = &exchange.record.slot {
        exchange.conn.worker.telemetry.metrics.rate_limited(slot, &exceeded.limit);
    }
    exchange.standing = Some(Box::new(exceeded.standing));
    let mut refusal = Refusal::with(Reason::RateLimited, format!("limit {} is used up", exceeded.summary));
    refusal.retry_after = Some(exceeded.retry_after);
    Err(refusal)
}

/// What a request has for a key; `None` if it lacks it, then the limit does not apply. `source` is the client's address,
/// `identity` the SPIFFE id of the workload that a captured connection comes from.
pub fn key_of<'r>(
    key: &Key,
    headers: &'r HeaderMap,
    source: &'r [u8],
    identity: Option<&'r str>,
    path: &'r str,
) -> Option<&'r [u8]> {
    match key {
        // Nothing is asked of the request: the limit applies to all.
        Key::Global => None,
        // Only captured connections have one; validation warns.
        Key::Identity => identity.map(str::as_bytes),
        Key::Header(name) => headers.get(name).map(http::HeaderValue::as_bytes),
        Key::Cookie(name) => cookie(headers, name),
        Key::SourceIp => Some(source),
        Key::Path => Some(path.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_has_for_a_key() {
        let mut headers = HeaderMap::new();
        headers.insert("x-user", http::HeaderValue::from_static("ann"));
        headers.insert("cookie", http::HeaderValue::from_static("a=1; session=s1"));
        let table = [
            (Key::Global, None),
            (Key::Header(http::HeaderName::from_static("x-user")), Some("ann")),
            (Key::Header(http::HeaderName::from_static("x-other")), None),
            (Key::Cookie("session".into()), Some("s1")),
            (Key::Cookie("other".into()), None),
            (Key::SourceIp, Some("10.0.0.1")),
            (Key::Identity, Some("spiffe://mesh.local/ns/default/sa/web")),
            (Key::Path, Some("/cart")),
        ];
        for (key, expected) in table {
            let identity = Some("spiffe://mesh.local/ns/default/sa/web");
            let found = key_of(&key, &headers, b"10.0.0.1", identity, "/cart");
            assert_eq!(found, expected.map(str::as_bytes), "{key:?}");
        }
        assert_eq!(key_of(&Key::Identity, &headers, b"10.0.0.1", None, "/cart"), None);
    }
}
