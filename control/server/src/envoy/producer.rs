//! Follows the store for Envoys, while there are any.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::select_all;
use tokio::{sync::watch, time::timeout};
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

/// Envoy's types, in the order of [`Kind`]: what is referred to comes first, and goes last.
pub(crate) const SPECS: [TypeSpec; 4] = [
    TypeSpec {
        url: CLUSTER,
        whole: false,
        revisions: false,
        full: true,
        after: &[],
        removed_after: &[LISTENER, ROUTES],
        with: Some(ASSIGNMENT),
    },
    TypeSpec {
        url: ASSIGNMENT,
        whole: false,
        revisions: false,
        full: false,
        after: &[CLUSTER],
        removed_after: &[],
        with: None,
    },
    TypeSpec {
        url: LISTENER,
        whole: false,
        revisions: false,
        full: true,
        after: &[CLUSTER, ASSIGNMENT],
        removed_after: &[],
        with: None,
    },
    TypeSpec {
        url: ROUTES,
        whole: false,
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
    let mut mesh = Mesh::new(&objects);
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
            Ok(batch) => publish(logs, first, &mut mesh, &batch),
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

/// Several revisions at once: Envoy is not told what lay between.
fn publish(logs: &Logs, first: usize, mesh: &mut Mesh, batch: &[Seen]) {
    let (since, filter) = (Instant::now(), filter());
    let Some(revision) = batch.last().map(|seen| seen.event().revision.0) else { return };
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
    logs.publish(revision, since, all);
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
struct Demand(Vec<watch::Receiver<usize>>);

impl Demand {
    fn new(logs: &Logs, first: usize) -> Self {
        Self((0..SPECS.len()).filter_map(|kind| logs.subscribers(first + kind)).collect())
    }

    fn now(&mut self) -> bool {
        // Each is looked at, so that what has changed since is noticed.
        self.0.iter_mut().map(|count| *count.borrow_and_update()).sum::<usize>() > 0
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
            if self.now() {
                self.changed().await;
            } else if timeout(LINGER, self.some()).await.is_err() {
                return;
            }
        }
    }

    async fn changed(&mut self) -> bool {
        let changes = self.0.iter_mut().map(|count| Box::pin(count.changed()));
        select_all(changes).await.0.is_ok()
    }
}
