//! Follows the store for Envoys, while there are any.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use tokio::{sync::watch, task::spawn_blocking, time::timeout};
use weft_model::written;
use weft_store::{
    Consistency, Store,
    machine::Filter,
    watch::{Seen, WatchEnd},
};

use super::{Kind, Resource, mesh::Mesh};
use crate::{
    push::{
        log::{Change, Resource as Pushed, TypeSpec},
        logs::Logs,
    },
    registry,
};

/// How long everything is kept up to date after the last client has gone: most of them come back at once.
const LINGER: Duration = Duration::from_secs(30);

const CLUSTER: &str = Kind::Cluster.type_url();
const ASSIGNMENT: &str = Kind::Assignment.type_url();
const LISTENER: &str = Kind::Listener.type_url();
const ROUTES: &str = Kind::Routes.type_url();

/// Clients take more, but begin with what they have.
const RESPONSE_MAX: usize = 1 << 20;

/// Envoy's types, in the order of [`Kind`]: what is referred to comes first, and goes last.
pub(crate) const SPECS: [TypeSpec; 4] = [
    TypeSpec {
        url: CLUSTER,
        response_max: RESPONSE_MAX,
        revisions: false,
        full: true,
        after: &[],
        removed_after: &[LISTENER, ROUTES],
        with: Some(ASSIGNMENT),
    },
    TypeSpec {
        url: ASSIGNMENT,
        response_max: RESPONSE_MAX,
        revisions: false,
        full: false,
        after: &[CLUSTER],
        removed_after: &[],
        with: None,
    },
    TypeSpec {
        url: LISTENER,
        response_max: RESPONSE_MAX,
        revisions: false,
        full: true,
        after: &[CLUSTER, ASSIGNMENT],
        removed_after: &[],
        with: None,
    },
    TypeSpec {
        url: ROUTES,
        response_max: RESPONSE_MAX,
        revisions: false,
        full: false,
        after: &[CLUSTER, ASSIGNMENT, LISTENER],
        removed_after: &[],
        with: None,
    },
];

/// Keeps Envoy's types, the first of which is at `first` among the logs, up to date while a client asks for one of them.
/// Ends with the store.
pub(crate) async fn follow(store: Store, logs: Arc<Logs>, first: usize) {
    let mut demand = Demand::new(&logs, first);
    while demand.some().await {
        match keep(&store, &logs, first, &mut demand).await {
            // Everything is compared anew.
            Err(Over::Compacted) => {}
            Err(Over::Closed) => return,
            Ok(()) => {
                tracing::debug!("nobody asks for Envoy's resources any more");
                (0..SPECS.len()).for_each(|kind| logs.suspend(first + kind));
            }
        }
    }
}

/// Why a watch cannot go on.
enum Over {
    Compacted,
    Closed,
}

/// Until nobody has asked for a while.
async fn keep(store: &Store, logs: &Logs, first: usize, demand: &mut Demand) -> Result<(), Over> {
    let filter = filter();
    let listed = store.read(Consistency::Serializable, |machine| (machine.revision(), machine.list(&filter))).await;
    let (revision, objects) = listed.map_err(|_| Over::Closed)?;
    let mut mesh = aside(move || Mesh::new(&objects)).await?;
    let mut all: Vec<(usize, Vec<Pushed>)> = (0..SPECS.len()).map(|kind| (first + kind, Vec::new())).collect();
    for ((kind, name), resource) in mesh.resources() {
        all[*kind as usize].1.push(pushed(*kind, name, resource));
    }
    logs.replace(revision.0, all);
    // Everything, also what Envoys do not get: its revisions count.
    let mut watcher = store.watch(revision, Filter::default());
    loop {
        let batch = tokio::select! {
            batch = watcher.next() => batch,
            () = demand.none() => return Ok(()),
        };
        match batch {
            Ok(batch) => {
                let (since, revision) = (Instant::now(), batch.last().map(|seen| seen.event().revision.0));
                let (after, changes) = aside(move || {
                    let changes = changes(first, &mut mesh, &batch);
                    (mesh, changes)
                })
                .await?;
                mesh = after;
                logs.publish(revision.unwrap_or(0), since, changes);
            }
            Err(WatchEnd::Compacted(_)) => return Err(Over::Compacted),
            Err(WatchEnd::Closed) => return Err(Over::Closed),
        }
    }
}

/// Documents of the configuration, and registered endpoints.
fn filter() -> Filter {
    let kinds = written::Kind::ALL.into_iter().map(written::Kind::name).chain([registry::ENDPOINT]);
    Filter { kinds: kinds.map(Into::into).collect(), ..Filter::default() }
}

/// What several revisions change, at once: Envoy is not told what lay between.
fn changes(first: usize, mesh: &mut Mesh, batch: &[Seen]) -> Vec<(usize, Vec<Change>)> {
    let filter = filter();
    let changed =
        batch.iter().flat_map(Seen::changes).filter_map(|change| Some((change.key()?, change.after.as_ref())));
    let mut all: Vec<(usize, Vec<Change>)> = (0..SPECS.len()).map(|kind| (first + kind, Vec::new())).collect();
    for ((kind, name), resource) in mesh.apply(changed.filter(|(key, _)| filter.matches(key))) {
        let change = match &resource {
            Some(resource) => Change::Put(pushed(kind, &name, resource)),
            None => Change::Remove(name.into()),
        };
        all[kind as usize].1.push(change);
    }
    all
}

/// Where it keeps nobody waiting: a large configuration takes a while.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Over> {
    spawn_blocking(work).await.map_err(|error| {
        if error.is_panic() {
            tracing::error!(%error, "a defect in Weft: Envoys are not served any more");
        }
        Over::Closed
    })
}

fn pushed(kind: Kind, name: &str, resource: &Resource) -> Pushed {
    let name: Arc<str> = name.into();
    Pushed {
        version: resource.version().into(),
        message: resource.body.clone(),
        listed: resource.listed,
        // Envoy waits for the endpoints of a cluster that has changed.
        with: (kind == Kind::Cluster).then(|| name.clone()),
        name,
    }
}

/// How many clients ask for any of the types.
struct Demand {
    counts: Vec<watch::Receiver<usize>>,
    linger: Duration,
}

impl Demand {
    fn new(logs: &Logs, first: usize) -> Self {
        let counts = (0..SPECS.len()).filter_map(|kind| logs.subscribers(first + kind)).collect();
        Self { counts, linger: LINGER }
    }

    fn now(&mut self) -> bool {
        // Each is looked at, so that what has changed since is noticed.
        self.counts.iter_mut().map(|count| *count.borrow_and_update()).sum::<usize>() > 0
    }

    /// Waits for one. False: there will be none.
    async fn some(&mut self) -> bool {
        while !self.now() {
            if !self.changed().await {
                return false;
            }
        }
        true
    }

    /// Waits until there has been none for a while.
    async fn none(&mut self) {
        loop {
            if !self.now() {
                let linger = self.linger;
                match timeout(linger, self.some()).await {
                    Ok(true) => continue,
                    Ok(false) | Err(_) => return,
                }
            }
            if !self.changed().await {
                return;
            }
        }
    }

    /// Waits for a change. False: there will be none.
    async fn changed(&mut self) -> bool {
        let changes = self.counts.iter_mut().map(|count| Box::pin(count.changed()));
        select_all(changes).await.0.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn work_is_done_while_somebody_asks() {
        let counts: Vec<watch::Sender<usize>> = (0..SPECS.len()).map(|_| watch::Sender::new(0)).collect();
        let receivers = counts.iter().map(watch::Sender::subscribe).collect();
        let mut demand = Demand { counts: receivers, linger: Duration::from_millis(1) };
        assert!(demand.some().now_or_never().is_none(), "nobody yet");
        counts[2].send_replace(1);
        assert!(demand.some().await);
        assert!(demand.none().now_or_never().is_none(), "somebody");
        counts[0].send_replace(1);
        counts[2].send_replace(0);
        assert!(demand.none().now_or_never().is_none(), "somebody else");
        counts[0].send_replace(0);
        demand.none().await;
        drop(counts);
        assert!(!demand.some().await, "never again");
    }

    #[test]
    fn types_are_in_the_order_that_they_are_numbered_in() {
        let kinds = [Kind::Cluster, Kind::Assignment, Kind::Listener, Kind::Routes];
        for (at, kind) in kinds.into_iter().enumerate() {
            assert_eq!((kind as usize, SPECS[at].url), (at, kind.type_url()));
        }
    }
}
