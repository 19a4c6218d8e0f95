//! `/v1/register`, `/v1/deregister`, `/v1/drain`: endpoints that say themselves where they are. One revision for all
//! that a request names, or none.
//!
//! An endpoint that is attached to the lease of an agent is that agent's: nobody else registers it without saying so,
//! and an agent that was replaced cannot take away what its successor registered.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use weft_store::{
    Consistency,
    lease::{Lost, lost},
    machine::Machine,
    types::{Attach, LeaseId, Object, ObjectKey, Op, Outcome, Put, Rejection, Require, That, Write},
};

use super::{
    Answered, Asked, Context, agents,
    reply::{Refusal, json as reply},
    write::{Asking, TRIES},
};
use crate::registry::{Endpoint, key_of};

/// What all three are told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Body<E> {
    #[serde(default = "default_namespace")]
    namespace: String,
    service: String,
    /// Who asks. Without it, it is an operator: what is registered stays until it is deregistered.
    agent: Option<String>,
    /// Of which grant of its lease.
    generation: Option<u64>,
    /// Also what is another agent's.
    #[serde(default)]
    take_over: bool,
    /// Whether to drain, or not any more.
    draining: Option<bool>,
    endpoints: Vec<E>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Announced {
    address: String,
    port: u32,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    draining: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    address: String,
    port: u32,
}

fn default_namespace() -> String {
    "default".into()
}

fn one() -> u32 {
    1
}

/// Who asks for something.
#[derive(Debug, Clone, Default)]
struct Holder {
    lease: Option<(LeaseId, u64)>,
    take_over: bool,
}

/// What is to become of an endpoint.
#[derive(Debug, Clone, PartialEq)]
enum Goal {
    Registered(Endpoint),
    Draining(bool),
    Gone,
}

/// What has to be written.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    require: Vec<Require>,
    writes: Vec<Write>,
    actions: Vec<&'static str>,
}

pub(super) async fn register(context: &Context, asked: &Asked) -> Answered {
    let body: Body<Announced> = asked.json()?;
    if body.draining.is_some() {
        return Err(
            Refusal::bad("draining belongs to each endpoint").hint("{\"endpoints\": [{…, \"draining\": true}]}")
        );
    }
    let mut wanted = Vec::new();
    for Announced { address, port, weight, zone, draining } in body.endpoints.clone() {
        let endpoint = Endpoint { service: body.service.clone(), address, port, weight, zone, draining };
        let key = key(&endpoint, &body.namespace, wanted.len())?;
        wanted.push((key, Goal::Registered(endpoint)));
    }
    change(context, asked, &body, wanted).await
}

pub(super) async fn deregister(context: &Context, asked: &Asked) -> Answered {
    let body: Body<Place> = asked.json()?;
    if body.draining.is_some() {
        return Err(Refusal::bad("nothing that is deregistered drains").hint("POST /v1/drain first"));
    }
    let wanted = places(&body)?.into_iter().map(|key| (key, Goal::Gone)).collect();
    change(context, asked, &body, wanted).await
}

pub(super) async fn drain(context: &Context, asked: &Asked) -> Answered {
    let body: Body<Place> = asked.json()?;
    let draining = body.draining.unwrap_or(true);
    let wanted = places(&body)?.into_iter().map(|key| (key, Goal::Draining(draining))).collect();
    change(context, asked, &body, wanted).await
}

fn places(body: &Body<Place>) -> Result<Vec<ObjectKey>, Refusal> {
    let keys = body.endpoints.iter().enumerate().map(|(at, place)| {
        let Place { address, port } = place.clone();
        let endpoint =
            Endpoint { service: body.service.clone(), address, port, weight: 1, zone: String::new(), draining: false };
        key(&endpoint, &body.namespace, at)
    });
    keys.collect()
}

/// Where an endpoint is stored, if it can be one.
fn key(endpoint: &Endpoint, namespace: &str, at: usize) -> Result<ObjectKey, Refusal> {
    let registered = endpoint.check(namespace).map_err(|invalid| {
        let message = format!("endpoints[{at}]: {}", invalid.message);
        Refusal::new(http::StatusCode::UNPROCESSABLE_ENTITY, "invalid", message).hint(invalid.hint)
    })?;
    Ok(key_of(&registered))
}

async fn change<E>(context: &Context, asked: &Asked, body: &Body<E>, wanted: Vec<(ObjectKey, Goal)>) -> Answered {
    let holder = holder(body)?;
    if wanted.is_empty() {
        return Err(
            Refusal::bad("endpoints is empty").hint("{\"endpoints\": [{\"address\": \"10.0.0.7\", \"port\": 8080}]}")
        );
    }
    if let Some((key, _)) =
        wanted.iter().enumerate().find_map(|(at, one)| wanted[..at].iter().find(|two| two.0 == one.0))
    {
        return Err(Refusal::bad(format!("{} is named twice", key.name)));
    }
    let service = ObjectKey::new("Service", &body.namespace, &body.service);
    let asking = Asking::of(asked)?;
    let registers = wanted.iter().any(|(_, goal)| matches!(goal, Goal::Registered(_)));
    // A write is conditional on what was seen, and attaches only to a lease that is held: when all there is to do is
    // written, it does not matter how old that was. It saves asking a quorum before each registration.
    let mut consistency = match &holder.lease {
        Some(_) if !registers => Consistency::Linearizable,
        _ => Consistency::Serializable,
    };
    let mut attempt = 0;
    while attempt < TRIES {
        let look = |machine: &Machine| {
            let found: Vec<_> = wanted.iter().map(|(key, _)| machine.get(key).cloned()).collect();
            let grant = holder.lease.as_ref().map(|(lease, _)| machine.lease(lease).map(|lease| lease.generation));
            (machine.revision(), grant, found, machine.get(&service).is_some())
        };
        let (revision, grant, found, known) = context.store.read(consistency, look).await?;
        let held = match (grant, &holder.lease) {
            (Some(grant), Some((_, generation))) => grant.ok_or(Lost::Gone).and_then(|grant| lost(*generation, grant)),
            _ => Ok(()),
        };
        let planned = held.map_err(Refusal::lost).and_then(|()| plan(&holder, &wanted, &found));
        let all = planned.as_ref().is_ok_and(|plan| plan.writes.len() == wanted.len());
        if std::mem::replace(&mut consistency, Consistency::Linearizable) == Consistency::Serializable && !all {
            continue;
        }
        let Plan { require, writes, actions } = planned?;
        let warnings = (registers && !known).then(|| warning(&service));
        let answer = |revision: u64, changed: u64| {
            let objects = wanted.iter().zip(&actions).map(|((key, _), action)| {
                json!({"kind": &*key.kind, "namespace": &*key.namespace, "name": &*key.name, "action": action})
            });
            let objects: Vec<Value> = objects.collect();
            let warnings: Vec<&Value> = warnings.iter().collect();
            reply(&json!({"revision": revision, "changed": changed, "objects": objects, "warnings": warnings}))
        };
        if writes.is_empty() && !asking.is_identified() {
            return Ok(answer(revision.0, 0));
        }
        match asking.write(context, attempt, Op::Write { require, writes }).await? {
            Outcome::Done { revision, changed } => return Ok(answer(revision.0, changed)),
            Outcome::Rejected(Rejection::Conflict { .. }) => attempt += 1,
            Outcome::Rejected(rejection) => return Err(rejection.into()),
            Outcome::Blank | Outcome::Granted { .. } => return Err(Refusal::defect("not the outcome of a write")),
        }
    }
    Err(Refusal::contended())
}

fn holder<E>(body: &Body<E>) -> Result<Holder, Refusal> {
    let lease = match (&body.agent, body.generation) {
        (None, None) => None,
        (Some(agent), Some(generation)) => Some((agents::lease(agent)?, generation)),
        _ => {
            return Err(Refusal::bad("agent and generation belong together")
                .hint("PUT /v1/agents/AGENT {\"ttlMs\": 10000} answers with the generation"));
        }
    };
    Ok(Holder { lease, take_over: body.take_over })
}

fn warning(service: &ObjectKey) -> Value {
    let (namespace, name) = (&service.namespace, &service.name);
    json!({
        "message": format!("there is no Service {namespace}/{name} yet: what registers with it gets nothing until there is"),
        "hint": format!("weft apply -f a file with a Service {name} in namespace {namespace}, or check the name"),
    })
}

/// What has to be written so that everything becomes what it is to, if `holder` may do that.
fn plan(holder: &Holder, wanted: &[(ObjectKey, Goal)], found: &[Option<Arc<Object>>]) -> Result<Plan, Refusal> {
    let mut plan = Plan::default();
    for ((key, goal), object) in wanted.iter().zip(found) {
        let object = object.as_deref();
        if let Some(owner) = object.and_then(|object| object.lease.as_ref())
            && !may(holder, goal, owner)
        {
            return Err(owned(key, owner));
        }
        let (action, write) = match (goal, object) {
            (Goal::Gone, None) => ("absent", None),
            (Goal::Gone, Some(_)) => ("deregistered", Some(Write::Delete(key.clone()))),
            (Goal::Draining(_), None) => {
                return Err(Refusal::not_found(format!("{} is not registered", key.name))
                    .hint("weft get endpoints lists what is"));
            }
            (Goal::Draining(draining), Some(object)) => {
                let was = Endpoint::of(object).map_err(|error| Refusal::defect(format!("{key}: {error}")))?;
                let put = Put::spec(key.clone(), Endpoint { draining: *draining, ..was.clone() }.body());
                let action = if *draining { "draining" } else { "ready" };
                if was.draining == *draining { ("unchanged", None) } else { (action, Some(Write::Put(put))) }
            }
            (Goal::Registered(endpoint), object) => {
                let (lease, put) = (holder.lease.clone(), Put::spec(key.clone(), endpoint.body()));
                let same = |object: &Object| {
                    Endpoint::of(object).is_ok_and(|was| was == *endpoint)
                        && object.lease.as_ref() == lease.as_ref().map(|(lease, _)| lease)
                };
                let attach = match lease.clone() {
                    Some((lease, generation)) => Attach::Held { lease, generation },
                    None => Attach::Detach,
                };
                match object {
                    Some(object) if same(object) => ("unchanged", None),
                    Some(_) => ("configured", Some(Write::Put(Put { lease: attach, ..put }))),
                    None => ("registered", Some(Write::Put(Put { lease: attach, ..put }))),
                }
            }
        };
        plan.actions.push(action);
        if let Some(write) = write {
            let that = object.map_or(That::Absent, |object| That::At(object.modified));
            plan.require.push(Require { key: key.clone(), that });
            plan.writes.push(write);
        }
    }
    Ok(plan)
}

/// May `holder` do this to what is `owner`'s? An operator may drain and deregister everything; to register what an
/// agent keeps alive means to take it away.
fn may(holder: &Holder, goal: &Goal, owner: &LeaseId) -> bool {
    match &holder.lease {
        _ if holder.take_over => true,
        Some((lease, _)) => lease == owner,
        None => !matches!(goal, Goal::Registered(_)),
    }
}

fn owned(key: &ObjectKey, owner: &LeaseId) -> Refusal {
    Refusal::new(http::StatusCode::CONFLICT, "owned", format!("{} is kept alive by agent {:?}", key.name, &*owner.0))
        .with("owner", &*owner.0)
        .hint("register under that agent's name if it is the same one, or take it over: weft register --take-over, \"takeOver\": true")
}

#[cfg(test)]
mod tests;
