//! `/v1/watch`: one line of JSON for each revision, with a heartbeat when nothing happens. A heartbeat's revision is
//! one from which another member can go on.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::{sync::watch::Receiver, time::timeout};
use weft_store::{
    machine::Machine,
    watch::{Seen, WatchEnd, Watcher},
};

use super::{Answered, Context, objects, query::Query};

/// After so much silence there is a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);

struct Following {
    watcher: Watcher,
    stopping: Receiver<bool>,
    /// What was seen already, when the request was checked.
    first: Vec<Seen>,
}

pub(super) async fn watch(context: &Context, query: &Query) -> Answered {
    let filter = query.filter(None)?;
    let from = match query.revision("from")? {
        Some(from) => from,
        None => context.store.read(query.consistency()?, Machine::revision).await?,
    };
    let mut watcher = context.store.watch(from, filter);
    // What is forgotten is said with a status.
    let first = watcher.poll()?;
    let following = Following { watcher, stopping: context.stopping.clone(), first };
    let lines = stream::unfold(Some(following), async |following| {
        let mut following = following?;
        let (lines, ended) = following.next().await;
        Some((lines, (!ended).then_some(following)))
    });
    let frames = lines.map(|lines| Ok::<_, Infallible>(Frame::data(Bytes::from(lines))));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let content_type = header::HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}

impl Following {
    /// The next lines, and whether they are the last.
    async fn next(&mut self) -> (String, bool) {
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            return (lines(&first), false);
        }
        let stopped = async {
            // An error means that the server is gone.
            let _ = self.stopping.wait_for(|stopping| *stopping).await;
        };
        let next = tokio::select! {
            next = timeout(HEARTBEAT, self.watcher.next()) => next,
            () = stopped => Ok(Err(WatchEnd::Closed)),
        };
        let heartbeat = json!({"revision": self.watcher.revision().0, "changes": []});
        match next {
            Err(_) => (format!("{heartbeat}\n"), false),
            Ok(Ok(batch)) => (lines(&batch), false),
            Ok(Err(WatchEnd::Closed)) => (format!("{heartbeat}\n"), true),
            Ok(Err(WatchEnd::Compacted(compacted))) => {
                let at = compacted.at.0;
                let error = json!({"code": "compacted", "message": format!("compacted at {at}"), "revision": at});
                (format!("{}\n", json!({"error": error})), true)
            }
        }
    }
}

fn lines(batch: &[Seen]) -> String {
    let line = |seen: &Seen| {
        let changes = seen.changes();
        let changes = changes.map(|change| json!({"type": objects::kind_of(change), "object": objects::shown(change)}));
        let mut line = objects::header(seen.event());
        line["changes"] = changes.collect::<Vec<Value>>().into();
        format!("{line}\n")
    };
    batch.iter().map(line).collect()
}
