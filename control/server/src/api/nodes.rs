//! Nodes that take their configuration from here.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use serde::Serialize;
use weft_store::MemberStatus;

use super::{Answered, Body, Context, reply::Refusal, reply::json as reply};
use crate::push::fleet::{Fleet, MemberNodes};

/// For another member's answer, when nodes are asked for.
const WITHIN: Duration = Duration::from_secs(2);
/// Largest answer of another member.
const ANSWER_MAX: usize = 64 << 20;

/// The nodes that are, or were, connected to this member.
pub(super) fn own(context: &Context) -> Answered {
    shown(&context.push.nodes(context.store.member().0))
}

/// All nodes.
pub(super) async fn all(context: &Context) -> Answered {
    shown(&fleet(context, WITHIN).await)
}

fn shown(value: &impl Serialize) -> Result<Response<Body>, Refusal> {
    let value = serde_json::to_value(value).map_err(|error| Refusal::defect(error.to_string()))?;
    Ok(reply(&value))
}

/// The nodes of all members that answer `within` a time, as each of them sees its own.
pub(super) async fn fleet(context: &Context, within: Duration) -> Fleet {
    let status = context.store.status();
    let asked = join_all(status.members.iter().map(|member| async {
        let known = if member.id == status.id {
            Some(context.push.nodes(status.id))
        } else {
            ask(context, member, within).await
        };
        known.ok_or_else(|| member.member.name.to_string())
    }));
    let (mut members, mut unreachable) = (Vec::new(), Vec::new());
    for answer in asked.await {
        match answer {
            Ok(nodes) => members.push(nodes),
            Err(name) => unreachable.push(name),
        }
    }
    if !status.members.iter().any(|member| member.id == status.id) {
        members.push(context.push.nodes(status.id));
    }
    Fleet::merged(members, unreachable)
}

async fn ask(context: &Context, member: &MemberStatus, within: Duration) -> Option<MemberNodes> {
    let request = Request::get("/v1/nodes/self").body(Full::default()).ok()?;
    let asking = async {
        let answer = context.pool.send(&member.member.address, request, within).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.ok()?;
        serde_json::from_slice::<MemberNodes>(&body.to_bytes()).ok()
    };
    let answer = tokio::time::timeout(within, asking).await.ok().flatten();
    // Its address may have been given to another.
    answer.filter(|answer| answer.id == member.id.to_string())
}
