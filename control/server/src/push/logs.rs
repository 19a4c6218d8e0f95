//! All logs of a member, and who waits for them.
//!
//! A producer says once per revision what has changed in its types ([`Logs::publish`]); streams that have sent and
//! heard everything are woken. A producer that works only while somebody asks watches [`Logs::subscribers`].

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::{Notify, watch};

use super::{
    convergence::{Convergence, Histogram},
    log::{Change, Log, Resource, TypeSpec},
};

/// What changed, by type; a type is named by its place.
pub type Changes = Vec<(usize, Vec<Change>)>;

/// All logs of a member. A type is known by its place in the list it is made of: clusters before endpoints, and so on.
#[derive(Debug)]
pub struct Logs {
    logs: RwLock<Vec<Log>>,
    specs: Vec<TypeSpec>,
    subscribers: Vec<watch::Sender<usize>>,
    convergence: Vec<Mutex<Convergence>>,
    listeners: Mutex<Vec<Arc<Listener>>>,
}

impl Logs {
    /// Empty logs of these types: a stream sends what is pending in this order.
    pub fn new(specs: Vec<TypeSpec>) -> Self {
        Self {
            logs: RwLock::new(specs.iter().copied().map(Log::new).collect()),
            subscribers: specs.iter().map(|_| watch::Sender::new(0)).collect(),
            convergence: specs.iter().map(|_| Mutex::default()).collect(),
            specs,
            listeners: Mutex::default(),
        }
    }

    /// All types.
    pub fn specs(&self) -> &[TypeSpec] {
        &self.specs
    }

    /// The place of a type.
    pub fn find(&self, url: &str) -> Option<usize> {
        self.specs.iter().position(|spec| spec.url == url)
    }

    /// Takes what the revisions up to `revision` changed in these types, in one step. A type without changes is named
    /// too: it is up to date, then. `since` is when this member had the revision: convergence is counted from there.
    pub fn publish(&self, revision: u64, since: Instant, changes: Changes) {
        self.publish_all(since, vec![(revision, changes)]);
    }

    /// As [`Self::publish`], several revisions in one step.
    pub fn publish_all(&self, since: Instant, revisions: Vec<(u64, Changes)>) {
        let mut changed = 0;
        for (revision, changes) in &revisions {
            for (at, _) in changes.iter().filter(|(_, changes)| !changes.is_empty()) {
                self.converging(*at, |convergence| convergence.published(*revision, since));
            }
        }
        {
            let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
            for (revision, changes) in revisions {
                for (at, changes) in changes {
                    if logs.get_mut(at).is_some_and(|log| log.publish(revision, changes)) {
                        changed |= 1 << at;
                    }
                }
            }
        }
        self.wake(changed);
    }

    /// Takes `resources` for all that there are of these types at `revision`, in one step.
    pub fn replace(&self, revision: u64, resources: Vec<(usize, Vec<Resource>)>) {
        let mut touched = 0;
        {
            let mut logs = self.logs.write().unwrap_or_else(PoisonError::into_inner);
            for (at, resources) in resources {
                let Some(log) = logs.get_mut(at) else { continue };
                let first = !log.ready();
                if log.replace(revision, resources) || first {
                    touched |= 1 << at;
                }
            }
        }
        self.wake(touched);
    }

    /// The type at `at` is not kept up to date any more: who asks for it waits until it is published again.
    pub fn suspend(&self, at: usize) {
        if let Some(log) = self.logs.write().unwrap_or_else(PoisonError::into_inner).get_mut(at) {
            log.suspend();
        }
    }

    /// How many streams ask for the type at `at`.
    pub fn subscribers(&self, at: usize) -> Option<watch::Receiver<usize>> {
        self.subscribers.get(at).map(watch::Sender::subscribe)
    }

    /// How fast the streams of a type take what is published.
    pub(super) fn converging<T>(&self, at: usize, with: impl FnOnce(&mut Convergence) -> T) -> Option<T> {
        let convergence = self.convergence.get(at)?;
        Some(with(&mut convergence.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Of all types.
    pub(super) fn convergence(&self) -> Histogram {
        let mut all = Histogram::default();
        for at in 0..self.convergence.len() {
            self.converging(at, |convergence| {
                convergence.expire(Instant::now());
                all.add(&convergence.histogram);
            });
        }
        all
    }

    /// The logs, for a short look: producers wait.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Vec<Log>> {
        self.logs.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream comes.
    pub(super) fn listen(self: &Arc<Self>) -> Listening {
        let listener = Arc::<Listener>::default();
        self.listeners().push(listener.clone());
        Listening { logs: self.clone(), listener, types: 0 }
    }

    fn wake(&self, changed: u64) {
        if changed == 0 {
            return;
        }
        for listener in self.listeners().iter() {
            // One that waits for answers will look when it has them: under a storm of changes, slow clients are left
            // alone.
            if listener.armed.load(Ordering::Acquire) & changed != 0 {
                listener.wake.notify_one();
            }
        }
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<Listener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Listener {
    /// A bit for each type of which changes matter now.
    armed: AtomicU64,
    wake: Notify,
}

/// A stream's ear. Dropping it ends its subscriptions.
#[derive(Debug)]
pub(super) struct Listening {
    logs: Arc<Logs>,
    listener: Arc<Listener>,
    types: u64,
}

impl Listening {
    /// The stream asks for the type at `at`.
    pub(super) fn subscribe(&mut self, at: usize) {
        if self.types & (1 << at) == 0 {
            self.types |= 1 << at;
            if let Some(subscribers) = self.logs.subscribers.get(at) {
                subscribers.send_modify(|count| *count += 1);
            }
        }
    }

    /// From now on, changes of these types wake. Look at the logs afterwards: what came before does not.
    pub(super) fn arm(&self, types: u64) {
        self.listener.armed.store(types, Ordering::Release);
    }

    /// Waits for a change.
    pub(super) async fn woken(&self) {
        self.listener.wake.notified().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.logs.listeners().retain(|listener| !Arc::ptr_eq(listener, &self.listener));
        for (at, subscribers) in self.logs.subscribers.iter().enumerate() {
            if self.types & (1 << at) != 0 {
                subscribers.send_modify(|count| *count -= 1);
            }
        }
    }
}
