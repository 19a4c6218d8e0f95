//! Follows the store and puts what changes into the logs; asks now and then whether this member still hears the others.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use weft_store::{
    Consistency, Store,
    machine::Filter,
    types::Revision,
    watch::{Seen, WatchEnd},
};

use super::{
    log::{Change, Resource},
    logs::Logs,
    own,
    quorum::{Health, Quorum},
};

/// For the answer to the question whether this member hears the others.
const ANSWER: Duration = Duration::from_secs(2);

/// Where Weft's own types are among the logs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own {
    pub objects: usize,
    pub endpoints: usize,
}

/// Follows `store` until it is shut down.
pub(super) async fn follow(store: Store, logs: Arc<Logs>, own: Own) {
    loop {
        let Ok(from) = list(&store, &logs, own).await else { return };
        // Everything, also what nodes do not get: its revisions count.
        let mut watcher = store.watch(from, Filter::default());
        loop {
            match watcher.next().await {
                Ok(batch) => publish(&logs, own, &batch, Instant::now()),
                Err(WatchEnd::Closed) => return,
                Err(WatchEnd::Compacted(compacted)) => {
                    tracing::info!(at = compacted.at.0, "history is gone that nodes have not got: compared anew");
                    break;
                }
            }
        }
    }
}

/// Takes everything that is there.
async fn list(store: &Store, logs: &Logs, own: Own) -> Result<Revision, weft_store::Error> {
    let filter = own::filter();
    let (revision, objects) =
        store.read(Consistency::Serializable, |machine| (machine.revision(), machine.list(&filter))).await?;
    let (endpoints, documents): (Vec<_>, Vec<_>) = objects.iter().partition(|object| own::is_endpoint(&object.key));
    let resources =
        |objects: Vec<&Arc<_>>| objects.iter().filter_map(|object| own::resource(object)).collect::<Vec<Resource>>();
    let all = vec![(own.objects, resources(documents)), (own.endpoints, resources(endpoints))];
    logs.replace(revision.0, all);
    Ok(revision)
}

fn publish(logs: &Logs, own: Own, batch: &[Seen], since: Instant) {
    let filter = own::filter();
    let revisions = batch.iter().map(|seen| {
        let (mut objects, mut endpoints): (Vec<Change>, Vec<Change>) = Default::default();
        for change in seen.changes() {
            let Some(key) = change.key().filter(|key| filter.matches(key)) else { continue };
            let list = if own::is_endpoint(key) { &mut endpoints } else { &mut objects };
            list.push(own::change(key, change.after.as_deref()));
        }
        (seen.event().revision.0, vec![(own.objects, objects), (own.endpoints, endpoints)])
    });
    logs.publish_all(since, revisions.collect());
}

/// Says whether this member hears the others, until nobody wants to know any more.
pub(super) async fn watch_over(store: Store, health: watch::Sender<Health>) {
    let mut quorum = Quorum::default();
    while !health.is_closed() {
        let asked = Instant::now();
        let answer = timeout(ANSWER, store.read(Consistency::Linearizable, |_| ())).await;
        let pause = quorum.asked(asked, matches!(answer, Ok(Ok(()))), Instant::now());
        let before = health.send_replace(quorum.health());
        match (before, quorum.health()) {
            (Health::Lost, Health::Serving) => tracing::info!("this member hears the others again: it serves nodes"),
            (Health::Serving, Health::Lost) => {
                tracing::warn!("this member has lost the others: nodes are sent to another one");
            }
            _ => {}
        }
        sleep(pause).await;
    }
}
