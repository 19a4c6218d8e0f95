//! `/v1/agents`: the leases that keep registered endpoints alive. An agent has one, under its name.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use weft_store::{
    Consistency,
    lease::Lost,
    machine::{Machine, NAME_MAX, TTL_MAX_MS},
    types::{LeaseId, Op, Outcome, Rejection},
};

use super::{
    Answered, Asked, Context,
    query::Query,
    reply::{Refusal, json as reply},
    write::Asking,
};

/// A lease that is shorter ends while its keep-alive waits for an election.
const TTL_MIN_MS: u64 = 500;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Grant {
    ttl_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeepAlive {
    generation: u64,
}

/// Grants an agent its lease. One that it has already keeps what is attached to it, and is of a new generation: what a
/// process that ran before under this name still asks for is refused.
pub(super) async fn grant(context: &Context, agent: &str, asked: &Asked) -> Answered {
    let lease = lease(agent)?;
    let Grant { ttl_ms } = asked.json()?;
    if !(TTL_MIN_MS..=TTL_MAX_MS).contains(&ttl_ms) {
        return Err(Refusal::bad(format!("ttlMs is {ttl_ms}"))
            .hint(format!("from {TTL_MIN_MS} to {TTL_MAX_MS}: half a second to a day")));
    }
    match Asking::of(asked)?.write(context, 0, Op::Grant { lease, ttl_ms }).await? {
        Outcome::Granted { generation } => {
            Ok(reply(&json!({"agent": agent, "generation": generation, "ttlMs": ttl_ms})))
        }
        Outcome::Rejected(rejection) => Err(rejection.into()),
        Outcome::Blank | Outcome::Done { .. } => Err(Refusal::defect("not the outcome of a grant")),
    }
}

/// Nothing is written: the leader keeps in memory until when each lease lives.
pub(super) fn keep_alive(context: &Context, agent: &str, asked: &Asked) -> Answered {
    let KeepAlive { generation } = asked.json()?;
    let ttl = context.store.keep_alive(&lease(agent)?, generation)?;
    Ok(reply(&json!({"agent": agent, "generation": generation, "ttlMs": ms(ttl)})))
}

/// Ends a lease with everything attached to it; whichever grant it is of, unless `generation=` says which.
pub(super) async fn revoke(context: &Context, agent: &str, query: &Query, asked: &Asked) -> Answered {
    let (lease, asking) = (lease(agent)?, Asking::of(asked)?);
    let generation = match query.revision("generation")? {
        Some(generation) => generation.0,
        None => {
            let find = |machine: &Machine| machine.lease(&lease).map(|lease| lease.generation);
            let found = context.store.read(Consistency::Linearizable, find).await?;
            found.ok_or_else(|| Refusal::not_found(format!("there is no agent {agent:?}")))?
        }
    };
    match asking.write(context, 0, Op::Revoke { lease, generation }).await? {
        Outcome::Done { revision, changed } => {
            Ok(reply(&json!({"agent": agent, "revision": revision.0, "changed": changed})))
        }
        Outcome::Rejected(Rejection::StaleLease) => Err(Refusal::lost(Lost::Superseded)),
        Outcome::Rejected(rejection) => Err(rejection.into()),
        Outcome::Blank | Outcome::Granted { .. } => Err(Refusal::defect("not the outcome of a revocation")),
    }
}

/// Every lease, and how much is attached to it.
pub(super) async fn list(context: &Context, query: &Query) -> Answered {
    let leases = context.store.read(query.consistency()?, |machine| machine.leases().clone()).await?;
    let left = context.store.lease_left(leases.keys());
    let items = leases.iter().map(|(id, lease)| {
        json!({
            "agent": &*id.0,
            "generation": lease.generation,
            "ttlMs": lease.ttl_ms,
            "endpoints": lease.keys.len(),
            "expiresInMs": left.get(id).map(|left| ms(*left)),
        })
    });
    Ok(reply(&json!({"items": items.collect::<Vec<Value>>()})))
}

/// The lease of an agent of this name.
pub(super) fn lease(agent: &str) -> Result<LeaseId, Refusal> {
    if agent.is_empty() || agent.len() > NAME_MAX || agent.contains(char::is_control) {
        let hint = format!("1 to {NAME_MAX} bytes without control characters, such as the node's name");
        return Err(Refusal::bad(format!("{agent:?} is not the name of an agent")).hint(hint));
    }
    Ok(LeaseId::new(agent))
}

/// Milliseconds, as JSON has them.
pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
