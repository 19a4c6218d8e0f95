//! Notices cgroups that come and go: a workload that has just been started must not count as a stranger.

use std::{
    collections::HashSet,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// inotify on the directories in which the cgroups of workloads are, or will be.
pub(super) struct CgroupWatch {
    inotify: OwnedFd,
    watched: HashSet<PathBuf>,
}

impl CgroupWatch {
    /// Watches nothing yet; `None` when there are no descriptors for it: then only looking helps.
    pub(super) fn new() -> Option<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        Some(Self { inotify, watched: HashSet::new() })
    }

    /// Watches every directory on the way to these cgroups, as far as there is one.
    pub(super) fn follow<'a>(&mut self, attach: &Path, cgroups: impl Iterator<Item = &'a str>) {
        let mut wanted = HashSet::from([attach.to_owned()]);
        for cgroup in cgroups {
            let mut path = attach.to_owned();
            for part in cgroup.split('/') {
                path.push(part);
                wanted.insert(path.clone());
            }
        }
        // The kernel forgets a directory that is removed, and says so: see `drain`.
        for path in wanted {
            if !self.watched.contains(&path) {
                let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::DELETE_SELF | WatchFlags::ONLYDIR;
                if inotify::add_watch(&self.inotify, &path, flags).is_ok() {
                    // Says when the first process comes, and when the last one goes.
                    let _ = inotify::add_watch(&self.inotify, path.join("cgroup.events"), WatchFlags::MODIFY);
                    self.watched.insert(path);
                }
            }
        }
    }

    /// Takes what has happened; whether it was anything.
    pub(super) fn drain(&mut self) -> bool {
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut any = false;
        while reader.next().is_ok() {
            any = true;
        }
        if any {
            // Some may be gone, and come again under the same name: asked for again, which costs little.
            self.watched.clear();
        }
        any
    }
}

impl AsFd for CgroupWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
