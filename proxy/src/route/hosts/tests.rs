use super::*;

fn hostname(text: &str) -> Hostname {
    match text.strip_prefix("*.") {
        Some(suffix) => Hostname::Wildcard(suffix.into()),
        None => Hostname::Exact(text.into()),
    }
}

fn listeners(names: &[&'static str]) -> Listeners<&'static str> {
    let hostname = |name: &str| (!name.is_empty()).then(|| hostname(name));
    Listeners::build(names.iter().map(|&name| (hostname(name), name)).collect())
}

#[test]
fn the_most_specific_listener_takes_the_request() {
    let all = listeners(&["", "*.com", "*.example.com", "www.example.com", "example.com"]);
    for (host, expected) in [
        ("www.example.com", "www.example.com"),
        ("example.com", "example.com"),
        ("api.example.com", "*.example.com"),
        ("v1.api.example.com", "*.example.com"),
        ("x.www.example.com", "*.example.com"),
        ("other.com", "*.com"),
        ("com", ""),
        ("example.org", ""),
        ("wexample.com", "*.com"),
        ("127.0.0.1", ""),
        ("[::1]", ""),
        ("", ""),
    ] {
        assert_eq!(all.find(host), Some(&expected), "{host}");
    }
}

#[test]
fn a_wildcard_stands_for_at_least_one_label() {
    let wildcard = listeners(&["*.example.com"]);
    for (host, expected) in [
        ("a.example.com", true),
        ("a.b.example.com", true),
        ("example.com", false),
        (".example.com", false),
        ("aexample.com", false),
        ("a.example.com.evil.org", false),
        ("", false),
    ] {
        assert_eq!(wildcard.find(host).is_some(), expected, "{host}");
        assert_eq!(matches(&hostname("*.example.com"), host), expected, "{host}");
    }
}

#[test]
fn the_first_of_equal_listeners_stays() {
    let map = Listeners::build(vec![(None, 1), (None, 2)]);
    assert_eq!(map.find("any"), Some(&1));
}

/// The examples of `hostnames` in HTTPRouteSpec and of `hostname` in Listener, and their mirror images.
#[test]
fn hostnames_of_route_and_listener_intersect() {
    let table: [(&str, &[&str], &[&str]); 16] = [
        ("", &[], &[""]),
        ("", &["a.com", "*.b.com"], &["a.com", "*.b.com"]),
        ("a.com", &[], &["a.com"]),
        ("*.a.com", &[], &["*.a.com"]),
        ("test.example.com", &["test.example.com"], &["test.example.com"]),
        ("test.example.com", &["*.example.com"], &["test.example.com"]),
        ("test.example.com", &["*.example.com", "test.example.com"], &["test.example.com"]),
        ("test.example.com", &["foo.example.com", "*.example.org"], &[]),
        ("*.example.com", &["test.example.com", "foo.test.example.com"], &["test.example.com", "foo.test.example.com"]),
        ("*.example.com", &["example.com"], &[]),
        ("*.example.com", &["*.example.com"], &["*.example.com"]),
        ("*.example.com", &["*.test.example.com"], &["*.test.example.com"]),
        ("*.test.example.com", &["*.example.com"], &["*.test.example.com"]),
        ("*.example.com", &["*.com", "test.example.net"], &["*.example.com"]),
        ("*.example.com", &["*.badexample.com", "badexample.com"], &[]),
        ("*.badexample.com", &["*.example.com"], &[]),
    ];
    for (listener, route, expected) in table {
        let optional = |name: &&str| (!name.is_empty()).then(|| hostname(name));
        let route: Vec<_> = route.iter().map(|name| hostname(name)).collect();
        let expected: Vec<_> = expected.iter().map(optional).collect();
        assert_eq!(intersect(optional(&listener).as_ref(), &route), expected, "{listener} {route:?}");
    }
}

#[test]
fn lengths_are_a_set() {
    let mut lengths = Lengths::default();
    for length in [0, 63, 64, 300] {
        lengths.insert(length);
    }
    assert_eq!((0..2000).filter(|&length| lengths.contains(length)).collect::<Vec<_>>(), [0, 63, 64, 300]);
    assert_eq!((lengths.max(), Lengths::default().max()), (300, 0));
}
