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
    cgroup::{self, Cgroup, CgroupError},
    programs::EbpfSetupError,
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
    ///
    /// # Errors
    /// When this process may not look.
    pub fn all() -> io::Result<Vec<Self>> {
        let entries = match root(false).and_then(fs::read_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(entries.flatten().map(|entry| Self { base: entry.path(), abi: layout() }).collect())
    }

    /// The id of the cgroup they belong to.
    pub fn cgroup_id(&self) -> Option<u64> {
        self.base.file_name()?.to_str()?.parse().ok()
    }

    /// Whether there are any.
    pub fn exist(&self) -> bool {
        self.base.is_dir()
    }

    /// Whether they were made by a Weft that lays its maps out as this one does. Others can be removed, not read.
    pub fn are_ours(&self) -> bool {
        self.base.join(&self.abi).is_dir()
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

    /// Removes everything: programs are detached, and maps go with them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self) -> io::Result<()> {
        for pin in self.links() {
            // A link ends with its pin as well, but some time later, and only if nobody has it open. One whose cgroup is
            // gone is detached already.
            let _ = sys::pinned(&pin).and_then(|link| sys::link_detach(link.as_fd()));
        }
        match fs::remove_dir_all(&self.base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => {
                // The last one turns off the light; it fails while there are others.
                let _ = self.base.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    /// The cgroup they belong to; `None` when it is gone.
    ///
    /// # Errors
    /// When there is no cgroup2.
    pub fn cgroup(&self) -> Result<Option<Cgroup>, CgroupError> {
        self.cgroup_id().map_or(Ok(None), Cgroup::with_id)
    }

    /// Detaches the programs, and removes everything that is left of them: pins, maps, and the proxy's own cgroup if
    /// nobody is in it. Not below a Weft that runs, unless it is forced. The attach point, if it still exists.
    ///
    /// # Errors
    /// [`EbpfSetupError::Taken`]: another Weft manages it; otherwise what the kernel says.
    pub fn unload(&self, force: bool) -> Result<Option<Cgroup>, EbpfSetupError> {
        let Some(attach) = self.cgroup()? else {
            self.remove().map_err(|source| EbpfSetupError::Pins { source })?;
            return Ok(None);
        };
        // Held to the end, so that no agent starts in between.
        let lock = attach.manage()?;
        if lock.is_none() && !force {
            return Err(EbpfSetupError::Taken(attach.path));
        }
        self.remove().map_err(|source| EbpfSetupError::Pins { source })?;
        // It fails when there is none, and when somebody is in it.
        let _ = fs::remove_dir(attach.path.join(cgroup::OWN));
        Ok(Some(attach))
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

    /// Pins of links, of all layouts.
    fn links(&self) -> Vec<PathBuf> {
        let below = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        below(self.base.clone()).flat_map(|layout| below(layout.join("links"))).collect()
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
        size_of::<abi::Namespace>(),
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
        abi::MAX_NAMESPACES,
        abi::MAX_CONNECTIONS,
        abi::EVENT_BYTES,
        abi::VERDICT_COUNTERS,
    ];
    let hash = id(&format!("{sizes:?}{entries:?}"));
    format!("abi-{}-{:08x}", abi::ABI, hash >> 32)
}

/// Whether a BPF file system is mounted, and where.
pub fn mounted() -> Option<PathBuf> {
    cgroup::mounted(&fs::read_to_string("/proc/self/mounts").ok()?, "bpf")
}

/// The directory of all pins.
fn root(mount: bool) -> io::Result<PathBuf> {
    if let Some(point) = mounted() {
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
