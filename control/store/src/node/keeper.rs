//! What a leader does by itself.

use std::sync::Weak;
use std::time::Duration;

use futures_util::FutureExt;
use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::{Inner, Store};
use crate::dedupe::RETRY_MS;
use crate::fatal::Fatal;
use crate::types::{Command, Op};

/// How often it looks.
const TICK: Duration = Duration::from_millis(100);
/// How often history is trimmed.
const TRIM: Duration = Duration::from_secs(5);
/// For how long a membership change may be half done before it is taken to be abandoned.
const ABANDONED: Duration = Duration::from_secs(3);

/// Looks after the cluster while this member leads, until the store is gone or raft stops.
pub(super) async fn run(store: Weak<Inner>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut trimmed = Instant::now();
    let mut joint_since = None;
    let Some(mut core) = store.upgrade().map(|store| store.raft.metrics()) else { return };
    let (mut led, mut known) = (None, None);
    loop {
        tick.tick().await;
        let Some(store) = store.upgrade().map(Store) else { return };
        let ended = matches!(core.changed().now_or_never(), Some(Err(_)));
        let metrics = store.metrics();
        if let Err(fatal) = &metrics.running_state {
            // What stopped it has been reported, if it was ours.
            if !matches!(fatal, openraft::errors::Fatal::Stopped) {
                store.0.failure.report(Fatal::Raft(fatal.to_string()));
            }
            store.0.state.close();
            return;
        }
        // It is gone without having said so: nobody would answer for this member, and nobody would know.
        if ended {
            store.0.failure.report(Fatal::Raft("it panicked, which is a defect in Weft".into()));
            store.0.state.close();
            return;
        }
        if known.replace(*metrics.membership_config.log_id()) != Some(*metrics.membership_config.log_id()) {
            store.0.peers.learn(metrics.membership_config.nodes());
        }
        let leads = (metrics.current_term, metrics.current_leader);
        if led.replace(leads) != Some(leads)
            && let Some(leader) = metrics.current_leader
        {
            let term = metrics.current_term;
            match metrics.membership_config.membership().get_node(&leader) {
                _ if leader == store.0.id => tracing::info!(name = &*store.0.me.name, "leads in term {term}"),
                Some(leader) => tracing::info!(name = &*store.0.me.name, "follows {} in term {term}", leader.name),
                None => tracing::info!(name = &*store.0.me.name, "follows member {leader} in term {term}"),
            }
        }
        // A leader is one once it has applied an entry of its own term: then it knows all that was promised before.
        let own = metrics.last_applied.is_some_and(|applied| applied.leader_id.term == metrics.current_term);
        let leads = metrics.state.is_leader() && own;
        store.leases().lead(leads.then_some(metrics.current_term));
        if !leads {
            joint_since = None;
            continue;
        }
        end_leases(&store).await;
        if trimmed.elapsed() >= TRIM {
            trimmed = Instant::now();
            trim(&store).await;
        }
        let joint = metrics.membership_config.get_joint_config();
        match joint.last() {
            Some(goal) if joint.len() > 1 => {
                let since = *joint_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= ABANDONED
                    && let Ok(_one_at_a_time) = store.0.changing.try_lock()
                {
                    tracing::warn!(?goal, "finishing a membership change that its leader left half done");
                    let change = store.0.raft.change_membership(ChangeMembers::ReplaceAllVoters(goal.clone()), false);
                    let _ = timeout(store.0.options.timeout, change).await;
                    joint_since = None;
                }
            }
            _ => joint_since = None,
        }
    }
}

async fn end_leases(store: &Store) {
    // Without a quorum nothing is heard of anybody, which says nothing about them.
    if !store.hears_quorum() {
        return;
    }
    let due = {
        let mut leases = store.leases();
        let now = Instant::now().into_std();
        leases.sync(now, store.0.state.read().leases());
        leases.due(now)
    };
    let Some(due) = due else { return };
    let op = Op::Expire { term: due.term, leases: due.leases };
    // Whatever becomes of it: what is still there is due again at the next look.
    if let Err(error) = store.write(command(store, op)).await {
        tracing::debug!(%error, "leases were not ended");
    }
}

async fn trim(store: &Store) {
    let now = (store.0.options.clock)();
    let history = now.saturating_sub(u64::try_from(store.0.options.history.as_millis()).unwrap_or(u64::MAX));
    let clients = now.saturating_sub(2 * RETRY_MS);
    if !store.0.state.read().would_trim(history, clients) {
        return;
    }
    if let Err(error) = store.write(command(store, Op::Trim { history, clients })).await {
        tracing::debug!(%error, "history was not trimmed");
    }
}

fn command(store: &Store, op: Op) -> Command {
    Command::new(&format!("member/{}", store.0.me.name), (store.0.options.clock)(), op)
}
