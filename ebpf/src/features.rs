//! What this host offers to the programs: asked of the kernel where that is possible, not guessed from its version.

use std::{
    fs,
    io::{self, ErrorKind},
    net::{Ipv6Addr, TcpListener},
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    cgroup::{self, Cgroup},
    destroy, netns, pins,
    programs::{self, EbpfSetupError},
};

/// The least kernel that has everything: `bpf_set_retval` in connect() is the last that came. Distributions bring
/// features to older ones, so that loading decides.
pub const KERNEL: (u32, u32) = (6, 1);

/// What came with which kernel, oldest first.
const CAME_WITH: [((u32, u32), &str); 6] = [
    ((5, 2), "storage of sockets"),
    ((5, 7), "links of cgroups"),
    ((5, 8), "ring buffers and getpeername hooks"),
    ((5, 14), "SO_NETNS_COOKIE"),
    ((5, 15), "the namespace in sock_ops"),
    (KERNEL, "the errno of a refused connect()"),
];

/// How it is with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is there.
    Ok,
    /// It goes without, less well.
    Warning,
    /// It is not there.
    Missing,
}

impl Level {
    /// In small letters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was seen.
    pub found: String,
    /// What it is for.
    pub means: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// What works without it.
    pub without: &'static str,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, means: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), means, remedy: "", without: "" }
    }

    /// The same, at another level, with what to do and what works nevertheless.
    #[must_use]
    pub fn but(self, level: Level, remedy: &'static str, without: &'static str) -> Self {
        Self { level, remedy, without, ..self }
    }

    /// For tools.
    pub fn json(&self) -> Value {
        let some = |text: &'static str| (!text.is_empty()).then_some(text);
        json!({
            "check": self.check,
            "level": self.level.name(),
            "found": self.found,
            "means": self.means,
            "remedy": some(self.remedy),
            "without": some(self.without),
        })
    }
}

/// What works without any programs.
const EXPLICIT: &str = "Weft still runs as an explicit proxy (Gateway listeners)";

/// Everything that the programs need, in the order in which it is needed. `load`: tries whether they load, which tells
/// nothing where they are loaded already. Attaches nothing.
pub fn all(load: bool) -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut all = vec![
        privileges(cap_eff(&status)),
        kernel(release.trim()),
        cgroup2(cgroup::mount().ok().as_deref()),
        bpffs(pins::mounted().as_deref()),
        namespaces(netns::cookie()),
        sock_destroy(destroy::on_trial()),
        ipv6(has_ipv6()),
    ];
    if load {
        let loaded = programs::object().and_then(|object| programs::load(&object, None).map(drop));
        all.push(loads(loaded));
    }
    all
}

/// The attach point that is meant.
pub fn attach_point(path: &Path) -> Finding {
    const MEANS: &str = "every process below it is captured";
    const REMEDY: &str = "name a directory in cgroup2, such as that of a slice: --cgroup PATH";
    let found = match Cgroup::open(path) {
        Err(error) => {
            return Finding::ok("attach point", MEANS, error.to_string()).but(Level::Missing, REMEDY, EXPLICIT);
        }
        Ok(found) => found,
    };
    let shown = |what: &str| Finding::ok("attach point", MEANS, format!("{}{what}", found.path.display()));
    if found.level == 0 {
        return shown(", the root").but(
            Level::Warning,
            "attach to a slice, so that the system's own services stay out of it",
            "everything; but every process of this host is captured",
        );
    }
    shown("")
}

/// `CapEff` of `/proc/<pid>/status`.
fn cap_eff(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

fn privileges(effective: Option<u64>) -> Finding {
    const CHECK: &str = "privileges";
    const MEANS: &str = "loading and attaching programs";
    const REMEDY: &str = "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN \
                          (systemd: AmbientCapabilities=)";
    let Some(effective) = effective else {
        return Finding::ok(CHECK, MEANS, "/proc/self/status does not tell").but(Level::Warning, REMEDY, EXPLICIT);
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    // Before CAP_BPF there was only CAP_SYS_ADMIN, which still stands for it.
    let needed = [("CAP_BPF", has(BPF) || has(SYS_ADMIN)), ("CAP_NET_ADMIN", has(NET_ADMIN))];
    let missing: Vec<&str> = needed.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    if !missing.is_empty() {
        let found = format!("without {}", missing.join(" and "));
        return Finding::ok(CHECK, MEANS, found).but(Level::Missing, REMEDY, EXPLICIT);
    }
    if !has(SYS_ADMIN) {
        return Finding::ok(CHECK, MEANS, "CAP_BPF and CAP_NET_ADMIN, without CAP_SYS_ADMIN").but(
            Level::Warning,
            "mount the BPF file system beforehand, writable for this user; add CAP_SYS_ADMIN for the rest",
            "everything but mounting it, and workloads in network namespaces of their own",
        );
    }
    Finding::ok(CHECK, MEANS, "CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN")
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    const MEANS: &str = "the programs are made for Linux 6.1 and newer";
    const REMEDY: &str = "use Linux 6.1 or newer, unless `programs` is ok: distributions bring features to older ones";
    let finding = |found: String| Finding::ok("kernel", MEANS, found);
    match version(release) {
        None => finding(format!("{release:?}: not a version")).but(Level::Warning, REMEDY, EXPLICIT),
        Some(version) if version >= KERNEL => finding(release.into()),
        Some(version) => {
            let lacks = CAME_WITH.iter().filter(|(since, _)| version < *since);
            let lacks: Vec<String> = lacks.map(|((a, b), what)| format!("{what} ({a}.{b})")).collect();
            // Whether it is missing is what loading the programs shows.
            finding(format!("{release}, without {}", lacks.join(", "))).but(Level::Warning, REMEDY, EXPLICIT)
        }
    }
}

fn cgroup2(mount: Option<&Path>) -> Finding {
    const MEANS: &str = "programs are attached to a cgroup, and workloads are told apart by theirs";
    match mount {
        Some(mount) => Finding::ok("cgroup2", MEANS, format!("at {}", mount.display())),
        None => Finding::ok("cgroup2", MEANS, "not mounted").but(
            Level::Missing,
            "mount -t cgroup2 none /sys/fs/cgroup",
            EXPLICIT,
        ),
    }
}

fn bpffs(mount: Option<&Path>) -> Finding {
    const MEANS: &str = "programs and maps stay there while Weft is down";
    match mount {
        Some(mount) => Finding::ok("bpffs", MEANS, format!("at {}", mount.display())),
        None => Finding::ok("bpffs", MEANS, "not mounted").but(
            Level::Warning,
            "nothing, if Weft runs as root: it mounts one; otherwise mount -t bpf bpf /sys/fs/bpf",
            "everything, if Weft may mount it",
        ),
    }
}

fn loads(loaded: Result<(), EbpfSetupError>) -> Finding {
    const MEANS: &str = "this kernel accepts the programs and their maps; nothing was attached to find out";
    match loaded {
        Ok(()) => Finding::ok("programs", MEANS, "they load here"),
        Err(error) => Finding::ok("programs", MEANS, error.to_string()).but(
            Level::Missing,
            "see privileges and kernel above",
            EXPLICIT,
        ),
    }
}

fn namespaces(cookie: io::Result<u64>) -> Finding {
    const MEANS: &str = "connections of different network namespaces are told apart";
    match cookie {
        Ok(_) => Finding::ok("namespaces", MEANS, "they have cookies"),
        Err(error) => {
            Finding::ok("namespaces", MEANS, error.to_string()).but(Level::Missing, "use Linux 5.14 or newer", EXPLICIT)
        }
    }
}

fn sock_destroy(tried: io::Result<()>) -> Finding {
    const CHECK: &str = "SOCK_DESTROY";
    const MEANS: &str = "--end-stale: ending DIRECT connections to endpoints that were removed";
    const WITHOUT: &str = "everything but --end-stale: such connections last as long as both ends want";
    let missing = |found: String, remedy| Finding::ok(CHECK, MEANS, found).but(Level::Warning, remedy, WITHOUT);
    match tried {
        Ok(()) => Finding::ok(CHECK, MEANS, "available"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            missing("not allowed".into(), "run as root, or with CAP_NET_ADMIN")
        }
        Err(error) => missing(
            format!("this kernel does not have it: {error}"),
            "use a kernel with CONFIG_INET_DIAG_DESTROY (modprobe inet_diag tcp_diag)",
        ),
    }
}

/// Whether this host has IPv6.
fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn ipv6(there: bool) -> Finding {
    const MEANS: &str = "connections to IPv6 addresses are captured at [::1]";
    if there {
        return Finding::ok("IPv6", MEANS, "available");
    }
    Finding::ok("IPv6", MEANS, "there is no [::1]").but(
        Level::Warning,
        "sysctl net.ipv6.conf.lo.disable_ipv6=0, if services have IPv6 addresses",
        "everything over IPv4",
    )
}

#[cfg(test)]
mod tests;
