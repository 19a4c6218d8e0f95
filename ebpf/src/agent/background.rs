//! What the agent does by itself.

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weft_ebpf_abi::{Connection, Event, Reason, Verdict};

use super::{Inner, Listeners, State, lock, namespaces::Namespaces, watch::CgroupWatch};
use crate::{destroy, netns, store, sys};

/// Between two heartbeats; a sixth of what the programs allow.
const BEAT: Duration = Duration::from_millis(500);
/// Whoever follows the verdicts asks at least this often.
const FOLLOWED: Duration = Duration::from_secs(5);

/// Until the agent stops.
pub(super) fn run(inner: &Inner, listeners: &dyn Listeners) {
    let mut events =
        store::events(&inner.pins).inspect_err(|error| tracing::error!(%error, "verdicts are not shown")).ok();
    let mut watch = CgroupWatch::new();
    let mut namespaces = Namespaces::default();
    let mut due = sys::now_ns();
    // The first look finds what came while nobody watched.
    let mut look = true;
    while !inner.stopping.load(Relaxed) {
        if look || sys::now_ns() >= due {
            due = sys::now_ns() + BEAT.as_nanos() as u64;
            recurring(inner, &mut namespaces, listeners, watch.as_mut());
        }
        wait(due, events.as_ref().map(AsFd::as_fd), watch.as_ref().map(AsFd::as_fd));
        look = watch.as_mut().is_some_and(CgroupWatch::drain);
        let Some(events) = &mut events else { continue };
        let mut flows = lock(&inner.flows);
        while let Some(item) = events.next() {
            let Some(event) = sys::read::<Event>(&item) else { continue };
            // A process in a namespace that nobody has seen yet.
            if event.kind == Verdict::Deny as u8 && event.reason == Reason::OtherNamespace as u8 {
                namespaces.look_again();
                look = true;
            }
            flows.push(event);
        }
    }
}

/// Until something happens, or it is time.
fn wait(due: u64, events: Option<BorrowedFd<'_>>, watch: Option<BorrowedFd<'_>>) {
    let mut fds: Vec<PollFd<'_>> =
        [events, watch].into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let left = Duration::from_nanos(due.saturating_sub(sys::now_ns()));
    // Interrupted or not: the loop looks again.
    let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
}

fn recurring(inner: &Inner, namespaces: &mut Namespaces, listeners: &dyn Listeners, watch: Option<&mut CgroupWatch>) {
    if let Err(error) = inner.beat() {
        tracing::error!(%error, "no heartbeat: the programs take the proxy for dead");
    }
    // An update that takes long comes first; the heartbeat does not wait for it.
    let Ok(mut state) = inner.state.try_lock() else { return };
    let state = &mut *state;
    if inner.stopping.load(Relaxed) {
        return;
    }
    let followed = sys::now_ns().saturating_sub(inner.followed_ns.load(Relaxed)) < FOLLOWED.as_nanos() as u64;
    follow(state, followed);
    // Before looking, so that nothing is missed in between.
    if let Some(watch) = watch {
        watch.follow(&inner.attach.path, state.config.workloads.iter().map(|workload| &*workload.cgroup));
    }
    let done = if state.again || cgroups_changed(inner, state) { inner.reconcile(state) } else { inner.reclaim(state) };
    if let Err(error) = done {
        tracing::error!(%error, "the kernel's maps are not up to date");
    }
    if state.by_address || state.proxied {
        namespaces.look(&inner.attach.path, state, listeners);
    }
    end_stale(state);
}

/// Whether a workload's cgroup is another one than the maps say.
fn cgroups_changed(inner: &Inner, state: &State) -> bool {
    let workloads = state.config.workloads.iter();
    let ids: HashSet<u64> = workloads.filter_map(|workload| inner.attach.below(&workload.cgroup)).collect();
    ids != state.cgroups
}

pub(super) fn follow(state: &mut State, followed: bool) {
    if (state.settings.follow != 0) == followed {
        return;
    }
    state.settings.follow = u32::from(followed);
    if let Err(error) = state.write_settings() {
        tracing::debug!(%error, "not all verdicts are shown");
    }
}

/// Ends connections whose endpoint has been gone for long enough.
fn end_stale(state: &mut State) {
    let now = sys::now_ns();
    let due: HashSet<(u32, u32)> = state
        .stale
        .iter()
        .filter(|(at, _)| *at <= now)
        .map(|(_, removed)| (removed.place, removed.generation))
        .collect();
    if due.is_empty() {
        return;
    }
    state.stale.retain(|(at, _)| *at > now);
    let stale = state.maps.connections.iter().flatten().filter(|(_, connection)| {
        let meta = &connection.meta;
        meta.verdict == Verdict::Direct as u32 && due.contains(&(meta.endpoint, meta.generation))
    });
    let stale: Vec<(u64, Connection)> = stale.collect();
    let own = state.settings.proxy_netns;
    for (cookie, connection) in stale {
        let (local, remote) =
            ((connection.local, connection.local_port), (connection.meta.backend, connection.meta.backend_port));
        let done = if connection.netns == own {
            destroy::tcp(local, remote, cookie)
        } else {
            netns::inside(connection.meta.pid, || destroy::tcp(local, remote, cookie))
        };
        match done {
            Ok(()) => tracing::info!(pid = connection.meta.pid, "ended a connection to an endpoint that is gone"),
            Err(error) => tracing::debug!(%error, pid = connection.meta.pid, "a stale connection is not ended"),
        }
    }
}
