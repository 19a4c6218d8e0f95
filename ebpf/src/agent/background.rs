//! What the agent does by itself.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weft_ebpf_abi::{Connection, Event, Verdict};

use super::{Inner, State, lock, watch::CgroupWatch};
use crate::{destroy, netns, store, sys};

/// Between two heartbeats; a sixth of what the programs allow.
const BEAT: Duration = Duration::from_millis(500);
/// Whoever follows the verdicts asks at least this often.
const FOLLOWED: Duration = Duration::from_secs(5);
/// Processes that are looked at for their network namespace.
const MAX_PROCESSES: usize = 4096;

/// Until the agent stops.
pub(super) fn run(inner: &Inner) {
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
            recurring(inner, &mut namespaces, watch.as_mut());
        }
        wait(due, events.as_ref().map(AsFd::as_fd), watch.as_ref().map(AsFd::as_fd));
        look = watch.as_mut().is_some_and(CgroupWatch::drain);
        let Some(events) = &mut events else { continue };
        let mut flows = lock(&inner.flows);
        while let Some(item) = events.next() {
            if let Some(event) = sys::read::<Event>(&item) {
                flows.push(event);
            }
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

fn recurring(inner: &Inner, namespaces: &mut Namespaces, watch: Option<&mut CgroupWatch>) {
    let state = &mut *lock(&inner.state);
    // A stop may have come while this waited for the lock: no beat after it.
    if inner.stopping.load(Relaxed) {
        return;
    }
    if let Err(error) = state.beat() {
        tracing::error!(%error, "no heartbeat: the programs take the proxy for dead");
    }
    let followed = sys::now_ns().saturating_sub(inner.followed_ns.load(Relaxed)) < FOLLOWED.as_nanos() as u64;
    follow(state, followed);
    // Before looking, so that nothing is missed in between.
    if let Some(watch) = watch {
        watch.follow(&inner.attach.path, state.config.workloads.iter().map(|workload| &*workload.cgroup));
    }
    if (cgroups_changed(inner, state) || state.reconciler.waiting())
        && let Err(error) = inner.reconcile(state)
    {
        tracing::error!(%error, "the kernel's maps are not up to date");
    }
    if state.by_address {
        namespaces.look(inner, state);
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

/// Network namespaces of workloads, and from where they connect: asked for only if a policy goes by addresses.
#[derive(Default)]
struct Namespaces {
    /// By inode: the cookie.
    known: HashMap<u64, u64>,
}

impl Namespaces {
    fn look(&mut self, inner: &Inner, state: &mut State) {
        let mut seen = HashMap::new();
        let mut left = MAX_PROCESSES;
        processes(&inner.attach.path, &mut left, &mut |pid| {
            if let Ok(meta) = fs::metadata(format!("/proc/{pid}/ns/net")) {
                seen.entry(meta.ino()).or_insert(pid);
            }
        });
        let gone: Vec<u64> = self.known.keys().filter(|inode| !seen.contains_key(inode)).copied().collect();
        for inode in gone {
            if let Some(cookie) = self.known.remove(&inode) {
                let _ = state.maps.sources.remove(&cookie);
            }
        }
        for (inode, pid) in seen {
            if self.known.contains_key(&inode) {
                continue;
            }
            let found = netns::inside(pid, netns::sources);
            let Ok((cookie, sources)) = found else { continue };
            if cookie == state.settings.proxy_netns || state.maps.sources.insert(cookie, sources, 0).is_ok() {
                self.known.insert(inode, cookie);
            }
        }
    }
}

/// All processes below a cgroup.
fn processes(cgroup: &Path, left: &mut usize, visit: &mut impl FnMut(u32)) {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()) {
        let Some(less) = left.checked_sub(1) else { return };
        *left = less;
        visit(pid);
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            processes(&entry.path(), left, visit);
        }
    }
}
