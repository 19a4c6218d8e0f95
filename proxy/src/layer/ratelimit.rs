//! Asks the rate limits of a route: what a request has for each key, and the refusal when it is too many.

use http::HeaderMap;
use weft_model::config::RateKey;

use super::target::cookie;
use crate::{
    error::{Reason, Refusal},
    exchange::Exchange,
    resilience::{circuit::Circuit, limiter::RateLimits},
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
    let asked = limits.admit(|key| key_of(key, headers, source, path), circuit, exchange.start);
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

/// What a request has for a key. `source` is the client's address.
pub fn key_of<'r>(key: &RateKey, headers: &'r HeaderMap, source: &'r [u8], path: &'r str) -> Option<&'r [u8]> {
    match key {
        // Listeners do not know client identities yet; validation warns.
        RateKey::Global | RateKey::Identity => None,
        RateKey::Header(name) => headers.get(&**name).map(http::HeaderValue::as_bytes),
        RateKey::Cookie(name) => cookie(headers, name),
        RateKey::SourceIp => Some(source),
        RateKey::Path => Some(path.as_bytes()),
    }
}
