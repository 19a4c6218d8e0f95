//! cgroups: where programs are attached, how workloads are found, and where the proxy itself is.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Name of the cgroup that the proxy makes for itself, below the attach point.
pub const OWN: &str = "weft-proxy";

/// Why a path cannot be used as an attach point.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup2.
    #[error("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")]
    NotMounted,
    /// The path is somewhere else.
    #[error("{path} is not in a cgroup2 file system ({mount} is one)")]
    Elsewhere {
        /// As given.
        path: PathBuf,
        /// Where cgroup2 is.
        mount: PathBuf,
    },
    /// It cannot be read or made.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// A cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Absolute, without links.
    pub path: PathBuf,
    /// As the kernel programs see it: its inode.
    pub id: u64,
    /// Its level; the root has 0.
    pub level: u32,
}

/// Where cgroup2 is mounted; the first mount counts.
///
/// # Errors
/// When it is not.
pub fn mount() -> Result<PathBuf, CgroupError> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounted(&mounts, "cgroup2").ok_or(CgroupError::NotMounted)
}

/// The mount point of a file system of this type in the text of /proc/mounts.
pub(crate) fn mounted(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (point, of) = (fields.nth(1)?, fields.next()?);
        (of == kind).then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

impl Cgroup {
    /// The cgroup at this path.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let mount = mount()?;
        let io = |source| CgroupError::Io { path: path.into(), source };
        let real = path.canonicalize().map_err(io)?;
        let Ok(relative) = real.strip_prefix(&mount) else {
            return Err(CgroupError::Elsewhere { path: path.into(), mount });
        };
        let level = u32::try_from(relative.components().count()).unwrap_or(u32::MAX);
        let id = fs::metadata(&real).map_err(io)?.ino();
        Ok(Self { path: real, id, level })
    }

    /// The id of a cgroup below this one, if it exists.
    pub fn below(&self, relative: &str) -> Option<u64> {
        fs::metadata(self.path.join(relative)).ok().filter(fs::Metadata::is_dir).map(|meta| meta.ino())
    }

    /// The cgroup with this id, wherever it is; `None` when it is gone.
    ///
    /// # Errors
    /// When there is no cgroup2.
    pub fn with_id(id: u64) -> Result<Option<Self>, CgroupError> {
        let mount = mount()?;
        if fs::metadata(&mount).is_ok_and(|root| root.ino() == id) {
            return Self::open(&mount).map(Some);
        }
        let mut left = vec![mount];
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if entry.ino() == id {
                    return Self::open(&entry.path()).map(Some);
                }
                left.push(entry.path());
            }
        }
        Ok(None)
    }

    /// The right to manage the programs here, as long as the file is open; `None`: another process has it.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn manage(&self) -> Result<Option<fs::File>, CgroupError> {
        let io = |source| CgroupError::Io { path: self.path.clone(), source };
        let directory = fs::File::open(&self.path).map_err(io)?;
        match rustix::fs::flock(&directory, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(directory)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(io(error.into())),
        }
    }

    /// Processes that are directly in it.
    fn processes(&self) -> io::Result<Vec<u32>> {
        let text = fs::read_to_string(self.path.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Moves the calling process here.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn enter(&self) -> Result<(), CgroupError> {
        self.take(std::process::id())
    }

    /// Moves a process here.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self, pid: u32) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.procs");
        let write = || fs::OpenOptions::new().write(true).open(&path)?.write_all(pid.to_string().as_bytes());
        write().map_err(|source| CgroupError::Io { path: path.clone(), source })
    }

    /// Makes a cgroup below this one, or opens it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(CgroupError::Io { path, source }),
        }
        Self::open(&path)
    }
}

/// The cgroup of the calling process.
///
/// # Errors
/// When there is no cgroup2.
pub fn own() -> Result<Cgroup, CgroupError> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    Cgroup::open(&mount()?.join(path.trim_start_matches('/')))
}

/// The proxy's own cgroup. Its connections must be told from those of workloads in a way that no workload can forge, and
/// its sockets must be where the programs see them. So it stays where it is if that is below the attach point and nobody
/// else is there (a systemd unit, a container); otherwise, or when a Workload claims the place, it moves to a cgroup of its
/// own.
#[derive(Debug)]
pub struct OwnCgroup {
    /// Where it is.
    pub cgroup: Cgroup,
    /// Where it was, if it moved.
    from: Option<Cgroup>,
}

impl OwnCgroup {
    /// Moves, if need be.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn settle(attach: &Cgroup) -> Result<Self, CgroupError> {
        let own = own()?;
        let below = own.path != attach.path && own.path.starts_with(&attach.path);
        let alone = own.processes().is_ok_and(|all| all == [std::process::id()]);
        let mut settled = Self { cgroup: own, from: None };
        if !(below && alone) {
            settled.leave_for_own(attach)?;
        }
        Ok(settled)
    }

    /// Moves to a cgroup that only the proxy is in.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn leave_for_own(&mut self, attach: &Cgroup) -> Result<(), CgroupError> {
        let cgroup = attach.child(OWN)?;
        cgroup.enter()?;
        let before = std::mem::replace(&mut self.cgroup, cgroup);
        self.from.get_or_insert(before);
        Ok(())
    }

    /// Goes back, and removes the cgroup that was made. Failures cost an empty directory.
    pub fn leave(self) {
        if let Some(from) = self.from
            && from.enter().is_ok()
            && let Err(error) = fs::remove_dir(&self.cgroup.path)
        {
            tracing::debug!(path = %self.cgroup.path.display(), %error, "cannot remove the proxy's cgroup");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_type() {
        let mounts = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/with\\040space cgroup2 rw 0 0\nnone /sys/fs/bpf bpf rw 0 0\n";
        assert_eq!(mounted(mounts, "cgroup2"), Some("/sys/fs/cgroup/with space".into()));
        assert_eq!(mounted(mounts, "bpf"), Some("/sys/fs/bpf".into()));
        assert_eq!(mounted("tmpfs / tmpfs rw 0 0\n", "bpf"), None);
    }
}
