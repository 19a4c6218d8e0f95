//! What a request would be answered by Weft itself, asked in the order in which [`crate::pipeline`] asks.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use super::{Case, limits, policy::ms};
use crate::{
    error::{Reason, Refusal},
    headers,
    layer::access::Source,
    snapshot::{Target, Upstream},
    telemetry::names,
};

/// The refusal of a request that goes to this backend; `None` when an endpoint gets it.
pub(super) fn refusal(case: &Case<'_>, target: &Target) -> Option<Refusal> {
    let Some(upstream) = &target.upstream else {
        return Some(Refusal::new(Reason::NoEndpoint, "the service or its port does not exist"));
    };
    if let Some(denied) = denied(case, upstream) {
        return Some(denied);
    }
    let shed = case.shed.check(case.headers(), upstream.policy.priority).err();
    shed.or_else(|| limits::refusal(case, target, upstream))
        .or_else(|| upstream.crowded())
        .or_else(|| upstream.fault.as_ref()?.certain(case.headers()))
        .or_else(|| connect(case, upstream))
        .or_else(|| upstream.foresee(case.now).err().map(|unpicked| upstream.refusal(unpicked, case.now)))
        .or_else(|| expired(case))
}

/// What AccessPolicies say, as far as the question tells who asks: the workload of a captured connection is not known here.
fn denied(case: &Case<'_>, upstream: &Upstream) -> Option<Refusal> {
    let access = upstream.service.access.as_ref().filter(|_| case.captured.is_none())?;
    let address = case.question.client.map(|client| client.to_canonical());
    if address.is_none() && access.by_address() {
        return None;
    }
    let source = Source { address, ..Source::default() };
    access.check(&source).err().map(|detail| Refusal::with(Reason::AccessDenied, detail))
}

fn connect(case: &Case<'_>, upstream: &Upstream) -> Option<Refusal> {
    let detail = "CONNECT is passed on to HTTP/1.1 services only (appProtocol: http)";
    let refused = *case.question.request.method() == Method::CONNECT && upstream.is_h2();
    refused.then(|| Refusal::new(Reason::BadRequest, detail))
}

fn expired(case: &Case<'_>) -> Option<Refusal> {
    let over = headers::deadline(case.headers(), case.seen) == Some(Duration::ZERO);
    over.then(|| Refusal::new(Reason::DeadlineExceeded, "the client's own deadline is 0"))
}

/// A refusal as its client would see it. gRPC clients are told a status of theirs.
pub(super) fn show(case: &Case<'_>, refusal: &Refusal) -> Value {
    let grpc = case.seen.grpc.then(|| refusal.grpc_status());
    json!({
        "status": refusal.http_status().as_u16(),
        "grpc_status": grpc.map(|status| names::grpc_status(status).map_or_else(|| status.to_string(), str::to_owned)),
        "reason": refusal.reason.row().name,
        "detail": refusal.detail,
        "retry_after_ms": refusal.retry_after.map(ms),
    })
}
