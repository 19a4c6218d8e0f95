#![allow(clippy::unwrap_used)]

use http::uri::PathAndQuery;
use proptest::prelude::*;

use super::*;

#[test]
fn a_normal_path_is_borrowed() {
    for path in [
        "/",
        "/a",
        "/a/b/",
        "/a//b",
        "//",
        "/a.b/.c/...",
        "/a;v=1/b,c/@x:y/!$&'()*+=~_-",
        "/{id}|^\"",
        "/a%20b%2F",
        "*",
    ] {
        assert!(matches!(normalize(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
    }
}

#[test]
fn equivalent_paths_have_one_form() {
    for (path, expected) in [
        ("/%61%2Db%5f%7E", "/a-b_~"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%5cb", "/a%5Cb"),
        ("/a%20b%25", "/a%20b%25"),
        ("/%252e%252e/", "/%252e%252e/"),
        ("/a%0d%0a", "/a%0D%0A"),
        ("/.", "/"),
        ("/./", "/"),
        ("/./a", "/a"),
        ("/a/.", "/a/"),
        ("/a/./b", "/a/b"),
        ("/a/..", "/"),
        ("/a/../", "/"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/c/./../../g", "/a/g"),
        ("/a//../b", "/a/b"),
        ("//..", "/"),
        ("/.//x", "//x"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e", "/"),
        ("/a/%2e", "/a/"),
        ("/a/..%2fb", "/a/..%2Fb"),
        ("/a/...", "/a/..."),
        ("/a/.b", "/a/.b"),
        ("/a/b..", "/a/b.."),
        ("/a/..;/b", "/a/..;/b"),
    ] {
        assert_eq!(normalize(path).as_deref(), Ok(expected), "{path}");
    }
}

#[test]
fn what_servers_read_differently_is_refused() {
    for (path, expected) in [
        ("", PathError::NotAbsolute),
        ("a", PathError::NotAbsolute),
        ("*a", PathError::NotAbsolute),
        ("%2Fa", PathError::NotAbsolute),
        ("http://a/b", PathError::NotAbsolute),
        ("/a\\b", PathError::Backslash),
        ("/..\\a", PathError::Backslash),
        ("/a#b", PathError::Delimiter),
        ("/a?b", PathError::Delimiter),
        ("/a b", PathError::Byte),
        ("/a\tb", PathError::Byte),
        ("/a\r\nb", PathError::Byte),
        ("/a\0", PathError::Byte),
        ("/a\x7f", PathError::Byte),
        ("/caf\u{e9}", PathError::Byte),
        ("/%00", PathError::Nul),
        ("/%", PathError::Escape),
        ("/%2", PathError::Escape),
        ("/%zz", PathError::Escape),
        ("/%+1", PathError::Escape),
        ("/%%41", PathError::Escape),
        ("/%u002f", PathError::Escape),
        ("/..", PathError::AboveRoot),
        ("/../a", PathError::AboveRoot),
        ("/a/../../b", PathError::AboveRoot),
        ("/./..", PathError::AboveRoot),
        ("/%2e%2e/%2e%2e/etc/passwd", PathError::AboveRoot),
    ] {
        assert_eq!(normalize(path), Err(expected), "{path:?}");
    }
}

/// Mostly what normalisation cares about.
fn paths() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[/.a%]",
        4 => proptest::sample::select(vec!["/", "..", ".", "%2e", "%2E", "%2f", "%25", "%61", "%c3", "2e", "//"])
            .prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
    ];
    prop_oneof![
        proptest::collection::vec(piece, 0..16).prop_map(|pieces| format!("/{}", pieces.concat())),
        any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_normal_form_is_a_fixed_point(path in paths()) {
        if let Ok(normal) = normalize(&path) {
            let again = normalize(&normal);
            prop_assert!(matches!(&again, Ok(Cow::Borrowed(same)) if *same == normal), "{} {:?}", normal, again);
        }
    }

    #[test]
    fn the_normal_form_has_no_dot_segments(path in paths()) {
        if let Ok(normal) = normalize(&path) {
            prop_assert!(normal == "*" || normal.starts_with('/'));
            prop_assert!(normal.split('/').all(|segment| segment != "." && segment != ".."), "{}", normal);
            prop_assert!(normal.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'\\'), "{}", normal);
            let lower = normal.to_ascii_lowercase();
            prop_assert!(!lower.contains("%2e") && !lower.contains("%00"), "{}", normal);
        }
    }

    /// Whatever the HTTP parser lets in and normalisation accepts can be sent again.
    #[test]
    fn a_normal_path_is_a_request_target(path in paths()) {
        if let Ok(target) = PathAndQuery::try_from(&*path)
            && let Ok(normal) = normalize(target.path())
        {
            let again = PathAndQuery::try_from(&*normal).unwrap();
            prop_assert_eq!(again.path(), &*normal);
            prop_assert_eq!(again.query(), None);
        }
    }

    #[test]
    fn hosts_are_read_or_refused(authority in "[a-bA-B.:\\[\\]@ 0-9%-]{0,12}|\\PC{0,20}") {
        if let Ok((host, port)) = host_of(&authority) {
            let again = host_of(&host);
            prop_assert!(matches!(&again, Ok((Cow::Borrowed(same), None)) if *same == host), "{} {:?}", host, again);
            prop_assert!(!host.is_empty() && port != Some(0));
            prop_assert!(http::uri::Authority::try_from(&*host).is_ok(), "{}", host);
        }
    }
}

#[test]
fn hosts_are_lower_case_without_port_and_dot() {
    for (authority, host, port) in [
        ("example.com", "example.com", None),
        ("Example.COM", "example.com", None),
        ("example.com:8080", "example.com", Some(8080)),
        ("example.com.", "example.com", None),
        ("Example.com.:80", "example.com", Some(80)),
        ("my_service", "my_service", None),
        ("10.0.0.1:65535", "10.0.0.1", Some(65535)),
        ("[::1]", "[::1]", None),
        ("[2001:DB8::1]:443", "[2001:db8::1]", Some(443)),
        ("a:0080", "a", Some(80)),
    ] {
        assert_eq!(host_of(authority), Ok((Cow::Borrowed(host), port)), "{authority}");
    }
    assert!(matches!(host_of("example.com.:80"), Ok((Cow::Borrowed(_), _))));
}

#[test]
fn odd_hosts_are_refused() {
    let long = "a".repeat(254);
    for (authority, expected) in [
        ("", HostError::Empty),
        (":80", HostError::Empty),
        (".", HostError::Empty),
        (".example.com", HostError::Empty),
        ("a..b", HostError::Empty),
        ("a..", HostError::Empty),
        ("user@example.com", HostError::Userinfo),
        ("user:pass@example.com:80", HostError::Userinfo),
        ("@", HostError::Userinfo),
        ("[::1]@a", HostError::Userinfo),
        ("a b", HostError::Character),
        (" a", HostError::Character),
        ("a/b", HostError::Character),
        ("a%41", HostError::Character),
        ("a,b", HostError::Character),
        ("*.a", HostError::Character),
        ("b\u{fc}cher.de", HostError::Character),
        ("a\r\nx: y", HostError::Character),
        ("a\\b", HostError::Character),
        ("[::1", HostError::Character),
        ("[]", HostError::Character),
        ("[fe80::1%25eth0]", HostError::Character),
        ("[v1.a]", HostError::Character),
        ("[::1]80", HostError::Character),
        ("::1", HostError::Empty),
        ("a:b:c", HostError::Port),
        ("a:80:80", HostError::Port),
        ("a:", HostError::Port),
        ("a:0", HostError::Port),
        ("a:65536", HostError::Port),
        ("a:+80", HostError::Port),
        ("a: 80", HostError::Port),
        ("a:000080", HostError::Port),
        ("[::1]:", HostError::Port),
        (&long, HostError::TooLong),
    ] {
        assert_eq!(host_of(authority), Err(expected), "{authority:?}");
    }
}
