//! What the kernel demands and aya does not have. The only unsafe code of the agent.
#![allow(unsafe_code, reason = "system calls without a safe wrapper")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

/// Where a program is attached (`enum bpf_attach_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum AttachType {
    /// cgroup/sock_ops
    SockOps = 3,
    /// cgroup/connect4
    Connect4 = 10,
    /// cgroup/connect6
    Connect6 = 11,
    /// cgroup/getpeername4
    GetPeerName4 = 29,
    /// cgroup/getpeername6
    GetPeerName6 = 30,
}

/// bpf(2). `attributes` is one of the members of `union bpf_attr`, which is zero beyond it.
///
/// # Safety
/// It has to be the one that belongs to `command`, and what it points to has to live through the call.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: promised by the caller; the kernel reads no more than `size_of::<T>()` bytes.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>() as libc::c_long)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// SAFETY: `fd` was returned by the kernel just now, and belongs to nobody else.
unsafe fn owned(fd: libc::c_long) -> OwnedFd {
    // A descriptor is an int.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Attaches a program to a cgroup, beside those of others.
///
/// # Errors
/// What the kernel says.
pub fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, kind: AttachType) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_long = 28;
    let attributes = [number(program), number(cgroup), kind as u32, 0];
    // SAFETY: link_create { prog_fd, target_fd, attach_type, flags }; the result is a new descriptor.
    unsafe { bpf(BPF_LINK_CREATE, &attributes).map(|fd| owned(fd)) }
}

/// Replaces the program of a link in one step: no connect() meets none, none meets two.
///
/// # Errors
/// What the kernel says, for instance when the cgroup of the link is gone (ENOLINK).
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_long = 29;
    let attributes = [number(link), number(program), 0, 0];
    // SAFETY: link_update { link_fd, new_prog_fd, flags, old_prog_fd }.
    unsafe { bpf(BPF_LINK_UPDATE, &attributes).map(drop) }
}

/// Takes the program of a link away from its cgroup at once, whoever has the link open.
///
/// # Errors
/// What the kernel says.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_DETACH: libc::c_long = 34;
    // SAFETY: link_detach { link_fd }.
    unsafe { bpf(BPF_LINK_DETACH, &number(link)).map(drop) }
}

/// Attributes of BPF_OBJ_PIN and BPF_OBJ_GET.
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Pins a link: it stays when nobody has it open.
///
/// # Errors
/// What the kernel says.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: libc::c_long = 6;
    let path = c_path(path)?;
    // SAFETY: the path ends with a zero and lives through the call.
    unsafe { bpf(BPF_OBJ_PIN, &Object { path: path.as_ptr() as u64, fd: number(fd), flags: 0 }).map(drop) }
}

/// Opens what is pinned.
///
/// # Errors
/// What the kernel says.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = c_path(path)?;
    // SAFETY: as above; the result is a new descriptor.
    unsafe { bpf(BPF_OBJ_GET, &Object { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(|fd| owned(fd)) }
}

/// What a link of a cgroup is (`struct bpf_link_info`).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct LinkInfo {
    kind: u32,
    /// Unique on this host.
    pub id: u32,
    /// The program behind it.
    pub program: u32,
    pad: u32,
    /// The cgroup; 0 when it is gone.
    pub cgroup: u64,
    attach_type: u32,
    pad2: u32,
}

/// Looks at a link.
///
/// # Errors
/// What the kernel says.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    #[repr(C)]
    struct Attributes {
        fd: u32,
        size: u32,
        to: u64,
    }
    let mut info = LinkInfo::default();
    let attributes = Attributes { fd: number(link), size: size_of::<LinkInfo>() as u32, to: (&raw mut info) as u64 };
    // SAFETY: the kernel writes at most `size` bytes to `info`, any of which are a value of it.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)? };
    Ok(info)
}

/// The cookie of the network namespace that a socket is in.
///
/// # Errors
/// On kernels before 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `size` bytes to `cookie`.
    let done = unsafe {
        let to = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut size)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// The clock of the kernel programs: nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::try_from(now).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A value as the kernel wrote it; `None` if there are too few bytes.
pub fn read<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, and any bytes are a value of a Pod.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
