//! Writes are the leader's: another member hands them on, once.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use weft_store::Role;

use super::{Answered, Asked, Context, bytes, reply::Refusal};
use crate::pool::CallError;

/// Says that a request was handed on, and by whom.
const FORWARDED: HeaderName = HeaderName::from_static("weft-forwarded");
/// For the leader's answer: longer than the store itself waits, so that its answer arrives. Changes of the membership
/// take several writes.
const WITHIN: Duration = Duration::from_secs(25);
/// Largest answer to a write.
const ANSWER_MAX: usize = 16 << 20;

/// The leader's answer, if another member leads.
pub(super) async fn elsewhere(context: &Context, asked: &Asked) -> Option<Answered> {
    let status = context.store.status();
    if status.role == Role::Leader {
        return None;
    }
    let leader = status.leader.filter(|leader| *leader != status.id);
    let leader = status.members.iter().find(|member| Some(member.id) == leader);
    Some(match leader {
        Some(leader) if !asked.headers.contains_key(FORWARDED) => {
            hand_on(context, asked, &leader.member.name, &leader.member.address).await
        }
        leader => Err(Refusal::no_leader(leader.map(|leader| &*leader.member.name))),
    })
}

async fn hand_on(context: &Context, asked: &Asked, name: &str, address: &str) -> Answered {
    let target = asked.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::builder().method(asked.method.clone()).uri(target);
    if let Some(headers) = request.headers_mut() {
        let ours = asked.headers.iter().filter(|(name, _)| {
            name.as_str().starts_with("weft-")
                || [header::CONTENT_TYPE, header::IF_MATCH, header::IF_NONE_MATCH].contains(name)
        });
        headers.extend(ours.map(|(name, value)| (name.clone(), value.clone())));
        headers.insert(FORWARDED, HeaderValue::from_static("1"));
    }
    let request = request.body(Full::new(asked.body.clone())).map_err(|error| Refusal::bad(error.to_string()))?;
    let answer = match context.pool.send(address, request, WITHIN).await {
        Ok(answer) => answer,
        Err(CallError::Connect(error)) => {
            tracing::debug!(error, leader = name, "the leader is not reached");
            return Err(Refusal::no_leader(Some(name)));
        }
        Err(CallError::Lost(error)) => return Err(Refusal::unknown(format!("the leader's answer was lost: {error}"))),
    };
    let (parts, body) = answer.into_parts();
    let lost = |error| Refusal::unknown(format!("the leader's answer was lost: {error}"));
    let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(lost)?.to_bytes();
    let mut response = bytes(body);
    *response.status_mut() = StatusCode::from_u16(parts.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
    if let Some(content_type) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
    }
    Ok(response)
}
