//! The rate limits of a backend as this request meets them. Nothing is charged.

use std::time::Duration;

use serde_json::{Value, json};
use weft_model::config::{PolicyTarget, RateLimit};

use super::{Case, policy::ms, service::RouteId};
use crate::{
    error::{Reason, Refusal},
    layer::ratelimit::key_of,
    resilience::limiter::{Key, Peek, RateLimits, Report},
    snapshot::{Target, Upstream},
};

/// The limits of the chosen target, in the order in which they are written; `null` when there are none.
pub(super) fn explain(case: &Case<'_>, target: &Target, upstream: &Upstream, route: RouteId<'_>) -> Value {
    let Some(limits) = &target.limits else { return Value::Null };
    let owner = case.snapshot.config.rate_limit_owner(&upstream.service.key, route).map(|(_, owner)| owner);
    let reports = limits.report(upstream.service.circuit.view(case.now), case.now);
    let one = |(report, peek): (Report, &Peek)| {
        let Report { name, written, key, percent, refused, .. } = report;
        let RateLimit { requests, per, burst, .. } = written;
        // Whose budget it is, nobody said.
        let known = peek.applies && (key != Key::SourceIp || case.question.client.is_some());
        json!({
            "name": &*name,
            "target": owner.as_ref().map(PolicyTarget::to_string),
            "key": key.to_string(),
            "value": value(case, &key).map(|value| String::from_utf8_lossy(&value).into_owned()),
            "requests": requests,
            "per_ms": ms(per),
            "burst": burst,
            "applies": peek.applies,
            "factor": f64::from(percent) / 100.0,
            "remaining": known.then_some(peek.remaining),
            "wait_ms": known.then(|| ms(peek.wait)),
            "refused": refused,
        })
    };
    reports.into_iter().zip(&peek(case, limits, upstream)).map(one).collect()
}

/// The refusal when a limit is used up: by that which makes the request wait longest. One that does not apply makes
/// nobody wait.
pub(super) fn refusal(case: &Case<'_>, target: &Target, upstream: &Upstream) -> Option<Refusal> {
    let asked = peek(case, target.limits.as_ref()?, upstream);
    let worst = asked.into_iter().rev().filter(|peek| peek.wait > Duration::ZERO).max_by_key(|peek| peek.wait)?;
    let mut refusal = Refusal::with(Reason::RateLimited, format!("limit {} is used up", worst.summary));
    refusal.retry_after = Some(worst.wait);
    Some(refusal)
}

fn peek(case: &Case<'_>, limits: &RateLimits, upstream: &Upstream) -> Vec<Peek> {
    let source = source(case);
    let key_of = |key: &Key| key_of(key, case.headers(), source.as_bytes(), None, case.asked.path());
    limits.peek(key_of, upstream.service.circuit.view(case.now), case.now)
}

/// The client's address as requests are counted under it.
fn source(case: &Case<'_>) -> String {
    case.question.client.map(|client| client.to_canonical().to_string()).unwrap_or_default()
}

/// What this request is counted under; `None` for everybody's budget, and for what the request lacks.
fn value(case: &Case<'_>, key: &Key) -> Option<Vec<u8>> {
    let source = source(case);
    let value = key_of(key, case.headers(), source.as_bytes(), None, case.asked.path())?;
    (*key != Key::SourceIp || case.question.client.is_some()).then(|| value.to_vec())
}
