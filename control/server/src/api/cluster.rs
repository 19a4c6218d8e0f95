//! Members: how they are, who comes and goes.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::future::join_all;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use serde_json::{Value, json};
use weft_store::{Error, Member, MemberStatus, Role, Status};

use super::{Answered, Asked, Context, reply::Refusal, reply::json as reply};

/// For another member's answer about itself.
const WITHIN: Duration = Duration::from_secs(1);
/// How often a member looks whether it still belongs to its cluster.
const LOOK: Duration = Duration::from_secs(3);
/// How long a new member may take to catch up before it is left to be asked for again.
const CATCH_UP: Duration = Duration::from_secs(15);
/// Between tries to give it a vote.
const AGAIN: Duration = Duration::from_millis(100);
/// Largest answer about itself.
const ANSWER_MAX: usize = 64 << 10;

/// What this member says about itself.
pub(super) fn own(context: &Context) -> http::Response<super::Body> {
    reply(&describe(&context.store.status()))
}

fn describe(status: &Status) -> Value {
    let leader = status.members.iter().find(|member| Some(member.id) == status.leader);
    let members = status.members.iter().map(|member| member.id.to_string());
    json!({
        // Ids are larger than what JavaScript and jq take for exact.
        "id": status.id.to_string(),
        "name": &*status.member.name,
        "address": &*status.member.address,
        "incarnation": status.member.incarnation.to_string(),
        "members": members.collect::<Vec<_>>(),
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
        // What the list says for all of them.
        if let Some(described) = described.as_object_mut() {
            described.remove("members");
            described.remove("incarnation");
        }
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
    let answer = ask_at(context, &member.member.address).await;
    // Its address may have been given to another.
    answer.filter(|answer| answer["id"].as_str() == Some(&*member.id.to_string()))
}

/// What the member at an address says about itself.
async fn ask_at(context: &Context, address: &str) -> Option<Value> {
    let request = Request::get("/v1/raft/self").body(Full::default()).ok()?;
    let asking = async {
        let answer = context.pool.send(address, request, WITHIN).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await.ok()?;
        serde_json::from_slice::<Value>(&body.to_bytes()).ok()
    };
    tokio::time::timeout(WITHIN, asking).await.ok().flatten()
}

/// Follows whether this member still belongs to its cluster, until the server stops. Whoever was removed hears nothing
/// any more, so it asks: those that lead know.
pub(crate) async fn watch_membership(context: std::sync::Arc<Context>) {
    let mut stopping = context.stopping.clone();
    loop {
        let removed = is_removed(&context).await;
        if removed && !context.removed.swap(true, Ordering::Relaxed) {
            let name = &*context.store.status().member.name;
            tracing::warn!(
                name,
                "this member was removed from its cluster: stop it, and start it on an empty data directory to add it again"
            );
        } else if !removed && context.removed.swap(false, Ordering::Relaxed) {
            tracing::info!("this member belongs to the cluster again");
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
    }
}

async fn is_removed(context: &Context) -> bool {
    let status = context.store.status();
    // Who leads belongs to it.
    if status.role == Role::Leader {
        return false;
    }
    let others: Vec<&MemberStatus> = status.members.iter().filter(|member| member.id != status.id).collect();
    let answers = join_all(others.into_iter().map(|member| ask(context, member))).await;
    let leading = answers.into_iter().flatten().filter(|answer| answer["role"] == "leader");
    let latest = leading.max_by_key(|answer| answer["term"].as_u64());
    let own = status.id.to_string();
    latest.is_some_and(|latest| latest["members"].as_array().is_some_and(|ids| !ids.iter().any(|id| *id == *own)))
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
    if status.members.iter().any(|known| known.id == id) {
        tracing::info!(name = &*member.name, address = &*member.address, "a member is reached at another address");
        context.store.readdress(id, member).await?;
    } else {
        context.store.add_learner(id, member).await?;
    }
    Ok(reply(&json!({"id": id.to_string()})))
}

/// Adds a member that runs and belongs to no cluster yet: `{"address": "HOST:PORT"}`. First without a vote, and with one
/// when it has caught up.
pub(super) async fn add(context: &Context, asked: &Asked) -> Answered {
    let Add { address } = asked.json()?;
    let own = ask_at(context, &address).await.ok_or_else(|| {
        Refusal::new(http::StatusCode::BAD_GATEWAY, "unreachable", format!("no member answers at {address}"))
            .hint("start it there first: weft control --name NAME --data-dir DIR --listen ADDR --standby")
    })?;
    let text = |name: &str| own[name].as_str().unwrap_or_default().to_owned();
    let (id, name, reached) = (text("id"), text("name"), text("address"));
    let ours: Vec<String> = context.store.status().members.iter().map(|member| member.id.to_string()).collect();
    let mut theirs = own["members"].as_array().into_iter().flatten().peekable();
    // One that was removed still knows some of us.
    if theirs.peek().is_some() && !theirs.any(|id| id.as_str().is_some_and(|id| ours.iter().any(|own| own == id))) {
        let message = format!("{name} at {address} belongs to another cluster");
        return Err(Refusal::new(http::StatusCode::CONFLICT, "other_cluster", message)
            .hint("start it with --standby on an empty data directory"));
    }
    let body = json!({"id": id, "name": name, "address": reached, "incarnation": own["incarnation"]}).to_string();
    join(context, &Asked { body: body.into(), ..asked.clone() }).await?;
    let number = id.parse().map_err(|_| Refusal::defect("an id is a number"))?;
    let end = tokio::time::Instant::now() + CATCH_UP;
    loop {
        match context.store.promote(number).await {
            Ok(()) => return Ok(reply(&json!({"id": id, "name": name, "address": reached, "voter": true}))),
            Err(Error::Membership(_)) if tokio::time::Instant::now() < end => {
                tokio::time::sleep(AGAIN).await;
            }
            Err(Error::Membership(why)) => {
                return Err(Refusal::new(
                    http::StatusCode::CONFLICT,
                    "not_caught_up",
                    format!("{name} has no vote yet: {why}"),
                )
                .hint("it goes on catching up: ask again"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    address: String,
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
