//! The kernel programs: loaded, attached, taken over from a process that was here before.

use std::{
    borrow::Cow,
    fmt::Display,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::MapError,
    programs::{Program, ProgramError},
};

use crate::{
    cgroup::{Cgroup, CgroupError},
    pins::Pins,
    sys::{self, AttachType},
};

/// The programs that are attached; the shim is for tests only.
pub const PROGRAMS: [(&str, AttachType); 5] = [
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
    ("getpeername4", AttachType::GetPeerName4),
    ("getpeername6", AttachType::GetPeerName6),
    ("sock_ops", AttachType::SockOps),
];

const MISSING: &str = "the object does not have it";

/// Every map, each pinned.
pub const MAPS: [&str; 17] = [
    "SETTINGS",
    "HEARTBEAT",
    "VIPS",
    "SLOTS",
    "ENDPOINTS",
    "HOLD",
    "STATS",
    "WORKLOADS",
    "POLICY",
    "BLOCKS",
    "NAMESPACES",
    "META",
    "HANDOFF",
    "CONNECTIONS",
    "VERDICTS",
    "EVENTS",
    "EVENT_RATE",
];

/// The object that belongs to this Weft.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../weft.bpf.o");

/// Why the kernel side is not there.
#[derive(Debug, thiserror::Error)]
pub enum EbpfSetupError {
    /// The attach point.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Another process manages the programs there.
    #[error("another Weft manages {0}: one agent for each attach point (--cgroup)")]
    Taken(PathBuf),
    /// Pins.
    #[error("BPF file system: {source}{}", hint(.source))]
    Pins {
        /// What the kernel says.
        source: io::Error,
    },
    /// The object cannot be read.
    #[error("{path}: {source}")]
    Object {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Maps or programs do not load.
    #[error("cannot load: {}{}", chain(.source), hint_in(.source))]
    Load {
        /// What aya says.
        #[from]
        source: EbpfError,
    },
    /// One program does not load.
    #[error("program {name}: {}{}", chain(&**.source), hint_in(&**.source))]
    Program {
        /// Which.
        name: &'static str,
        /// What the kernel says.
        source: Box<ProgramError>,
    },
    /// One program is not attached.
    #[error("cannot attach {name}: {why}")]
    Attach {
        /// Which.
        name: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// A map is not what it should be.
    #[error("map {name}: {source}")]
    Map {
        /// Which.
        name: &'static str,
        /// What aya says.
        source: MapError,
    },
    /// Anything else.
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (needs root, or CAP_BPF with CAP_NET_ADMIN; CAP_SYS_ADMIN to mount)",
        Some(libc::ENODEV) => " (this kernel has none: CONFIG_BPF_SYSCALL)",
        _ => "",
    }
}

/// The causes of an error, outermost first.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(error) = inner {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        inner = error.source();
    }
    text
}

fn hint_in(error: &(dyn std::error::Error + 'static)) -> &'static str {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return hint(io);
        }
        next = error.source();
    }
    ""
}

/// The object that is loaded: the one of this build, or the one that `WEFT_BPF_OBJECT` names (for work on the programs).
///
/// # Errors
/// When that cannot be read.
pub fn object() -> Result<Cow<'static, [u8]>, EbpfSetupError> {
    let Some(path) = std::env::var_os("WEFT_BPF_OBJECT").map(PathBuf::from) else { return Ok(OBJECT.into()) };
    std::fs::read(&path).map(Cow::Owned).map_err(|source| EbpfSetupError::Object { path, source })
}

/// Loads maps and programs without attaching anything. Maps that are pinned in `pins` are taken over.
///
/// # Errors
/// When the kernel refuses.
pub fn load(object: &[u8], pins: Option<&Pins>) -> Result<Ebpf, EbpfSetupError> {
    let mut loader = EbpfLoader::new();
    // The programs use no types of the kernel's own.
    loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
    if let Some(pins) = pins {
        pins.create().map_err(|source| EbpfSetupError::Pins { source })?;
        for name in MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut ebpf = loader.load(object)?;
    for (name, _) in PROGRAMS {
        let refused = |source| EbpfSetupError::Program { name, source: Box::new(source) };
        match ebpf.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => program.load().map_err(refused)?,
            Some(Program::SockOps(program)) => program.load().map_err(refused)?,
            _ => return Err(EbpfSetupError::Attach { name, why: MISSING.into() }),
        }
    }
    Ok(ebpf)
}

/// Attaches the programs, or puts them in place of those that are attached: every connect() meets exactly one.
///
/// # Errors
/// When the kernel refuses; programs that were attached until then stay.
pub fn attach(ebpf: &Ebpf, cgroup: &Cgroup, pins: &Pins) -> Result<(), EbpfSetupError> {
    let target = File::open(&cgroup.path)?;
    for (name, kind) in PROGRAMS {
        let failed = |why: &dyn Display| EbpfSetupError::Attach { name, why: why.to_string() };
        let program = ebpf.program(name).ok_or_else(|| failed(&MISSING))?;
        let program = program.fd().map_err(|error| failed(&error))?.as_fd();
        let pin = pins.link(name);
        if replaced(name, program, pins)? {
            continue;
        }
        let link = sys::link_create(program, target.as_fd(), kind).map_err(|error| failed(&error))?;
        sys::pin(link.as_fd(), &pin).map_err(|error| failed(&error))?;
    }
    pins.remove_foreign().map_err(|source| EbpfSetupError::Pins { source })
}

/// Puts the program behind the link that is there, if there is one. A link whose cgroup was removed is dead, and goes.
fn replaced(name: &'static str, program: BorrowedFd<'_>, pins: &Pins) -> Result<bool, EbpfSetupError> {
    let own = pins.link(name);
    let all = [own.clone()].into_iter().chain(pins.foreign_links(name));
    for path in all.filter(|path| path.exists()) {
        let updated = sys::pinned(&path).and_then(|link| {
            sys::link_update(link.as_fd(), program)?;
            if path == own { Ok(()) } else { sys::pin(link.as_fd(), &own) }
        });
        match updated {
            Ok(()) => return Ok(true),
            Err(error) => {
                tracing::info!(program = name, link = %path.display(), %error, "a dead link is left from before");
                std::fs::remove_file(&path)?;
            }
        }
    }
    Ok(false)
}
