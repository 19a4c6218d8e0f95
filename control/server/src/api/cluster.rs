//! Members: how they are, who comes and goes.

use std::time::Duration;

use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Value, json};
use weft_store::{Member, MemberStatus, Role, Status};

use super::{Answered, Asked, Context, reply::Refusal, reply::json as reply};

/// For another member's answer about itself.
const WITHIN: Duration = Duration::from_secs(1);
/// Largest answer about itself.
const ANSWER_MAX: usize = 64 << 10;

/// What this member says about itself.
pub(super) fn own(context: &Context) -> http::Response<super::Body> {
    reply(&describe(&context.store.status()))
}

fn describe(status: &Status) -> Value {
    let leader = status.members.iter().find(|member| Some(member.id) == status.leader);
    json!({
        // Ids are larger than what JavaScript and jq take for exact.
        "id": status.id.to_string(),
        "name": &*status.member.name,
        "address": &*status.member.address,
        "role": role(status.role),
        "term": status.term,
        "leader": leader.map(|leader| leader.member.name.to_string()),
        "last": status.last,
        "commit": status.commit,
        "applied": status.applied,
        "revision": status.revision.0,
        "dbBytes": status.log_bytes + status.snapshot_bytes,
    })
}

/// Every member, each as it sees itself.
pub(super) async fn status(context: &Context) -> http::Response<super::Body> {
    let status = context.store.status();
    let members = join_all(status.members.iter().map(|member| async {
        let known = if member.id == status.id { Some(describe(&status)) } else { ask(context, member).await };
        let mut described = known.unwrap_or_else(|| {
            let (name, address) = (&*member.member.name, &*member.member.address);
            json!({"id": member.id.to_string(), "name": name, "address": address, "role": "unreachable",
                "term": null, "commit": null, "applied": null})
        });
        described["voter"] = member.voter.into();
        described
    }));
    let mut members = members.await;
    members.sort_by_key(|member| member["name"].as_str().unwrap_or_default().to_owned());
    // Of two that both think that they lead, the one of the later term does.
    let leading = members.iter().filter(|member| member["role"] == "leader");
    let leader = leading.max_by_key(|member| member["term"].as_u64()).map(|member| member["name"].clone());
    let last = members.iter().filter_map(|member| member["last"].as_u64()).max();
    for member in &mut members {
        member["lag"] = json!(last.zip(member["last"].as_u64()).map(|(last, own)| last - own));
    }
    reply(&json!({
        "leader": leader,
        "joint": status.joint,
        "asked": &*status.member.name,
        "members": members,
    }))
}

async fn ask(context: &Context, member: &MemberStatus) -> Option<Value> {
    let request = Request::get("/v1/raft/self").body(Full::default()).ok()?;
    let asking = async {
        let answer = context.pool.send(&member.member.address, request, WITHIN).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.ok()?;
        serde_json::from_slice::<Value>(&body.to_bytes()).ok()
    };
    let answer = tokio::time::timeout(WITHIN, asking).await.ok().flatten();
    // Its address may have been given to another.
    answer.filter(|answer| answer["id"].as_str() == Some(&*member.id.to_string()))
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Stopped => "stopped",
    }
}

/// Adds a member without a vote: `{"id": "…", "name": "…", "address": "…", "incarnation": "…"}`.
pub(super) async fn join(context: &Context, asked: &Asked) -> Answered {
    let body: Value = serde_json::from_slice(&asked.body).map_err(|error| Refusal::bad(error.to_string()))?;
    let text = |name: &str| body[name].as_str().ok_or_else(|| Refusal::bad(format!("{name} is missing")));
    let number = |name: &str| text(name)?.parse().map_err(|_| Refusal::bad(format!("{name} is a number")));
    let id = number("id")?;
    let member =
        Member { name: text("name")?.into(), address: text("address")?.into(), incarnation: number("incarnation")? };
    let status = context.store.status();
    if let Some(taken) = status.members.iter().find(|known| known.member.name == member.name && known.id != id) {
        let name = &taken.member.name;
        let message = format!("there is a member {name} already, with another data directory");
        let hint = format!("remove it first: weft raft remove {name}");
        return Err(Refusal::new(http::StatusCode::CONFLICT, "name_taken", message).hint(hint));
    }
    if status.members.iter().any(|known| known.id == id && known.member == member) {
        return Ok(reply(&json!({"id": id.to_string()})));
    }
    context.store.add_learner(id, member).await?;
    Ok(reply(&json!({"id": id.to_string()})))
}

/// Gives a member a vote, once it has caught up.
pub(super) async fn promote(context: &Context, id: &str) -> Answered {
    let id = id.parse().map_err(|_| Refusal::bad("an id is a number"))?;
    if !context.store.status().members.iter().any(|member| member.id == id && member.voter) {
        context.store.promote(id).await?;
    }
    Ok(reply(&json!({"id": id.to_string()})))
}

pub(super) async fn remove(context: &Context, name: &str) -> Answered {
    context.store.remove(find(context, name)?).await?;
    Ok(reply(&json!({"removed": name})))
}

pub(super) async fn transfer(context: &Context, name: &str) -> Answered {
    context.store.transfer(find(context, name)?).await?;
    Ok(reply(&json!({"leader": name})))
}

fn find(context: &Context, name: &str) -> Result<u64, Refusal> {
    let status = context.store.status();
    let found = status.members.iter().find(|member| &*member.member.name == name);
    found.map(|member| member.id).ok_or_else(|| {
        let mut names: Vec<&str> = status.members.iter().map(|member| &*member.member.name).collect();
        names.sort_unstable();
        Refusal::not_found(format!("there is no member {name}")).hint(format!("members: {}", names.join(", ")))
    })
}
