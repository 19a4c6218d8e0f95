//! Watching: every change after a revision, in order, once, without a gap, a revision at a time; or an explicit
//! [`Compacted`].
//!
//! A watcher is a cursor into the history and owns no queue. One that catches up and one that is live do the same: take
//! what the history holds after the cursor, and sleep when there is nothing. So there is no hand-over at which an event
//! could be lost or doubled, a slow watcher costs no memory, and one that is too slow for the history is told so.

use std::sync::Arc;

use tokio::sync::watch;

use crate::machine::{Compacted, Filter};
use crate::state::{Signal, State};
use crate::types::{Change, Event, Revision};

/// How many events are looked at under one hold of the lock.
const LOOK: usize = 1024;
/// After how many events that match a batch is full.
const BATCH: usize = 256;

/// Why a watch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The watcher was too slow, or began too early. It has to list again.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The store was shut down.
    #[error("the store was shut down")]
    Closed,
}

/// A revision that changed something the watcher asked for.
#[derive(Debug, Clone)]
pub struct Seen {
    event: Arc<Event>,
    filter: Arc<Filter>,
}

impl Seen {
    /// The revision, with everything it changed.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// What it changed, of what the watcher asked for.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.event.changes.iter().filter(|change| matches(&self.filter, change))
    }
}

/// Follows the changes after a revision.
#[derive(Debug)]
pub struct Watcher {
    state: Arc<State>,
    signal: watch::Receiver<Signal>,
    filter: Arc<Filter>,
    cursor: Revision,
}

impl Watcher {
    /// Follows what changes after `after`, as far as it matches.
    pub(crate) fn new(state: Arc<State>, after: Revision, filter: Filter) -> Self {
        let signal = state.subscribe();
        Self { state, signal, filter: Arc::new(filter), cursor: after }
    }

    /// The revision up to which this watcher has seen everything: where another one would go on.
    pub fn revision(&self) -> Revision {
        self.cursor
    }

    /// The next revisions that changed something asked for: at least one, and not more than a batch.
    ///
    /// Waits when there are none yet, also for a revision in the future. May be cancelled and called again.
    pub async fn next(&mut self) -> Result<Vec<Seen>, WatchEnd> {
        loop {
            // Marked as seen before looking, so that what comes while looking wakes us.
            let signal = *self.signal.borrow_and_update();
            let from = self.cursor;
            let batch = self.poll()?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            if signal.closed {
                return Err(WatchEnd::Closed);
            }
            if self.cursor == from {
                self.signal.changed().await.map_err(|_| WatchEnd::Closed)?;
            } else {
                // Nothing that matches for a long stretch: let others at the lock.
                tokio::task::yield_now().await;
            }
        }
    }

    /// The next revisions, if there are any.
    pub fn poll(&mut self) -> Result<Vec<Seen>, Compacted> {
        let machine = self.state.read();
        let mut batch = Vec::new();
        for event in machine.events_after(self.cursor)?.take(LOOK) {
            self.cursor = event.revision;
            if event.changes.iter().any(|change| matches(&self.filter, change)) {
                batch.push(Seen { event: event.clone(), filter: self.filter.clone() });
                if batch.len() == BATCH {
                    break;
                }
            }
        }
        Ok(batch)
    }
}

fn matches(filter: &Filter, change: &Change) -> bool {
    change.key().is_some_and(|key| filter.matches(key))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::Wire;
    use crate::machine::{Machine, Position};
    use crate::types::{Command, ObjectKey, Op, Put, Write};

    fn write(state: &State, kind: &str, names: &[&str], body: u64) {
        let put = |name: &&str| {
            let spec = Bytes::from(format!("{body}"));
            Write::Put(Put::spec(ObjectKey::new(kind, "default", name), spec))
        };
        apply(state, Op::Write { require: vec![], writes: names.iter().map(put).collect() });
    }

    fn apply(state: &State, op: Op) {
        state.apply(Position { term: 1, index: 1 }, &Command::new("test", 0, op));
        state.announce();
    }

    fn revisions(batch: &[Seen]) -> Vec<u64> {
        batch.iter().map(|seen| seen.event().revision.0).collect()
    }

    #[tokio::test]
    async fn a_watch_from_the_past_catches_up_and_goes_on_live() {
        let state = Arc::new(State::default());
        for body in 1..=3 {
            write(&state, "Service", &["a"], body);
        }
        let mut watcher = Watcher::new(state.clone(), Revision(1), Filter::kind("Service"));
        assert_eq!(revisions(&watcher.next().await.unwrap()), [2, 3]);
        let live = tokio::spawn(async move { revisions(&watcher.next().await.unwrap()) });
        tokio::task::yield_now().await;
        write(&state, "Service", &["a"], 4);
        assert_eq!(live.await.unwrap(), [4]);
    }

    #[tokio::test]
    async fn a_revision_in_the_future_is_waited_for() {
        let state = Arc::new(State::default());
        let mut watcher = Watcher::new(state.clone(), Revision(2), Filter::default());
        for body in 1..=2 {
            write(&state, "Service", &["a"], body);
            let early = tokio::time::timeout(Duration::from_millis(5), watcher.next()).await;
            assert!(early.is_err(), "nothing from before what was asked for");
        }
        write(&state, "Service", &["a"], 3);
        assert_eq!(revisions(&watcher.next().await.unwrap()), [3]);
    }

    /// Catches the mutation "lost compaction event": a watcher that jumps over what was forgotten sees revision 4 here.
    #[tokio::test]
    async fn a_watcher_behind_a_compaction_is_told_and_stays_told() {
        let state = Arc::new(State::default());
        let mut watcher = Watcher::new(state.clone(), Revision(0), Filter::kind("Other"));
        for body in 1..=3 {
            write(&state, "Service", &["a"], body);
        }
        apply(&state, Op::Compact { through: Revision(3) });
        write(&state, "Other", &["a"], 4);
        let end = WatchEnd::Compacted(Compacted { at: Revision(3) });
        assert_eq!(watcher.next().await.unwrap_err(), end);
        assert_eq!(watcher.next().await.unwrap_err(), end);
        let mut resumed = Watcher::new(state, Revision(3), Filter::default());
        assert_eq!(revisions(&resumed.next().await.unwrap()), [4]);
    }

    #[tokio::test]
    async fn a_snapshot_that_skips_history_ends_the_watches_it_leaves_behind() {
        let state = Arc::new(State::default());
        let mut watcher = Watcher::new(state.clone(), Revision(0), Filter::default());
        let other = State::default();
        for body in 1..=5 {
            write(&other, "Service", &["a"], body);
        }
        apply(&other, Op::Compact { through: Revision(4) });
        let waiting = tokio::spawn(async move { watcher.next().await.unwrap_err() });
        tokio::task::yield_now().await;
        let machine = Machine::decode(&other.read().encode()).unwrap();
        state.replace(machine);
        assert_eq!(waiting.await.unwrap(), WatchEnd::Compacted(Compacted { at: Revision(4) }));
    }

    #[tokio::test]
    async fn a_watch_ends_with_the_store_after_what_is_left() {
        let state = Arc::new(State::default());
        let mut watcher = Watcher::new(state.clone(), Revision(0), Filter::default());
        write(&state, "Service", &["a"], 1);
        state.close();
        assert_eq!(revisions(&watcher.next().await.unwrap()), [1]);
        assert_eq!(watcher.next().await.unwrap_err(), WatchEnd::Closed);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write { kind: usize, names: usize },
        Compact { behind: u64 },
        Read { watcher: usize },
        Snapshot,
    }

    fn a_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..2usize, 1..4usize).prop_map(|(kind, names)| Step::Write { kind, names }),
            1 => (0..12u64).prop_map(|behind| Step::Compact { behind }),
            4 => (0..4usize).prop_map(|watcher| Step::Read { watcher }),
            1 => Just(Step::Snapshot),
        ]
    }

    proptest! {
        /// Writes, compactions, restarts from a snapshot and slow readers in any order: each watcher sees exactly the
        /// revisions that matter to it, or is told from where it lost them.
        #[test]
        fn ordered_unique_and_without_a_gap(
            steps in prop::collection::vec(a_step(), 1..200),
            starts in prop::collection::vec((0..20u64, 0..3usize), 4),
        ) {
            const KINDS: [&str; 2] = ["Service", "Route"];
            let state = Arc::new(State::default());
            let mut written: Vec<usize> = vec![];
            let mut watchers: Vec<_> = starts
                .iter()
                .map(|&(after, kind)| {
                    let filter = KINDS.get(kind).map_or_else(Filter::default, |kind| Filter::kind(kind));
                    (Watcher::new(state.clone(), Revision(after), filter), after, kind, false)
                })
                .collect();
            for (body, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Write { kind, names } => {
                        write(&state, KINDS[kind], &["a", "b", "c"][..names], body as u64);
                        written.push(kind);
                    }
                    Step::Compact { behind } => {
                        let through = Revision((written.len() as u64).saturating_sub(behind));
                        apply(&state, Op::Compact { through });
                    }
                    Step::Snapshot => {
                        let machine = Machine::decode(&state.read().encode()).unwrap();
                        state.replace(machine);
                    }
                    Step::Read { watcher } => {
                        let (watcher, seen, kind, ended) = &mut watchers[watcher];
                        match watcher.poll() {
                            Err(Compacted { at }) => {
                                prop_assert!(watcher.revision() < at);
                                *ended = true;
                            }
                            Ok(batch) => {
                                prop_assert!(!*ended, "no event after the end");
                                let now = written.len() as u64;
                                let due: Vec<u64> = (*seen + 1..=now)
                                    .filter(|r| *kind == 2 || written[*r as usize - 1] == *kind)
                                    .collect();
                                prop_assert_eq!(revisions(&batch), due);
                                for one in &batch {
                                    prop_assert_eq!(one.changes().count(), one.event().changes.len());
                                }
                                *seen = (*seen).max(now);
                            }
                        }
                    }
                }
            }
        }
    }
}
