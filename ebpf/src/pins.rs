//! What outlives the process: links and maps, pinned on a BPF file system.
//!
//! ```text
//! /sys/fs/bpf/weft/<id of the cgroup>/<ABI>/maps/VIPS …
//!                                          /links/connect4 …
//! ```
//!
//! One directory for each attach point, so that several can live side by side; below it one for each layout of the maps,
//! so that programs never meet maps of another layout.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use weft_ebpf_abi::{self as abi, id};

use crate::{
    cgroup::{self, Cgroup},
    sys,
};

/// Where a BPF file system is expected, and mounted when there is none.
const BPFFS: &str = "/sys/fs/bpf";

/// The pins of one attach point.
#[derive(Debug, Clone)]
pub struct Pins {
    base: PathBuf,
    abi: String,
}

impl Pins {
    /// Those of `attach`. Mounts the BPF file system if there is none and `mount` is set.
    ///
    /// # Errors
    /// When there is no BPF file system, or none can be mounted.
    pub fn of(attach: &Cgroup, mount: bool) -> io::Result<Self> {
        Ok(Self { base: root(mount)?.join(attach.id.to_string()), abi: layout() })
    }

    /// All that there are on this host.
    pub fn all() -> Vec<Self> {
        let Ok(root) = root(false) else { return Vec::new() };
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        entries.map(|entry| Self { base: entry.path(), abi: layout() }).collect()
    }

    /// The id of the cgroup they belong to.
    pub fn cgroup_id(&self) -> Option<u64> {
        self.base.file_name()?.to_str()?.parse().ok()
    }

    /// Whether there are any.
    pub fn exist(&self) -> bool {
        self.base.is_dir()
    }

    /// Makes the directories.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.base.join(&self.abi).join("maps"))?;
        fs::create_dir_all(self.base.join(&self.abi).join("links"))
    }

    /// Where a map of this layout is.
    pub fn map(&self, name: &str) -> PathBuf {
        self.base.join(&self.abi).join("maps").join(name)
    }

    /// Where a link of this layout is.
    pub fn link(&self, program: &str) -> PathBuf {
        self.base.join(&self.abi).join("links").join(program)
    }

    /// Where links of the same program are that belong to maps of another layout: an older or a newer Weft.
    pub fn foreign_links(&self, program: &str) -> Vec<PathBuf> {
        self.foreign().into_iter().map(|dir| dir.join("links").join(program)).filter(|path| path.exists()).collect()
    }

    /// Removes what belongs to other layouts.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove_foreign(&self) -> io::Result<()> {
        self.foreign().iter().try_for_each(fs::remove_dir_all)
    }

    /// Removes everything: links end with their pins, and maps with the programs.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                // The last one turns off the light; it fails while there are others.
                let _ = self.base.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    /// Whether their cgroup was removed: they do nothing any more.
    pub fn are_dead(&self) -> bool {
        let links = fs::read_dir(self.base.join(&self.abi).join("links")).into_iter().flatten().flatten();
        let mut any = false;
        for link in links {
            let Ok(info) = sys::pinned(&link.path()).and_then(|link| sys::link_info(link.as_fd())) else {
                return false;
            };
            if info.cgroup != 0 {
                return false;
            }
            any = true;
        }
        any
    }

    /// The directory, for whoever looks with other tools.
    pub fn path(&self) -> &Path {
        &self.base
    }

    fn foreign(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.base).into_iter().flatten().flatten();
        entries.filter(|entry| *entry.file_name() != *self.abi).map(|entry| entry.path()).collect()
    }
}

/// Names the layout of the maps: the version, and a hash of everything that maps are made from. aya compares neither
/// sizes nor types when it takes a pinned map.
fn layout() -> String {
    let sizes = [
        size_of::<abi::VipKey>(),
        size_of::<abi::Vip>(),
        size_of::<abi::Endpoint>(),
        size_of::<abi::Stats>(),
        size_of::<abi::PolicyKey>(),
        size_of::<abi::Policy>(),
        size_of::<abi::BlockKey>(),
        size_of::<abi::Settings>(),
        size_of::<abi::Sources>(),
        size_of::<abi::Meta>(),
        size_of::<abi::Tuple>(),
        size_of::<abi::Connection>(),
        size_of::<abi::Event>(),
    ];
    let entries = [
        abi::MAX_ENDPOINTS,
        abi::MAX_VIPS,
        abi::MAX_SLOTS,
        abi::MAX_WORKLOADS,
        abi::MAX_POLICIES,
        abi::MAX_BLOCKS,
        abi::MAX_CONNECTIONS,
        abi::EVENT_BYTES,
        abi::VERDICT_COUNTERS,
    ];
    let hash = id(&format!("{sizes:?}{entries:?}"));
    format!("abi-{}-{:08x}", abi::ABI, hash >> 32)
}

fn root(mount: bool) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if let Some(point) = cgroup::mounted(&mounts, "bpf") {
        return Ok(point.join("weft"));
    }
    if !mount {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no BPF file system is mounted"));
    }
    fs::create_dir_all(BPFFS)?;
    let flags =
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("bpf", BPFFS, "bpf", flags, c"mode=0700")?;
    Ok(Path::new(BPFFS).join("weft"))
}
