//! Network namespaces of captured processes: from where they connect, and a listener for captured connections in each.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use weft_ebpf_abi::{MAX_NAMESPACES, Namespace};

use super::{Listeners, State};
use crate::netns;

/// Processes that are looked at.
const MAX_PROCESSES: usize = 16_384;
/// A process may go to another namespace after it was looked at: all are looked at again so often.
const AGAIN: u32 = 8;

/// What has been seen.
#[derive(Default)]
pub(super) struct Namespaces {
    looks: u32,
    /// By process: the inode of its namespace.
    processes: HashMap<u32, u64>,
    /// By inode.
    known: HashMap<u64, Known>,
}

/// A namespace that the programs know.
struct Known {
    cookie: u64,
    /// It was found when some service needed the proxy: the proxy listens there.
    proxied: bool,
}

impl Namespaces {
    /// The next look is at all processes.
    pub(super) fn look_again(&mut self) {
        self.processes.clear();
    }

    /// Finds namespaces that are new, and those in which nobody is any more.
    pub(super) fn look(&mut self, cgroup: &Path, state: &mut State, listeners: &dyn Listeners) {
        self.looks += 1;
        if self.looks.is_multiple_of(AGAIN) {
            self.look_again();
        }
        let mut seen = HashMap::new();
        let mut left = MAX_PROCESSES;
        processes(cgroup, &mut left, &mut |pid| {
            let known = self.processes.get(&pid).copied();
            let inode = known.or_else(|| Some(fs::metadata(format!("/proc/{pid}/ns/net")).ok()?.ino()));
            seen.extend(inode.map(|inode| (pid, inode)));
        });
        self.processes = seen;
        let inhabited: HashSet<u64> = self.processes.values().copied().collect();
        let gone: Vec<u64> = self.known.keys().filter(|inode| !inhabited.contains(inode)).copied().collect();
        for Known { cookie, .. } in gone.iter().filter_map(|inode| self.known.remove(inode)) {
            if cookie != state.settings.proxy_netns {
                // It may have gone with the namespace.
                let _ = state.maps.namespaces.remove(&cookie);
                listeners.leave(cookie);
            }
        }
        for (&pid, &inode) in &self.processes {
            let known = match self.known.get(&inode) {
                // One that was found before any service needed the proxy is not listened in yet.
                Some(known) => known.proxied || !state.proxied,
                None => self.known.len() >= MAX_NAMESPACES as usize,
            };
            if known {
                continue;
            }
            match found(pid, state, listeners) {
                Ok(cookie) => _ = self.known.insert(inode, Known { cookie, proxied: state.proxied }),
                Err(error) => tracing::debug!(pid, %error, "a network namespace is not captured yet"),
            }
        }
    }
}

/// A process in a namespace that is not known: makes it known to the programs.
fn found(pid: u32, state: &mut State, listeners: &dyn Listeners) -> io::Result<u64> {
    let (own, proxied) = (state.settings.proxy_netns, state.proxied && state.settings.capture_is_loopback());
    let (cookie, namespace) = netns::inside(pid, || {
        let (cookie, namespace) = netns::describe()?;
        let captured = cookie != own && proxied;
        if captured {
            listeners.listen(cookie)?;
        }
        Ok((cookie, Namespace { captured: captured.into(), ..namespace }))
    })?;
    if cookie != own {
        state.maps.namespaces.insert(cookie, namespace, 0).map_err(io::Error::other)?;
    }
    Ok(cookie)
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
