//! What the port answers.
//!
//! | path | |
//! |---|---|
//! | `POST /raft` | messages between members |
//! | `GET /ready`, `/metrics` | for those who watch over it |
//! | `GET /v1/objects[/KIND[/NAMESPACE/NAME]]` | one object, or a list: `namespace=`, `consistency=serializable`, `revision=` |
//! | `PUT`, `DELETE /v1/objects/KIND/NAMESPACE/NAME` | `If-Match: REVISION`, `If-None-Match: *` |
//! | `POST /v1/apply`, `/v1/delete` | several objects in one revision, or none; `dryRun=true` |
//! | `POST /v1/sync` | as apply; what `set=` held before and is not in the body is deleted |
//! | `POST /v1/rollback` | the configuration as it was right after revision `to=` |
//! | `GET /v1/backup` | everything that is kept, for `weft restore` |
//! | `GET /v1/watch` | changes after `from=`, of `kind=`, in `namespace=`, one revision a line |
//! | `GET /v1/objects/Endpoint`, `GET /v1/watch?kind=Endpoint` | registered endpoints, of `service=` |
//! | `POST /v1/register`, `/v1/deregister`, `/v1/drain` | endpoints of a service in one revision, or none |
//! | `GET /v1/agents`, `PUT`, `DELETE /v1/agents/AGENT` | leases: `{"ttlMs": 10000}` |
//! | `POST /v1/agents/AGENT/keep-alive` | `{"generation": …}` |
//! | `GET /v1/history/KIND/NAMESPACE/NAME` | who changed an object when |
//! | `GET /v1/revision` | the current revision; with `revision=`, once it is reached |
//! | `GET /v1/nodes`, `/v1/nodes/self` | nodes of all members, or of this one: what each has in force |
//! | `GET /v1/raft`, `POST /v1/raft/…` | members |

mod agents;
mod apply;
mod backup;
mod cluster;
mod leader;
mod metrics;
mod nodes;
mod objects;
mod query;
mod registry;
mod reply;
mod watch;
mod write;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use weft_store::{Role, Store};

use crate::{pool::Pool, push::Push};
pub(crate) use cluster::watch_membership;
use query::Query;
use reply::{Body, Refusal, bytes, text};

/// Largest body of a client's request.
const BODY_MAX: usize = 8 << 20;
/// Largest message of another member: openraft puts up to 300 log entries into one.
const MESSAGE_MAX: usize = 256 << 20;

/// What answers need.
#[derive(Debug)]
pub(crate) struct Context {
    pub store: Store,
    pub pool: Pool,
    /// The time in milliseconds since 1970.
    pub clock: fn() -> u64,
    /// Changes of the configuration are checked one after the other, so that they do not void each other's checks.
    pub changing: tokio::sync::Mutex<()>,
    /// True once the server stops: streams end.
    pub stopping: Receiver<bool>,
    pub push: Arc<Push>,
    /// The others have removed this member.
    pub removed: AtomicBool,
}

/// A request, all of it.
#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Asked {
    /// The body, as JSON.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body).map_err(|error| Refusal::bad(format!("the body: {error}")))
    }
}

type Answered = Result<Response<Body>, Refusal>;

/// Answers a request.
pub(crate) async fn answer(context: &Context, request: Request<Incoming>) -> Response<Body> {
    route(context, request).await.unwrap_or_else(Refusal::into_response)
}

async fn route(context: &Context, request: Request<Incoming>) -> Answered {
    let (parts, body) = request.into_parts();
    let limit = if parts.uri.path() == "/raft" { MESSAGE_MAX } else { BODY_MAX };
    let body = Limited::new(body, limit).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            let message = format!("the body is larger than {} MiB", limit >> 20);
            return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
        }
        Refusal::bad(format!("the body did not arrive: {error}"))
    })?;
    let asked = Asked { method: parts.method, uri: parts.uri, headers: parts.headers, body: body.to_bytes() };
    let path = asked.uri.path().to_owned();
    let mut segments = Vec::new();
    for segment in path.trim_matches('/').split('/') {
        let decoded = percent_encoding::percent_decode_str(segment).decode_utf8();
        segments.push(decoded.map_err(|_| Refusal::bad("the path is not UTF-8"))?.into_owned());
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query = Query::of(&asked.uri)?;
    if asked.method != Method::GET
        && segments != ["raft"]
        && let Some(answer) = leader::elsewhere(context, &asked).await
    {
        return answer;
    }
    match (asked.method.as_str(), &*segments) {
        ("POST", ["raft"]) => Ok(bytes(context.store.handle(asked.body).await)),
        ("GET", ["ready"]) => ready(context),
        ("GET", ["metrics"]) => Ok(text("text/plain; version=0.0.4", metrics::render(context))),
        ("GET", ["v1", "revision"]) => objects::revision(context, &query).await,
        ("GET", ["v1", "objects"]) => objects::list(context, None, &query).await,
        ("GET", ["v1", "objects", kind]) => objects::list(context, Some(kind), &query).await,
        ("GET", ["v1", "objects", kind, namespace, name]) => {
            objects::get(context, &query::shown_key(kind, namespace, name)?, &query).await
        }
        ("PUT", ["v1", "objects", kind, namespace, name]) => {
            apply::put(context, &query::key(kind, namespace, name)?, &query, &asked).await
        }
        ("DELETE", ["v1", "objects", kind, namespace, name]) => {
            apply::delete_one(context, &query::key(kind, namespace, name)?, &query, &asked).await
        }
        ("GET", ["v1", "history", kind, namespace, name]) => {
            objects::history(context, &query::shown_key(kind, namespace, name)?, &query).await
        }
        ("POST", ["v1", "apply"]) => apply::apply(context, &query, &asked).await,
        ("POST", ["v1", "sync"]) => apply::sync(context, &query, &asked).await,
        ("POST", ["v1", "rollback"]) => apply::rollback(context, &query, &asked).await,
        ("GET", ["v1", "backup"]) => backup::backup(context, &query).await,
        ("POST", ["v1", "delete"]) => apply::delete(context, &query, &asked).await,
        ("POST", ["v1", "register"]) => registry::register(context, &asked).await,
        ("POST", ["v1", "deregister"]) => registry::deregister(context, &asked).await,
        ("POST", ["v1", "drain"]) => registry::drain(context, &asked).await,
        ("GET", ["v1", "agents"]) => agents::list(context, &query).await,
        ("PUT", ["v1", "agents", agent]) => agents::grant(context, agent, &asked).await,
        ("DELETE", ["v1", "agents", agent]) => agents::revoke(context, agent, &query, &asked).await,
        ("POST", ["v1", "agents", agent, "keep-alive"]) => agents::keep_alive(context, agent, &asked),
        ("GET", ["v1", "watch"]) => watch::watch(context, &query).await,
        ("GET", ["v1", "nodes"]) => nodes::all(context).await,
        ("GET", ["v1", "nodes", "self"]) => nodes::own(context),
        ("GET", ["v1", "raft"]) => Ok(cluster::status(context).await),
        ("GET", ["v1", "raft", "self"]) => Ok(cluster::own(context)),
        ("POST", ["v1", "raft", "members"]) => cluster::join(context, &asked).await,
        ("POST", ["v1", "raft", "add"]) => cluster::add(context, &asked).await,
        ("POST", ["v1", "raft", "promote", id]) => cluster::promote(context, id).await,
        ("POST", ["v1", "raft", "remove", name]) => cluster::remove(context, name).await,
        ("POST", ["v1", "raft", "transfer", name]) => cluster::transfer(context, name).await,
        (method, _) => Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {method} {path}"))),
    }
}

/// Ready: it knows a leader, and has been told what there is.
fn ready(context: &Context) -> Answered {
    let status = context.store.status();
    match (status.role, status.leader) {
        _ if context.removed.load(Ordering::Relaxed) => {
            let message = "this member was removed from its cluster";
            Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "removed", message))
        }
        (Role::Stopped, _) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "stopped", "the store has stopped")),
        (_, None) => Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_leader", "no leader is known")),
        _ => Ok(text("text/plain", "ready\n".into())),
    }
}
