#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn capabilities_are_read_from_the_status() {
    let status = "Name:\tweft\nCapPrm:\t0000000000000000\nCapEff:\t000001fffeffffff\nCapBnd:\t000001ffffffffff\n";
    assert_eq!(cap_eff(status), Some(0x1ff_feff_ffff));
    assert_eq!(cap_eff("CapEff:\tx\n"), None);
    assert_eq!(cap_eff(""), None);
}

#[test]
fn privileges_that_are_missing_are_named() {
    let bit = |bits: &[u32]| Some(bits.iter().map(|bit| 1_u64 << bit).sum());
    for (effective, level, found) in [
        (Some(u64::MAX), Level::Ok, "CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN"),
        (bit(&[NET_ADMIN, SYS_ADMIN]), Level::Ok, "CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN"),
        (bit(&[NET_ADMIN, BPF]), Level::Warning, "CAP_BPF and CAP_NET_ADMIN, without CAP_SYS_ADMIN"),
        (bit(&[SYS_ADMIN]), Level::Missing, "without CAP_NET_ADMIN"),
        (bit(&[NET_ADMIN]), Level::Missing, "without CAP_BPF"),
        (Some(0), Level::Missing, "without CAP_BPF and CAP_NET_ADMIN"),
        (None, Level::Warning, "/proc/self/status does not tell"),
    ] {
        let finding = privileges(effective);
        assert_eq!((finding.level, &*finding.found), (level, found), "{effective:?}");
    }
}

#[test]
fn versions() {
    for (release, expected) in [
        ("6.18.44-fc-v669", Some((6, 18))),
        ("5.15.0-157-generic", Some((5, 15))),
        ("6.1", Some((6, 1))),
        ("5.10-rc3", Some((5, 10))),
        ("six", None),
        ("6", None),
        ("", None),
    ] {
        assert_eq!(version(release), expected, "{release:?}");
    }
}

#[test]
fn an_older_kernel_is_told_what_it_lacks() {
    assert_eq!(kernel("6.1.0-18-amd64").level, Level::Ok);
    let old = kernel("5.15.0-157-generic");
    assert_eq!(old.level, Level::Warning);
    assert_eq!(old.found, "5.15.0-157-generic, without the errno of a refused connect() (6.1)");
    let older = kernel("5.4.0").found;
    assert!(older.contains("links of cgroups (5.7), ring buffers") && !older.contains("5.2"), "{older}");
    assert_eq!(kernel("?").level, Level::Warning);
}

#[test]
fn what_ends_sockets_is_missing_or_not_allowed() {
    let of = |errno| sock_destroy(Err(io::Error::from_raw_os_error(errno)));
    assert_eq!(sock_destroy(Ok(())).level, Level::Ok);
    assert_eq!(of(libc::EPERM).found, "not allowed");
    for errno in [libc::ENOENT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EINVAL] {
        let finding = of(errno);
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.found.starts_with("this kernel does not have it: "), "{}", finding.found);
    }
}

#[test]
fn what_is_missing_says_what_to_do_and_what_works() {
    let denied = || io::Error::from_raw_os_error(libc::EPERM);
    for finding in [
        privileges(Some(0)),
        kernel("4.19.0"),
        cgroup2(None),
        bpffs(None),
        loads(Err(denied().into())),
        namespaces(Err(denied())),
        sock_destroy(Err(denied())),
        ipv6(false),
        attach_point(Path::new("/nowhere")),
    ] {
        assert_ne!(finding.level, Level::Ok, "{finding:?}");
        assert!(!finding.found.is_empty() && !finding.remedy.is_empty() && !finding.without.is_empty(), "{finding:?}");
    }
}

#[test]
fn everything_is_looked_at_once() {
    let all = all(true);
    let mut checks: Vec<&str> = all.iter().map(|finding| finding.check).collect();
    checks.sort_unstable();
    checks.dedup();
    assert_eq!(checks.len(), all.len());
}
